//! The device as the front-end has set it up so far, and which rings are with their workers.
//!
//! One session thread owns it. Invariants: a ring whose `started` is set is with its worker and
//! nowhere else; its memory table is `memory`. A ring is taken back before anything that it depends
//! on changes while it is started. Dropping the device takes all rings back and unmaps last.

#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType};
use vhost::vhost_user::message::FrontendReq;

use crate::device::features::{
    EVENT_IDX, FeatureSet, INDIRECT_DESC, NOTIFY_ON_EMPTY, PROTOCOL_FEATURES, PROTOCOL_REPLY_ACK,
    RING_PACKED, TRANSPORT, VERSION_1,
};
use crate::guest_memory::{DirtyLog, GuestMemory, MappingBudget, RegionSpec};
use crate::profile::Profile;
use crate::virtqueue::QueueOptions;

use super::deferred_close::DeferredClose;
use super::device_state::{DeviceState, DeviceStateError, LastRun, state_of};
use super::outage::{Outage, RingsChange, StartedRings};
use super::port_backend::{MemoryPolicy, PortBackend, SessionBinding};
use super::refusal::Refusal;
use super::requests::RequestRule;
use super::ring_state::RingState;
use super::transport::Message;

/// Rings that SET_VRING_KICK can name: it has 8 bits for the index.
const RINGS_MAX: usize = 256;
/// Longest text of a refusal that is kept, characters.
const REFUSAL_MAX: usize = 400;
/// FEATURES_OK of the device status (virtio 1.2, 2.1).
const FEATURES_OK: u8 = 8;

/// See the module's header.
pub(super) struct Device {
    pub(super) profile: Arc<Profile>,
    pub(super) backend: Arc<dyn PortBackend>,
    /// SET_FEATURES; None before the first and after a reset.
    pub(super) acknowledged: Option<FeatureSet>,
    /// SET_PROTOCOL_FEATURES.
    pub(super) protocol: FeatureSet,
    pub(super) status: u8,
    pub(super) rings: Vec<RingState>,
    /// The regions in force, and the log if that is in force too.
    pub(super) memory: Arc<GuestMemory>,
    /// SET_LOG_BASE, whether in force or not.
    pub(super) log: Option<Arc<DirtyLog>>,
    /// The bases that the front-end knows of rings. Set only while messages are replayed that
    /// another process recorded: the bases in those messages are where the rings are.
    pub(super) known_bases: Vec<Option<u32>>,
    /// The rings of the last run, for a state that is asked for when all rings have stopped.
    pub(super) last_run: LastRun,
    outage: Outage,
    /// SET_BACKEND_REQ_FD: where our requests would go. It is kept because a front-end takes the
    /// close of its end for a failure.
    pub(super) backend_channel: Option<DeferredClose<OwnedFd>>,
    /// The budget of mappings of the port: the limit and the bytes in use.
    pub(super) room: Arc<MappingBudget>,
    /// Bytes that its regions may have.
    pub(super) memory_max: u64,
    /// Regions that were removed one by one, and not added again.
    pub(super) removed: Vec<RegionSpec>,
    /// SET_FEATURES was refused since it was last done: see [`RingState::refused`].
    pub(super) features_refused: bool,
    /// SET_MEM_TABLE was refused since it was last done.
    pub(super) memory_refused: bool,
    /// The request that was refused last, and why.
    last_refusal: Option<Arc<str>>,
}

impl Device {
    /// A device as a front-end finds it when it connects.
    pub fn new(profile: Arc<Profile>, backend: Arc<dyn PortBackend>) -> Self {
        let rings = (usize::from(profile.queue_pairs_max) * 2).min(RINGS_MAX);
        let MemoryPolicy { files, max } = backend.memory_policy();
        let mut device = Self {
            rings: std::iter::repeat_with(RingState::default).take(rings).collect(),
            profile,
            backend,
            acknowledged: None,
            protocol: FeatureSet::default(),
            status: 0,
            memory: Arc::default(),
            log: None,
            known_bases: Vec::new(),
            last_run: LastRun::default(),
            outage: Outage::default(),
            backend_channel: None,
            room: MappingBudget::new(files),
            memory_max: max,
            removed: Vec::new(),
            features_refused: false,
            memory_refused: false,
            last_refusal: None,
        };
        device.publish();
        device
    }

    /// Whether the front-end may ask for acknowledgements.
    pub fn acknowledges(&self) -> bool {
        self.protocol.has(PROTOCOL_REPLY_ACK)
    }

