//! The published list of profiles as a file, for management that reads files: the output of `isonic
//! profile list --json`.
//!
//! The file is replaced as a whole when the list has changed. The list changes at start, and when
//! an uplink becomes able or unable to carry a profile's MTU.

use std::io;
use std::path::PathBuf;

use crate::control::api::ProfileView;
use crate::platform::text_file::replace;
use crate::profile::{Catalog, UplinkFacts};

/// The list could not be published.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the list of profiles to {}", path.display())]
pub struct PublishError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// The file.
#[derive(Debug)]
pub struct PublishedList {
    path: PathBuf,
    /// The facts of the uplinks when it was last written.
    written: Option<Vec<UplinkFacts>>,
}

impl PublishedList {
    /// The list at `path`, which is not written yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path, written: None }
    }

    /// Write it, if these uplinks change the list.
    ///
    /// # Errors
    /// [`PublishError`]; the old list is still there, and the next call tries again.
    pub fn update(
        &mut self,
        catalog: &Catalog,
        uplinks: &[UplinkFacts],
    ) -> Result<(), PublishError> {
        if self.written.as_deref() == Some(uplinks) {
            return Ok(());
        }
        let list = serde_json::to_vec_pretty(&ProfileView::all(catalog, uplinks));
        let replaced = list.map_err(io::Error::from).and_then(|list| {
            if let Some(directory) = self.path.parent() {
                std::fs::create_dir_all(directory)?;
            }
            replace(&self.path, &list)
        });
        replaced.map_err(|source| PublishError { path: self.path.clone(), source })?;
        self.written = Some(uplinks.to_vec());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_the_published_list_and_follows_the_uplinks() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made/profiles.json");
        let (mut list, catalog) = (PublishedList::new(path.clone()), Catalog::embedded());
        let read = || -> Vec<ProfileView> {
            serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap()
        };
        for mtu in [1500, 1400] {
            let uplinks = [UplinkFacts { name: "eth0".into(), mtu }];
            list.update(&catalog, &uplinks).unwrap();
            assert_eq!(read(), ProfileView::all(&catalog, &uplinks));
        }
        // The list is written only when something has changed.
        std::fs::remove_file(&path).unwrap();
        list.update(&catalog, &[UplinkFacts { name: "eth0".into(), mtu: 1400 }]).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_place_that_cannot_be_written_is_told() {
        let mut list = PublishedList::new("/proc/nowhere/profiles.json".into());
        let error = list.update(&Catalog::embedded(), &[]).unwrap_err();
        assert!(error.to_string().contains("/proc/nowhere/profiles.json"));
    }
}
