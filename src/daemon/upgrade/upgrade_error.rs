//! Why there is no successor.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use crate::control::api::PortChange;
use crate::daemon::ownership::DaemonBusy;
use crate::daemon::workers::PauseError;
use crate::report::chain;

/// Why there is no successor; this process continues as before.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// One is being started already.
    #[error("another upgrade is under way")]
    UnderWay,
    /// Another process has everything, or this one stops.
    #[error(transparent)]
    Busy(DaemonBusy),
    /// It was asked to stop while the new process started.
    #[error("isonic was told to stop while the new process got ready; that process was ended")]
    Stopped,
    /// Running guests would lose what they have.
    #[error(
        "the new process would change what running VMs have: {}. Nothing was changed. Put the old \
         values back into the configuration, shut these VMs down first, or insist: \
         isonic upgrade --force",
        list(.0)
    )]
    Takes(Vec<PortChange>),
    /// An uplink went down, came back or was opened again while the successor got ready.
    #[error("uplink {0} has changed while the new process got ready; give the command again")]
    UplinkChanged(String),
    /// An uplink that cannot be handed over.
    #[error("no other process can go on with uplink {uplink}: {obstacle}; restart isonic instead")]
    Uplink {
        /// By its name in the configuration.
        uplink: String,
        /// Why.
        obstacle: &'static str,
    },
    /// No program has such a path.
    #[error("\"{}\" is not the absolute path of a program", .0.display())]
    Binary(PathBuf),
    /// The program could not be started.
    #[error("cannot start {}", binary.display())]
    Start {
        /// The path of the program.
        binary: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It did not answer in time, and was ended.
    #[error("the new process was not {step} in time, and was ended; the log says why")]
    Silent {
        /// The step that it had to reach.
        step: &'static str,
        /// The error of the read, unless it just timed out.
        #[source]
        source: Option<io::Error>,
    },
    /// It ended without an answer.
    #[error("the new process ended before it was {step} ({status}); the log says why")]
    Ended {
        /// The step that it had to reach.
        step: &'static str,
        /// How it ended.
        status: ExitStatus,
    },
    /// It refused, with a reason.
    #[error("the new process cannot go on: {0}")]
    Refused(String),
    /// Its answer is not the expected one.
    #[error("the new process does not speak this version's language")]
    Foreign,
    /// The workers do not pause.
    #[error(transparent)]
    Pause(#[from] PauseError),
    /// There is no successor, and sessions were cut off for it.
    #[error(
        "{}. The front-ends of these ports did not stand still in time, were cut off and connect \
         anew: {}",
        chain(reason), ports.join(", ")
    )]
    Cut {
        /// Their ports.
        ports: Vec<String>,
        /// Why there is no successor.
        reason: Box<UpgradeError>,
    },
    /// A descriptor or document could not be sent to it.
    #[error("cannot give everything to the new process")]
    Give(#[source] io::Error),
}

impl UpgradeError {
    /// This error, if the sessions of these ports were cut off meanwhile.
    pub fn with_cut(self, ports: Vec<String>) -> Self {
        if ports.is_empty() { self } else { Self::Cut { ports, reason: Box::new(self) } }
    }
}

fn list(changes: &[PortChange]) -> String {
    changes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_cut_off_for_an_upgrade_that_came_to_nothing_is_named() {
        let told = UpgradeError::Foreign.with_cut(Vec::new()).to_string();
        assert_eq!(told, UpgradeError::Foreign.to_string());
        let ports = vec!["vm1".to_owned(), "vm2".to_owned()];
        let told = chain(&UpgradeError::Foreign.with_cut(ports));
        assert!(told.ends_with("connect anew: vm1, vm2"), "{told}");
        assert_eq!(told.matches(&UpgradeError::Foreign.to_string()).count(), 1, "{told}");
    }
}
