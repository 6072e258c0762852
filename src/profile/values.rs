//! The string that names a profile: a name, or a list of values, with a base or without.
//!
//! ```text
//! org.isonic.net.v2                              a profile
//! org.isonic.net.v2,mrg_rxbuf=off,max_ring=256   one with other values
//! any_layout=on,max_ring=256                     the bare interface with other values
//! latest, org.isonic.net.latest                  the newest that can be kept; as a base too
//! ```
//!
//! The string is resolved once, when a port is made ([`Catalog::resolve`]). The result is
//! canonical: the same interface by the same base has one spelling. It holds no `latest`, and only
//! the base remains to be looked up. The canonical spelling is stored; resolving it again changes
//! nothing.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::device::features::{
    self, FEATURES, Feature, FeatureSet, PROTOCOL, Provider, protocol_by_name,
};
use crate::toml_document::closest;

use super::catalog::Catalog;
use super::contradictions::{
    Contradiction, MEMORY_SLOTS, MTUS, QUEUE_PAIRS, RING_SIZES, contradictions,
};
use super::definition::Profile;
use super::parse::LATEST;

/// Longest string, bytes: all keys there are fit.
const TEXT_MAX: usize = 2048;
/// The family that `latest` alone means.
const OWN_FAMILY: &str = "org.isonic.net";
/// Prefix of the keys of protocol features: `mq`, `mtu` and `status` are device features too.
const PROTOCOL_PREFIX: &str = "protocol.";

/// A profile that was asked for by a name or a list of values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The resolved profile; its name is the canonical string.
    pub profile: Arc<Profile>,
    /// Whether it is, or is made from, a profile that may still change.
    pub draft: bool,
}

/// One thing that is wrong with a string that should name a profile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueProblem {
    /// Nothing was asked for, and nothing is the default.
    #[error("no profile is named; `isonic profile list` has those there are")]
    Empty,
    /// No list is that long.
    #[error("it has {length} bytes, and a list of values has at most {TEXT_MAX}")]
    TooLong {
        /// Bytes.
        length: usize,
    },
    /// No profile has the name.
    #[error("there is no profile \"{name}\"{}; known: {}", meant(nearest), known.join(", "))]
    UnknownProfile {
        /// As asked for.
        name: String,
        /// The one that was probably meant.
        nearest: Option<String>,
        /// Those there are.
        known: Vec<String>,
    },
    /// The family has no released version that could be kept.
    #[error(
        "there is no latest profile of \"{family}\": no released one that this version can keep; \
         families: {}",
        known.join(", ")
    )]
    NoLatest {
        /// As asked for.
        family: String,
        /// Those that have one.
        known: Vec<String>,
    },
    /// Not `key=value`.
    #[error("\"{0}\" is no value; write key=value, and a profile's name only at the beginning")]
    NoValue(String),
    /// No such key.
    #[error("unknown key \"{key}\"{}; known: {}", meant(nearest), known.join(", "))]
    UnknownKey {
        /// As written.
        key: String,
        /// The one that was probably meant.
        nearest: Option<String>,
        /// Those there are.
        known: Vec<String>,
    },
    /// A bit is neither on nor off.
    #[error("{key}={value}: {key} is on or off")]
    NotOnOff {
        /// The key.
        key: String,
        /// As written.
        value: String,
    },
    /// A limit is no number in its range.
    #[error("{key}={value}: {key} is a number from {} to {}", range.start(), range.end())]
    OutOfRange {
        /// The key.
        key: String,
        /// As written.
        value: String,
        /// The range of right values.
        range: RangeInclusive<i64>,
    },
    /// `mtu` is a bit and a limit, and this is neither.
    #[error(
        "mtu={value}: mtu is a number from {} to {}, or on or off for the feature of that name",
        MTUS.start(),
        MTUS.end()
    )]
    Mtu {
        /// As written.
        value: String,
    },
    /// One key given twice.
    #[error("{0} is given twice")]
    Twice(String),
    /// A bit that cannot be offered.
    #[error("{key} cannot be on: {why}")]
    Reserved {
        /// The key.
        key: String,
        /// The reason.
        why: &'static str,
    },
    /// The values do not go together.
    #[error(transparent)]
    Contradiction(#[from] Contradiction),
}

fn meant(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!("; did you mean \"{name}\"?")).unwrap_or_default()
}

/// Everything that is wrong with a string that should name a profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolveError {
    /// As asked for.
    pub text: String,
    /// Never empty.
    pub problems: Vec<ValueProblem>,
}

