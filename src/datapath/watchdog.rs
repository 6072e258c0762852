//! Frees a worker that a front-end has made to wait.
//!
//! A worker makes only one call that may block: the signal to a guest. We make its descriptor
//! non-blocking, but the front-end holds it too: it can undo that and fill the counter.
//!
//! A worker that neither turns nor sleeps is interrupted. The signal then fails, and the ring
//! breaks as for any other fault.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{RecvTimeoutError, Sender, bounded};

use crate::platform::interrupt::InterruptibleThread;

use super::turns::Turns;

/// Between two looks while all workers wait.
const LOOK: Duration = Duration::from_millis(250);

/// Between two looks while a worker is awake. Its turn takes microseconds. A worker that was merely
/// not scheduled for so long does not notice the interrupt.
const LOOK_AWAKE: Duration = Duration::from_millis(20);

/// The watched properties of a worker.
#[derive(Debug)]
pub struct Watched {
    /// Its progress, and whether it waits.
    pub turns: Arc<Turns>,
    /// Its thread.
    pub thread: Arc<InterruptibleThread>,
}

/// The thread that watches; ends when dropped.
#[derive(Debug)]
pub struct Watchdog {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Watch these workers.
    ///
    /// # Errors
    /// No thread to be had.
    pub fn start(workers: Vec<Watched>) -> io::Result<Self> {
        let (stop, stopped) = bounded::<()>(0);
        let thread = std::thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
            let mut before = vec![None; workers.len()];
            let awake = || workers.iter().any(|worker| !worker.turns.waiting());
            let pause = || if awake() { LOOK_AWAKE } else { LOOK };
            while stopped.recv_timeout(pause()) == Err(RecvTimeoutError::Timeout) {
                for (worker, before) in workers.iter().zip(&mut before) {
                    look(worker, before);
                }
            }
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

/// Interrupt a worker that has not moved since the last look; `before` is its progress then, None
/// while it sleeps.
fn look(worker: &Watched, before: &mut Option<u64>) {
    let now = (!worker.turns.waiting()).then(|| worker.turns.turns());
    if now.is_some() && now == *before {
        worker.thread.interrupt();
    }
    *before = now;
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It has nothing to panic with.
            let _ = thread.join();
        }
    }
}
