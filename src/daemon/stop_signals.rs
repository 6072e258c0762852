//! The signals that the process handles.
//!
//! SIGTERM and SIGINT end it in order. Others would end it silently, and tools send them to daemons
//! out of habit (a terminal that closes, `logrotate`). Those are logged and ignored. No signal has
//! the configuration read again: `isonic upgrade` does that. SIGPIPE is ignored by Rust's runtime
//! from the start. SIGQUIT, SIGABRT and the like still end it, with a core.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Ignored signals, with their names.
const IGNORED: [(i32, &str); 9] = [
    (libc::SIGHUP, "SIGHUP"),
    (libc::SIGUSR1, "SIGUSR1"),
    (libc::SIGUSR2, "SIGUSR2"),
    (libc::SIGALRM, "SIGALRM"),
    (libc::SIGVTALRM, "SIGVTALRM"),
    (libc::SIGIO, "SIGIO"),
    (libc::SIGPWR, "SIGPWR"),
    // A limit on the size of files, or on CPU time: the write fails, and that is logged.
    (libc::SIGXFSZ, "SIGXFSZ"),
    (libc::SIGXCPU, "SIGXCPU"),
];

/// The signals that end the daemon, in order; while this exists no other handled signal ends it.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Take the signals over. Call it inside a runtime, whose tasks log the ignored ones.
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

    /// Wait until the daemon is to end. Returns the signal's name.
    pub async fn stopping(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

async fn ignore(mut signal: Signal, name: &'static str) {
    // None means that the runtime ends.
    while signal.recv().await.is_some() {
        tracing::warn!(
            signal = name,
            "a signal is ignored; `isonic upgrade` reads the configuration again"
        );
    }
}
