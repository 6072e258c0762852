//! The threads of NICs and ports: those that bring packets, and those that look.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::nic::{NicLife, NicWatch, NicWatchSetup, Nics, PortsOfNics};
use super::ownership::Ownership;
use super::ports::{PortWatch, PortWatchSetup, Registry};
use super::workers::Workers;

/// All of them, which may be started and stopped again.
#[derive(Debug)]
pub struct Watches {
    nics: Arc<Nics>,
    workers: Arc<Workers>,
    registry: Arc<Registry>,
    ownership: Arc<Ownership>,
    /// Taken before the ports' lock: whoever stops a thread waits for it, and it may wait for the
    /// ports.
    threads: Mutex<Threads>,
}

#[derive(Debug)]
struct Threads {
    /// What sees to the NICs, while it does, and else what it knows of them.
    nics: Result<NicWatch, Vec<NicLife>>,
    /// What looks at the ports, while it does.
    ports: Option<PortWatch>,
}

impl Watches {
    /// Of these, without a thread yet.
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

    /// Begin to bring broadcast and multicast from every NIC to the workers, and what the host has
    /// for its VMs, to look at the ports, and to follow what becomes of the NICs.
    ///
    /// # Errors
    /// No thread or descriptor to be had.
    pub fn start(&self) -> io::Result<()> {
        self.start_all(&mut self.threads())
    }

    /// The same again, where it failed; None while another process is about to take over, or has.
    ///
    /// # Errors
    /// As above.
    pub fn start_again(&self) -> Option<io::Result<()>> {
        let mut threads = self.threads();
        // Whoever ends the ownership stops the threads after that, and waits for this lock.
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
        // All of them or none, so that it can be tried again.
        started.inspect_err(|_| {
            threads.ports = None;
            self.nics.stop_threads();
        })
    }

    /// Follow what becomes of the NICs.
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

    /// Leave the NICs alone. Not to be called with the ports locked, which the watch may wait for.
    pub fn leave_nics(&self) {
        let mut threads = self.threads();
        if let Ok(thread) = std::mem::replace(&mut threads.nics, Err(Vec::new())) {
            threads.nics = Err(thread.end());
        }
    }

    /// Look at the ports no more. Not to be called with the ports locked.
    pub fn leave_ports(&self) {
        let watch = self.threads().ports.take();
        drop(watch);
    }

    fn threads(&self) -> MutexGuard<'_, Threads> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
