//! Why a request was not done. Each message names the value, the limit, and the remedy where the
//! front-end or its operator has one. The session's log line adds port and request.

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use crate::device::features::FeatureSet;
use crate::guest_memory::{LogError, MapError, TableError};
use crate::virtqueue::{ActivateError, EventFdError};

use super::device_state::DeviceStateError;
use super::port_backend::PortBackendError;

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// A request that no protocol feature we offer has.
    #[error("no such request is served; offer the guest only what the backend offers")]
    Unknown,
    /// A request of a protocol feature that SET_PROTOCOL_FEATURES did not acknowledge.
    #[error("its protocol feature (bit {0}) was not negotiated")]
    NotNegotiated(u8),
    /// A reply on the request channel, or flag bits without a meaning.
    #[error("message flags {0:#x} are not those of a request")]
    Flags(u32),
    /// A body of the wrong length.
    #[error("a body of {actual} bytes, and {} to {} are right", .expected.start(), .expected.end())]
    Length {
        /// Bytes.
        actual: usize,
        /// Bytes.
        expected: RangeInclusive<usize>,
    },
    /// Too many or too few descriptors.
    #[error(
        "{actual} file descriptors came with it, and {} to {} are right",
        .expected.start(), .expected.end()
    )]
    Descriptors {
        /// How many came, as far as they were counted.
        actual: usize,
        /// How many the request has.
        expected: RangeInclusive<usize>,
    },
    /// Not all descriptors were received.
    #[error(
        "more file descriptors came with it than any request has, or than this process may have; \
         raise its limit of open files (LimitNOFILE)"
    )]
    DescriptorsCut,
    /// SET_FEATURES beyond GET_FEATURES.
    #[error("features {extra} are not offered by profile {profile}")]
    Features {
        /// The features that are not offered.
        extra: FeatureSet,
        /// The profile's name.
        profile: String,
    },
    /// SET_FEATURES without VIRTIO_F_VERSION_1.
    #[error(
        "version_1 is not acknowledged, and profile {0} has no legacy interface; use a driver of \
         virtio 1, or a profile that offers any_layout"
    )]
    Legacy(String),
    /// SET_FEATURES that would change rings under their workers.
    #[error("features {changed} cannot change while rings run; stop them with GET_VRING_BASE")]
    FeaturesInUse {
        /// The features that would change.
        changed: FeatureSet,
    },
    /// SET_PROTOCOL_FEATURES beyond GET_PROTOCOL_FEATURES.
    #[error("protocol features {extra:#x} are not offered by profile {profile}")]
    ProtocolFeatures {
        /// The feature bits that are not offered.
        extra: u64,
        /// The profile's name.
        profile: String,
    },
    /// A ring that the profile does not have.
    #[error("ring {ring} of {limit}: profile {profile} has no more")]
    NoSuchRing {
        /// As sent, with all its bits.
        ring: u64,
        /// Rings of the profile.
        limit: usize,
        /// The profile's name.
        profile: String,
    },
    /// The descriptor that should be there is not, or the other way round.
    #[error("the no-descriptor flag (bit 8) is {flag} and {count} descriptors came with it")]
    DescriptorFlag {
        /// Bit 8 of the body.
        flag: bool,
        /// Descriptors.
        count: usize,
    },
    /// SET_VRING_NUM above the profile's limit.
    #[error(
        "ring {ring} of {entries} entries: profile {profile} has at most {limit}; give QEMU's \
         device rx_queue_size={limit},tx_queue_size={limit} (QEMU 10.0.13, Debian 13's, gives 1024 \
         whatever they say: take another version)"
    )]
    RingTooLarge {
        /// Ring index.
        ring: usize,
        /// As sent.
        entries: u32,
        /// The profile's `ring_size_max`.
        limit: u16,
        /// The profile's name.
        profile: String,
    },
    /// A change to a ring that runs.
    #[error("ring {0} is started; stop it with GET_VRING_BASE first")]
    Started(usize),
    /// SET_VRING_BASE with more than an index.
    #[error("ring {ring}: base {base:#x} is above 0xffff, the largest index of a split ring")]
    Base {
        /// Ring index.
        ring: usize,
        /// As sent.
        base: u32,
    },
    /// SET_VRING_ENABLE with neither 0 nor 1.
    #[error("ring {ring}: enable is {value}, and 0 or 1 is right")]
    Enable {
        /// Ring index.
        ring: usize,
        /// As sent.
        value: u32,
    },
    /// SET_VRING_ENABLE though SET_FEATURES left out bit 30.
    #[error("protocol_features (bit 30) is not acknowledged; all rings are enabled then")]
    AlwaysEnabled,
    /// SET_VRING_ADDR with other flags than that of logging, or with that flag though log_all is
    /// not offered.
    #[error("ring {ring}: address flags {flags:#x}, and {offered:#x} are offered")]
    AddressFlags {
        /// Ring index.
        ring: usize,
        /// As sent.
        flags: u32,
        /// Those that have a meaning here.
        offered: u32,
    },
    /// A ring that cannot run as described.
    #[error("ring {ring} cannot run")]
    Activate {
        /// Ring index.
        ring: usize,
        /// The reason.
        #[source]
        source: ActivateError,
    },
    /// A kick, call or error descriptor that cannot serve.
    #[error("ring {ring} cannot use its descriptor")]
    Event {
        /// Ring index.
        ring: usize,
        /// The reason.
        #[source]
        source: EventFdError,
    },
    /// SET_MEM_TABLE with no region, too many, or a count that its body belies.
    #[error(
        "{count} memory regions in {bytes} bytes with {descriptors} file descriptors; \
             1 to {limit} are served, of 32 bytes and one descriptor each"
    )]
    RegionCount {
        /// As sent.
        count: u32,
        /// Length of the body.
        bytes: usize,
        /// Descriptors that came with the request.
        descriptors: usize,
        /// Regions of one table.
        limit: usize,
    },
    /// ADD_MEM_REG beyond GET_MAX_MEM_SLOTS.
    #[error("{0} memory regions are there, as many as profile {1} has slots")]
    NoSlot(usize, String),
    /// More memory than one port may share.
    #[error(
        "{bytes:#x} bytes of memory regions, and a port may share {limit:#x}; give the VM less \
         memory, or raise `memory_max_gib` of the configuration"
    )]
    MemoryMax {
        /// Bytes of all regions together.
        bytes: u64,
        /// The configuration's `memory_max_gib`, in bytes.
        limit: u64,
    },
    /// A region that cannot be mapped.
    #[error("memory region refused")]
    Map(#[from] MapError),
    /// Regions that do not go together.
    #[error("memory table refused")]
    Table(#[from] TableError),
    /// SET_LOG_BASE with a log that cannot serve, or memory that outgrows the log.
    #[error("dirty log refused")]
    Log(#[from] LogError),
    /// SET_LOG_FD with something else than an event.
    #[error("the log's event descriptor cannot serve")]
    LogEvent(#[source] EventFdError),
    /// NET_SET_MTU with another MTU than the profile's.
    #[error("MTU {asked}: profile {profile} has {mtu}; set host_mtu={mtu} in the front-end")]
    Mtu {
        /// As sent.
        asked: u64,
        /// The profile's MTU.
        mtu: u16,
        /// The profile's name.
        profile: String,
    },
    /// SET_BACKEND_REQ_FD with something else than a connection.
    #[error("the descriptor is no unix stream socket")]
    NotASocket,
    /// A crypto session with a network device.
    #[error("this is a network device, which has no crypto sessions")]
    NoCrypto,
    /// SET_DEVICE_STATE_FD or CHECK_DEVICE_STATE.
    #[error("device state refused")]
    State(#[from] DeviceStateError),
    /// The daemon cannot do it.
    #[error("the daemon cannot do it")]
    Host(#[from] PortBackendError),
}

impl Refusal {
    /// Whether the session cannot continue, since no other request would fare better.
    #[must_use]
    pub fn ends_session(&self) -> bool {
        matches!(self, Self::Host(_))
    }
}
