//! A profile file → a [`Profile`], or all its mistakes with their lines.
//!
//! A file describes an interface in full, or extends another profile. An extension lists its
//! additions, and says why it exists.

use std::ops::RangeInclusive;
use std::path::Path;

use crate::device::features::{self, FEATURES, FeatureSet, Provider};
use crate::toml_document::{self, Located, Problems, Section, closest};

use super::contradictions::{
    Contradiction, MEMORY_SLOTS, MTUS, QUEUE_PAIRS, RING_SIZES, contradictions,
};
use super::definition::Profile;

/// Longest name, bytes.
const NAME_MAX: usize = 128;
/// The last part of a name that stands for the newest version of a family, and so is no name.
pub(super) const LATEST: &str = "latest";

/// Backends offer bits that the front-end implements too, such as DPDK ctrl_vq. The guest sees no
/// difference, but GET_FEATURES has one.
const OFFERED_BY_BACKENDS: [Provider; 3] =
    [Provider::Backend, Provider::Protocol, Provider::Frontend];

/// The contents of a profile file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProfileFile {
    /// The interface, with that of the predecessor filled in.
    pub(super) profile: Profile,
    /// Whether it may still change.
    pub(super) draft: bool,
    /// The predecessor, if there is one.
    pub(super) extends: Option<Extension>,
}

/// The predecessor of a profile, and why it was extended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// The predecessor's name.
    pub base: String,
    /// Why there is a new one.
    pub why: String,
}

/// Read the profile in `text`, which extends no other; `file` names it in messages.
///
/// # Errors
/// [`Problems`]: every unknown, missing or misplaced key, name and value.
pub fn parse(file: &Path, text: &str) -> Result<Profile, Problems> {
    parse_file(file, text, |_| None).map(|file| file.profile)
}

/// Read the profile in `text`; `base` finds the one that it extends.
pub(super) fn parse_file<'p>(
    file: &Path,
    text: &str,
    base: impl Fn(&str) -> Option<&'p Profile>,
) -> Result<ProfileFile, Problems> {
    toml_document::read(file, text, |section| profile_file(section, base))
}

/// The name that `text` gives after `extends`, if it is a profile file at all.
pub(super) fn base_of(text: &str) -> Option<String> {
    let mut base = None;
    let _ = toml_document::read(Path::new(""), text, |section| {
        base = section.optional::<String>("extends");
        Some(())
    });
    base.map(|name| name.value)
}

fn profile_file<'p>(
    section: &Section<'_>,
    base: impl Fn(&str) -> Option<&'p Profile>,
) -> Option<ProfileFile> {
    let draft = section.optional::<bool>("draft").is_some_and(|draft| draft.value);
    let Some(name) = section.optional::<String>("extends") else {
        let profile = profile(section, None)?;
        return Some(ProfileFile { profile, draft, extends: None });
    };
    let why = section.required::<String>("why");
    let Some(base) = base(&name.value) else {
        let message = format!("extends \"{}\", and there is no such profile", name.value);
        section.note(name.line, message);
        // Its own keys are checked all the same, against no predecessor in particular.
        profile(section, Some(&Profile::bare()));
        return None;
    };
    let profile = profile(section, Some(base))?;
    if profile.digest() == base.digest() {
        let message = "changes nothing of what it extends: then there is no need of a new profile";
        section.note(name.line, message);
    }
    let extends = Some(Extension { base: name.value, why: why?.value });
    Some(ProfileFile { profile, draft, extends })
}

/// The three lists of bits, each with the line of its first name.
struct Bits {
    backend: Located<FeatureSet>,
    frontend: Located<FeatureSet>,
    protocol: Located<FeatureSet>,
}

