//! Threads whose blocking system calls can be interrupted.
//!
//! A signal with a handler that does nothing, installed without SA_RESTART, makes a blocked call
//! return EINTR. A thread that is not blocked does not notice.

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::{Mutex, Once, PoisonError};
use std::thread::JoinHandle;

/// A thread that can be interrupted until it is joined.
#[derive(Debug)]
pub struct InterruptibleThread {
    handle: Mutex<Option<JoinHandle<()>>>,
}

impl InterruptibleThread {
    /// Start `body` on a thread of this name.
    ///
    /// # Errors
    /// No thread to be had.
    pub fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        install_handler();
        let handle = std::thread::Builder::new().name(name).spawn(body)?;
        Ok(Self { handle: Mutex::new(Some(handle)) })
    }

    /// Make the system call that the thread is blocked in, if any, return EINTR.
    pub fn interrupt(&self) {
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = &*handle {
            // SAFETY: the thread is not joined while its handle is here, so its id is valid; the
            // signal has a handler. The error for an ended thread does not matter.
            unsafe { libc::pthread_kill(handle.as_pthread_t(), signal()) };
        }
    }

    /// Wait for the thread's end. Does nothing the second time.
    ///
    /// # Errors
    /// The value that the thread panicked with.
    pub fn join(&self) -> std::thread::Result<()> {
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner).take();
        handle.map_or(Ok(()), JoinHandle::join)
    }
}

/// A signal that nothing else in the process uses.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 1
}

extern "C" fn do_nothing(_: libc::c_int) {}

fn install_handler() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: `action` is fully initialised, without SA_RESTART; the handler does nothing.
        let result = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = do_nothing as *const () as usize;
            libc::sigaction(signal(), &raw const action, std::ptr::null_mut())
        };
        assert_eq!(result, 0, "sigaction has no way to fail with these arguments");
    });
}
