//! The control threads that bring packets to the workers, and the work of the one that brings
//! broadcast and multicast from a NIC.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::daemon::workers::{ControlFrame, Workers};
use crate::datapath::{PACKET_BYTES_MAX, Target, UplinkId, WorkerId};
use crate::metrics::{Published, SocketCounter};
use crate::packet::Offload;
use crate::xdp::MulticastTap;

/// The parts of a NIC that its control threads use.
#[derive(Debug)]
pub struct PumpSide {
    /// Its number.
    pub uplink: UplinkId,
    /// The worker to which frames are brought.
    pub worker: WorkerId,
    /// The counters of these frames.
    pub counters: Arc<Published<SocketCounter>>,
    /// The workers.
    pub workers: Arc<Workers>,
}

/// A control thread of a NIC.
#[derive(Debug)]
pub struct PumpThread {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl PumpThread {
    /// Do `work` until the descriptor becomes readable.
    ///
    /// # Errors
    /// No thread or descriptor to be had.
    pub fn start(
        name: &str,
        id: UplinkId,
        work: impl FnOnce(&OwnedFd) + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name(format!("{name} {}", id.0))
            .spawn(move || work(&stopped))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for PumpThread {
    fn drop(&mut self) {
        // An eventfd's first write cannot fail.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a thread of a NIC has panicked");
        }
    }
}

/// Bring one frame after the other to the worker, which floods it.
pub fn bring_multicast(side: &PumpSide, tap: &MulticastTap, stop: &OwnedFd) {
    let PumpSide { uplink, worker, counters, workers } = side;
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    loop {
        let mut ready = [
            PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(tap.as_fd(), PollFlags::IN),
        ];
        // Interrupted: look again.
        let _ = poll(&mut ready, None);
        if !ready[0].revents().is_empty() {
            return;
        }
        // ENETDOWN while the NIC is down is reported once per change of state; the socket stays
        // usable.
        let Ok(received) = tap.receive(&mut buffer) else { continue };
        if !workers.floods(*uplink) {
            continue;
        }
        let target = Target::Arrival { uplink: *uplink };
        let brought = received.is_some_and(|len| {
            let frame = ControlFrame { bytes: &buffer[..len], offload: Offload::PLAIN };
            workers.hand_over(*worker, frame, target)
        });
        let counter =
            if brought { SocketCounter::MulticastPackets } else { SocketCounter::MulticastDropped };
        counters.add(counter, 1);
    }
}
