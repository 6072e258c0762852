//! The public interface, version 1: every request, every answer, every error.
//!
//! Stable: fields are added, never renamed or removed, and clients ignore those they do not know. A
//! breaking change needs a `/v2` beside it. Counters are maps, so that a new reason for a drop
//! changes no type.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::{Attach, PortConfig, SocketMode};
use crate::device::features::{self, FeatureSet};
use crate::device::mac::MacAddress;
use crate::profile::{Blocker, CANONICAL_VERSION, Catalog, Profile, UplinkFacts};
use crate::report::{bounded, printable};

/// Everything that can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// All ports. Answered by [`Response::Ports`].
    ListPorts,
    /// One port, by name. [`Response::Port`], or `not_found`.
    ShowPort(String),
    /// Make a port, kept over restarts. [`Response::Made`]; `exists` if the name is taken,
    /// `invalid` or `refused` with every reason if the port cannot be made.
    AddPort(PortConfig),
    /// Make this port unless it exists. [`Response::Made`], or [`Response::Port`] if it was there
    /// already with this content; `exists` with every difference if its content is another.
    PutPort(PortConfig),
    /// Remove a port; its session is ended first. [`Response::Deleted`]; `not_found`, or `refused`
    /// for a port of the configuration file.
    DeletePort(String),
    /// Give a port another profile, for its next session. [`Response::Port`]; `not_found`, or
    /// `refused` while a front-end is connected or where the configuration file decides.
    SetProfile(String, ProfileChange),
    /// All uplinks. [`Response::Uplinks`].
    ListUplinks,
    /// All profiles. [`Response::Profiles`].
    ListProfiles,
    /// One profile, by name or list of values. [`Response::Profile`], or `not_found`.
    ShowProfile(String),
    /// All counters. [`Response::Stats`].
    Stats,
    /// The version of the daemon. [`Response::Version`].
    Version,
    /// The problems of the host. [`Response::Health`].
    Health,
    /// Have another process take over everything. [`Response::Upgraded`], after which this process
    /// ends; or `refused` with the reason, and this process continues as before. Until then,
    /// requests that would change something are `busy`.
    Upgrade(Upgrade),
}

impl Request {
    /// Whether it only reads.
    #[must_use]
    pub fn reads(&self) -> bool {
        match self {
            Self::AddPort(_)
            | Self::PutPort(_)
            | Self::DeletePort(_)
            | Self::SetProfile(..)
            | Self::Upgrade(_) => false,
            Self::ListPorts
            | Self::ShowPort(_)
            | Self::ListUplinks
            | Self::ListProfiles
            | Self::ShowProfile(_)
            | Self::Stats
            | Self::Version
            | Self::Health => true,
        }
    }
}

/// All responses. JSON has only the content: the request tells the variant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Response {
    /// By name.
    Ports(Vec<PortView>),
    /// One port.
    Port(Box<PortView>),
    /// One port that was not there before.
    Made(Box<PortView>),
    /// The removed port.
    Deleted(Deleted),
    /// By interface.
    Uplinks(Vec<UplinkView>),
    /// By name.
    Profiles(Vec<ProfileView>),
    /// One profile.
    Profile(Box<ProfileView>),
    /// All counters.
    Stats(Stats),
    /// The version of the daemon.
    Version(VersionView),
    /// The problems of the host.
    Health(HealthView),
    /// The new process.
    Upgraded(Upgraded),
}

/// Why a request failed, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// There is nothing of that name.
    NotFound,
    /// There is already something of that name.
    Exists,
    /// The request is well formed, and this host or its configuration does not allow it.
    Refused,
    /// The request is not well formed.
    Invalid,
    /// It was not executed, and is to be repeated: another process takes over, or this one ends.
    Busy,
    /// Our own failure.
    Internal,
    /// A code that only a later version knows.
    #[serde(other)]
    Unknown,
}

