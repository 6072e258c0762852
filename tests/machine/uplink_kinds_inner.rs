//! Uplinks of kinds that this machine's kernel may lack: in a machine in the machine
//! ([`InnerHost`]), on a veth pair there, what passes each is what docs/operations.md says ("Kinds
//! of interface"), or it is refused.

use std::path::PathBuf;

use crate::common::{Bed, Fate, InnerHost, Passage, program, this_program};

/// Commands are iproute2's, which the image's shell would take busybox's for.
const NIC: &str = "/bin/ip link add nic0 type veth peer name peer0; ethtool -K nic0 tx off gro on; \
                   ethtool -K peer0 tx off; /bin/ip link set nic0 up; /bin/ip link set peer0 up";
const GONE: &str = "for link in up0 br0 far0 nic0; do /bin/ip link delete $link 2>/dev/null; done; \
                    true";
const BOND: &str = "/bin/ip link add up0 type bond mode active-backup miimon 100; \
                    /bin/ip link set nic0 down; /bin/ip link set nic0 master up0";
const BRIDGE: &str =
    "/bin/ip link add up0 type bridge forward_delay 0; /bin/ip link set nic0 master up0";
const FILTERING: &str = "/bin/ip link add up0 type bridge forward_delay 0 vlan_filtering 1; \
                         /bin/ip link set nic0 master up0";
const VLAN: &str = "/bin/ip link add link nic0 name up0 type vlan id 7; \
                    /bin/ip link add link peer0 name far0 type vlan id 7; /bin/ip link set far0 up";
const UNTAGGED: Passage = Passage { tagged: Fate::Untagged, ..Passage::WHOLE };
const UNTAGGED_DROPPED: Passage = Passage { tagged: Fate::Lost, ..Passage::WHOLE };

/// What comes of an uplink of a kind.
enum Outcome {
    /// It is served in generic mode: what passes, and what `uplink list` names.
    Serves(Passage, &'static [&'static str]),
    /// It is refused, with these words.
    Refused(&'static str),
}

struct Kind {
    what: &'static str,
    make: &'static str,
    mode: &'static str,
    /// Where frames are sent from.
    wire: &'static str,
    outcome: Outcome,
}

const KINDS: [Kind; 8] = [
    Kind {
        what: "bond",
        make: BOND,
        mode: "auto",
        wire: "peer0",
        outcome: Outcome::Serves(UNTAGGED, &["ethtool --offload nic0 gro off", "takes them out"]),
    },
    Kind {
        what: "bond that is to have a native program",
        make: BOND,
        mode: "copy",
        wire: "peer0",
        outcome: Outcome::Refused("a native program of a bond runs on nic0"),
    },
    Kind {
        what: "VLAN device",
        make: VLAN,
        mode: "auto",
        wire: "far0",
        outcome: Outcome::Serves(Passage::WHOLE, &["ethtool --offload nic0 gro off"]),
    },
    Kind {
        what: "bridge",
        make: BRIDGE,
        mode: "auto",
        wire: "peer0",
        outcome: Outcome::Serves(UNTAGGED, &["ethtool --offload nic0 gro off", "vlan_filtering 1"]),
    },
    Kind {
        what: "bridge that filters VLANs",
        make: FILTERING,
        mode: "auto",
        wire: "peer0",
        outcome: Outcome::Serves(UNTAGGED_DROPPED, &["ethtool --offload nic0 gro off"]),
    },
    Kind {
        what: "ipvlan",
        make: "/bin/ip link add link nic0 name up0 type ipvlan mode l2",
        mode: "auto",
        wire: "peer0",
        outcome: Outcome::Refused("passes frames by the host's IP addresses"),
    },
    Kind {
        what: "VRF",
        make: "/bin/ip link add up0 type vrf table 9",
        mode: "auto",
        wire: "peer0",
        outcome: Outcome::Refused("a VRF routes packets"),
    },
    Kind {
        what: "dummy",
        make: "/bin/ip link add up0 type dummy",
        mode: "auto",
        wire: "peer0",
        outcome: Outcome::Serves(
            Passage {
                unicast: Fate::Lost,
                tagged: Fate::Lost,
                flooded: Fate::Lost,
                sent: Fate::Lost,
            },
            &["drops all that is sent"],
        ),
    },
];

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn what_passes_a_kind_of_device_is_what_is_told_or_it_is_refused() {
    let bed = Bed::new(0, 1);
    let programs = [env!("CARGO_BIN_EXE_isonic"), "/usr/sbin/ip"].map(PathBuf::from).into_iter();
    let programs: Vec<PathBuf> = programs.chain([this_program()]).collect();
    let mut host = InnerHost::boot(&bed, &[], &programs);
    for kind in &KINDS {
        println!("{}", kind.what);
        host.check(NIC);
        host.check(&format!("{}; /bin/ip link set up0 up", kind.make));
        match &kind.outcome {
            Outcome::Serves(passage, told) => assert_serves(&mut host, kind, *passage, told),
            Outcome::Refused(words) => assert_refused(&mut host, kind, words),
        }
        host.check(GONE);
    }
}

