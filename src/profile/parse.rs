//! A profile file → a [`Profile`], or all its mistakes with their lines.

use std::path::Path;

use crate::device::features::{
    self, FEATURES, FeatureSet, MQ, PROTOCOL_FEATURES, Provider, VERSION_1,
};
use crate::document::{self, Located, Problems, Section, closest};

use super::Profile;

/// Longest name, bytes.
const NAME_MAX: usize = 128;
/// Largest split ring (virtio 1.2, 2.7): queue sizes are powers of two up to it.
const RING_SIZE_LIMIT: i64 = 32768;
/// Queue pairs that the 8-bit ring index of SET_VRING_KICK reaches.
const QUEUE_PAIRS_LIMIT: i64 = 128;
/// Memory slots a front-end can use: QEMU's limit, KVM's 509.
const MEMORY_SLOTS_LIMIT: i64 = 509;
/// The MTU's range (virtio 1.2, 5.1.4.1).
const MTU_RANGE: std::ops::RangeInclusive<i64> = 68..=65535;

/// Read the profile in `text`; `file` names it in messages.
///
/// # Errors
/// [`Problems`]: every unknown, missing or misplaced key, name and value.
pub fn parse(file: &Path, text: &str) -> Result<Profile, Problems> {
    document::read(file, text, profile)
}

fn profile(section: &Section<'_>) -> Option<Profile> {
    let name = section.required::<String>("name");
    if let Some(name) = &name {
        check_name(section, name);
    }
    let summary = section.required::<String>("summary");
    // Backends offer bits that the front-end implements, such as DPDK ctrl_vq; whether they do
    // makes no difference to the guest, but it does to GET_FEATURES.
    let backend = [Provider::Backend, Provider::Protocol, Provider::Frontend];
    let features = device_bits(section, "features", &backend);
    let frontend_features = device_bits(section, "frontend_features", &[Provider::Frontend]);
    let protocol_features = protocol_bits(section);
    let ring_size_max = section.required_integer::<u16>("ring_size_max", 1..=RING_SIZE_LIMIT);
    let queue_pairs_max = section.required_integer::<u16>("queue_pairs_max", 1..=QUEUE_PAIRS_LIMIT);
    let mtu = section.required_integer("mtu", MTU_RANGE);
    let memory_slots = section.required_integer("memory_slots", 1..=MEMORY_SLOTS_LIMIT);
    check_prerequisites(section, &features, &frontend_features);
    check_transport(section, &features, &protocol_features);
    if let Some(size) = ring_size_max.as_ref().filter(|size| !size.value.is_power_of_two()) {
        section.note(size.line, format!("ring_size_max is {}, no power of two", size.value));
    }
    if let Some(pairs) = queue_pairs_max.as_ref().filter(|pairs| pairs.value > 1)
        && !features.value.has(MQ)
    {
        let message = format!("queue_pairs_max is {} without the feature mq", pairs.value);
        section.note(pairs.line, message);
    }
    Some(Profile {
        name: name?.value,
        summary: summary?.value,
        features: features.value,
        frontend_features: frontend_features.value,
        protocol_features: protocol_features.value,
        ring_size_max: ring_size_max?.value,
        queue_pairs_max: queue_pairs_max?.value,
        mtu: mtu?.value,
        memory_slots: memory_slots?.value,
    })
}

/// Names travel through command lines, URLs and management's databases, and `,` and `=` are kept
/// for lists of values.
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
}

/// The names listed under `key` as bits, with the line of the list's first name.
fn bits(
    section: &Section<'_>,
    key: &'static str,
    bit_of: impl Fn(&Located<String>) -> Option<u8>,
) -> Located<FeatureSet> {
    let mut set = Located { value: FeatureSet::default(), line: section.line() };
    let Some(names) = section.list::<String>(key) else {
        section.note(section.line(), format!("{key} is missing; write {key} = [] for none"));
        return set;
    };
    for (index, name) in names.iter().enumerate() {
        if index == 0 {
            set.line = name.line;
        }
        let Some(bit) = bit_of(name) else { continue };
        if set.value.has(bit) {
            section.note(name.line, format!("{key} lists \"{}\" twice", name.value));
        }
        set.value = set.value.union(FeatureSet(1 << bit));
    }
    set
}

fn device_bits(
    section: &Section<'_>,
    key: &'static str,
    providers: &[Provider],
) -> Located<FeatureSet> {
    bits(section, key, |name| {
        let Some(feature) = features::by_name(&name.value) else {
            let known: Vec<&str> = FEATURES.iter().map(|feature| feature.name).collect();
            section.note(name.line, unknown(key, &name.value, &known));
            return None;
        };
        if !providers.contains(&feature.provider) {
            let place = match feature.provider {
                Provider::Backend | Provider::Protocol => "it belongs in features",
                Provider::Frontend => "it belongs in frontend_features",
                Provider::Reserved => "no vhost-user front-end lets it through",
            };
            section.note(name.line, format!("{key} lists \"{}\"; {place}", name.value));
        }
        Some(feature.bit)
    })
}

fn protocol_bits(section: &Section<'_>) -> Located<FeatureSet> {
    let key = "protocol_features";
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

/// Virtio 1.2, 5.1.3.1: bits that must not be offered without others, in either half. Some
/// backends do (DPDK host_ecn without host_tso4 and host_tso6), and a profile that describes them
/// has to name those bits.
fn check_prerequisites(
    section: &Section<'_>,
    backend: &Located<FeatureSet>,
    frontend: &Located<FeatureSet>,
) {
    let both = backend.value.union(frontend.value);
    let named = section.list::<String>("without_prerequisites").unwrap_or_default();
    for half in [backend, frontend] {
        for (feature, group) in features::unmet(half.value, both) {
            if named.iter().all(|named| named.value != feature.name) {
                let message = format!("\"{}\" needs {}", feature.name, group.names().join(" or "));
                section.note(half.line, message);
            }
        }
    }
    for named in &named {
        if features::unmet(both, both).all(|(feature, _)| feature.name != named.value) {
            let message = format!("\"{}\" is not offered without a prerequisite", named.value);
            section.note(named.line, message);
        }
    }
}

/// What every session needs, whatever the guest sees.
fn check_transport(
    section: &Section<'_>,
    features: &Located<FeatureSet>,
    protocol: &Located<FeatureSet>,
) {
    if !features.value.has(VERSION_1) {
        let message = "features lacks \"version_1\": isonic serves no legacy interface";
        section.note(features.line, message);
    }
    let negotiates = features.value.has(PROTOCOL_FEATURES);
    if !protocol.value.is_empty() && !negotiates {
        let message =
            "protocol_features are negotiated only with the feature \"protocol_features\"";
        section.note(protocol.line, message);
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
        assert_eq!(
            one_problem("\"status\",\n    \"ctrl_vq\"", "\"rss\",\n    \"ctrl_vq\""),
            "frontend_features lists \"rss\"; no vhost-user front-end lets it through"
        );
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
