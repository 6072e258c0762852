//! VIRTQUEUE: the device side of the rings a guest shares with us.
//!
//! The floors, each file importing only from those above it:
//!
//! - `fault`: a guest's violations of a ring's rules.
//! - `setup`: a front-end's data about a ring, and why the ring cannot run.
//! - `journal`: where a packed ring is, for the next process; `journals`: the file with those of a
//!   port.
//! - `chain`: descriptors, and the pieces of guest memory that they name.
//! - `ring_log`: marks our writes to a ring itself, during a migration.
//! - `layout`: the operations of a ring, of any layout; `split` and `packed` implement them.
//! - `queue`: a checked setup, running.
//! - `ring`: a queue with its event descriptors.
//!
//! A [`QueueSetup`] gathers the front-end's data about a ring. `activate` checks all of it against
//! the guest's memory, once, and makes a [`Queue`], which resolves nothing again while it runs. Its
//! ring is split or packed. Both implement [`Layout`], and the hot loops are written once, over
//! that.
//!
//! A [`Ring`] is a queue with its event descriptors. A session hands it to a worker and takes it
//! back, and only its present owner may touch it.
//!
//! If we are killed, another process resumes at our position. A split ring has its position in the
//! ring, a packed one in its [`Journal`].
//!
//! While the memory is logged, a ring marks its own writes; the writer of the buffers marks those.
//!
//! The verbs: `take` a chain the driver made available, `complete` it, `publish` the completions,
//! and decide once per burst whether to `notify`. All data from the guest is read once, checked,
//! then used. Every loop is bounded by the ring's size. A [`Fault`] is caused by the guest and ends
//! the ring, never the process.

mod chain;
mod fault;
mod journal;
mod journals;
mod layout;
mod packed;
mod queue;
mod ring;
mod ring_log;
mod setup;
mod split;

pub use chain::{Chain, Direction, Segments};
pub use fault::Fault;
pub use journal::{Journal, TAKEN_MAX};
pub use journals::{JournalError, Journals, SetAside};
pub use layout::{Glance, Layout, RUN, Run, settle};
pub use packed::PackedRing;
pub use queue::{DeviceRing, Queue};
pub use ring::{EventFd, EventFdError, EventKind, Ring, RingKind};
pub use setup::{
    ActivateError, QUEUE_SIZE_MAX, QueueAddresses, QueueOptions, QueueSetup, check_size,
};
pub use split::SplitRing;