impl ErrorCode {
    /// The matching HTTP status. The server answers 405 and 413 with `Invalid` too.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::NotFound => 404,
            Self::Exists | Self::Refused => 409,
            Self::Busy => 503,
            Self::Internal | Self::Unknown => 500,
        }
    }
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// For programs.
    pub code: ErrorCode,
    /// For people: the failure, its place, the limit and the remedy.
    pub message: String,
    /// Each reason of the message alone. At least one, unless the daemon is of an earlier version.
    #[serde(default)]
    pub reasons: Vec<String>,
}

impl ApiError {
    /// An error of this kind with this message, which is its only reason. Both become one line,
    /// whatever names are in them.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let message = printable(&bounded(&message.into()));
        Self { code, reasons: vec![message.clone()], message }
    }

    /// This error with these reasons.
    #[must_use]
    pub fn because(self, reasons: Vec<String>) -> Self {
        let told = |reason: String| printable(&bounded(&reason));
        let reasons: Vec<String> = reasons.into_iter().map(told).collect();
        if reasons.is_empty() { self } else { Self { reasons, ..self } }
    }
}

/// The body of a failed request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ApiError,
}

/// Counters by name: packets, bytes, and drops by reason.
pub type Counters = BTreeMap<String, u64>;

/// How far a port's front-end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortState {
    /// No front-end is connected.
    Waiting,
    /// One is, and no ring is started.
    Connected,
    /// Rings are started.
    Running,
    /// The port is kept, and not served: [`PortView::refusal`] says why.
    Refused,
}

/// Names the program that is to take over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upgrade {
    /// Its path; if None, the path from which this process was started.
    #[serde(default)]
    pub binary: Option<PathBuf>,
    /// Upgrade even if running guests lose by it. Left out if false, for daemons that do not know
    /// it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub force: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for this form")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// A difference that another process makes for a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortChange {
    /// The port.
    pub port: String,
    /// `profile`, `mac`, `uplink`, `attach`, `queues`, `socket`, `mode`, or `state` of a port that
    /// is refused or gone.
    pub what: String,
    /// The value before.
    pub before: String,
    /// The value now, or after the upgrade.
    pub after: String,
}

impl fmt::Display for PortChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { port, what, before, after } = self;
        write!(f, "port \"{port}\": {what} from {before} to {after}")
    }
}

/// The new process, and the cost of the upgrade.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgraded {
    /// The new process.
    pub pid: u32,
    /// Its version; None if it took everything and then reported nothing.
    pub version: Option<String>,
    /// For how long no packet moved.
    pub outage_microseconds: Option<u64>,
    /// For how long front-ends got no answer, the outage included.
    #[serde(default)]
    pub unanswered_microseconds: Option<u64>,
    /// Sessions that continue.
    pub sessions: usize,
    /// Ports whose front-end has to connect anew.
    pub reconnecting: Vec<String>,
    /// The changes of ports by the upgrade.
    #[serde(default)]
    pub changed: Vec<PortChange>,
}

/// A request for another profile of a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileChange {
    /// Its name, or a list of values.
    pub profile: String,
    /// Whether it may be a draft.
    #[serde(default)]
    pub allow_draft: bool,
}

/// One port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortView {
    /// Its name.
    pub name: String,
    /// Its vhost-user socket.
    pub socket: PathBuf,
    /// Who listens on it.
    pub mode: SocketMode,
    /// Its profile: a name, or a list of values in its canonical spelling.
    pub profile: String,
    /// The profile's digest; if the port is refused, the recorded one.
    pub profile_digest: String,
    /// The interface behind it.
    pub uplink: String,
    /// How it is attached to the uplink.
    pub attach: Attach,
    /// The guest's address.
    pub mac: MacAddress,
    /// Who made it and will remove it, if that was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// How far its front-end has come.
    pub state: PortState,
    /// Why it is not served; None if it is.
    #[serde(default)]
    pub refusal: Option<String>,
    /// The faults, and where it is narrower than its profile, the worst first. They are those of
    /// isonic's last look, a second or two ago.
    #[serde(default)]
    pub findings: Vec<FindingView>,
    /// The features and rings negotiated with its front-end; None while nobody is connected.
    pub binding: Option<BindingView>,
    /// Packets, bytes, and drops by reason.
    pub counters: Counters,
    /// The rings that are set up.
    pub rings: Vec<RingView>,
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know; it may be meant, or pass by itself.
    Note,
    /// Something goes wrong or slowly.
    Warning,
    /// The guest's network does not work before this is repaired.
    Problem,
}

