//! The threads of NICs and ports: those that bring packets, and those that watch.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::nic::{NicLife, NicWatch, NicWatchSetup, Nics, PortsOfNics};
use super::ownership::Ownership;
use super::ports::{PortWatch, PortWatchSetup, Registry};
use super::workers::Workers;

/// All of these threads, which may be started and stopped again.
#[derive(Debug)]
pub struct Watches {
    nics: Arc<Nics>,
    workers: Arc<Workers>,
    registry: Arc<Registry>,
    ownership: Arc<Ownership>,
    /// Taken before the ports' lock: stopping a thread waits for it, and the thread may wait for
    /// the ports.
    threads: Mutex<Threads>,
}

#[derive(Debug)]
struct Threads {
    /// The thread that watches the NICs; without one, its state of the NICs.
    nics: Result<NicWatch, Vec<NicLife>>,
    /// The thread that watches the ports, if it runs.
    ports: Option<PortWatch>,
}

impl Watches {
    /// The watches of these objects, without a thread yet.
    pub fn new(
        nics: Arc<Nics>,
        workers: Arc<Workers>,
        registry: Arc<Registry>,
        ownership: Arc<Ownership>,
    ) -> Self {
        let lives = nics.iter().map(NicLife::new).collect();
        let threads = Mutex::new(Threads { nics: Err(lives), ports: None });
        Self { nics, workers, registry, ownership, threads }
    }

    /// Start all threads: those that bring packets to the workers and those that watch ports and
    /// NICs. The packets are broadcast and multicast from every NIC, and the host's packets for its
    /// VMs.
    ///
    /// # Errors
    /// No thread or descriptor to be had.
    pub fn start(&self) -> io::Result<()> {
        self.start_all(&mut self.threads())
    }

    /// [`start`](Self::start) after a failure; None while another process is about to take over, or
    /// has.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_again(&self) -> Option<io::Result<()>> {
        let mut threads = self.threads();
        // Ending the ownership stops the threads afterwards, and waits for this lock.
        self.ownership.check().ok()?;
        Some(self.start_all(&mut threads))
    }

    fn start_all(&self, threads: &mut Threads) -> io::Result<()> {
        let started = self.nics.start_threads(&self.workers).and_then(|()| {
            threads.ports = Some(PortWatch::start(PortWatchSetup {
                registry: Arc::clone(&self.registry),
                workers: Arc::clone(&self.workers),
                nics: Arc::clone(&self.nics),
            })?);
            self.start_nic_watch(threads)
        });
        // All threads or none, so that it can be retried.
        started.inspect_err(|_| {
            threads.ports = None;
            self.nics.stop_threads();
        })
    }

    /// Start to watch the NICs.
    ///
    /// # Errors
    /// No thread or descriptor to be had.
    pub fn watch_nics(&self) -> io::Result<()> {
        self.start_nic_watch(&mut self.threads())
    }

    fn start_nic_watch(&self, threads: &mut Threads) -> io::Result<()> {
        let Err(lives) = &mut threads.nics else { return Ok(()) };
        let watched = NicWatchSetup {
            nics: Arc::clone(&self.nics),
            workers: Arc::clone(&self.workers),
            ports: Arc::clone(&self.registry) as Arc<dyn PortsOfNics>,
        };
        match NicWatch::start(watched, std::mem::take(lives)) {
            Ok(thread) => {
                threads.nics = Ok(thread);
                Ok(())
            }
            Err(error) => {
                *lives = self.nics.iter().map(NicLife::new).collect();
                Err(error)
            }
        }
    }

    /// Stop watching the NICs. Not to be called with the ports locked, for which the watch may
    /// wait.
    pub fn leave_nics(&self) {
        let mut threads = self.threads();
        if let Ok(thread) = std::mem::replace(&mut threads.nics, Err(Vec::new())) {
            threads.nics = Err(thread.end());
        }
    }

    /// Stop watching the ports. Not to be called with the ports locked.
    pub fn leave_ports(&self) {
        let watch = self.threads().ports.take();
        drop(watch);
    }

    fn threads(&self) -> MutexGuard<'_, Threads> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