fn configuration(kind: &Kind) -> String {
    format!(
        "[[uplinks]]\ninterface = \"up0\"\nmode = \"{}\"\n\
         [[ports]]\nname = \"vm0\"\nsocket = \"/run/isonic/vm0.sock\"\n\
         profile = \"org.isonic.net.v1,mtu=1400\"\nuplink = \"up0\"\n\
         mac = \"52:54:00:00:00:01\"\n",
        kind.mode
    )
}

fn assert_serves(host: &mut InnerHost, kind: &Kind, expected: Passage, told: &[&str]) {
    let report = doctor(host);
    assert_eq!(report["can_serve"], true, "{report:#}");
    let summary = report["uplinks"][0]["summary"].as_str().expect("a summary");
    assert!(summary.contains("generic XDP, copy"), "{summary}");
    host.start_isonic(&configuration(kind));
    let uplink = host.json("uplink list")[0].take();
    assert_eq!(uplink["xdp_mode"], "generic", "{uplink}");
    let cautions = uplink["cautions"].as_array().expect("cautions");
    assert_eq!(cautions.len(), told.len(), "{uplink}");
    for words in told {
        let tells = |caution: &serde_json::Value| caution.as_str().unwrap().contains(words);
        assert!(cautions.iter().any(tells), "no {words:?} in {uplink}");
    }
    let said = host.check(&format!("ISONIC_WIRE={} {}", kind.wire, program("tell_passage")));
    let line = said.lines().find_map(|line| line.split_once("passage: "));
    let (_, json) = line.unwrap_or_else(|| panic!("no passage: {said}"));
    assert_eq!(serde_json::from_str::<Passage>(json).expect("a passage"), expected);
    host.stop("isonic");
}

fn assert_refused(host: &mut InnerHost, kind: &Kind, words: &str) {
    let lines: Vec<String> = configuration(kind).lines().map(|line| format!("'{line}'")).collect();
    host.check(&format!("printf '%s\\n' {} >/tmp/isonic.toml", lines.join(" ")));
    let refusal =
        host.check("if timeout 10 isonic run --config /tmp/isonic.toml 2>&1; then echo served; fi");
    assert!(refusal.contains(words) && !refusal.contains("served"), "{refusal}");
    if kind.mode == "auto" {
        let report = doctor(host);
        assert_eq!(report["can_serve"], false, "{report:#}");
        assert!(report.to_string().contains(words), "{report:#}");
    }
}

fn doctor(host: &mut InnerHost) -> serde_json::Value {
    let command = "isonic doctor --json --uplink up0 --api-socket /none \
                   --profile org.isonic.net.v1,mtu=1400 2>/dev/null; true";
    let text = host.check(command);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}