    /// Check a request as far as possible before anything of it is done.
    pub fn check(&self, request: &RequestRule, message: &Message) -> Result<(), Refusal> {
        if let Some(bit) = request.feature.filter(|&bit| !self.protocol.has(bit)) {
            return Err(Refusal::NotNegotiated(bit));
        }
        match request.code {
            FrontendReq::SET_FEATURES => self.check_features(FeatureSet(message.body())),
            FrontendReq::SET_PROTOCOL_FEATURES => {
                self.check_protocol_features(FeatureSet(message.body()))
            }
            FrontendReq::SET_MEM_TABLE => self.check_memory_table(message),
            FrontendReq::SET_VRING_ADDR => self.check_addresses(message),
            FrontendReq::SET_VRING_KICK
            | FrontendReq::SET_VRING_CALL
            | FrontendReq::SET_VRING_ERR => self.check_event(message),
            _ => Ok(()),
        }
    }

    fn check_features(&self, features: FeatureSet) -> Result<(), Refusal> {
        let extra = features.without(self.profile.features);
        if !extra.is_empty() {
            return Err(Refusal::Features { extra, profile: self.profile.name.clone() });
        }
        if !features.has(VERSION_1) && !self.profile.is_transitional() {
            return Err(Refusal::Legacy(self.profile.name.clone()));
        }
        // Bit 30 is between us and the front-end, and logging begins and ends while rings run. The
        // workers may have acted on all other bits.
        let before = self.acknowledged.unwrap_or_default();
        let changed = FeatureSet(features.0 ^ before.0).without(TRANSPORT);
        if !changed.is_empty() && self.rings.iter().any(|ring| ring.started) {
            return Err(Refusal::FeaturesInUse { changed });
        }
        Ok(())
    }

    fn check_protocol_features(&self, features: FeatureSet) -> Result<(), Refusal> {
        let extra = features.without(self.profile.protocol_features);
        if extra.is_empty() {
            return Ok(());
        }
        Err(Refusal::ProtocolFeatures { extra: extra.0, profile: self.profile.name.clone() })
    }

    /// SET_FEATURES, checked. It never disables a ring: front-ends repeat it while rings run.
    pub fn acknowledge(&mut self, features: FeatureSet) -> Result<(), Refusal> {
        self.acknowledged = Some(features);
        // The port must know the features before it gets rings that were set up by them.
        self.publish();
        self.apply_log()?;
        if !features.has(PROTOCOL_FEATURES) {
            // "If VHOST_USER_F_PROTOCOL_FEATURES has not been negotiated, the ring starts
            // directly in the enabled state" (Ring states).
            for index in 0..self.rings.len() {
                self.enable(index, true)?;
            }
            self.publish();
        }
        self.start_waiting().map_or(Ok(()), Err)
    }

    /// SET_PROTOCOL_FEATURES, checked.
    pub fn acknowledge_protocol(&mut self, features: FeatureSet) {
        self.protocol = features;
        self.publish();
    }

    /// How rings are read, by what was acknowledged.
    pub(super) fn options(&self) -> QueueOptions {
        let features = self.acknowledged.unwrap_or_default();
        QueueOptions {
            event_idx: features.has(EVENT_IDX),
            indirect: features.has(INDIRECT_DESC),
            packed: features.has(RING_PACKED),
            notify_on_empty: features.has(NOTIFY_ON_EMPTY),
        }
    }

    /// RESET_DEVICE. Memory and log stay: the front-end knows what it shared and sends only
    /// differences. The protocol features stay too, since they belong to the connection.
    pub fn reset(&mut self) -> Result<(), Refusal> {
        for index in 0..self.rings.len() {
            self.stop(index)?;
            let err = self.rings[index].err.take();
            self.rings[index] = RingState { err, ..RingState::default() };
        }
        self.acknowledged = None;
        self.status = 0;
        self.last_run = LastRun::default();
        self.apply_log()?;
        self.publish();
        Ok(())
    }

    /// SET_STATUS. 0 is the driver's reset (virtio 1.2, 2.1.2): rings stop, and start again only
    /// when kicked anew.
    pub fn set_status(&mut self, value: u64) -> Result<(), Refusal> {
        // Only the low 8 bits are the status ("Front-end message types", SET_STATUS).
        let [status, ..] = value.to_le_bytes();
        self.status = status;
        if status == 0 {
            for index in 0..self.rings.len() {
                self.stop(index)?;
            }
            self.publish();
        }
        Ok(())
    }