impl fmt::Display for ResolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The problem of an unknown name tells the name; a list of values is quoted here.
        if self.text.contains('=') && self.text.len() <= TEXT_MAX {
            write!(f, "profile \"{}\": ", self.text)?;
        }
        for (index, problem) in self.problems.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ResolveError {}

impl Catalog {
    /// The profile that `text` asks for.
    ///
    /// # Errors
    /// [`ResolveError`], with everything that is wrong.
    pub fn resolve(&self, text: &str) -> Result<Chosen, ResolveError> {
        let refused = |problems| Err(ResolveError { text: text.to_owned(), problems });
        if text.len() > TEXT_MAX {
            return refused(vec![ValueProblem::TooLong { length: text.len() }]);
        }
        let items: Vec<&str> = text.split(',').map(str::trim).collect();
        let (base, values) = match items.split_first() {
            Some((&"", [])) | None => return refused(vec![ValueProblem::Empty]),
            Some((name, values)) if !name.contains('=') => (Some(*name), values),
            Some(_) => (None, items.as_slice()),
        };
        let mut problems = Vec::new();
        let found = base.map(|name| self.base(name)).transpose();
        let base = found.unwrap_or_else(|problem| {
            problems.push(problem);
            None
        });
        if problems.is_empty()
            && values.is_empty()
            && let Some(base) = base
        {
            return Ok(base);
        }
        let mut profile = base.as_ref().map_or_else(Profile::bare, |it| (*it.profile).clone());
        apply(&mut profile, values, &mut problems);
        // An unread value would be reported again, as a contradiction.
        if problems.is_empty() {
            // Contradictions of another backend's profile are known, and are no mistake of the
            // list.
            let known = base.as_ref().map(|it| contradictions(&it.profile)).unwrap_or_default();
            let mut found = contradictions(&profile);
            found.retain(|contradiction| !known.contains(contradiction));
            problems.extend(found.into_iter().map(ValueProblem::from));
        }
        if !problems.is_empty() {
            return refused(problems);
        }
        let draft = base.as_ref().is_some_and(|base| base.draft);
        let base = base.map(|base| base.profile);
        Ok(match base {
            Some(base) if base.digest() == profile.digest() => Chosen { profile: base, draft },
            _ => {
                profile.name = canonical(&profile, base.as_deref());
                profile.summary = summary(base.as_deref());
                Chosen { profile: Arc::new(profile), draft }
            }
        })
    }

    /// The profile of this name, which may be that of the latest of a family.
    fn base(&self, name: &str) -> Result<Chosen, ValueProblem> {
        let family = if name == LATEST {
            Some(OWN_FAMILY)
        } else {
            name.strip_suffix(LATEST).and_then(|family| family.strip_suffix('.'))
        };
        if let Some(family) = family {
            let latest = self.latest();
            let profile = latest.get(family).ok_or_else(|| ValueProblem::NoLatest {
                family: family.to_owned(),
                known: latest.keys().map(|&family| family.to_owned()).collect(),
            })?;
            return Ok(Chosen { profile: Arc::clone(profile), draft: false });
        }
        let profile = self.get(name).ok_or_else(|| {
            let known = self.names();
            ValueProblem::UnknownProfile {
                name: name.to_owned(),
                nearest: closest(name, &known).map(str::to_owned),
                known: known.into_iter().map(str::to_owned).collect(),
            }
        })?;
        Ok(Chosen { profile: Arc::clone(profile), draft: self.is_draft(name) })
    }
}

fn summary(base: Option<&Profile>) -> String {
    match base {
        Some(base) => format!("{} with other values", base.name),
        None => Profile::bare().summary,
    }
}

/// One thing that a list can set.
#[derive(Clone, Copy, Debug)]
enum Key {
    Device(&'static Feature),
    Protocol(u8),
    Limit(Limit),
}

#[derive(Clone, Copy, Debug)]
enum Limit {
    RingSize,
    QueuePairs,
    Mtu,
    MemorySlots,
}

impl Limit {
    const ALL: [Self; 4] = [Self::RingSize, Self::QueuePairs, Self::Mtu, Self::MemorySlots];

    fn key(self) -> &'static str {
        match self {
            Self::RingSize => "max_ring",
            Self::QueuePairs => "queue_pairs",
            Self::Mtu => "mtu",
            Self::MemorySlots => "memory_slots",
        }
    }

