//! Who owns the ports, their sockets, the NICs and the files at this instant: this process, or its
//! successor.
//!
//! ```text
//!           prepare           hand_over            lose
//! Serving ───────────▶ Preparing ─────▶ HandingOver ──▶ Over
//!    │ ▲                   │                │
//!    │ └─ nothing came of it, or a stop ────┘
//!    └── stop ──▶ Stopping
//! ```
//!
//! Only in `Serving` may a request change anything: so the state that a successor reads at its
//! start is still true when it takes over. In `Over` this process touches nothing. The phase
//! changes to `Preparing` and `HandingOver` under the registry's lock; so a thread that has that
//! lock and found `Serving` may finish.

use std::fmt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The phase of ownership of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum OwnershipPhase {
    /// It is the owner.
    #[default]
    Serving,
    /// It is the owner, and a successor gets ready.
    Preparing,
    /// Everything is paused, between the two.
    HandingOver,
    /// Another process is the owner.
    Over,
    /// It gives everything back.
    Stopping,
}

impl OwnershipPhase {
    fn check(self) -> Result<(), DaemonBusy> {
        match self {
            Self::Serving => Ok(()),
            Self::Preparing | Self::HandingOver => Err(DaemonBusy::Upgrading),
            Self::Over => Err(DaemonBusy::Over),
            Self::Stopping => Err(DaemonBusy::Stopping),
        }
    }
}

/// Why a request was not executed; repeating it is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DaemonBusy {
    /// A successor gets ready, or takes over.
    #[error("an upgrade is under way, and nothing was changed; ask again in a moment")]
    Upgrading,
    /// A port is being removed or changed, and its session has not ended yet.
    #[error("a port is being removed or changed, and nothing else was; ask again in a moment")]
    Changing,
    /// Another process has everything.
    #[error("a new process has taken over, and nothing was changed by the old one; ask again")]
    Over,
    /// The daemon ends.
    #[error("isonic is stopping, and nothing was changed; ask again when it has started")]
    Stopping,
}

/// Cancels a preparation.
type Cancel = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct OwnershipState {
    phase: OwnershipPhase,
    stop_asked: bool,
    cancel: Option<Cancel>,
}

/// The phase of this process.
#[derive(Default)]
pub struct Ownership {
    state: Mutex<OwnershipState>,
    changed: Condvar,
}

impl fmt::Debug for Ownership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ownership").field(&self.state().phase).finish()
    }
}

impl Ownership {
    fn state(&self) -> MutexGuard<'_, OwnershipState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Check that something may be changed now.
    ///
    /// # Errors
    /// [`DaemonBusy`].
    pub fn check(&self) -> Result<(), DaemonBusy> {
        self.state().phase.check()
    }

    /// Check that this process knows the current state.
    ///
    /// # Errors
    /// [`DaemonBusy`].
    pub fn check_readable(&self) -> Result<(), DaemonBusy> {
        match self.state().phase {
            OwnershipPhase::Preparing => Ok(()),
            phase => phase.check(),
        }
    }

    /// Whether another process owns everything.
    pub fn is_over(&self) -> bool {
        self.state().phase == OwnershipPhase::Over
    }

    /// Whether this process was told to stop.
    pub fn stop_asked(&self) -> bool {
        self.state().stop_asked
    }

    /// Begin to prepare a hand-over. Call it with the ports locked.
    ///
    /// # Errors
    /// [`DaemonBusy`].
    pub fn prepare(&self) -> Result<(), DaemonBusy> {
        let mut state = self.state();
        state.phase.check()?;
        if state.stop_asked {
            return Err(DaemonBusy::Stopping);
        }
        state.phase = OwnershipPhase::Preparing;
        Ok(())
    }

    /// Have a request to stop call `cancel` while the successor gets ready.
    pub fn on_stop(&self, cancel: impl FnOnce() + Send + 'static) {
        let mut state = self.state();
        if state.stop_asked {
            drop(state);
            cancel();
        } else {
            state.cancel = Some(Box::new(cancel));
        }
    }

    /// The successor is ready: hand over, with everything paused. Call it with the ports locked.
    ///
    /// # Errors
    /// [`DaemonBusy::Stopping`].
    pub fn hand_over(&self) -> Result<(), DaemonBusy> {
        let mut state = self.state();
        if state.stop_asked {
            return Err(DaemonBusy::Stopping);
        }
        state.cancel = None;
        state.phase = OwnershipPhase::HandingOver;
        Ok(())
    }

