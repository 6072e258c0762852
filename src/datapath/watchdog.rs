//! Frees a worker that a front-end has made to wait.
//!
//! The only call of a worker that may block is the signal to a guest: the descriptor is the
//! front-end's too, and although we make it non-blocking when it comes, the front-end can undo
//! that and fill the counter. A worker that neither turns nor sleeps is interrupted; the signal
//! then fails, and the ring breaks as for any other fault.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{RecvTimeoutError, Sender, bounded};

use crate::platform::interrupt::InterruptibleThread;

use super::turns::Turns;

/// Between two looks while all workers wait.
const LOOK: Duration = Duration::from_millis(250);

/// Between two looks while a worker is awake. Its turn takes microseconds; one that was merely not
/// scheduled for so long does not notice that it was interrupted.
const LOOK_AWAKE: Duration = Duration::from_millis(20);

/// What is watched of a worker.
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