    /// GET_STATUS: as it was set, less FEATURES_OK where no features were accepted.
    pub fn status(&self) -> u8 {
        match self.acknowledged {
            Some(_) => self.status,
            None => self.status & !FEATURES_OK,
        }
    }

    /// SET_BACKEND_REQ_FD: a connection, in place of the one before.
    pub fn set_backend_channel(&mut self, channel: DeferredClose<OwnedFd>) -> Result<(), Refusal> {
        let domain = rustix::net::sockopt::socket_domain(&*channel);
        let kind = rustix::net::sockopt::socket_type(&*channel);
        if (domain, kind) != (Ok(AddressFamily::UNIX), Ok(SocketType::STREAM)) {
            return Err(Refusal::NotASocket);
        }
        self.backend_channel = Some(channel);
        Ok(())
    }

    /// NET_SET_MTU: the profile's, or refused. It is never silently narrower.
    pub fn set_mtu(&self, asked: u64) -> Result<(), Refusal> {
        if asked == u64::from(self.profile.mtu) {
            return Ok(());
        }
        Err(Refusal::Mtu { asked, mtu: self.profile.mtu, profile: self.profile.name.clone() })
    }

    /// SET_DEVICE_STATE_FD, to save: the device's state when it was stopped. It changes nothing: a
    /// migration may fail, and the guest continue here.
    pub fn state(&self) -> DeviceState {
        state_of(&self.profile, self.acknowledged.unwrap_or_default(), &self.last_run)
    }

    /// Set the rings that ran last, as another process recorded them, unless some run now.
    pub fn set_last_run(&mut self, ring_sizes: Vec<Option<u16>>) {
        self.last_run = LastRun::of(ring_sizes);
        self.publish();
    }

    /// Whether a state may be transferred now: "when both the source and destination devices are
    /// suspended". They are suspended while all rings are stopped.
    pub fn check_suspended(&self) -> Result<(), DeviceStateError> {
        let started = self.rings.iter().position(|ring| ring.started);
        started.map_or(Ok(()), |ring| Err(DeviceStateError::Running(ring)))
    }

    /// Rings that are started.
    pub fn started(&self) -> usize {
        self.rings.iter().filter(|ring| ring.started).count()
    }

    /// Note how long a request took, and how many rings were started before it.
    pub fn note_time(
        &mut self,
        code: FrontendReq,
        before: usize,
        elapsed: Duration,
    ) -> Option<RingsChange> {
        let took = self.outage.took();
        let rings = StartedRings { before, after: self.started() };
        let change = self.outage.note(code, rings, elapsed);
        if self.outage.took() != took {
            self.publish();
        }
        change
    }

    /// Tell the port what is negotiated by now.
    pub(super) fn publish(&mut self) {
        let runs = |ring: &RingState| ring.started && ring.enabled;
        let pairs = self.rings.chunks(2).filter(|pair| pair.iter().all(runs)).count();
        let size = |ring: &RingState| ring.size.filter(|_| ring.started);
        let ring_sizes: Vec<Option<u16>> = self.rings.iter().map(size).collect();
        self.last_run.note(&ring_sizes);
        self.backend.bound(SessionBinding {
            offered: self.profile.features,
            acknowledged: self.acknowledged.unwrap_or_default(),
            protocol_features: self.protocol,
            ring_sizes,
            took: self.outage.took(),
            queue_pairs: u16::try_from(pairs).expect("at most queue_pairs_max, a u16"),
            regions: self.memory.regions().len(),
            refusal: self.last_refusal.clone(),
        });
    }

    /// Note a refused request for the port's owner. Part of the text comes from the front-end.
    pub fn note_refusal(&mut self, request: &str, reason: &str) {
        let mut plain = String::new();
        for letter in format!("{request}: {reason}").chars().take(REFUSAL_MAX) {
            if letter.is_control() {
                plain.extend(letter.escape_default());
            } else {
                plain.push(letter);
            }
        }
        self.last_refusal = Some(plain.into());
        self.publish();
    }
}

impl Drop for Device {
    /// Every way a session can end comes here. All rings come back; the memory is unmapped with the
    /// fields, which drop next. A worker that has ended has no rings any more.
    fn drop(&mut self) {
        for index in 0..self.rings.len() {
            if let Err(error) = self.take(index) {
                tracing::debug!(ring = index, %error, "ring not taken back");
            }
        }
        self.backend.bound(SessionBinding::default());
    }
}
