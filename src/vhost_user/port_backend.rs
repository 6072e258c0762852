//! The calls of a session to the daemon. The session validates and owns its rings until they are
//! started; the port passes them to the workers and back.

use std::sync::Arc;

use crate::device::features::FeatureSet;
use crate::guest_memory::{GuestMemory, MemoryFiles};
use crate::virtqueue::{EventFd, EventKind, Journals, QueueSetup, Ring};

use super::outage::OutageTimes;

/// The port could not do what a valid request asked for.
#[derive(Debug, thiserror::Error)]
pub enum PortBackendError {
    /// The worker that should answer has ended: the daemon is stopping.
    #[error("the worker is gone; the daemon is stopping")]
    Stopping,
    /// The session was left behind when its port stopped.
    #[error("the session did not end when its port stopped, and has no rings any more")]
    CutOff,
}

/// The state that a session has negotiated with its front-end, for `isonic port show`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionBinding {
    /// Offered by GET_FEATURES.
    pub offered: FeatureSet,
    /// Acknowledged by SET_FEATURES.
    pub acknowledged: FeatureSet,
    /// Acknowledged by SET_PROTOCOL_FEATURES.
    pub protocol_features: FeatureSet,
    /// Per ring: entries, once the ring has started.
    pub ring_sizes: Vec<Option<u16>>,
    /// Queue pairs with both rings started and enabled.
    pub queue_pairs: u16,
    /// How long our part of the last stop and start of the rings took.
    pub took: OutageTimes,
    /// Regions of its guest's memory that the front-end shares.
    pub regions: usize,
    /// The request that was refused last, and why.
    pub refusal: Option<Arc<str>>,
}

/// The memory that a front-end may share with us as its guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPolicy {
    /// The files.
    pub files: MemoryFiles,
    /// Bytes of all regions of a port together.
    pub max: u64,
}

impl Default for MemoryPolicy {
    /// Only memory files, without a limit in bytes.
    fn default() -> Self {
        Self { files: MemoryFiles::Shared, max: 1 << 42 }
    }
}

/// The port behind a session. `give`, `take`, `exchange` and `relocate` return when the worker has
/// acknowledged; the other calls return when they are done.
pub trait PortBackend: Send + Sync {
    /// Hand ring `index` (even: to the guest, odd: from the guest) to its worker.
    ///
    /// # Errors
    /// [`PortBackendError`]; the ring is dropped then.
    fn give(&self, index: u16, ring: Ring) -> Result<(), PortBackendError>;

    /// Take ring `index` back from its worker, which has finished with it; None if it has none.
    ///
    /// # Errors
    /// [`PortBackendError`].
    fn take(&self, index: u16) -> Result<Option<Ring>, PortBackendError>;

    /// Use another event descriptor for ring `index`, which is with its worker and stays there.
    ///
    /// # Errors
    /// [`PortBackendError`].
    fn exchange(
        &self,
        index: u16,
        kind: EventKind,
        event: Option<EventFd>,
    ) -> Result<(), PortBackendError>;

    /// Continue with ring `index` in `memory`, set up by `setup` but at its present position.
    /// Returns false, and changes nothing, if it cannot run there or is not with its worker.
    ///
    /// The ring should stay with its worker, so that every frame finds it there. The default takes
    /// it back and gives it again, which is enough where no frames are forwarded.
    ///
    /// # Errors
    /// [`PortBackendError`].
    fn relocate(
        &self,
        index: u16,
        setup: QueueSetup,
        memory: &Arc<GuestMemory>,
    ) -> Result<bool, PortBackendError> {
        let Some(mut ring) = self.take(index)? else { return Ok(false) };
        let moved = ring.relocate(setup, memory).is_ok();
        self.give(index, ring)?;
        Ok(moved)
    }

    /// Tell the network where the guest is now (SEND_RARP).
    fn announce(&self, mac: [u8; 6]);

    /// Record what is negotiated so far.
    fn bound(&self, binding: SessionBinding);

    /// The memory that its front-end may share.
    fn memory_policy(&self) -> MemoryPolicy {
        MemoryPolicy::default()
    }

    /// Where the positions of packed rings outlive this process; None where they need not.
    fn journals(&self) -> Option<Arc<Journals>> {
        None
    }
}
