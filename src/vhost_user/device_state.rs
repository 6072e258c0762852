//! The state that migrates with a VM: which profile its device has, and which features and rings
//! its guest negotiated (vhost-user, "Migrating back-end state").
//!
//! Nothing is restored from it: the guest's driver and the front-end know all about the rings. The
//! destination compares it before the guest runs there, and refuses if its port is not the
//! interface that the guest has. A state may come from any backend, any version and any attacker;
//! it is read once, whole, and every field is checked.
//!
//! The document is JSON: `docs/profile-format.md` describes it.

#![forbid(unsafe_code)]

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::device::features::{FeatureSet, TRANSPORT};
use crate::profile::{Profile, fingerprint};

/// Distinguishes the document from the states of other backends.
const FORMAT: &str = "org.isonic.device-state";
/// Major and minor version of the document's form. A higher major version cannot be read; a higher
/// minor one has fields that may be ignored.
const VERSION: (u32, u32) = (1, 0);
/// The longest state that is read, bytes. Ours have some hundreds.
pub(super) const STATE_MAX: usize = 64 << 10;
/// The longest name or digest that is read, bytes: those of profiles are not longer.
const WORD_MAX: usize = 2048;

/// Why a state cannot be given or taken.
#[derive(Debug, thiserror::Error)]
pub enum DeviceStateError {
    /// SET_DEVICE_STATE_FD with a direction or phase that the specification does not have.
    #[error("direction {direction} in phase {phase}: 0 or 1 in phase 0 is served")]
    Transfer {
        /// As sent.
        direction: u32,
        /// As sent.
        phase: u32,
    },
    /// A state belongs to a stopped device.
    #[error("ring {0} is started; a state is transferred while all rings are stopped")]
    Running(usize),
    /// The kernel cannot make a channel, or the channel cannot hold a state.
    #[error("cannot make a channel for the state")]
    Channel(#[source] std::io::Error),
    /// CHECK_DEVICE_STATE without a transfer before it.
    #[error("no state was transferred")]
    Missing,
    /// CHECK_DEVICE_STATE while the front-end still holds its end of the channel.
    #[error("the state has not ended: the front-end did not close the channel")]
    Unfinished,
    /// More than any state has.
    #[error("the state is longer than {STATE_MAX} bytes, so no isonic's")]
    TooLong,
    /// No JSON, or not with these fields.
    #[error(
        "the state is cut short or no isonic's: it cannot be read at line {line}, column {column}"
    )]
    Unreadable {
        /// Where reading ended.
        line: usize,
        /// The column there.
        column: usize,
    },
    /// Another backend's.
    #[error("the state is another backend's, and this port would not be the same interface")]
    Foreign,
    /// A later version's.
    #[error(
        "the state has major version {major}, and isonic {ours} reads {}; update isonic here",
        VERSION.0,
        ours = env!("CARGO_PKG_VERSION")
    )]
    Newer {
        /// The state's.
        major: u32,
    },
    /// A field that no isonic has written so.
    #[error("the state is damaged: {0} is not what isonic writes")]
    Damaged(&'static str),
    /// It is whole, but its interface is another one.
    #[error(
        "the VM's interface is not this port's: {}; the guest goes on where it was. Give the port \
         the VM's profile before the destination's front-end is started (isonic port set-profile \
         PORT {profile}), and migrate again",
        list(.differences)
    )]
    Differs {
        /// The VM's profile.
        profile: String,
        /// All of them.
        differences: Vec<Difference>,
    },
}

fn list(differences: &[Difference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// One way in which a VM's interface is not the port's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// Another profile, or another content under its name.
    #[error(
        "the VM has profile {theirs} (digest {}), the port {ours} (digest {})",
        short(.their_digest),
        short(.our_digest)
    )]
    Profile {
        /// The VM's.
        theirs: String,
        /// Its digest.
        their_digest: String,
        /// The port's.
        ours: String,
        /// Its digest.
        our_digest: String,
    },
    /// Features that the port does not offer.
    #[error("the guest acknowledged {0}, which the port does not offer")]
    Features(FeatureSet),
    /// More or larger rings than the port has.
    #[error("ring {ring} has {entries} entries, and the port has {rings} rings of at most {limit}")]
    Ring {
        /// Ring index.
        ring: usize,
        /// Entries.
        entries: u16,
        /// Rings of the port.
        rings: usize,
        /// The largest.
        limit: u16,
    },
    /// More queue pairs than the port has.
    #[error("{pairs} queue pairs are in use, and the port has {limit}")]
    QueuePairs {
        /// The VM's.
        pairs: u16,
        /// The port's.
        limit: u16,
    },
    /// Another MTU.
    #[error("the VM has MTU {theirs}, the port {ours}")]
    Mtu {
        /// The VM's.
        theirs: u16,
        /// The port's.
        ours: u16,
    },
}

