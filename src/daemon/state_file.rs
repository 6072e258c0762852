//! What survives a restart: the ports added at run time, what every port was bound to, and what the
//! uplinks were like, in one JSON file.
//!
//! A binding holds the profile's digest, so that another version of the daemon, or an edited
//! profile file, cannot give a VM another interface under the same name.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::PortConfig;
use crate::device::mac::MacAddress;
use crate::platform::text_file::replace;
use crate::xdp::{AttachMode, SocketMode};

/// Of the file's form. Version 1 had no bindings; they are made when its ports are served.
const VERSION: u32 = 2;

/// Why the state cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The directory or file cannot be read.
    #[error("cannot read the state in {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not what we write.
    #[error(
        "{} is not a state file of this version; move it away to start without the ports that \
         were added at run time",
        path.display()
    )]
    Content {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Written by a version that knows more.
    #[error("{} has version {found}; this isonic knows {VERSION}", path.display())]
    Version {
        /// Which.
        path: PathBuf,
        /// As written.
        found: u32,
    },
    /// It could not be written; what was there is still there.
    #[error("cannot write the state to {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What a port is bound to, from when it is made until that is changed by command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// As it was asked for, perhaps as `latest`; of a port in the configuration file, to see
    /// whether that has changed.
    pub asked: String,
    /// What it was resolved to.
    pub profile: String,
    /// The profile's digest then.
    pub digest: String,
    /// The guest's MAC; None in files of older versions, which did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
}

/// An uplink as it was opened last: what ports were checked against and placed by. With it they can
/// be served while the NIC is away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownUplink {
    /// Driver of its NIC.
    pub driver: String,
    /// The NIC's own MAC.
    pub mac: MacAddress,
    /// The NIC's MTU, bytes.
    pub mtu: u32,
    /// The longest packet, bytes.
    pub packet_max: u32,
    /// Where the program ran.
    pub attach_mode: AttachMode,
    /// How packets moved.
    pub socket_mode: SocketMode,
    /// Its queues with a socket.
    pub queues: Vec<u32>,
}

/// All that is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// The ports added at run time.
    pub ports: Vec<PortConfig>,
    /// By port, those of the configuration file among them.
    pub bindings: BTreeMap<String, Bound>,
    /// By the name in the configuration.
    pub uplinks: BTreeMap<String, KnownUplink>,
}

#[derive(Serialize, Deserialize)]
struct Content {
    version: u32,
    ports: Vec<PortConfig>,
    #[serde(default)]
    bindings: BTreeMap<String, Bound>,
    #[serde(default)]
    uplinks: BTreeMap<String, KnownUplink>,
}

/// The file.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    /// As it was when opened.
    kept: Kept,
}

impl StateFile {
    /// Read the state in `directory`, which is made if it is not there.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn open(directory: &Path) -> Result<Self, StateError> {
        let path = directory.join("ports.json");
        let unreadable = |source| StateError::Read { path: path.clone(), source };
        fs::create_dir_all(directory).map_err(unreadable)?;
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { path, kept: Kept::default() });
            }
            Err(source) => return Err(unreadable(source)),
        };
        let content: Content = serde_json::from_slice(&text)
            .map_err(|source| StateError::Content { path: path.clone(), source })?;
        if !(1..=VERSION).contains(&content.version) {
            return Err(StateError::Version { path, found: content.version });
        }
        let Content { ports, bindings, uplinks, .. } = content;
        Ok(Self { path, kept: Kept { ports, bindings, uplinks } })
    }

    /// What was kept when it was opened.
    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    /// Keep this.
    ///
    /// # Errors
    /// [`StateError::Write`].
    pub fn save(&self, kept: Kept) -> Result<(), StateError> {
        self.write(kept).map_err(|source| StateError::Write { path: self.path.clone(), source })
    }

    fn write(&self, Kept { ports, bindings, uplinks }: Kept) -> io::Result<()> {
        let content = Content { version: VERSION, ports, bindings, uplinks };
        replace(&self.path, &serde_json::to_vec_pretty(&content)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str) -> PortConfig {
        let text =
            format!(r#"{{"name":"{name}","socket":"/run/x.sock","profile":"p","uplink":"eth0"}}"#);
        serde_json::from_str(&text).unwrap()
    }

    fn kept(names: &[&str]) -> Kept {
        let bound = Bound {
            asked: "latest".into(),
            profile: "p".into(),
            digest: "d".into(),
            mac: Some(MacAddress([2, 0, 0, 0, 0, 2])),
        };
        let uplink = KnownUplink {
            driver: "veth".into(),
            mac: MacAddress([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            packet_max: 3840,
            attach_mode: AttachMode::Native,
            socket_mode: SocketMode::Copy,
            queues: vec![0, 1],
        };
        Kept {
            ports: names.iter().map(|name| port(name)).collect(),
            bindings: names.iter().map(|&name| (name.to_owned(), bound.clone())).collect(),
            uplinks: [("eth0".to_owned(), uplink)].into(),
        }
    }

    #[test]
    fn what_was_saved_is_there_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateFile::open(&directory.path().join("new")).unwrap();
        assert_eq!(*state.kept(), Kept::default());
        state.save(kept(&["one", "two"])).unwrap();
        let again = StateFile::open(&directory.path().join("new")).unwrap();
        assert_eq!(*again.kept(), kept(&["one", "two"]));
    }

    #[test]
    fn a_crash_while_writing_leaves_the_old_state() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateFile::open(directory.path()).unwrap();
        state.save(kept(&["old"])).unwrap();
        // The new file is there in part, not yet renamed.
        fs::write(directory.path().join("ports.json.new"), b"{\"version\":1,\"po").unwrap();
        let again = StateFile::open(directory.path()).unwrap();
        assert_eq!(*again.kept(), kept(&["old"]));
        again.save(kept(&["next"])).unwrap();
        assert_eq!(*StateFile::open(directory.path()).unwrap().kept(), kept(&["next"]));
    }

    #[test]
    fn a_state_without_bindings_is_read_and_its_ports_are_bound_anew() {
        let directory = tempfile::tempdir().unwrap();
        let text = serde_json::json!({ "version": 1, "ports": [port("old")] }).to_string();
        fs::write(directory.path().join("ports.json"), text).unwrap();
        let state = StateFile::open(directory.path()).unwrap();
        assert_eq!(*state.kept(), Kept { ports: vec![port("old")], ..Kept::default() });
    }

    #[test]
    fn a_file_that_is_not_ours_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ports.json");
        fs::write(&path, "not json").unwrap();
        assert!(matches!(StateFile::open(directory.path()), Err(StateError::Content { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "not json");
        fs::write(&path, r#"{"version":3,"ports":[]}"#).unwrap();
        let error = StateFile::open(directory.path()).unwrap_err();
        assert!(matches!(error, StateError::Version { found: 3, .. }));
    }
}
