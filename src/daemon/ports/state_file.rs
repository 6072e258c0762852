//! The state that survives a restart: the ports added at run time, the records of all ports, and
//! the facts of the uplinks, as JSON.
//!
//! A binding holds the profile's digest. So another version of the daemon, or an edited profile
//! file, cannot give a VM another interface under the same name.
//!
//! There are two copies with the same content, `ports.json` and `ports.backup.json`, each replaced
//! as a whole and each with a checksum. A damaged copy is put aside, never removed, and the other
//! is used. If both are damaged, all entries that can be read in either are used. A daemon that can
//! neither read nor write its state starts all the same ([`StateFile::problems`]); only changes
//! that could not be kept are refused. Only one daemon uses the directory at a time
//! (`directory_lock`).

use std::fmt::Write;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::daemon::directory_lock::{DirectoryLock, LockError, LockedDirectory};
use crate::daemon::problems::HostProblem;
use crate::platform::text_file::replace;

use super::state_text::{Kept, ReadableParts, StateCopy, VERSION, read, text};

/// Damaged files that are kept; one more is not put aside.
const ASIDE_MAX: u32 = 1000;

/// Why the state cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum StateFileError {
    /// Another daemon has it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// There is a state, and it cannot be read in full.
    #[error("{0}")]
    Unknown(String),
    /// It could not be written; the old state is still there.
    #[error("cannot write the state to {}; nothing was changed", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The files.
#[derive(Debug)]
pub struct StateFile {
    directory: PathBuf,
    lock: Option<DirectoryLock>,
    /// The state when it was opened.
    kept: Kept,
    /// The problems when it was opened.
    problems: Vec<(HostProblem, String)>,
    /// Why nothing is written: there is a state that must not be overwritten.
    sealed: Option<String>,
    /// The reason for which a part of the state is lost.
    lost: Option<String>,
}

impl StateFile {
    /// Read the state in `directory`, which is made if it does not exist, and lock it. `inherited`
    /// is the lock of a process that hands it over.
    ///
    /// # Errors
    /// [`StateFileError::Lock`]. All other failures are in [`problems`](Self::problems).
    pub fn open(directory: &Path, inherited: Option<OwnedFd>) -> Result<Self, StateFileError> {
        let mut state = Self {
            directory: directory.to_owned(),
            lock: None,
            kept: Kept::default(),
            problems: Vec::new(),
            sealed: None,
            lost: None,
        };
        if let Err(error) = fs::create_dir_all(directory) {
            let reason = format!("cannot make state_dir {}: {error}", directory.display());
            state.problems.push((HostProblem::State, reason));
            return Ok(state);
        }
        let (lock, reason) = DirectoryLock::take(LockedDirectory::State, directory, inherited)?;
        state.lock = Some(lock);
        state.problems.extend(reason.map(|reason| (HostProblem::StateLock, reason)));
        state.read();
        Ok(state)
    }

    /// The state when it was opened.
    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    /// The problems when it was opened.
    pub fn problems(&self) -> &[(HostProblem, String)] {
        &self.problems
    }

    /// The lock, for the process that takes over.
    pub fn lock(&self) -> Option<OwnedFd> {
        self.lock.as_ref()?.share()
    }

    /// Take the lock again if the directory was removed under us. Another daemon that starts now
    /// would find no lock, and the two would overwrite each other's state.
    ///
    /// # Errors
    /// [`StateFileError::Lock`]: another daemon has it.
    fn keep_locked(&self) -> Result<(), StateFileError> {
        // A lock that could not be taken at the start is not required here.
        if let Some(lock) = self.lock.as_ref().filter(|lock| lock.is_held()) {
            lock.keep()?;
        }
        Ok(())
    }

    /// Check that no part of the state is lost.
    ///
    /// # Errors
    /// [`StateFileError::Unknown`]: the lost part.
    pub fn check_whole(&self) -> Result<(), StateFileError> {
        let lost = self.sealed.as_ref().or(self.lost.as_ref());
        lost.map_or(Ok(()), |reason| Err(StateFileError::Unknown(reason.clone())))
    }