/// A digest as people compare it.
fn short(digest: &str) -> &str {
    digest.get(..16).unwrap_or(digest)
}

/// The state of a device when it was stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DeviceState {
    pub profile: String,
    pub profile_digest: String,
    /// By the guest: without the transport's bits.
    pub acknowledged: FeatureSet,
    /// Entries of each ring that had been started.
    pub ring_sizes: Vec<Option<u16>>,
    /// Queue pairs that had been started.
    pub queue_pairs: u16,
    pub mtu: u16,
}

/// The whole document. Readers ignore fields that they do not know.
#[derive(Serialize, Deserialize)]
struct Document {
    #[serde(flatten)]
    head: Head,
    profile: String,
    profile_digest: String,
    acknowledged: String,
    ring_sizes: Vec<Option<u16>>,
    queue_pairs: u16,
    mtu: u16,
    fingerprint: String,
}

/// The fields that every version has.
#[derive(Serialize, Deserialize)]
struct Head {
    format: String,
    major: u32,
    minor: u32,
}

impl DeviceState {
    /// Digest of all that the guest can notice, as `isonic port show` has it while the rings run.
    pub fn fingerprint(&self) -> String {
        let Self { profile_digest, acknowledged, ring_sizes, queue_pairs, .. } = self;
        fingerprint(profile_digest, *acknowledged, ring_sizes, *queue_pairs)
    }

    /// The document that travels.
    pub fn write(&self) -> Vec<u8> {
        let (major, minor) = VERSION;
        let document = Document {
            head: Head { format: FORMAT.to_owned(), major, minor },
            profile: self.profile.clone(),
            profile_digest: self.profile_digest.clone(),
            acknowledged: format!("{:#x}", self.acknowledged.0),
            ring_sizes: self.ring_sizes.clone(),
            queue_pairs: self.queue_pairs,
            mtu: self.mtu,
            fingerprint: self.fingerprint(),
        };
        serde_json::to_vec(&document).expect("text and numbers are JSON")
    }

    /// Read a document. Its content is then well-formed and consistent; [`check`](Self::check)
    /// compares it with the port.
    ///
    /// # Errors
    /// [`DeviceStateError`].
    pub fn read(bytes: &[u8]) -> Result<Self, DeviceStateError> {
        let head: Head = parse(bytes)?;
        if head.format != FORMAT {
            return Err(DeviceStateError::Foreign);
        }
        if head.major > VERSION.0 {
            return Err(DeviceStateError::Newer { major: head.major });
        }
        if head.major == 0 {
            return Err(DeviceStateError::Damaged("major"));
        }
        let document: Document = parse(bytes)?;
        let digits = document.acknowledged.strip_prefix("0x").unwrap_or_default();
        let acknowledged = u64::from_str_radix(digits, 16);
        let acknowledged = acknowledged.map_err(|_| DeviceStateError::Damaged("acknowledged"))?;
        let state = Self {
            profile: word(document.profile).ok_or(DeviceStateError::Damaged("profile"))?,
            profile_digest: word(document.profile_digest)
                .ok_or(DeviceStateError::Damaged("profile_digest"))?,
            acknowledged: FeatureSet(acknowledged),
            ring_sizes: document.ring_sizes,
            queue_pairs: document.queue_pairs,
            mtu: document.mtu,
        };
        if state.fingerprint() != document.fingerprint {
            return Err(DeviceStateError::Damaged("fingerprint"));
        }
        Ok(state)
    }

