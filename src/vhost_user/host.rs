//! What a session asks of the daemon. The session validates and owns its rings until they are
//! started; the host passes them to the workers and back.

use crate::device::features::FeatureSet;
use crate::virtqueue::{EventFd, EventKind, Ring};

/// The host could not do what a valid request asked for.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The worker that should answer has ended: the daemon is stopping.
    #[error("the worker is gone; the daemon is stopping")]
    Stopping,
}

/// What a session has come to agree on with its front-end, for `isonic port show`.
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
}

/// The port behind a session. A call returns when what it says is true: for `give`, `take` and
/// `exchange`, when the worker has acknowledged.
pub trait PortHost: Send + Sync {
    /// Hand ring `index` (even: to the guest, odd: from the guest) to its worker.
    ///
    /// # Errors
    /// [`HostError`]; the ring is dropped then.
    fn give(&self, index: u16, ring: Ring) -> Result<(), HostError>;

    /// Take ring `index` back from its worker, which has finished with it; None if it has none.
    ///
    /// # Errors
    /// [`HostError`].
    fn take(&self, index: u16) -> Result<Option<Ring>, HostError>;

    /// Use another event descriptor for ring `index`, which is with its worker and stays there.
    ///
    /// # Errors
    /// [`HostError`].
    fn exchange(
        &self,
        index: u16,
        kind: EventKind,
        event: Option<EventFd>,
    ) -> Result<(), HostError>;

    /// Tell the network where the guest is now (SEND_RARP).
    fn announce(&self, mac: [u8; 6]);

    /// Record what is agreed on so far.
    fn bound(&self, binding: SessionBinding);
}
