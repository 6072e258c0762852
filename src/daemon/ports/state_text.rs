//! The content of the state file: JSON with a checksum. It is read entry by entry, so that a
//! damaged entry affects no other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::config::{PortConfig, is_port_name};
use crate::daemon::nic::KnownUplink;
use crate::platform::text_file::{FileError, read_text};
use crate::report::chain;

use super::port_record::BoundProfile;

/// Version of the file's form. Version 1 had no bindings; they are made when its ports are served.
pub const VERSION: u32 = 2;
/// Largest file, bytes: a thousand ports are half a megabyte.
const BYTES_MAX: u64 = 64 << 20;
/// Most queues of a NIC, as for an uplink's configuration.
const QUEUES_MAX: u32 = 256;
/// The head of a file that has a checksum: that of its whole text, with zeroes in its own place.
const CHECKSUM_HEAD: &str = "{\n  \"checksum\": \"";
/// Stands for the checksum while it is computed: SHA-256 in hexadecimal.
const CHECKSUM_BLANK: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// All that is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// The ports added at run time.
    pub ports: Vec<PortConfig>,
    /// By port, those of the configuration file among them.
    pub bindings: BTreeMap<String, BoundProfile>,
    /// By the name in the configuration.
    pub uplinks: BTreeMap<String, KnownUplink>,
}

/// The file as it is written.
#[derive(Serialize)]
struct StateContent<'k> {
    checksum: &'static str,
    version: u32,
    ports: &'k [PortConfig],
    bindings: &'k BTreeMap<String, BoundProfile>,
    uplinks: &'k BTreeMap<String, KnownUplink>,
}

/// The file as it is read: part by part and entry by entry, so that a damaged entry affects no
/// other.
#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    version: Value,
    #[serde(default = "no_list")]
    ports: Value,
    #[serde(default = "no_object")]
    bindings: Value,
    #[serde(default = "no_object")]
    uplinks: Value,
}

fn no_list() -> Value {
    Value::Array(Vec::new())
}

fn no_object() -> Value {
    Value::Object(serde_json::Map::new())
}

/// One of the two files, in the state that was found.
#[derive(Debug)]
pub enum StateCopy {
    /// There is none.
    Missing,
    /// It can be read in full.
    Whole(Kept),
    /// The readable parts, and the faults.
    Damaged(ReadableParts, String),
    /// Written by a version that knows more.
    Newer(u64),
}

/// The readable parts of a damaged copy.
#[derive(Debug, Default)]
pub struct ReadableParts {
    /// Its entries.
    pub kept: Kept,
    /// Its checksum is right or absent: each entry that can be read is as it was written, as far as
    /// is known.
    pub is_trusted: bool,
}

/// The text of a file, with its checksum.
///
/// # Errors
/// The state cannot be expressed in JSON.
pub fn text(kept: &Kept) -> io::Result<String> {
    let Kept { ports, bindings, uplinks } = kept;
    let content =
        StateContent { checksum: CHECKSUM_BLANK, version: VERSION, ports, bindings, uplinks };
    let mut text = serde_json::to_string_pretty(&content)?;
    let place = CHECKSUM_HEAD.len()..CHECKSUM_HEAD.len() + CHECKSUM_BLANK.len();
    let sum = checksum(&text);
    text.replace_range(place, &sum);
    Ok(text)
}

fn checksum(text: &str) -> String {
    let mut sum = String::new();
    for byte in Sha256::digest(text.as_bytes()) {
        // Writing to a String cannot fail.
        let _ = write!(sum, "{byte:02x}");
    }
    sum
}

/// Whether the checksum is right, if there is one: older versions, and people, write none.
pub fn is_whole(text: &str) -> bool {
    let Some(rest) = text.strip_prefix(CHECKSUM_HEAD) else { return true };
    let length = CHECKSUM_BLANK.len();
    let (Some(sum), Some(rest)) = (rest.get(..length), rest.get(length..)) else { return false };
    sum == checksum(&[CHECKSUM_HEAD, CHECKSUM_BLANK, rest].concat())
}

