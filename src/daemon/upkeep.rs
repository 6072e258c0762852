//! What is begun at the start and kept up to date afterwards: the threads of the NICs, the state
//! file, the published list of profiles.
//!
//! A daemon that begins anew refuses to start without them. One that has taken over must not end:
//! guests would lose what they had until then. It says what is wrong, in the log once and in
//! `isonic stats` for as long as it is, and tries again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::report::chain;

use super::DaemonError;
use super::ports::Registry;
use super::published::PublishedList;

/// How often the uplinks are looked at for the published list, and what failed is tried again.
const INTERVAL: Duration = Duration::from_secs(5);

/// One of the things to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Duty {
    /// Multicast is brought, the NICs are followed.
    Threads,
    /// The state file says what there is.
    State,
    /// The published list says what profiles the uplinks can keep.
    List,
}

/// What is wrong at the moment.
#[derive(Debug, Default)]
pub struct Problems(Mutex<BTreeMap<Duty, String>>);

impl Problems {
    fn all(&self) -> MutexGuard<'_, BTreeMap<Duty, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For people.
    pub fn list(&self) -> Vec<String> {
        self.all().values().cloned().collect()
    }

    fn is_there(&self, duty: Duty) -> bool {
        self.all().contains_key(&duty)
    }

    /// A duty was done, or was not because of this; told when that changes.
    pub fn note(&self, duty: Duty, outcome: Result<(), String>) {
        let mut all = self.all();
        match outcome {
            Ok(()) if all.remove(&duty).is_some() => tracing::info!(?duty, "done at last"),
            Ok(()) => {}
            Err(problem) => {
                if all.get(&duty) != Some(&problem) {
                    tracing::error!(?duty, problem, "not done; it is tried again and again");
                }
                all.insert(duty, problem);
            }
        }
    }
}

/// Keeps all of it.
#[derive(Debug)]
pub struct Upkeep {
    registry: Arc<Registry>,
    list: Option<PublishedList>,
}

impl Upkeep {
    /// Do all of it for the first time.
    ///
    /// # Errors
    /// [`DaemonError`], unless this process has taken over from another one.
    pub fn begin(registry: &Arc<Registry>, has_taken_over: bool) -> Result<Self, DaemonError> {
        let list = registry.config.profiles_file.clone().map(PublishedList::new);
        let upkeep = Self { registry: Arc::clone(registry), list };
        for duty in [Duty::Threads, Duty::State, Duty::List] {
            match upkeep.attempt(duty) {
                Err(error) if has_taken_over => {
                    upkeep.registry.problems.note(duty, Err(chain(&error)));
                }
                outcome => outcome?,
            }
        }
        Ok(upkeep)
    }

    fn attempt(&self, duty: Duty) -> Result<(), DaemonError> {
        let Self { registry, list } = self;
        match (duty, list) {
            (Duty::Threads, _) => registry.start_threads().map_err(DaemonError::Workers),
            (Duty::State, _) => Ok(registry.record()?),
            (Duty::List, Some(list)) => Ok(list.update(&registry.catalog, &registry.nics.facts())?),
            (Duty::List, None) => Ok(()),
        }
    }

    /// Do again what failed, and follow the uplinks with the list, until the process ends.
    pub async fn keep(self) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            for duty in [Duty::Threads, Duty::State, Duty::List] {
                if duty == Duty::List || self.registry.problems.is_there(duty) {
                    self.repeat(duty);
                }
            }
        }
    }

    /// Not while another process is about to take over, or has.
    fn repeat(&self, duty: Duty) {
        let attempt = || self.attempt(duty).map_err(|error| chain(&error));
        let outcome = match duty {
            // It locks the ports itself.
            Duty::State => self.registry.ownership.check().map(|()| attempt()),
            Duty::Threads | Duty::List => self.registry.as_owner(attempt),
        };
        if let Ok(outcome) = outcome {
            self.registry.problems.note(duty, outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_listed_for_as_long_as_it_is_there() {
        let problems = Problems::default();
        problems.note(Duty::State, Ok(()));
        assert!(problems.list().is_empty());
        problems.note(Duty::State, Err("the disk is full".into()));
        problems.note(Duty::List, Err("no such directory".into()));
        problems.note(Duty::State, Err("the disk is read-only".into()));
        assert_eq!(problems.list(), ["the disk is read-only", "no such directory"]);
        problems.note(Duty::State, Ok(()));
        assert_eq!(problems.list(), ["no such directory"]);
    }
}