    /// The key in profile files, which is understood too.
    fn key_of_files(self) -> &'static str {
        match self {
            Self::RingSize => "ring_size_max",
            Self::QueuePairs => "queue_pairs_max",
            Self::Mtu | Self::MemorySlots => self.key(),
        }
    }

    fn range(self) -> RangeInclusive<i64> {
        match self {
            Self::RingSize => RING_SIZES,
            Self::QueuePairs => QUEUE_PAIRS,
            Self::Mtu => MTUS,
            Self::MemorySlots => MEMORY_SLOTS,
        }
    }

    fn of(self, profile: &Profile) -> u16 {
        match self {
            Self::RingSize => profile.ring_size_max,
            Self::QueuePairs => profile.queue_pairs_max,
            Self::Mtu => profile.mtu,
            Self::MemorySlots => profile.memory_slots,
        }
    }

    fn set(self, profile: &mut Profile, value: u16) {
        *match self {
            Self::RingSize => &mut profile.ring_size_max,
            Self::QueuePairs => &mut profile.queue_pairs_max,
            Self::Mtu => &mut profile.mtu,
            Self::MemorySlots => &mut profile.memory_slots,
        } = value;
    }
}

impl Key {
    /// The key that `text` names; `number` decides where a word is both a bit and a limit.
    fn find(text: &str, number: bool) -> Result<Self, ValueProblem> {
        let limit = |limit: &&Limit| limit.key() == text || limit.key_of_files() == text;
        if let Some(protocol) = text.strip_prefix(PROTOCOL_PREFIX)
            && let Some(feature) = protocol_by_name(protocol)
        {
            return Ok(Self::Protocol(feature.bit));
        }
        let found = (features::by_name(text), Limit::ALL.iter().find(limit));
        match found {
            (Some(_), Some(&limit)) if number => Ok(Self::Limit(limit)),
            (Some(feature), _) => Ok(Self::Device(feature)),
            (None, Some(&limit)) => Ok(Self::Limit(limit)),
            (None, None) => {
                if let Some(why) = features::obstacle(text) {
                    return Err(ValueProblem::Reserved { key: text.to_owned(), why });
                }
                let known = Self::all();
                let names: Vec<&str> = known.iter().map(String::as_str).collect();
                let nearest = closest(text, &names).map(str::to_owned);
                Err(ValueProblem::UnknownKey { key: text.to_owned(), nearest, known })
            }
        }
    }

    /// All there are.
    fn all() -> Vec<String> {
        let limits = Limit::ALL.iter().map(|limit| limit.key().to_owned());
        let device = FEATURES.iter().map(|feature| feature.name.to_owned());
        let protocol = PROTOCOL.iter().map(|feature| format!("{PROTOCOL_PREFIX}{}", feature.name));
        // "mtu" is both a limit and a bit.
        let device = device.filter(|name| name != Limit::Mtu.key());
        limits.chain(device).chain(protocol).collect()
    }

    /// A number that tells the key from the others, to find repetitions.
    fn number(self) -> u16 {
        match self {
            Self::Device(feature) => u16::from(feature.bit),
            Self::Protocol(bit) => 0x100 + u16::from(bit),
            Self::Limit(Limit::RingSize) => 0x200,
            Self::Limit(Limit::QueuePairs) => 0x201,
            Self::Limit(Limit::Mtu) => 0x202,
            Self::Limit(Limit::MemorySlots) => 0x203,
        }
    }
}

/// Change `profile` as `values` say; whatever is wrong with them is added to `problems`.
fn apply(profile: &mut Profile, values: &[&str], problems: &mut Vec<ValueProblem>) {
    let mut seen = Vec::new();
    for item in values {
        let Some((key, value)) = item.split_once('=') else {
            problems.push(ValueProblem::NoValue((*item).to_owned()));
            continue;
        };
        let (name, value) = (key.trim(), value.trim());
        let number = value.starts_with(|letter: char| letter.is_ascii_digit() || letter == '-');
        let changed = Key::find(name, number).and_then(|key| {
            if seen.contains(&key.number()) {
                return Err(ValueProblem::Twice(name.to_owned()));
            }
            seen.push(key.number());
            set(profile, key, name, value)
        });
        problems.extend(changed.err());
    }
}