/// Read one of the two files.
pub fn read(path: &Path) -> StateCopy {
    let text = match read_text(path, BYTES_MAX) {
        Ok(text) => text,
        Err(FileError::Unreadable { source, .. }) if is_absent(path, &source) => {
            return StateCopy::Missing;
        }
        Err(error) => return StateCopy::Damaged(ReadableParts::default(), chain(&error)),
    };
    let parts: Parts = match serde_json::from_str(&text) {
        Ok(parts) => parts,
        Err(error) => return StateCopy::Damaged(ReadableParts::default(), error.to_string()),
    };
    let mut wrong = Vec::new();
    match parts.version.as_u64() {
        Some(version) if version > u64::from(VERSION) => return StateCopy::Newer(version),
        None | Some(0) => wrong.push("it has no version".to_owned()),
        Some(_) => {}
    }
    let is_trusted = is_whole(&text);
    if !is_trusted {
        wrong.push("its checksum is another".to_owned());
    }
    let kept = Kept {
        ports: ports(parts.ports, &mut wrong),
        bindings: named(&Kind { one: "binding", many: "bindings" }, parts.bindings, &mut wrong),
        uplinks: named(&Kind { one: "uplink", many: "uplinks" }, parts.uplinks, &mut wrong),
    };
    let kept = kept.plausible(&mut wrong);
    if wrong.is_empty() {
        return StateCopy::Whole(kept);
    }
    StateCopy::Damaged(ReadableParts { kept, is_trusted }, wrong.join("; "))
}

/// Whether there is no file of this name. A symbolic link that leads nowhere counts as a file: we
/// did not make it, and somebody may have to repair it.
fn is_absent(path: &Path, error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(path).is_err()
}

fn ports(part: Value, wrong: &mut Vec<String>) -> Vec<PortConfig> {
    let entries = match part {
        Value::Array(entries) => entries,
        _ => {
            wrong.push("its ports are no list".to_owned());
            Vec::new()
        }
    };
    let mut names = BTreeSet::new();
    let mut ports = Vec::new();
    for (number, entry) in entries.into_iter().enumerate() {
        match serde_json::from_value::<PortConfig>(entry) {
            Ok(port) if !is_port_name(&port.name) => {
                wrong.push(format!("port {number}: {:?} is no name", port.name));
            }
            Ok(port) if !names.insert(port.name.clone()) => {
                wrong.push(format!("port {number}: there is another {}", port.name));
            }
            Ok(port) => ports.push(port),
            Err(error) => wrong.push(format!("port {number}: {error}")),
        }
    }
    ports
}

/// The names of a part's entries, for messages.
struct Kind {
    one: &'static str,
    many: &'static str,
}

fn named<T: DeserializeOwned>(
    kind: &Kind,
    part: Value,
    wrong: &mut Vec<String>,
) -> BTreeMap<String, T> {
    let entries = match part {
        Value::Object(entries) => entries,
        _ => {
            wrong.push(format!("its {} are no object", kind.many));
            serde_json::Map::new()
        }
    };
    let mut read = BTreeMap::new();
    for (name, entry) in entries {
        match serde_json::from_value(entry) {
            Ok(entry) => drop(read.insert(name, entry)),
            Err(error) => wrong.push(format!("{} {name:?}: {error}", kind.one)),
        }
    }
    read
}

impl Kept {
    /// Add the entries that only `other` has.
    pub fn add_missing(&mut self, other: Self) {
        let has = |name: &str| self.ports.iter().any(|port| port.name == name);
        let missing: Vec<_> = other.ports.into_iter().filter(|port| !has(&port.name)).collect();
        self.ports.extend(missing);
        for (name, bound) in other.bindings {
            self.bindings.entry(name).or_insert(bound);
        }
        for (name, known) in other.uplinks {
            self.uplinks.entry(name).or_insert(known);
        }
    }

    /// Drop uplinks whose queues no NIC can have: ports are placed by them.
    fn plausible(mut self, wrong: &mut Vec<String>) -> Self {
        self.uplinks.retain(|name, known| {
            let queues: BTreeSet<u32> = known.queues.iter().copied().collect();
            let fit = queues.iter().all(|&queue| queue < QUEUES_MAX);
            let right = fit && !queues.is_empty() && queues.len() == known.queues.len();
            if !right {
                wrong.push(format!("uplink {name:?}: its queues are {:?}", known.queues));
            }
            right
        });
        self
    }
}