/// A fault of a port, or a difference from its profile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FindingView {
    /// The kind of finding, for programs; it never changes.
    pub id: String,
    /// How much it matters.
    pub severity: Severity,
    /// A description, for people.
    pub found: String,
    /// The remedy.
    pub mend: String,
}

/// A set of bits, for programs and for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BitsView {
    /// As `0x...`.
    pub hex: String,
    /// The names of the bits, by bit.
    pub names: Vec<String>,
}

impl BitsView {
    /// The view of device features.
    #[must_use]
    pub fn device(set: FeatureSet) -> Self {
        Self { hex: format!("{:#x}", set.0), names: set.names() }
    }

    /// The bits; None if they are not in hexadecimal.
    #[must_use]
    pub fn set(&self) -> Option<FeatureSet> {
        let digits = self.hex.strip_prefix("0x")?;
        u64::from_str_radix(digits, 16).ok().map(FeatureSet)
    }

    /// The view of vhost-user protocol features.
    #[must_use]
    pub fn protocol(set: FeatureSet) -> Self {
        Self { hex: format!("{:#x}", set.0), names: features::protocol_names(set) }
    }
}

/// The features offered to a session and acknowledged by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindingView {
    /// The profile that was bound.
    pub profile: String,
    /// Its digest when it was.
    pub digest: String,
    /// Device features offered by GET_FEATURES.
    pub offered: BitsView,
    /// Device features acknowledged by SET_FEATURES.
    pub acknowledged: BitsView,
    /// Protocol features acknowledged.
    pub protocol_features: BitsView,
    /// Entries of each ring, by index; None for one that is not started.
    pub ring_sizes: Vec<Option<u16>>,
    /// Queue pairs started and enabled.
    pub queue_pairs: u16,
    /// Duration of the requests that last stopped the rings: our part of an outage. None if they
    /// never were stopped.
    #[serde(default)]
    pub stop_microseconds: Option<u64>,
    /// Duration of the requests that last started the rings.
    #[serde(default)]
    pub start_microseconds: Option<u64>,
    /// Digest of all that the guest can notice of this: to a guest, sessions with equal digests are
    /// equal.
    #[serde(default)]
    pub fingerprint: String,
}

/// The direction of a ring's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Even rings.
    ToGuest,
    /// Odd rings.
    FromGuest,
}

/// One ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingView {
    /// Counted from 0 within the port.
    pub index: u16,
    /// The direction of its packets.
    pub direction: Direction,
    /// Entries.
    pub size: u16,
    /// By SET_VRING_ENABLE.
    pub enabled: bool,
    /// The guest's fault that broke it; None while it is whole.
    pub broken: Option<String>,
    /// The worker that serves it.
    pub worker: usize,
}

/// How frames leave the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// At the driver's own hook.
    Native,
    /// At the kernel's generic hook.
    Generic,
}

/// How frames reach us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SocketKind {
    /// The NIC writes into our memory.
    Zerocopy,
    /// The kernel copies.
    Copy,
}

/// Whether packets move over an uplink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UplinkState {
    /// They do.
    #[default]
    Up,
    /// Its link is down.
    Down,
    /// Its NIC is gone.
    Gone,
    /// Its NIC is there and cannot be used.
    Failed,
}

