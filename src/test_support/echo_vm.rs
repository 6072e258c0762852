//! A VM that sends all datagrams back.

#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::StopOnDrop;
use super::vm::Vm;

/// The fields that change places in an Ethernet frame with IPv4 and UDP: two offsets, and the
/// bytes.
const SWAPPED: [(usize, usize, usize); 3] = [(0, 6, 6), (26, 30, 4), (34, 36, 2)];

/// A VM that sends datagrams to its MAC back where they came from. Addresses and ports change
/// places, which changes no checksum.
#[derive(Debug)]
pub struct EchoVm {
    mac: [u8; 6],
    vm: Vm,
    /// Frames to other MACs.
    pub others: Vec<Vec<u8>>,
}

impl EchoVm {
    /// At the port with this socket.
    #[must_use]
    pub fn start(socket: &Path, mac: [u8; 6]) -> Self {
        Self { mac, vm: Vm::connect(socket, 1), others: Vec::new() }
    }

    /// Echo while `test` runs.
    pub fn echo_while<T>(&mut self, test: impl FnOnce() -> T) -> T {
        let stopped = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stopped.load(Ordering::Relaxed) {
                    self.turn();
                    std::thread::yield_now();
                }
            });
            let _stop = StopOnDrop(&stopped);
            test()
        })
    }

    /// Send back all received datagrams.
    pub fn turn(&mut self) {
        for mut frame in self.vm.received() {
            if frame[..6] != self.mac {
                self.others.push(frame);
                continue;
            }
            for (one, other, len) in SWAPPED {
                let (before, after) = frame.split_at_mut(other);
                before[one..one + len].swap_with_slice(&mut after[..len]);
            }
            self.vm.send(&frame);
        }
    }
}