/// The profile. Its lists and limits are all in the file, or are those of `base` with additions.
fn profile(section: &Section<'_>, base: Option<&Profile>) -> Option<Profile> {
    let name = section.required::<String>("name");
    if let Some(name) = &name {
        check_name(section, name);
    }
    let summary = section.required::<String>("summary");
    let bits = match base {
        None => all_bits(section),
        Some(base) => added_bits(section, base),
    };
    let ring_size = limit(section, "ring_size_max", RING_SIZES, base.map(|it| it.ring_size_max));
    let pairs = limit(section, "queue_pairs_max", QUEUE_PAIRS, base.map(|it| it.queue_pairs_max));
    let mtu = limit(section, "mtu", MTUS, base.map(|it| it.mtu));
    let slots = limit(section, "memory_slots", MEMORY_SLOTS, base.map(|it| it.memory_slots));
    let limit_of = |limit: &Option<Located<u16>>| limit.as_ref().map_or(1, |limit| limit.value);
    let line_of = |limit: &Option<Located<u16>>| limit.as_ref().map_or(0, |limit| limit.line);
    let whole = Profile {
        name: name.as_ref().map(|name| name.value.clone()).unwrap_or_default(),
        summary: summary.as_ref().map(|summary| summary.value.clone()).unwrap_or_default(),
        features: bits.backend.value,
        frontend_features: bits.frontend.value,
        protocol_features: bits.protocol.value,
        ring_size_max: limit_of(&ring_size),
        queue_pairs_max: limit_of(&pairs),
        mtu: limit_of(&mtu),
        memory_slots: limit_of(&slots),
    };
    // Some backends offer bits without their prerequisites (DPDK host_ecn without host_tso4 and
    // host_tso6). A profile that describes them has to name those bits.
    let named = section.list::<String>("without_prerequisites").unwrap_or_default();
    let inherited = base.map(contradictions).unwrap_or_default();
    for contradiction in contradictions(&whole) {
        let lacking = contradiction.without_prerequisite();
        if inherited.contains(&contradiction)
            || named.iter().any(|named| Some(named.value.as_str()) == lacking)
        {
            continue;
        }
        let line = match contradiction {
            Contradiction::Backend { .. } | Contradiction::Legacy => bits.backend.line,
            Contradiction::Frontend { .. } => bits.frontend.line,
            Contradiction::ProtocolFeatures => bits.protocol.line,
            Contradiction::RingSize(_) => line_of(&ring_size),
            Contradiction::QueuePairs(_) | Contradiction::QueueNumber(_) => line_of(&pairs),
        };
        section.note(line, contradiction);
    }
    check_named(section, &named, &whole);
    // A profile needs every key, so a file that lacks one has no profile.
    (name.and(summary).is_some() && ring_size.and(pairs).and(mtu).and(slots).is_some())
        .then_some(whole)
}

/// Bits that are named as lacking a prerequisite must lack it.
fn check_named(section: &Section<'_>, named: &[Located<String>], profile: &Profile) {
    let contradictions = contradictions(profile);
    let lacking = |name: &str| {
        contradictions
            .iter()
            .any(|contradiction| contradiction.without_prerequisite() == Some(name))
    };
    for named in named.iter().filter(|named| !lacking(&named.value)) {
        let message = format!("\"{}\" is not offered without a prerequisite", named.value);
        section.note(named.line, message);
    }
}

/// A limit, which only a profile that extends another may leave out.
fn limit(
    section: &Section<'_>,
    key: &'static str,
    range: RangeInclusive<i64>,
    of_base: Option<u16>,
) -> Option<Located<u16>> {
    match of_base {
        None => section.required_integer(key, range),
        Some(value) => {
            let own = section.integer(key, range);
            own.or_else(|| Some(Located { value, line: section.line() }))
        }
    }
}

fn all_bits(section: &Section<'_>) -> Bits {
    Bits {
        backend: required(section, "features", |section, key| {
            device_bits(section, key, &OFFERED_BY_BACKENDS)
        }),
        frontend: required(section, "frontend_features", |section, key| {
            device_bits(section, key, &[Provider::Frontend])
        }),
        protocol: required(section, "protocol_features", protocol_bits),
    }
}

fn required(
    section: &Section<'_>,
    key: &'static str,
    read: impl Fn(&Section<'_>, &'static str) -> Option<Located<FeatureSet>>,
) -> Located<FeatureSet> {
    read(section, key).unwrap_or_else(|| {
        section.note(section.line(), format!("{key} is missing; write {key} = [] for none"));
        Located { value: FeatureSet::default(), line: section.line() }
    })
}

