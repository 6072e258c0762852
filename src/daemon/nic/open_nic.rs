//! Opens a NIC as its uplink is configured.

use std::path::{Path, PathBuf};

use crate::config::{self, Config, UplinkConfig, UplinkMode};
use crate::datapath::{UplinkId, WorkerId};
use crate::xdp::{BusyPoll, Handed, HostDevice, ModeWish, Socket, Uplink, UplinkError};

use super::indirection_table::Steered;

/// Why a NIC was not opened again.
#[derive(Debug, thiserror::Error)]
pub enum ReopenError {
    /// One of the reasons as at the start.
    #[error(transparent)]
    Uplink(#[from] UplinkError),
    /// Ports were placed by a queue that no longer exists.
    #[error(
        "it has no queue {0} any more, by which ports are placed; give it back with `ethtool -L`, \
         or restart isonic"
    )]
    QueueMissing(u32),
}

/// Open an uplink as the interface `name`.
///
/// # Errors
/// [`UplinkError`].
pub fn open(
    name: &str,
    config: &UplinkConfig,
    mode: ModeWish,
    notes: Option<&Path>,
) -> Result<(Uplink, Vec<Socket>), UplinkError> {
    let (queues, busy_poll) = (config.queues.as_deref(), busy_poll(config, notes));
    match &config.handed {
        None => Uplink::open(name, queues, mode, busy_poll.as_ref()),
        Some(handed) => {
            let handed = match handed.clone() {
                config::Handed::Sockets(numbers) => Handed::Sockets(numbers),
                config::Handed::Map(path) => Handed::Map(path),
                config::Handed::DevicePlugin(path) => Handed::DevicePlugin(path),
            };
            Uplink::adopt(name, queues, &handed, mode, busy_poll.as_ref())
        }
    }
}

/// The directory that keeps the interrupt settings of NICs that are busy polled.
pub fn interrupt_notes(config: &Config) -> Option<PathBuf> {
    Some(config.runtime_dir.as_ref()?.join("interrupts"))
}

fn busy_poll(config: &UplinkConfig, notes: Option<&Path>) -> Option<BusyPoll> {
    let notes = notes.map(Path::to_owned);
    config.busy_poll.map(|budget| BusyPoll { budget, suspend: config.irq_suspend, notes })
}

/// How an uplink is to be used.
pub fn wish(mode: UplinkMode) -> ModeWish {
    match mode {
        UplinkMode::Auto => ModeWish::Auto,
        UplinkMode::Zerocopy => ModeWish::ZeroCopy,
        UplinkMode::Copy => ModeWish::Copy,
        UplinkMode::Generic => ModeWish::Generic,
    }
}

/// The worker of the queue at index `place` of an uplink's queues.
pub fn worker_at(id: UplinkId, place: usize, workers: usize) -> WorkerId {
    let worker = u16::try_from((place + id.index()) % workers);
    WorkerId(worker.expect("the configuration limits the number of workers"))
}

/// Join the host to the VMs of a NIC that has just been opened, if it shares the NIC.
pub fn join_host(
    config: &UplinkConfig,
    uplink: &Uplink,
) -> Result<Option<HostDevice>, UplinkError> {
    Ok(config.host.then(|| uplink.join_host()).transpose()?.flatten())
}

/// Set the table of a NIC that has just been opened, so that its frames arrive on queues with
/// sockets.
pub fn steer(
    config: &UplinkConfig,
    uplink: &Uplink,
    sockets: &[Socket],
    note: Option<PathBuf>,
) -> Result<Steered, UplinkError> {
    let queues: Vec<u32> = sockets.iter().map(Socket::queue).collect();
    Ok(Steered::begin(config, &uplink.interface, &queues, note)?)
}