    /// Check that a port with this profile is the same interface, and offers everything that the
    /// state has.
    ///
    /// # Errors
    /// [`DeviceStateError::Differs`], with every difference.
    pub fn check(&self, profile: &Profile) -> Result<(), DeviceStateError> {
        let mut differences = Vec::new();
        let digest = profile.digest();
        if self.profile_digest != digest {
            differences.push(Difference::Profile {
                theirs: self.profile.clone(),
                their_digest: self.profile_digest.clone(),
                ours: profile.name.clone(),
                our_digest: digest,
            });
        }
        let extra = self.acknowledged.without(profile.features);
        if !extra.is_empty() {
            differences.push(Difference::Features(extra));
        }
        differences.extend(self.ring_beyond(profile));
        if self.queue_pairs > profile.queue_pairs_max {
            let (pairs, limit) = (self.queue_pairs, profile.queue_pairs_max);
            differences.push(Difference::QueuePairs { pairs, limit });
        }
        if self.mtu != profile.mtu {
            differences.push(Difference::Mtu { theirs: self.mtu, ours: profile.mtu });
        }
        if differences.is_empty() {
            return Ok(());
        }
        Err(DeviceStateError::Differs { profile: self.profile.clone(), differences })
    }

    /// The first ring that a port with this profile does not have.
    fn ring_beyond(&self, profile: &Profile) -> Option<Difference> {
        let (rings, limit) = (usize::from(profile.queue_pairs_max) * 2, profile.ring_size_max);
        let sizes = self.ring_sizes.iter().enumerate();
        let mut started = sizes.filter_map(|(ring, &entries)| Some((ring, entries?)));
        let beyond = started.find(|&(ring, entries)| ring >= rings || entries > limit);
        beyond.map(|(ring, entries)| Difference::Ring { ring, entries, rings, limit })
    }
}

fn parse<'bytes, T: Deserialize<'bytes>>(bytes: &'bytes [u8]) -> Result<T, DeviceStateError> {
    // The error's own words may quote the input at length.
    serde_json::from_slice(bytes).map_err(|error| DeviceStateError::Unreadable {
        line: error.line(),
        column: error.column(),
    })
}

/// A name or digest, if it is one that may stand in a log.
fn word(text: String) -> Option<String> {
    let plain = text.len() <= WORD_MAX && text.bytes().all(|byte| byte.is_ascii_graphic());
    (plain && !text.is_empty()).then_some(text)
}

/// The rings that ran last, which a stopped device does not show any more.
#[derive(Debug, Default)]
pub(super) struct LastRun {
    ring_sizes: Vec<Option<u16>>,
    over: bool,
}

impl LastRun {
    /// Note the rings that are started now. A run lasts from the first ring's start to the last
    /// one's stop.
    pub fn note(&mut self, started: &[Option<u16>]) {
        if started.iter().all(Option::is_none) {
            self.over = true;
            return;
        }
        if std::mem::take(&mut self.over) {
            self.ring_sizes.clear();
        }
        self.ring_sizes.resize(started.len(), None);
        for (size, started) in self.ring_sizes.iter_mut().zip(started) {
            *size = started.or(*size);
        }
    }

    /// The last run as another process recorded it.
    pub fn of(ring_sizes: Vec<Option<u16>>) -> Self {
        Self { ring_sizes, over: true }
    }

    /// Entries of each ring that was started.
    pub fn ring_sizes(&self) -> &[Option<u16>] {
        &self.ring_sizes
    }

    /// Pairs of which both rings were started.
    pub fn queue_pairs(&self) -> u16 {
        let pairs = self.ring_sizes.chunks(2).filter(|pair| pair.iter().all(Option::is_some));
        u16::try_from(pairs.count()).expect("at most queue_pairs_max, a u16")
    }
}

/// The state of a device with this profile whose guest acknowledged these features.
pub(super) fn state_of(profile: &Profile, acknowledged: FeatureSet, last: &LastRun) -> DeviceState {
    DeviceState {
        profile: profile.name.clone(),
        profile_digest: profile.digest(),
        acknowledged: acknowledged.without(TRANSPORT),
        ring_sizes: last.ring_sizes().to_vec(),
        queue_pairs: last.queue_pairs(),
        mtu: profile.mtu,
    }
}

impl fmt::Display for DeviceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "profile {}, fingerprint {}", self.profile, short(&self.fingerprint()))
    }
}