/// One uplink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UplinkView {
    /// Its name: the interface's in the configuration.
    pub interface: String,
    /// The interface's name now, or the last that it had.
    #[serde(default)]
    pub present_name: String,
    /// Whether packets move.
    #[serde(default)]
    pub state: UplinkState,
    /// Since when: seconds since 1970.
    #[serde(default)]
    pub state_since: u64,
    /// Why it cannot be used, if it failed.
    #[serde(default)]
    pub problem: Option<String>,
    /// Its kernel driver.
    pub driver: String,
    /// The hook.
    pub xdp_mode: XdpMode,
    /// The socket's mode.
    pub socket_mode: SocketKind,
    /// Why these two modes and no better ones.
    pub reason: String,
    /// Whether a packet may be longer than a frame of our memory.
    pub multi_buffer: bool,
    /// The longest packet it sends and receives, bytes.
    pub packet_max: u32,
    /// The queues on which we have a socket.
    pub queues: Vec<u32>,
    /// Whether the NIC's indirection table is one of ours.
    #[serde(default)]
    pub steering_set: bool,
    /// The identifier of isonic's XDP program on it; None where a launcher has one, or while it is
    /// not open.
    #[serde(default)]
    pub program_id: Option<u32>,
    /// The effects of its kind of device on frames, their consequences, and the remedy.
    #[serde(default)]
    pub cautions: Vec<String>,
    /// Queues that receive and have no socket, as they were when the uplink was opened.
    #[serde(default)]
    pub unserved_queues: Vec<u32>,
    /// Bytes.
    pub mtu: u32,
    /// Its own address.
    pub mac: MacAddress,
    /// The device through which the host and its VMs reach each other, if they do.
    #[serde(default)]
    pub host_device: Option<String>,
    /// Packets, bytes, and drops by reason.
    pub counters: Counters,
    /// The names of the ports on it.
    pub ports: Vec<String>,
}

/// One profile, and whether this host can keep it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileView {
    /// Its name.
    pub name: String,
    /// One line for people.
    pub summary: String,
    /// The name without its version, if it ends in one.
    #[serde(default)]
    pub family: Option<String>,
    /// Whether it is the newest of its family that this version can keep.
    pub latest: bool,
    /// Whether it may still change.
    #[serde(default)]
    pub draft: bool,
    /// The profile that it was made from, if any.
    #[serde(default)]
    pub extends: Option<String>,
    /// The reason for the new profile, if it was made from another.
    #[serde(default)]
    pub why: Option<String>,
    /// Digest of its canonical form: everything but name and summary.
    pub digest: String,
    /// The version of that form.
    #[serde(default)]
    pub canonical_version: u32,
    /// "the binary", or a file.
    pub source: String,
    /// The features that the guest sees: the backend's and the front-end's.
    pub guest_features: BitsView,
    /// The device features that the backend offers.
    pub features: BitsView,
    /// The device features that the front-end must add.
    pub frontend_features: BitsView,
    /// The protocol features that the backend offers.
    pub protocol_features: BitsView,
    /// Entries.
    pub ring_size_max: u16,
    /// Queue pairs.
    pub queue_pairs_max: u16,
    /// Bytes.
    pub mtu: u16,
    /// Slots.
    pub memory_slots: u16,
    /// The offloads that `ethtool -k` shows in a Linux guest.
    #[serde(default)]
    pub linux_offloads: BTreeMap<String, bool>,
    /// The features for which a Linux guest loads no native XDP program; none if it does.
    #[serde(default)]
    pub xdp_obstacles: Vec<String>,
    /// Why no uplink of any host could keep it with this version; empty if some may.
    pub blockers: Vec<String>,
    /// By uplink: every reason why it cannot be kept there; empty if it can.
    pub uplinks: BTreeMap<String, Vec<String>>,
}

