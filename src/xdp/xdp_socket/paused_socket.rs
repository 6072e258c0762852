//! A socket that one process pauses and another resumes, rings and all.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{FRAMES_PER_SOCKET, RING_ENTRIES, Socket};
use crate::xdp::census::FrameCensus;
use crate::xdp::umem::Umem;
use crate::xdp::umem_frame::Frame;
use crate::xdp::xsk_calls;
use crate::xdp::xsk_ring::SocketParts;

/// A socket between two turns, for another process to resume: its state outside the rings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PausedSocket {
    /// The queue.
    pub queue: u32,
    /// The frames that are in none of the rings.
    pub(super) free: Vec<u64>,
    receiving: u64,
    pub(super) transmitting: u64,
    cutting: bool,
}

impl Socket {
    /// The socket of `queue` that another process has bound, its rings mapped. It has no frames
    /// until it is [resumed](Self::resume).
    ///
    /// # Errors
    /// The kernel's; before 6.4 it refuses.
    pub(crate) fn adopt(
        fd: OwnedFd,
        queue: u32,
        umem: Arc<Umem>,
        packet_max: u32,
    ) -> io::Result<Self> {
        let parts = xsk_calls::map_rings(fd.as_fd(), RING_ENTRIES)?;
        let mut socket = Self::without_frames(queue, umem, parts, packet_max);
        socket.frames = FRAMES_PER_SOCKET as u64;
        Ok(socket.with_descriptor(fd))
    }

    /// Show the kernel everything, and report where the frames are. Another process may resume now,
    /// if this one does nothing more with the socket.
    pub fn rest(&mut self) -> PausedSocket {
        self.unflushed = true;
        self.flush();
        let FrameCensus { receiving, transmitting, .. } = self.census;
        PausedSocket {
            queue: self.queue,
            free: self.free.iter().map(Frame::address).collect(),
            receiving,
            transmitting,
            cutting: self.cutting,
        }
    }

    /// Resume where another process paused. False, and nothing is done, if the frames in `paused`
    /// are impossible.
    pub fn resume(&mut self, paused: &PausedSocket) -> bool {
        let PausedSocket { receiving, transmitting, cutting, .. } = *paused;
        let Some(free) = self.umem.adopt(&paused.free) else { return false };
        if free.len() as u64 + receiving + transmitting != self.frames {
            return false;
        }
        let SocketParts { rx, tx, fill, completion } = &mut self.parts;
        rx.resume();
        tx.resume();
        fill.resume();
        completion.resume();
        self.census = FrameCensus { free: free.len() as u64, receiving, transmitting, away: 0 };
        (self.free, self.cutting) = (free, cutting);
        // The kernel may not have seen the last entries and sleep.
        self.unflushed = true;
        true
    }
}
