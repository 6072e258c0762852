//! Limits the work of a worker on one flooded frame.

/// Most copies that a worker makes of one frame, segments of it counted: four for each port there
/// may be.
const COPIES_MAX: usize = 4096;
/// Most bytes that a worker copies of one frame, which takes some half a millisecond. At an MTU of
/// 1500 this is more copies than there may be ports.
const BYTES_MAX: u64 = 4 << 20;

/// The copies and bytes that a frame may still cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct FloodBudget {
    copies: usize,
    bytes: u64,
}

impl FloodBudget {
    /// The whole budget, for a frame that was not copied yet.
    pub fn new() -> Self {
        Self { copies: COPIES_MAX, bytes: BYTES_MAX }
    }

    /// Whether some is left; a copy of so many bytes then uses it up.
    pub fn take(&mut self, bytes: u32) -> bool {
        if self.copies == 0 || self.bytes == 0 {
            return false;
        }
        self.copies -= 1;
        self.bytes = self.bytes.saturating_sub(bytes.into());
        true
    }

    /// How many copies were made.
    pub fn copies(self) -> usize {
        COPIES_MAX - self.copies
    }
}