    /// Write the first copy.
    ///
    /// # Errors
    /// [`StateFileError`]; nothing was changed.
    pub fn save(&self, kept: &Kept) -> Result<(), StateFileError> {
        if let Some(reason) = &self.sealed {
            return Err(StateFileError::Unknown(reason.clone()));
        }
        self.write(&self.main(), kept)
    }

    /// Write the second copy.
    ///
    /// # Errors
    /// [`StateFileError::Write`].
    pub fn back_up(&self, kept: &Kept) -> Result<(), StateFileError> {
        self.write(&self.backup(), kept)
    }

    fn main(&self) -> PathBuf {
        self.directory.join("ports.json")
    }

    fn backup(&self) -> PathBuf {
        self.directory.join("ports.backup.json")
    }

    fn write(&self, path: &Path, kept: &Kept) -> Result<(), StateFileError> {
        // The directory may have been removed, or not have existed at the start.
        let failed = |source| StateFileError::Write { path: path.to_owned(), source };
        fs::create_dir_all(&self.directory).map_err(failed)?;
        self.keep_locked()?;
        let written = text(kept).and_then(|text| replace(path, text.as_bytes()));
        written.map_err(|source| StateFileError::Write { path: path.to_owned(), source })
    }

    /// Choose between the two copies.
    fn read(&mut self) {
        let (main, backup) = (self.main(), self.backup());
        let (rest, told) = match read(&main) {
            StateCopy::Whole(kept) => {
                self.kept = kept;
                return self.look_at_copy(&backup);
            }
            StateCopy::Newer(found) => return self.seal_newer(&main, found),
            StateCopy::Damaged(rest, wrong) => (rest, self.put_aside(&main, &wrong)),
            StateCopy::Missing => (ReadableParts::default(), String::new()),
        };
        let (other, used) = match read(&backup) {
            // This daemon is new.
            StateCopy::Missing if told.is_empty() => return,
            StateCopy::Newer(found) => return self.seal_newer(&backup, found),
            StateCopy::Whole(kept) => return self.use_copy(kept, rest, &told, &backup),
            StateCopy::Damaged(rest, wrong) => (rest, self.put_aside(&backup, &wrong)),
            StateCopy::Missing => {
                (ReadableParts::default(), format!("there is no {}", backup.display()))
            }
        };
        self.kept = rest.kept;
        self.kept.add_missing(other.kept);
        let ports = self.kept.ports.len();
        let told = joined(&joined(&told, &used), "what can be read is used");
        let told = format!("{told}: {ports} ports added at run time; others may be missing");
        self.lost = Some(told.clone());
        self.problems.push((HostProblem::StateDamaged, told));
    }

    /// Use the second copy, which is whole. The first may have been written later, by a version
    /// without a second copy: entries that only the first has are kept.
    fn use_copy(&mut self, kept: Kept, rest: ReadableParts, told: &str, backup: &Path) {
        let whole = kept.ports.len();
        self.kept = kept;
        if rest.is_trusted {
            self.kept.add_missing(rest.kept);
        }
        let mut used = format!("{} is used", backup.display());
        match self.kept.ports.len() - whole {
            0 => {}
            more => {
                let _ = write!(used, ", with {more} ports that only the damaged file has");
            }
        }
        self.problems.push((HostProblem::StateDamaged, joined(told, &used)));
    }

    /// The first copy is whole, and the second will be written anew. A second copy that cannot be
    /// read is put aside first.
    fn look_at_copy(&mut self, backup: &Path) {
        let wrong = match read(backup) {
            StateCopy::Missing | StateCopy::Whole(_) => return,
            StateCopy::Damaged(_, wrong) => wrong,
            StateCopy::Newer(found) => format!("it has version {found}"),
        };
        let file = backup.display();
        let told = match put_aside(backup) {
            Ok(aside) => format!("{file} was damaged ({wrong}), and is now {}", aside.display()),
            Err(error) => {
                format!("{file} is damaged ({wrong}) and cannot be put aside ({error})")
            }
        };
        let used = format!("{} is used", self.main().display());
        self.problems.push((HostProblem::StateDamaged, joined(&told, &used)));
    }