    /// The successor owns everything.
    pub fn lose(&self) {
        self.state().phase = OwnershipPhase::Over;
        self.changed.notify_all();
    }

    /// While the result lives, an upgrade is under way. When it is dropped without a new owner,
    /// also by a panic, this process is the owner as before.
    pub fn undecided(&self) -> impl Drop {
        Undecided(self)
    }

    fn settle(&self) {
        let mut state = self.state();
        state.cancel = None;
        if matches!(state.phase, OwnershipPhase::Preparing | OwnershipPhase::HandingOver) {
            state.phase = OwnershipPhase::Serving;
        }
        self.changed.notify_all();
    }

    /// This process was told to stop: a preparation is cancelled, a hand-over comes to its end.
    pub fn ask_to_stop(&self) {
        let mut state = self.state();
        state.stop_asked = true;
        let cancel = state.cancel.take();
        drop(state);
        if let Some(cancel) = cancel {
            cancel();
        }
    }

    /// Wait for the outcome of an upgrade that is under way, and let nobody change anything from
    /// then on. Answers whether another process owns everything.
    pub fn stop(&self) -> bool {
        if self.is_over() {
            return true;
        }
        self.ask_to_stop();
        let under_way = |state: &mut OwnershipState| {
            matches!(state.phase, OwnershipPhase::Preparing | OwnershipPhase::HandingOver)
        };
        let waited = self.changed.wait_while(self.state(), under_way);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        if state.phase == OwnershipPhase::Over {
            return true;
        }
        state.phase = OwnershipPhase::Stopping;
        false
    }
}

struct Undecided<'o>(&'o Ownership);

impl Drop for Undecided<'_> {
    fn drop(&mut self) {
        self.0.settle();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn only_the_owner_changes_anything_and_whoever_asks_is_told_to_ask_again() {
        let ownership = Ownership::default();
        assert_eq!((ownership.check(), ownership.check_readable()), (Ok(()), Ok(())));
        ownership.prepare().unwrap();
        assert_eq!(ownership.check(), Err(DaemonBusy::Upgrading));
        assert_eq!(ownership.check_readable(), Ok(()));
        assert_eq!(ownership.prepare(), Err(DaemonBusy::Upgrading));
        ownership.hand_over().unwrap();
        assert_eq!(ownership.check_readable(), Err(DaemonBusy::Upgrading));
        drop(ownership.undecided());
        assert_eq!(ownership.check(), Ok(()));
        ownership.prepare().unwrap();
        ownership.hand_over().unwrap();
        ownership.lose();
        drop(ownership.undecided());
        assert_eq!((ownership.check(), ownership.is_over()), (Err(DaemonBusy::Over), true));
    }

    #[test]
    fn a_stop_cuts_a_preparation_short_and_waits_for_a_hand_over() {
        let ownership = Arc::new(Ownership::default());
        ownership.prepare().unwrap();
        let cancelled = Arc::new(AtomicBool::new(false));
        let cancel = |ownership: &Ownership| {
            let cancelled = Arc::clone(&cancelled);
            ownership.on_stop(move || cancelled.store(true, Ordering::Release));
        };
        cancel(&ownership);
        ownership.ask_to_stop();
        assert!(cancelled.swap(false, Ordering::AcqRel));
        assert_eq!(ownership.hand_over(), Err(DaemonBusy::Stopping));
        // The request to stop came before there was anything to cancel.
        cancel(&ownership);
        assert!(cancelled.load(Ordering::Acquire));
        drop(ownership.undecided());
        assert!(!ownership.stop());
        assert_eq!(ownership.check(), Err(DaemonBusy::Stopping));

        let ownership = Arc::new(Ownership::default());
        ownership.prepare().unwrap();
        ownership.hand_over().unwrap();
        let waits = Arc::clone(&ownership);
        let stopped = std::thread::spawn(move || waits.stop());
        while !ownership.stop_asked() {
            std::thread::yield_now();
        }
        ownership.lose();
        assert!(stopped.join().unwrap(), "another process has everything");
    }
}
