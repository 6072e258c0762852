//! What is begun at the start and kept up to date afterwards: the threads of the NICs, the ports
//! that were refused, the state file, the published list of profiles.
//!
//! Guests were served before and are to be served now: nothing that cannot be written ends the
//! daemon, and one that has taken over does not end for want of threads either. It says what is
//! wrong (`problems`), and tries again.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::platform::descriptors::Room;
use crate::report::chain;

use super::ports::Registry;
use super::problems::Problem;
use super::published::PublishedList;

/// How often the uplinks are looked at for the published list, and what failed is tried again.
const INTERVAL: Duration = Duration::from_secs(5);

/// Keeps all of it.
#[derive(Debug)]
pub struct Upkeep {
    registry: Arc<Registry>,
    list: Option<PublishedList>,
    /// How many front-ends had been refused for want of descriptors at the last look.
    refused: AtomicU64,
}

impl Upkeep {
    /// Do all of it for the first time.
    ///
    /// # Errors
    /// No thread or descriptor to be had, unless this process has taken over from another one.
    pub fn begin(registry: &Arc<Registry>, has_taken_over: bool) -> io::Result<Self> {
        match registry.start_threads() {
            Err(error) if has_taken_over => {
                registry.problems.set(Problem::Threads, Some(error.to_string()));
            }
            started => started?,
        }
        let list = registry.config.profiles_file.clone().map(PublishedList::new);
        let refused = AtomicU64::new(Room::refusals());
        let upkeep = Self { registry: Arc::clone(registry), list, refused };
        registry.look_at_positions();
        upkeep.record();
        Ok(upkeep)
    }

    /// Do again what failed, and follow the uplinks with the list, until the process ends.
    pub async fn keep(self) {
        let upkeep = Arc::new(self);
        loop {
            tokio::time::sleep(INTERVAL).await;
            let own = Arc::clone(&upkeep);
            // A disk may take its time, and the API does not wait for it.
            if tokio::task::spawn_blocking(move || own.repeat()).await.is_err() {
                tracing::error!("the upkeep has panicked");
            }
        }
    }

    fn repeat(&self) {
        let Self { registry, .. } = self;
        if registry.problems.has(Problem::Threads) {
            // Not while another process is about to take over, or has.
            if let Ok(started) = registry.as_owner(|| registry.start_threads()) {
                let reason = started.err().map(|error| error.to_string());
                registry.problems.set(Problem::Threads, reason);
            }
        }
        registry.keep_runtime_locked();
        registry.remake_sockets();
        registry.serve_refused();
        registry.look_at_positions();
        let refused = Room::refusals();
        let since = self.refused.swap(refused, Ordering::Relaxed) != refused;
        let full = since || Room::now().is_full();
        registry.problems.set(Problem::OpenFiles, full.then(no_room));
        self.record();
    }

    /// Write what there is to be written.
    fn record(&self) {
        let Self { registry, list, .. } = self;
        registry.record_if_due();
        let Some(list) = list else { return };
        let updated = registry.as_owner(|| list.update(&registry.catalog, &registry.nics.facts()));
        if let Ok(updated) = updated {
            let reason = updated.err().map(|error| chain(&error));
            registry.problems.set(Problem::ProfilesFile, reason);
        }
    }
}

/// Why front-ends are refused while nothing but reserved descriptors is left.
fn no_room() -> String {
    let Room { limit, reserved } = Room::now();
    format!(
        "all but {reserved} of {limit} file descriptors are open: no front-end is served beyond \
         those that are; raise LimitNOFILE"
    )
}