/// How the bits of a list are called.
type Names = fn(FeatureSet) -> Vec<String>;

/// The bits that an extending profile adds to each list. It cannot remove any: a profile that lacks
/// a bit of its predecessor is no extension, and is written in full.
fn added_bits(section: &Section<'_>, base: &Profile) -> Bits {
    let join = |key, of_base: FeatureSet, added: Option<Located<FeatureSet>>, names: Names| {
        let line = added.as_ref().map_or(section.line(), |added| added.line);
        let added = added.map(|added| added.value).unwrap_or_default();
        let again = FeatureSet(added.0 & of_base.0);
        if !again.is_empty() {
            let again = names(again).join(", ");
            section.note(line, format!("{key} lists {again}, which the predecessor has already"));
        }
        Located { value: of_base.union(added), line }
    };
    let backend = device_bits(section, "add_features", &OFFERED_BY_BACKENDS);
    let frontend = device_bits(section, "add_frontend_features", &[Provider::Frontend]);
    let protocol = protocol_bits(section, "add_protocol_features");
    Bits {
        backend: join("add_features", base.features, backend, FeatureSet::names),
        frontend: join(
            "add_frontend_features",
            base.frontend_features,
            frontend,
            FeatureSet::names,
        ),
        protocol: join(
            "add_protocol_features",
            base.protocol_features,
            protocol,
            features::protocol_names,
        ),
    }
}

/// Checks a name. Names travel through command lines, URLs and management's databases. The
/// characters `,` and `=` are kept for lists of values.
fn check_name(section: &Section<'_>, name: &Located<String>) {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@+".contains(&byte);
    let length = name.value.len();
    if length == 0 || length > NAME_MAX || !name.value.bytes().all(allowed) {
        let message = format!(
            "\"{}\" is no profile name: 1 to {NAME_MAX} letters, digits and . _ - @ +",
            name.value
        );
        section.note(name.line, message);
    }
    if name.value.rsplit('.').next() == Some(LATEST) {
        let message = format!("\"{}\": \"{LATEST}\" asks for the newest version", name.value);
        section.note(name.line, message + ", and so is no version");
    }
}

/// The names listed under `key` as bits, with the line of the first; None if there is no such key.
fn bits(
    section: &Section<'_>,
    key: &'static str,
    bit_of: impl Fn(&Located<String>) -> Option<u8>,
) -> Option<Located<FeatureSet>> {
    let names = section.list::<String>(key)?;
    let line = names.first().map_or(section.line(), |name| name.line);
    let mut value = FeatureSet::default();
    for name in &names {
        let Some(bit) = bit_of(name) else { continue };
        if value.has(bit) {
            section.note(name.line, format!("{key} lists \"{}\" twice", name.value));
        }
        value = value.union(FeatureSet(1 << bit));
    }
    Some(Located { value, line })
}

fn device_bits(
    section: &Section<'_>,
    key: &'static str,
    providers: &[Provider],
) -> Option<Located<FeatureSet>> {
    bits(section, key, |name| {
        if let Some(why) = features::obstacle(&name.value) {
            section.note(name.line, format!("{key} lists \"{}\": {why}", name.value));
            return None;
        }
        let Some(feature) = features::by_name(&name.value) else {
            let known: Vec<&str> = FEATURES.iter().map(|feature| feature.name).collect();
            section.note(name.line, unknown(key, &name.value, &known));
            return None;
        };
        if !providers.contains(&feature.provider) {
            let place = match feature.provider {
                Provider::Frontend => "it belongs in frontend_features",
                _ => "it belongs in features",
            };
            section.note(name.line, format!("{key} lists \"{}\"; {place}", name.value));
        }
        Some(feature.bit)
    })
}

fn protocol_bits(section: &Section<'_>, key: &'static str) -> Option<Located<FeatureSet>> {
    bits(section, key, |name| {
        let feature = features::protocol_by_name(&name.value);
        if feature.is_none() {
            let known: Vec<&str> = features::PROTOCOL.iter().map(|feature| feature.name).collect();
            section.note(name.line, unknown(key, &name.value, &known));
        }
        feature.map(|feature| feature.bit)
    })
}

