//! The signals that the process hears.
//!
//! SIGTERM and SIGINT end it in order. All others that would end it without a word, and that a tool
//! may send to a daemon out of habit (a terminal that closes, `logrotate`), are told and ignored:
//! there is nothing to read again, for that is what `isonic upgrade` is for. SIGPIPE is ignored by
//! Rust's runtime from the start. SIGQUIT, SIGABRT and the like still end it, with a core.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Ignored, with their names.
const IGNORED: [(i32, &str); 9] = [
    (libc::SIGHUP, "SIGHUP"),
    (libc::SIGUSR1, "SIGUSR1"),
    (libc::SIGUSR2, "SIGUSR2"),
    (libc::SIGALRM, "SIGALRM"),
    (libc::SIGVTALRM, "SIGVTALRM"),
    (libc::SIGIO, "SIGIO"),
    (libc::SIGPWR, "SIGPWR"),
    // A limit on the size of files, or on CPU time: what is written fails, and that is told.
    (libc::SIGXFSZ, "SIGXFSZ"),
    (libc::SIGXCPU, "SIGXCPU"),
];

/// What ends the daemon; from now on it ends in order, and nothing else does.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Take the signals over. Call it inside a runtime, with which those that are ignored are told.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new() -> io::Result<Self> {
        for (number, name) in IGNORED {
            let signal = signal(SignalKind::from_raw(number))?;
            tokio::spawn(ignore(signal, name));
        }
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self { terminate, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits until the daemon is to end; the signal's name.
    pub async fn stopping(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

async fn ignore(mut signal: Signal, name: &'static str) {
    // None only when the runtime ends.
    while signal.recv().await.is_some() {
        tracing::warn!(
            signal = name,
            "a signal is ignored; `isonic upgrade` reads the configuration again"
        );
    }
}
