//! Carries packets between the host and its VMs: the thread of a TAP device, one for each uplink
//! that the host shares.
//!
//! Each packet costs a system call, on a control thread. But a packet may have 64 KiB, since host
//! and guests leave segmentation to each other.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::daemon::host_port::HostPort;
use crate::daemon::workers::ControlFrame;
use crate::datapath::{ETHERNET_BYTES, Handover, Inbox, PACKET_BYTES_MAX, Target};
use crate::device::net_header::{self, NetHeader};
use crate::device::offloads::Offloads;
use crate::metrics::SocketCounter;
use crate::xdp::HostDevice;

use super::pump::PumpSide;

/// Packets of one direction before the other has its turn.
const BURST: usize = 64;

/// Carry packets between the host and its VMs until told to stop.
pub fn join(side: &PumpSide, device: &HostDevice, stop: &OwnedFd) {
    let Some(HostPort { inbox, .. }) = side.workers.host(side.uplink) else { return };
    let mut buffer = vec![0; net_header::LEN + PACKET_BYTES_MAX];
    let mut exchange = || to_host(side, device, inbox) + from_host(side, device, &mut buffer);
    let mut busy = true;
    loop {
        let mut ready = [
            PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(device.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(inbox.wake_fd(), PollFlags::IN),
        ];
        // Interrupted: look again.
        let _ = poll(&mut ready, busy.then_some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        if !ready[0].revents().is_empty() {
            return;
        }
        if ready[1].revents().contains(PollFlags::ERR) {
            let device = &device.name;
            tracing::error!(device, "somebody has deleted the device: the host is not reached");
            return;
        }
        if !ready[2].revents().is_empty() {
            let _ = rustix::io::read(inbox.wake_fd(), &mut [0; 8]);
        }
        inbox.set_sleeping(false);
        busy = exchange() > 0;
        if !busy {
            // Earlier packets are found by looking once more; later ones wake us.
            inbox.set_sleeping(true);
            busy = exchange() > 0;
        }
    }
}

/// Send the host all packets that the workers still have for it, after they have stopped.
pub fn finish(side: &PumpSide, device: &HostDevice) {
    if let Some(port) = side.workers.host(side.uplink) {
        while to_host(side, device, &port.inbox) > 0 {}
    }
}

/// Send the host up to a burst of the workers' packets. Answers how many.
fn to_host(side: &PumpSide, device: &HostDevice, inbox: &Inbox) -> usize {
    let mut count = 0;
    while count < BURST
        && let Some(handover) = inbox.next()
    {
        let Handover::Packet { mut packet, .. } = handover else {
            unreachable!("frames of an uplink go to the VMs of the wire")
        };
        packet.settle_checksum();
        let header = net_header::emit(&packet.offload, 1);
        let counter = match device.send(&header, packet.bytes()) {
            Ok(()) => SocketCounter::ToHostPackets,
            Err(_refused) => SocketCounter::ToHostDropped,
        };
        side.counters.add(counter, 1);
        side.workers.give_back(packet);
        count += 1;
    }
    count
}

/// Send the VMs up to a burst of the host's packets. Answers how many.
fn from_host(side: &PumpSide, device: &HostDevice, buffer: &mut [u8]) -> usize {
    let mut count = 0;
    // An error means that somebody has set the device down.
    while count < BURST
        && let Ok(Some(length)) = device.receive(buffer)
    {
        let counter = match bring(side, &buffer[..length]) {
            Some(()) => SocketCounter::FromHostPackets,
            None => SocketCounter::FromHostDropped,
        };
        side.counters.add(counter, 1);
        count += 1;
    }
    count
}

/// Hand a packet to the workers; None if it is lost.
fn bring(side: &PumpSide, packet: &[u8]) -> Option<()> {
    let (header, frame) = packet.split_at_checked(net_header::LEN)?;
    let length = u32::try_from(frame.len()).ok().filter(|&length| length >= ETHERNET_BYTES)?;
    let header = NetHeader::parse(header.first_chunk()?);
    let offload = header.offload(frame, length, Offloads::ALL).ok()?;
    let target = Target::Arrival { uplink: side.uplink };
    let arrived =
        side.workers.hand_over(side.worker, ControlFrame { bytes: frame, offload }, target);
    arrived.then_some(())
}
