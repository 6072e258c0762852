//! The files in which the ports keep the positions of their packed rings, so that a crash does not
//! cut their guests off.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::PortConfig;
use crate::device::features::RING_PACKED;
use crate::profile::Profile;
use crate::report::chain;
use crate::virtqueue::{JournalError, Journals, SetAside};

/// The journals of all ports.
#[derive(Debug)]
pub struct RingJournals {
    /// Their directory; None if this daemon keeps none.
    runtime_dir: Option<PathBuf>,
    /// The journals to put in force once this process is the owner.
    next: Mutex<Vec<SetAside>>,
}

/// Distinguishes a port's journals from those of all others on this host.
fn owner(config: &PortConfig) -> String {
    config.socket.display().to_string()
}

fn rings_max(profile: &Profile) -> u16 {
    profile.queue_pairs_max.saturating_mul(2)
}

impl RingJournals {
    /// The journals in a runtime directory.
    pub fn new(runtime_dir: Option<PathBuf>) -> Self {
        Self { runtime_dir, next: Mutex::default() }
    }

    /// The journals of a port, if its guest may have packed rings and this daemon keeps any. With
    /// `beside` they are made beside those that another process uses.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open(
        &self,
        config: &PortConfig,
        profile: &Profile,
        beside: bool,
    ) -> Result<Option<Arc<Journals>>, JournalError> {
        match self.paths(&config.name) {
            Some([path, aside]) if profile.features.has(RING_PACKED) => {
                let (owner, rings) = (owner(config), rings_max(profile));
                let journals = if beside {
                    let (journals, next) = Journals::open_beside(&path, &aside, &owner, rings)?;
                    self.next().extend(next);
                    journals
                } else {
                    Journals::open(&path, &owner, rings)?
                };
                Ok(Some(Arc::new(journals)))
            }
            _ => Ok(None),
        }
    }

    /// [`open`](Self::open), but for as long as this process lives.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn in_memory(
        &self,
        port: &str,
        profile: &Profile,
    ) -> Result<Option<Arc<Journals>>, JournalError> {
        let Some([path, _]) = self.paths(port) else { return Ok(None) };
        Ok(Some(Arc::new(Journals::in_memory(&path, rings_max(profile))?)))
    }

    /// Give journals that had no room at the start their place now, or lose them. They are for the
    /// process after this one, when the port has no session any more.
    pub fn settle(&self, config: &PortConfig, journals: &Journals) {
        let port = &config.name;
        let Some([path, _]) = self.paths(port) else { return };
        if let Err(error) = journals.settle(&path, &owner(config)) {
            let error = chain(&error);
            tracing::warn!(port, error, "the port's ring positions are lost");
        }
    }

    /// The directory of a port's journals.
    pub fn path(&self, port: &str) -> Option<PathBuf> {
        self.paths(port).map(|[path, _]| path)
    }

    /// The directory above all journals, for messages.
    pub fn directory(&self) -> &Path {
        self.runtime_dir.as_deref().unwrap_or(Path::new(""))
    }

    /// The directories of a port's journals: those in force, and those that are not.
    fn paths(&self, port: &str) -> Option<[PathBuf; 2]> {
        let directory = self.runtime_dir.as_ref()?;
        Some(["rings", "rings-aside"].map(|name| directory.join(name).join(port)))
    }

    fn next(&self) -> MutexGuard<'_, Vec<SetAside>> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This process is the owner from now on: journals that it made beside the predecessor's take
    /// their place.
    pub fn put_in_force(&self) {
        self.next().drain(..).for_each(|next| next.put_back());
    }

    /// Put the journals of a port aside whose profile changes, if that is possible.
    pub fn set_aside(&self, port: &str) -> Option<SetAside> {
        let [path, aside] = self.paths(port)?;
        SetAside::of(path, aside)
    }

    /// Remove the journals of a port whose guest is gone.
    pub fn discard(&self, port: &str) {
        if let Some([path, _]) = self.paths(port) {
            Journals::remove(&path);
        }
    }
}