fn set(profile: &mut Profile, key: Key, name: &str, value: &str) -> Result<(), ValueProblem> {
    let (name, value) = (name.to_owned(), value.to_owned());
    if let Key::Limit(limit) = key {
        let range = limit.range();
        let digits = value.bytes().all(|byte| byte.is_ascii_digit());
        let number = if digits { value.parse().ok() } else { None };
        let fitting = number.filter(|number| range.contains(&i64::from(*number)));
        let number = fitting.ok_or(ValueProblem::OutOfRange { key: name, value, range })?;
        limit.set(profile, number);
        return Ok(());
    }
    let on = match value.as_str() {
        "on" => true,
        "off" => false,
        _ if name == Limit::Mtu.key() => return Err(ValueProblem::Mtu { value }),
        _ => return Err(ValueProblem::NotOnOff { key: name, value }),
    };
    let with = |set: &mut FeatureSet, bit: u8| {
        let mask = FeatureSet(1 << bit);
        *set = if on { set.union(mask) } else { set.without(mask) };
    };
    match key {
        Key::Device(feature) => match feature.provider {
            Provider::Reserved(why) if on => {
                return Err(ValueProblem::Reserved { key: name, why });
            }
            _ if !on => {
                // Whichever half has it, the guest must not see it.
                with(&mut profile.features, feature.bit);
                with(&mut profile.frontend_features, feature.bit);
            }
            Provider::Frontend => with(&mut profile.frontend_features, feature.bit),
            Provider::Backend | Provider::Protocol | Provider::Reserved(_) => {
                with(&mut profile.features, feature.bit);
            }
        },
        Key::Protocol(bit) => with(&mut profile.protocol_features, bit),
        Key::Limit(_) => {}
    }
    Ok(())
}

