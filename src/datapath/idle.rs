//! When to sleep: a little after the last packet, so that a burst is met awake and idleness
//! costs nothing.

/// Empty turns before sleep. A turn of an idle worker takes some 50 to 200 ns. So this is a few
/// tens of microseconds: about the cost of a sleep and a wake-up.
const EMPTY_TURNS_MAX: u32 = 256;

/// Counts empty turns.
#[derive(Debug, Default)]
pub(super) struct Idle {
    empty_turns: u32,
}

impl Idle {
    /// Whether to sleep now, after a turn that moved this many packets.
    pub fn after_turn(&mut self, work: usize) -> bool {
        if work > 0 {
            self.empty_turns = 0;
            return false;
        }
        self.empty_turns += 1;
        if self.empty_turns < EMPTY_TURNS_MAX {
            std::hint::spin_loop();
            return false;
        }
        self.empty_turns = 0;
        true
    }
}