impl ProfileView {
    /// The view of `profile`, which is in `catalog` or made from its profiles, against these
    /// uplinks.
    #[must_use]
    pub fn new(profile: &Profile, catalog: &Catalog, uplinks: &[UplinkFacts]) -> Self {
        let told = |blockers: Vec<Blocker>| blockers.iter().map(ToString::to_string).collect();
        let against = |uplink: &UplinkFacts| (uplink.name.clone(), told(profile.blockers(uplink)));
        let extends = catalog.extends(&profile.name);
        let made = || "a list of values".to_owned();
        let offloads = profile.linux_offloads().into_iter();
        Self {
            name: profile.name.clone(),
            summary: profile.summary.clone(),
            family: profile.family().map(|(family, _)| family.to_owned()),
            latest: catalog.is_latest(&profile.name),
            // A list of values is a draft if its base is one.
            draft: catalog.is_draft(profile.name.split(',').next().unwrap_or_default()),
            extends: extends.map(|extends| extends.base.clone()),
            why: extends.map(|extends| extends.why.clone()),
            digest: profile.digest(),
            canonical_version: CANONICAL_VERSION,
            source: catalog.source(&profile.name).map_or_else(made, ToString::to_string),
            guest_features: BitsView::device(profile.guest_features()),
            features: BitsView::device(profile.features),
            frontend_features: BitsView::device(profile.frontend_features),
            protocol_features: BitsView::protocol(profile.protocol_features),
            ring_size_max: profile.ring_size_max,
            queue_pairs_max: profile.queue_pairs_max,
            mtu: profile.mtu,
            memory_slots: profile.memory_slots,
            linux_offloads: offloads.map(|(name, on)| (name.to_owned(), on)).collect(),
            xdp_obstacles: profile.xdp_obstacles().names(),
            blockers: told(profile.host_blockers()),
            uplinks: uplinks.iter().map(against).collect(),
        }
    }

    /// The views of all profiles of `catalog`: the published list, by family and version.
    #[must_use]
    pub fn all(catalog: &Catalog, uplinks: &[UplinkFacts]) -> Vec<Self> {
        let mut profiles: Vec<_> = catalog.iter().collect();
        let place = |profile: &Profile| {
            let (family, version) = profile.family()?;
            Some((family.to_owned(), version))
        };
        profiles.sort_by_key(|profile| place(profile));
        profiles.into_iter().map(|profile| Self::new(profile, catalog, uplinks)).collect()
    }

    /// The profile itself; None if this version cannot express the view's profile, which the digest
    /// tells.
    #[must_use]
    pub fn profile(&self) -> Option<Profile> {
        let profile = Profile {
            name: self.name.clone(),
            summary: self.summary.clone(),
            features: self.features.set()?,
            frontend_features: self.frontend_features.set()?,
            protocol_features: self.protocol_features.set()?,
            ring_size_max: self.ring_size_max,
            queue_pairs_max: self.queue_pairs_max,
            mtu: self.mtu,
            memory_slots: self.memory_slots,
        };
        (profile.digest() == self.digest).then_some(profile)
    }

    /// The uplinks that can keep it.
    pub fn able_uplinks(&self) -> impl Iterator<Item = &str> {
        let able = self.uplinks.iter().filter(|(_, blockers)| blockers.is_empty());
        able.map(|(uplink, _)| uplink.as_str())
    }

    /// Whether the host of this view can keep it: by some uplink, if any is known.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.blockers.is_empty()
            && (self.uplinks.is_empty() || self.able_uplinks().next().is_some())
    }
}

/// One worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerView {
    /// Counted from 0.
    pub id: usize,
    /// Where it is pinned; None if it is not.
    pub cpu: Option<usize>,
    /// Turns of its loop.
    pub turns: u64,
    /// Times it went to sleep.
    pub sleeps: u64,
    /// Nanoseconds in turns that moved packets, the kernel's part of sending them included.
    pub busy_nanoseconds: u64,
}

/// All counters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// By port.
    pub ports: BTreeMap<String, Counters>,
    /// By interface.
    pub uplinks: BTreeMap<String, Counters>,
    /// By number.
    pub workers: Vec<WorkerView>,
    /// The daemon's failures that it retries, such as writing its state file.
    #[serde(default)]
    pub problems: Vec<String>,
}

/// The removed port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// The port's name.
    pub deleted: String,
}

/// The problems of the host, as far as the daemon has met them. It serves all the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthView {
    /// By identifier; empty if all is well.
    pub problems: Vec<ProblemView>,
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProblemView {
    /// For programs; never changes.
    pub id: String,
    /// For people: the problem, its place, its cost and the remedy.
    pub message: String,
}

/// The version of the daemon and of its interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionView {
    /// The version of the daemon.
    pub version: String,
    /// The version of this interface.
    pub api: u32,
}

impl VersionView {
    /// This build.
    #[must_use]
    pub fn current() -> Self {
        Self { version: env!("CARGO_PKG_VERSION").to_owned(), api: 1 }
    }
}
