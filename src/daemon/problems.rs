//! The problems of the host. The log tells of each when it begins and when it is over; the API
//! lists it meanwhile. The daemon serves all the same, and retries (`upkeep`).

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::control::api::{HealthView, ProblemView};

/// A problem that the host can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostProblem {
    /// The threads that bring multicast and follow the NICs could not be started.
    Threads,
    /// The state cannot be kept: no change of ports is made.
    State,
    /// The state's second copy is damaged or out of date.
    StateCopy,
    /// The state was damaged at the start.
    StateDamaged,
    /// The state directory is not locked against a second daemon.
    StateLock,
    /// The runtime directory is not locked against a second daemon.
    RuntimeLock,
    /// The published list of profiles is out of date.
    ProfilesFile,
    /// Ports whose ring positions do not survive a restart.
    RingPositions,
    /// Front-ends are refused for want of descriptors.
    OpenFiles,
}

impl HostProblem {
    /// Its name in the API and the log; never changes.
    fn id(self) -> &'static str {
        match self {
            Self::Threads => "threads",
            Self::State => "state",
            Self::StateCopy => "state-copy",
            Self::StateDamaged => "state-damaged",
            Self::StateLock => "state-lock",
            Self::RuntimeLock => "runtime-lock",
            Self::ProfilesFile => "profiles-file",
            Self::RingPositions => "ring-positions",
            Self::OpenFiles => "open-files",
        }
    }
}

/// All problems that the host has now.
#[derive(Debug, Default)]
pub struct HostProblems(Mutex<BTreeMap<HostProblem, String>>);

impl HostProblems {
    fn all(&self) -> MutexGuard<'_, BTreeMap<HostProblem, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Set or clear a problem, with its reason; logged when that changes.
    pub fn set(&self, problem: HostProblem, reason: Option<String>) {
        let mut all = self.all();
        let before = all.remove(&problem);
        let id = problem.id();
        match &reason {
            Some(reason) if before.as_ref() != Some(reason) => {
                tracing::error!(problem = id, reason, "something is wrong with the host");
            }
            None if before.is_some() => {
                tracing::info!(problem = id, "a problem of the host is over");
            }
            _ => {}
        }
        all.extend(reason.map(|reason| (problem, reason)));
    }

    /// Whether the host has the problem.
    pub fn has(&self, problem: HostProblem) -> bool {
        self.all().contains_key(&problem)
    }

    /// The messages, for people.
    pub fn list(&self) -> Vec<String> {
        self.all().values().cloned().collect()
    }

    /// The view of the API, for programs.
    pub fn view(&self) -> HealthView {
        let view = |(problem, message): (&HostProblem, &String)| ProblemView {
            id: problem.id().to_owned(),
            message: message.clone(),
        };
        HealthView { problems: self.all().iter().map(view).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_listed_for_as_long_as_it_is_there() {
        let problems = HostProblems::default();
        problems.set(HostProblem::State, None);
        assert!(problems.list().is_empty());
        problems.set(HostProblem::State, Some("full".into()));
        problems.set(HostProblem::ProfilesFile, Some("no such directory".into()));
        problems.set(HostProblem::State, Some("still full".into()));
        let view = problems.view();
        let told: Vec<_> = view.problems.iter().map(|it| (&*it.id, &*it.message)).collect();
        assert_eq!(told, [("state", "still full"), ("profiles-file", "no such directory")]);
        problems.set(HostProblem::State, None);
        assert!(!problems.has(HostProblem::State) && problems.has(HostProblem::ProfilesFile));
        assert_eq!(problems.list(), ["no such directory"]);
    }
}
