//! Tasks that begin at the start and are repeated: the threads of the NICs, the refused ports, the
//! state file, the published list of profiles.
//!
//! Guests are served first: no failed write ends the daemon, nor does a lack of threads in one that
//! has taken over. The daemon reports the failure (`problems`), and retries.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::platform::descriptors::OpenFileLimit;
use crate::profile::Catalog;
use crate::report::chain;

use super::directory_lock::DirectoryLock;
use super::nic::Nics;
use super::ports::Registry;
use super::problems::{HostProblem, HostProblems};
use super::published::PublishedList;
use super::watches::Watches;

/// How often the uplinks are read for the published list, and failed tasks are retried.
const INTERVAL: Duration = Duration::from_secs(5);

/// The objects of the upkeep.
#[derive(Debug)]
pub struct UpkeepSetup {
    /// The ports.
    pub registry: Arc<Registry>,
    /// The NICs.
    pub nics: Arc<Nics>,
    /// The profiles.
    pub catalog: Arc<Catalog>,
    /// The threads of NICs and ports.
    pub watches: Arc<Watches>,
    /// Where failures are reported.
    pub problems: Arc<HostProblems>,
    /// The lock of the runtime directory, if there is one.
    pub runtime_lock: Option<Arc<DirectoryLock>>,
    /// Where the list of profiles is published, if it is.
    pub profiles_file: Option<PathBuf>,
}

/// Keeps all of it up to date.
#[derive(Debug)]
pub struct Upkeep {
    kept: UpkeepSetup,
    /// Locked before the ports are.
    list: Option<Mutex<PublishedList>>,
    /// How many front-ends had been refused for want of descriptors at the last look.
    refused: AtomicU64,
}

impl Upkeep {
    /// Do each task for the first time.
    ///
    /// # Errors
    /// No thread or descriptor to be had, unless this process has taken over from another one.
    pub fn begin(kept: UpkeepSetup, has_taken_over: bool) -> io::Result<Self> {
        match kept.watches.start() {
            Err(error) if has_taken_over => {
                kept.problems.set(HostProblem::Threads, Some(error.to_string()));
            }
            started => started?,
        }
        let list = kept.profiles_file.clone().map(PublishedList::new).map(Mutex::new);
        let refused = AtomicU64::new(OpenFileLimit::refusals());
        kept.registry.look_at_positions();
        let upkeep = Self { kept, list, refused };
        upkeep.record();
        Ok(upkeep)
    }

    /// Retry failed tasks, and keep the list in step with the uplinks, until the process ends.
    pub async fn keep(self) {
        let upkeep = Arc::new(self);
        loop {
            tokio::time::sleep(INTERVAL).await;
            let own = Arc::clone(&upkeep);
            // A disk may take its time; the API must not wait for it.
            if tokio::task::spawn_blocking(move || own.repeat()).await.is_err() {
                tracing::error!("the upkeep has panicked");
            }
        }
    }

    fn repeat(&self) {
        let UpkeepSetup { registry, problems, watches, .. } = &self.kept;
        if problems.has(HostProblem::Threads)
            && let Some(started) = watches.start_again()
        {
            let reason = started.err().map(|error| error.to_string());
            problems.set(HostProblem::Threads, reason);
        }
        self.keep_runtime_locked();
        registry.remake_sockets();
        registry.serve_refused();
        registry.look_at_positions();
        let refused = OpenFileLimit::refusals();
        let since = self.refused.swap(refused, Ordering::Relaxed) != refused;
        let full = since || OpenFileLimit::now().is_full();
        problems.set(HostProblem::OpenFiles, full.then(no_room));
        self.record();
    }

    /// Lock the runtime directory again if its lock was removed, or could not be taken before.
    fn keep_runtime_locked(&self) {
        let UpkeepSetup { registry, problems, runtime_lock, .. } = &self.kept;
        let Some(lock) = runtime_lock else { return };
        if let Ok(kept) = registry.as_owner(|| lock.keep()) {
            let reason = kept.unwrap_or_else(|in_use| Some(in_use.to_string()));
            problems.set(HostProblem::RuntimeLock, reason);
        }
    }

    /// Write the state and the list if that is due.
    fn record(&self) {
        let UpkeepSetup { registry, nics, catalog, problems, .. } = &self.kept;
        registry.record_if_due();
        let Some(list) = &self.list else { return };
        let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
        // The kernel is asked before the ports are locked.
        let facts = nics.facts();
        let updated = registry.as_owner(|| list.update(catalog, &facts));
        if let Ok(updated) = updated {
            let reason = updated.err().map(|error| chain(&error));
            problems.set(HostProblem::ProfilesFile, reason);
        }
    }
}

/// Why front-ends are refused while only reserved descriptors are left.
fn no_room() -> String {
    let OpenFileLimit { limit, reserved } = OpenFileLimit::now();
    format!(
        "all but {reserved} of {limit} file descriptors are open: no front-end is served beyond \
         those that are; raise LimitNOFILE"
    )
}
