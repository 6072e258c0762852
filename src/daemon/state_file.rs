//! What survives a restart: the ports added at run time, in one JSON file.
//!
//! Written whole to a new file, synced, and renamed over the old one, so that a crash at any
//! moment leaves the old or the new.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::config::PortConfig;

/// Of the file's form.
const VERSION: u32 = 1;

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

#[derive(Serialize, Deserialize)]
struct Content {
    version: u32,
    ports: Vec<PortConfig>,
}

/// The file.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    /// As last read or written.
    ports: Mutex<Vec<PortConfig>>,
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
                return Ok(Self { path, ports: Mutex::default() });
            }
            Err(source) => return Err(unreadable(source)),
        };
        let content: Content = serde_json::from_slice(&text)
            .map_err(|source| StateError::Content { path: path.clone(), source })?;
        if content.version != VERSION {
            return Err(StateError::Version { path, found: content.version });
        }
        Ok(Self { path, ports: content.ports.into() })
    }

    /// The ports that are kept now.
    pub fn ports(&self) -> Vec<PortConfig> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keep these ports.
    ///
    /// # Errors
    /// [`StateError::Write`].
    pub fn save(&self, ports: Vec<PortConfig>) -> Result<(), StateError> {
        self.write(ports.clone())
            .map_err(|source| StateError::Write { path: self.path.clone(), source })?;
        *self.ports.lock().unwrap_or_else(PoisonError::into_inner) = ports;
        Ok(())
    }

    fn write(&self, ports: Vec<PortConfig>) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(&Content { version: VERSION, ports })?;
        let new = self.path.with_extension("json.new");
        let mut file = File::create(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        // The rename itself is in the directory.
        let directory = self.path.parent().expect("a file in the state directory");
        File::open(directory)?.sync_all()
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

    #[test]
    fn what_was_saved_is_there_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateFile::open(&directory.path().join("new")).unwrap();
        assert!(state.ports().is_empty());
        state.save(vec![port("one"), port("two")]).unwrap();
        assert_eq!(state.ports(), [port("one"), port("two")]);
        let again = StateFile::open(&directory.path().join("new")).unwrap();
        assert_eq!(again.ports(), [port("one"), port("two")]);
    }

    #[test]
    fn a_crash_while_writing_leaves_the_old_state() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateFile::open(directory.path()).unwrap();
        state.save(vec![port("old")]).unwrap();
        // The new file is there in part, not yet renamed.
        fs::write(directory.path().join("ports.json.new"), b"{\"version\":1,\"po").unwrap();
        let again = StateFile::open(directory.path()).unwrap();
        assert_eq!(again.ports(), [port("old")]);
        again.save(vec![port("next")]).unwrap();
        assert_eq!(StateFile::open(directory.path()).unwrap().ports(), [port("next")]);
    }

    #[test]
    fn a_file_that_is_not_ours_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ports.json");
        fs::write(&path, "not json").unwrap();
        assert!(matches!(StateFile::open(directory.path()), Err(StateError::Content { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "not json");
        fs::write(&path, r#"{"version":2,"ports":[]}"#).unwrap();
        let error = StateFile::open(directory.path()).unwrap_err();
        assert!(matches!(error, StateError::Version { found: 2, .. }));
    }
}