/// The one spelling of `profile`. With a base, it lists the differences from the base. Without one,
/// it lists all limits, and all bits that are on or differ from the bare interface. A reader then
/// need not know the bare interface.
fn canonical(profile: &Profile, base: Option<&Profile>) -> String {
    let bare = Profile::bare();
    let from = base.unwrap_or(&bare);
    let whole = base.is_none();
    let mut parts: Vec<String> = base.iter().map(|base| base.name.clone()).collect();
    let both = |profile: &Profile| profile.features.union(profile.frontend_features);
    let word = |on: bool| if on { "on" } else { "off" };
    for feature in FEATURES {
        let on = both(profile).has(feature.bit);
        if on != both(from).has(feature.bit) || (whole && on) {
            parts.push(format!("{}={}", feature.name, word(on)));
        }
    }
    for limit in Limit::ALL {
        if whole || limit.of(profile) != limit.of(from) {
            parts.push(format!("{}={}", limit.key(), limit.of(profile)));
        }
    }
    for feature in PROTOCOL {
        let on = profile.protocol_features.has(feature.bit);
        if on != from.protocol_features.has(feature.bit) {
            parts.push(format!("{PROTOCOL_PREFIX}{}={}", feature.name, word(on)));
        }
    }
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "org.isonic.net.v1";
    const LATEST: &str = "org.isonic.net.v3";

    fn name_of(text: &str) -> String {
        let chosen = Catalog::embedded().resolve(text).unwrap();
        chosen.profile.name.clone()
    }

    fn problems(text: &str) -> Vec<String> {
        let error = Catalog::embedded().resolve(text).unwrap_err();
        error.problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_name_is_that_profile_and_latest_the_newest_of_its_family() {
        for text in [LATEST, "latest", "org.isonic.net.latest", "latest,max_ring=1024"] {
            assert_eq!(name_of(text), LATEST, "{text}");
        }
    }

    #[test]
    fn a_list_has_one_spelling_which_means_itself() {
        for (text, canonical) in [
            ("latest, max_ring=256 ,mrg_rxbuf=off", "org.isonic.net.v3,mrg_rxbuf=off,max_ring=256"),
            ("org.isonic.net.v1,ring_size_max=256,mq=on", "org.isonic.net.v1,max_ring=256"),
            ("org.isonic.net.v1,mtu=off,mtu=1400", "org.isonic.net.v1,mtu=off,mtu=1400"),
            ("org.isonic.net.v1,protocol.rarp=off", "org.isonic.net.v1,protocol.rarp=off"),
            (
                "max_ring=256,any_layout=on",
                "mac=on,any_layout=on,protocol_features=on,version_1=on,max_ring=256,\
                 queue_pairs=1,mtu=1500,memory_slots=64",
            ),
            (
                "mac=off",
                "mac=off,protocol_features=on,version_1=on,max_ring=256,queue_pairs=1,mtu=1500,\
                 memory_slots=64",
            ),
        ] {
            assert_eq!(name_of(text), canonical, "{text}");
            let catalog = Catalog::embedded();
            let (once, twice) = (catalog.resolve(text).unwrap(), catalog.resolve(canonical));
            assert_eq!(twice.unwrap(), once, "{text}");
        }
    }

    #[test]
    fn the_values_are_in_the_profile_and_the_rest_is_its_bases() {
        let catalog = Catalog::embedded();
        let v1 = catalog.get(V1).unwrap();
        let chosen =
            catalog.resolve("org.isonic.net.v1,status=off,event_idx=off,mtu=1400").unwrap();
        let less = |set: FeatureSet, name| {
            set.without(FeatureSet(features::by_name(name).unwrap().mask()))
        };
        let expected = Profile {
            name: chosen.profile.name.clone(),
            summary: chosen.profile.summary.clone(),
            features: less(v1.features, "event_idx"),
            frontend_features: less(v1.frontend_features, "status"),
            mtu: 1400,
            ..(**v1).clone()
        };
        assert_eq!(*chosen.profile, expected);
    }

    #[test]
    fn a_list_may_have_the_base_of_another_backend_with_what_that_contradicts() {
        let name = name_of("org.dpdk.v22.11,max_ring=256");
        assert_eq!(name, "org.dpdk.v22.11,max_ring=256");
        assert_eq!(problems("org.isonic.net.v1,host_ecn=on").len(), 1);
    }

    #[test]
    fn the_bare_interface_never_changes() {
        // Lists that were stored without a base depend on it.
        assert_eq!(
            Profile::bare().canonical(),
            "features=0x0000000140000000\nfrontend_features=0x0000000000000020\n\
             protocol_features=0x000000000001a01d\nring_size_max=256\nqueue_pairs_max=1\n\
             mtu=1500\nmemory_slots=64\n"
        );
    }

    #[test]
    fn every_mistake_of_a_list_is_told_at_once() {
        let told =
            problems("org.isonic.net.v1,mrg_rxbuff=off,mq=yes,max_ring=99999,mtu=x,rss=on,v2");
        assert!(
            told[0].starts_with("unknown key \"mrg_rxbuff\"; did you mean \"mrg_rxbuf\"?; kno")
        );
        assert_eq!(
            told[1..],
            [
                "mq=yes: mq is on or off",
                "max_ring=99999: max_ring is a number from 1 to 32768",
                "mtu=x: mtu is a number from 68 to 65535, or on or off for the feature of that \
                 name",
                &format!("rss cannot be on: {}", features::obstacle("rss").unwrap()),
                "\"v2\" is no value; write key=value, and a profile's name only at the beginning",
            ]
        );
    }

    #[test]
    fn values_that_do_not_go_together_are_refused() {
        assert_eq!(problems("max_ring=1000"), ["ring_size_max is 1000, no power of two"]);
        assert_eq!(
            problems("org.isonic.net.v1,mq=off,ctrl_vq=off"),
            [
                "\"ctrl_rx\" needs ctrl_vq",
                "\"ctrl_vlan\" needs ctrl_vq",
                "\"ctrl_rx_extra\" needs ctrl_vq",
                "\"ctrl_mac_addr\" needs ctrl_vq",
                "queue_pairs_max is 16 without the feature mq",
            ]
        );
        let lacks = problems("org.isonic.net.v1,protocol.mq=off");
        assert!(lacks.len() == 1 && lacks[0].contains("16 without the protocol feature mq"));
        Catalog::embedded().resolve("org.isonic.net.v1,protocol.mq=off,queue_pairs=1").unwrap();
        assert_eq!(problems("max_ring=256,max_ring=512"), ["max_ring is given twice"]);
        assert_eq!(problems("max_ring=256,ring_size_max=256"), ["ring_size_max is given twice"]);
        assert_eq!(problems("host_tso4=on"), ["\"host_tso4\" needs csum"]);
        assert!(problems("version_1=off")[0].contains("no legacy interface"));
    }

    #[test]
    fn what_nobody_has_is_refused_with_what_was_probably_meant() {
        assert!(problems("org.isonic.net.v9")[0].contains("did you mean \"org.isonic.net.v1\"?"));
        assert!(problems("com.x.latest")[0].contains("no latest profile of \"com.x\""));
        assert!(problems("")[0].starts_with("no profile is named"));
        assert!(problems(" ")[0].starts_with("no profile is named"));
        assert_eq!(problems(",max_ring=256").len(), 1);
        assert!(problems(&"x".repeat(5000))[0].starts_with("it has 5000 bytes"));
        for number in ["-1", "0", "1e3", "+256", "99999999999999999999"] {
            assert_eq!(problems(&format!("max_ring={number}")).len(), 1, "{number}");
        }
    }
}