fn unknown(key: &str, name: &str, known: &[&str]) -> String {
    match closest(name, known) {
        Some(meant) => format!("{key} lists unknown \"{name}\"; did you mean \"{meant}\"?"),
        None => format!("{key} lists unknown \"{name}\"; known: {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = include_str!("../../profiles/org.isonic.net.v1.toml");

    fn problems(text: &str) -> Vec<String> {
        let problems = parse(Path::new("p.toml"), text).unwrap_err();
        problems.list.into_iter().map(|problem| problem.message).collect()
    }

    fn one_problem(from: &str, to: &str) -> String {
        assert!(V1.contains(from));
        let problems = problems(&V1.replace(from, to));
        assert_eq!(problems.len(), 1, "{problems:?}");
        problems.into_iter().next().unwrap()
    }

    #[test]
    fn an_unknown_bit_name_is_refused_with_the_likely_one() {
        assert_eq!(
            one_problem("\"mrg_rxbuf\"", "\"mrg_rxbuff\""),
            "features lists unknown \"mrg_rxbuff\"; did you mean \"mrg_rxbuf\"?"
        );
    }

    #[test]
    fn a_bit_in_the_wrong_half_is_refused() {
        assert_eq!(
            one_problem("\"status\",\n    \"ctrl_vq\"", "\"csum\",\n    \"ctrl_vq\""),
            "frontend_features lists \"csum\"; it belongs in features"
        );
    }

    #[test]
    fn a_bit_that_nobody_can_offer_is_refused_with_who_stands_in_the_way() {
        for name in ["rss", "host_uso", "guest_udp_tunnel_gso", "notf_coal"] {
            let quoted = format!("\"{name}\",\n    \"ctrl_vq\"");
            let told = problems(&V1.replace("\"status\",\n    \"ctrl_vq\"", &quoted));
            let why = features::obstacle(name).unwrap();
            assert!(
                told.contains(&format!("frontend_features lists \"{name}\": {why}")),
                "{told:?}"
            );
            let quoted = format!("    \"{name}\",\n    \"mrg_rxbuf\"");
            let told = problems(&V1.replace("    \"mrg_rxbuf\"", &quoted));
            assert!(told.contains(&format!("features lists \"{name}\": {why}")), "{told:?}");
        }
    }

    #[test]
    fn a_missing_prerequisite_is_named() {
        assert_eq!(one_problem("\"mrg_rxbuf\"", "\"host_tso4\""), "\"host_tso4\" needs csum");
        let without_control_queue = problems(&V1.replace("    \"ctrl_vq\",\n", ""));
        assert!(without_control_queue.contains(&"\"mq\" needs ctrl_vq".to_owned()));
        assert!(without_control_queue.contains(&"\"ctrl_rx\" needs ctrl_vq".to_owned()));
    }

    #[test]
    fn a_missing_prerequisite_is_allowed_where_the_profile_says_so_and_only_there() {
        let ecn = V1.replace("\"mrg_rxbuf\"", "\"host_ecn\"");
        let named = |names: &str| format!("{ecn}without_prerequisites = [{names}]\n");
        assert_eq!(problems(&ecn), ["\"host_ecn\" needs host_tso4 or host_tso6"]);
        assert!(parse(Path::new("p"), &named("\"host_ecn\"")).is_ok());
        assert_eq!(
            problems(&named("\"host_ecn\", \"mq\"")),
            ["\"mq\" is not offered without a prerequisite"]
        );
    }

    #[test]
    fn a_backend_may_offer_what_the_front_end_implements() {
        let text = V1.replace("\"mrg_rxbuf\"", "\"ctrl_rx\"");
        let profile = parse(Path::new("p"), &text).unwrap();
        assert!(profile.features.names().contains(&"ctrl_rx".to_owned()));
    }

    #[test]
    fn limits_out_of_range_are_refused() {
        assert_eq!(one_problem("= 1024", "= 1000"), "ring_size_max is 1000, no power of two");
        assert_eq!(
            one_problem("= 1024", "= 65536"),
            "ring_size_max is 65536, and must be 1 to 32768"
        );
        assert_eq!(one_problem("= 16", "= 129"), "queue_pairs_max is 129, and must be 1 to 128");
        assert_eq!(one_problem("mtu = 1500", "mtu = 67"), "mtu is 67, and must be 68 to 65535");
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        assert_eq!(
            one_problem("    \"mq\",\n    \"indirect", "    \"indirect"),
            "queue_pairs_max is 16 without the feature mq"
        );
        assert_eq!(
            one_problem("    \"protocol_features\",\n", ""),
            "protocol_features are negotiated only with the feature \"protocol_features\""
        );
        assert!(one_problem("    \"version_1\",\n", "").contains("no legacy interface"));
        assert_eq!(one_problem("\"event_idx\"", "\"mtu\""), "features lists \"mtu\" twice");
        assert!(one_problem("name = \"org", "name = \"a,b=c").contains("is no profile name"));
    }

    /// A profile made from v1 by these lines.
    fn extending(lines: &str) -> Result<ProfileFile, Vec<String>> {
        let v1 = parse(Path::new("v1.toml"), V1).unwrap();
        let text = format!(
            "name = \"org.isonic.net.v9\"\nsummary = \"x\"\n\
             extends = \"org.isonic.net.v1\"\n{lines}\n"
        );
        let base = |name: &str| (name == v1.name).then_some(&v1);
        parse_file(Path::new("p.toml"), &text, base)
            .map_err(|problems| problems.list.into_iter().map(|problem| problem.message).collect())
    }

    #[test]
    fn an_extension_is_its_predecessor_and_what_it_says() {
        let v1 = parse(Path::new("v1.toml"), V1).unwrap();
        let added =
            extending("why = \"w\"\ndraft = true\nadd_features = [\"csum\"]\nring_size_max = 256");
        let added = added.unwrap();
        let csum = FeatureSet(1 << features::CSUM);
        let expected = Profile {
            name: "org.isonic.net.v9".into(),
            summary: "x".into(),
            features: v1.features.union(csum),
            ring_size_max: 256,
            ..v1
        };
        assert_eq!(added.profile, expected);
        let (base, why) = ("org.isonic.net.v1".into(), "w".into());
        assert_eq!((added.draft, added.extends), (true, Some(Extension { base, why })));
    }

    #[test]
    fn an_extension_says_why_and_changes_something_that_was_not_there() {
        assert_eq!(extending("mtu = 9000").unwrap_err(), ["why is missing"]);
        let nothing = extending("why = \"w\"").unwrap_err();
        assert!(nothing[0].contains("changes nothing of what it extends"), "{nothing:?}");
        let again = extending("why = \"w\"\nadd_features = [\"mq\", \"csum\"]").unwrap_err();
        assert_eq!(again, ["add_features lists mq, which the predecessor has already"]);
        let in_full = extending("why = \"w\"\nmtu = 9000\nfeatures = []").unwrap_err();
        assert!(in_full[0].contains("unknown key \"features\""), "{in_full:?}");
        let alone = problems(&V1.replace("# What the backend", "extends = \"x.v0\"\n#"));
        assert!(alone.contains(&"extends \"x.v0\", and there is no such profile".to_owned()));
    }

    #[test]
    fn latest_is_no_version() {
        let latest = one_problem("net.v1", "net.latest");
        assert!(latest.contains("asks for the newest version"), "{latest}");
    }

    #[test]
    fn a_packed_ring_may_have_any_size() {
        let packed = V1.replace("\"version_1\"", "\"version_1\", \"ring_packed\"");
        parse(Path::new("p"), &packed.replace("= 1024", "= 1000")).unwrap();
    }

    #[test]
    fn all_mistakes_of_a_file_are_told_at_once() {
        let text = "name = \"a b\"\nsumary = \"x\"\nfeatures = [\"csam\"]\nmtu = \"9000\"\n";
        let lines: Vec<usize> = parse(Path::new("p"), text)
            .unwrap_err()
            .list
            .into_iter()
            .filter(|problem| !problem.message.ends_with("missing"))
            .map(|problem| problem.line)
            .collect();
        assert!([1, 2, 3, 4].iter().all(|line| lines.contains(line)), "{lines:?}");
    }
}