    /// Give a damaged file another name, and return the report of that. If it cannot be renamed,
    /// nothing is written while it is there.
    fn put_aside(&mut self, path: &Path, wrong: &str) -> String {
        let file = path.display();
        match put_aside(path) {
            Ok(aside) => format!("{file} was damaged ({wrong}), and is now {}", aside.display()),
            Err(error) => {
                let told = format!("{file} is damaged ({wrong}) and cannot be put aside ({error})");
                let reason = format!("{told}; no change is kept until it is moved away");
                self.problems.push((HostProblem::State, reason.clone()));
                self.sealed = Some(reason);
                told
            }
        }
    }

    fn seal_newer(&mut self, path: &Path, found: u64) {
        let reason = format!(
            "{} has version {found}, and this isonic knows {VERSION}: its ports are not served and \
             no change is kept; start a newer isonic, or move it and its copy away",
            path.display()
        );
        self.kept = Kept::default();
        self.problems.push((HostProblem::State, reason.clone()));
        self.sealed = Some(reason);
    }
}

fn joined(first: &str, second: &str) -> String {
    if first.is_empty() { second.to_owned() } else { format!("{first}; {second}") }
}

/// Rename a damaged file. Returns the new name.
fn put_aside(path: &Path) -> io::Result<PathBuf> {
    let name = |number: u32| {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        // Writing to an OsString cannot fail.
        let _ = write!(name, ".damaged-{number}");
        path.with_file_name(name)
    };
    let free = |path: &PathBuf| fs::symlink_metadata(path).is_err();
    let aside = (1..=ASIDE_MAX).map(name).find(free);
    let aside = aside.ok_or_else(|| io::Error::other("there are too many already"))?;
    fs::rename(path, &aside)?;
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Serialize};
    use serde_json::Value;

    use super::*;
    use crate::config::PortConfig;
    use crate::daemon::nic::KnownUplink;
    use crate::daemon::ports::port_record::BoundProfile;
    use crate::daemon::ports::state_text::is_whole;
    use crate::device::mac::MacAddress;
    use crate::xdp::{AttachMode, BindMode};

    fn port(name: &str) -> PortConfig {
        let text =
            format!(r#"{{"name":"{name}","socket":"/run/x.sock","profile":"p","uplink":"eth0"}}"#);
        serde_json::from_str(&text).unwrap()
    }

    fn kept(names: &[&str]) -> Kept {
        let bound = BoundProfile {
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
            socket_mode: BindMode::Copy,
            queues: vec![0, 1],
        };
        Kept {
            ports: names.iter().map(|name| port(name)).collect(),
            bindings: names.iter().map(|&name| (name.to_owned(), bound.clone())).collect(),
            uplinks: [("eth0".to_owned(), uplink)].into(),
        }
    }

    fn open(directory: &Path) -> StateFile {
        StateFile::open(directory, None).unwrap()
    }

    /// A directory with this state in both copies.
    fn saved(names: &[&str]) -> (tempfile::TempDir, PathBuf, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let state = open(directory.path());
        state.save(&kept(names)).unwrap();
        state.back_up(&kept(names)).unwrap();
        let (main, backup) = (state.main(), state.backup());
        (directory, main, backup)
    }

    fn problems(state: &StateFile) -> Vec<HostProblem> {
        state.problems().iter().map(|(problem, _)| *problem).collect()
    }

    #[test]
    fn what_was_saved_is_there_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new");
        let state = open(&path);
        assert_eq!(*state.kept(), Kept::default());
        state.save(&kept(&["one", "two"])).unwrap();
        drop(state);
        let again = open(&path);
        assert_eq!(*again.kept(), kept(&["one", "two"]));
        assert_eq!(problems(&again), []);
    }

    #[test]
    fn a_crash_while_writing_leaves_the_old_state() {
        let (directory, ..) = saved(&["old"]);
        // Part of the new file is there, not yet renamed.
        fs::write(directory.path().join("ports.json.new"), b"{\"version\":1,\"po").unwrap();
        let again = open(directory.path());
        assert_eq!(*again.kept(), kept(&["old"]));
        again.save(&kept(&["next"])).unwrap();
        drop(again);
        assert_eq!(*open(directory.path()).kept(), kept(&["next"]));
    }

    #[test]
    fn a_state_without_bindings_is_read_and_its_ports_are_bound_anew() {
        let directory = tempfile::tempdir().unwrap();
        let text = serde_json::json!({ "version": 1, "ports": [port("old")] }).to_string();
        fs::write(directory.path().join("ports.json"), text).unwrap();
        let state = open(directory.path());
        assert_eq!(*state.kept(), Kept { ports: vec![port("old")], ..Kept::default() });
        assert_eq!(problems(&state), []);
    }

    /// Structures with which commit 124c6ec reads and writes it.
    #[test]
    fn an_older_version_reads_ours_and_we_read_its() {
        #[derive(Serialize, Deserialize)]
        struct Older {
            version: u32,
            ports: Vec<PortConfig>,
            #[serde(default)]
            bindings: BTreeMap<String, BoundProfile>,
            #[serde(default)]
            uplinks: BTreeMap<String, KnownUplink>,
        }
        let (directory, main, _) = saved(&["one"]);
        let mut older: Older = serde_json::from_slice(&fs::read(&main).unwrap()).unwrap();
        let Kept { ports, bindings, uplinks } = kept(&["one"]);
        assert_eq!((older.version, &older.ports), (2, &ports));
        assert_eq!((&older.bindings, &older.uplinks), (&bindings, &uplinks));
        // It has added a port, and does not write the other copy.
        older.ports.push(port("two"));
        fs::write(&main, serde_json::to_vec_pretty(&older).unwrap()).unwrap();
        let state = open(directory.path());
        assert_eq!(state.kept().ports, [port("one"), port("two")]);
        assert_eq!(problems(&state), []);
    }

    #[test]
    fn whatever_becomes_of_one_copy_the_other_is_used_and_the_first_is_put_aside() {
        let (_directory, main, _) = saved(&["one", "two"]);
        let good = fs::read(&main).unwrap();
        let cut = (0..good.len()).step_by(7).map(|length| good[..length].to_vec());
        let changed = (0..good.len()).step_by(5).map(|at| {
            let mut text = good.clone();
            // Another letter or digit, so that many are still JSON.
            text[at] = if text[at] == b'7' { b'8' } else { b'7' };
            text
        });
        for text in cut.chain(changed) {
            let (directory, main, _) = saved(&["one", "two"]);
            fs::write(&main, &text).unwrap();
            let state = open(directory.path());
            assert_eq!(*state.kept(), kept(&["one", "two"]));
            if is_whole(&String::from_utf8(text.clone()).unwrap_or_default())
                && problems(&state).is_empty()
            {
                // White space before the checksum changes nothing.
                continue;
            }
            assert_eq!(problems(&state), [HostProblem::StateDamaged]);
            let aside = directory.path().join("ports.json.damaged-1");
            assert_eq!(fs::read(aside).unwrap(), text);
            state.save(state.kept()).unwrap();
            drop(state);
            assert_eq!(problems(&open(directory.path())), []);
        }
    }

    #[test]
    fn a_damaged_copy_never_takes_the_place_of_another() {
        let (directory, main, _) = saved(&["one"]);
        for number in 1..=3 {
            fs::write(&main, format!("damage {number}")).unwrap();
            let state = open(directory.path());
            state.save(state.kept()).unwrap();
        }
        for number in 1..=3 {
            let aside = directory.path().join(format!("ports.json.damaged-{number}"));
            assert_eq!(fs::read_to_string(aside).unwrap(), format!("damage {number}"));
        }
    }

    /// Entries without a second copy: each one that can be read.
    #[test]
    fn of_a_damaged_file_without_a_copy_what_can_be_read_is_used() {
        let directory = tempfile::tempdir().unwrap();
        let uplink = serde_json::to_value(&kept(&[]).uplinks["eth0"]).unwrap();
        let with = |key: &str, value: serde_json::Value| {
            let mut uplink = uplink.clone();
            uplink[key] = value;
            uplink
        };
        let text = serde_json::json!({
            "version": 2,
            "ports": [port("one"), 7, port("two"), port("one"), port("../../etc/x")],
            "bindings": { "one": 3 },
            "uplinks": {
                "eth0": uplink.clone(),
                "eth1": with("queues", serde_json::json!([])),
                "eth2": with("queues", serde_json::json!([0, 0])),
                "eth3": with("queues", serde_json::json!([4_000_000_000_u32])),
                "eth4": with("mtu", "wide".into()),
            },
        });
        fs::write(directory.path().join("ports.json"), text.to_string()).unwrap();
        let state = open(directory.path());
        assert_eq!(state.kept().ports, [port("one"), port("two")]);
        assert_eq!(state.kept().uplinks, kept(&[]).uplinks);
        let [(HostProblem::StateDamaged, told)] = state.problems() else { panic!("{state:?}") };
        for word in ["port 1", "port 3", "port 4", "binding", "eth1", "eth2", "eth3", "eth4"] {
            assert!(told.contains(word), "{word} is not in: {told}");
        }
        state.check_whole().unwrap_err();
    }

    /// This copy with a part replaced, and without its checksum, as by hand or by an older version.
    fn with_part(path: &Path, part: &str, value: serde_json::Value) {
        let mut state: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        state.as_object_mut().unwrap().remove("checksum");
        state[part] = value;
        fs::write(path, state.to_string()).unwrap();
    }

    #[test]
    fn a_damaged_part_takes_no_other_with_it_and_two_damaged_copies_complete_each_other() {
        for value in [serde_json::json!([]), serde_json::json!(null), serde_json::json!("x")] {
            let (directory, main, backup) = saved(&["one", "two"]);
            with_part(&main, "bindings", value.clone());
            fs::remove_file(&backup).unwrap();
            let state = open(directory.path());
            assert_eq!(state.kept().ports, kept(&["one", "two"]).ports, "{value}");
            assert_eq!(problems(&state), [HostProblem::StateDamaged], "{value}");
            assert!(state.problems()[0].1.contains("bindings are no object"), "{state:?}");
        }
        let (directory, main, backup) = saved(&["one", "two"]);
        with_part(&main, "bindings", serde_json::json!([]));
        with_part(&backup, "ports", serde_json::json!({}));
        let state = open(directory.path());
        assert_eq!(*state.kept(), kept(&["one", "two"]));
        state.check_whole().unwrap_err();
        for aside in ["ports.json.damaged-1", "ports.backup.json.damaged-1"] {
            assert!(directory.path().join(aside).exists(), "{aside}");
        }
    }

    #[test]
    fn what_only_the_damaged_copy_has_is_served_beside_the_older_one_that_is_whole() {
        let (directory, main, _) = saved(&["one"]);
        with_part(&main, "bindings", serde_json::json!([]));
        with_part(&main, "ports", serde_json::json!([port("one"), port("two")]));
        let state = open(directory.path());
        assert_eq!(state.kept().ports, [port("one"), port("two")]);
        assert_eq!(state.kept().bindings, kept(&["one"]).bindings);
        assert_eq!(problems(&state), [HostProblem::StateDamaged]);
    }

    #[test]
    fn a_link_that_leads_nowhere_is_kept_and_told() {
        for first in [true, false] {
            let (directory, main, backup) = saved(&["one"]);
            let path = if first { main } else { backup };
            fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink("/nowhere/ports.json", &path).unwrap();
            let state = open(directory.path());
            assert_eq!(*state.kept(), kept(&["one"]));
            assert_eq!(problems(&state), [HostProblem::StateDamaged]);
            let name = format!("{}.damaged-1", path.display());
            assert_eq!(fs::read_link(name).unwrap(), Path::new("/nowhere/ports.json"));
            state.back_up(&kept(&["one"])).unwrap();
        }
    }

    #[test]
    fn a_second_copy_of_a_newer_version_is_not_overwritten() {
        let (directory, _, backup) = saved(&["one"]);
        let newer = r#"{"version":3,"ports":[]}"#;
        fs::write(&backup, newer).unwrap();
        let state = open(directory.path());
        assert_eq!(*state.kept(), kept(&["one"]));
        state.back_up(&kept(&["one"])).unwrap();
        let aside = directory.path().join("ports.backup.json.damaged-1");
        assert_eq!(fs::read_to_string(aside).unwrap(), newer);
    }

    #[test]
    fn a_file_without_sense_is_put_aside_and_one_of_a_newer_version_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ports.json");
        let deep = "[".repeat(100_000);
        for text in ["", "not json", &deep, "{}", "[]", "{\"version\":2,\"ports\":7}"] {
            fs::write(&path, text).unwrap();
            let state = open(directory.path());
            assert_eq!(*state.kept(), Kept::default(), "{text:.20}");
            assert_eq!(problems(&state), [HostProblem::StateDamaged]);
            state.check_whole().unwrap_err();
        }
        let newer = r#"{"version":3,"ports":[]}"#;
        fs::write(&path, newer).unwrap();
        let state = open(directory.path());
        assert_eq!(problems(&state), [HostProblem::State]);
        let refused = state.save(&kept(&["one"])).unwrap_err();
        assert!(refused.to_string().contains("version 3"), "{refused}");
        assert_eq!(fs::read_to_string(&path).unwrap(), newer);
    }

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ports.json");
        let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).unwrap();
        assert_eq!(problems(&open(directory.path())), [HostProblem::StateDamaged]);
        // A directory in its place is put aside too.
        fs::create_dir(&path).unwrap();
        let state = open(directory.path());
        assert_eq!(problems(&state), [HostProblem::StateDamaged]);
        state.save(&kept(&["one"])).unwrap();
    }

    #[test]
    fn a_place_that_cannot_be_written_is_told_and_its_state_is_read() {
        let state = open(Path::new("/proc/isonic-state"));
        assert_eq!(problems(&state), [HostProblem::State]);
        let refused = state.save(&kept(&["one"])).unwrap_err();
        assert!(refused.to_string().contains("/proc/isonic-state"), "{refused}");
        // Where a second copy cannot be made the first is kept all the same.
        let (directory, _, backup) = saved(&["one"]);
        fs::remove_file(&backup).unwrap();
        fs::create_dir(&backup).unwrap();
        fs::write(backup.join("in the way"), "").unwrap();
        let state = open(directory.path());
        assert_eq!(problems(&state), [HostProblem::StateDamaged]);
        // It came there later.
        fs::create_dir(&backup).unwrap();
        fs::write(backup.join("in the way"), "").unwrap();
        state.save(&kept(&["two"])).unwrap();
        state.back_up(&kept(&["two"])).unwrap_err();
        drop(state);
        assert_eq!(*open(directory.path()).kept(), kept(&["two"]));
    }

    #[test]
    fn a_directory_that_was_removed_is_locked_again_or_is_somebody_elses() {
        let (directory, ..) = saved(&["one"]);
        let first = open(directory.path());
        fs::remove_dir_all(directory.path()).unwrap();
        first.save(&kept(&["one", "two"])).unwrap();
        let refused = StateFile::open(directory.path(), None).unwrap_err();
        assert!(matches!(refused, StateFileError::Lock(_)), "{refused}");
        fs::remove_dir_all(directory.path()).unwrap();
        let second = open(directory.path());
        second.save(&kept(&["three"])).unwrap();
        let refused = first.save(&kept(&["one"])).unwrap_err();
        assert!(matches!(refused, StateFileError::Lock(_)), "{refused}");
        drop((first, second));
        assert_eq!(*open(directory.path()).kept(), kept(&["three"]));
    }

    #[test]
    fn a_second_daemon_is_refused_and_a_successor_shares_the_lock() {
        let (directory, ..) = saved(&["one"]);
        let first = open(directory.path());
        let refused = StateFile::open(directory.path(), None).unwrap_err();
        assert!(matches!(refused, StateFileError::Lock(_)), "{refused}");
        let given = first.lock().unwrap();
        let successor = StateFile::open(directory.path(), Some(given)).unwrap();
        drop(first);
        StateFile::open(directory.path(), None).unwrap_err();
        drop(successor);
        open(directory.path());
    }
}
