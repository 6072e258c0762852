//! The profiles of this daemon: the released ones, embedded, and those of a directory.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::document::Problems;

use super::{Profile, parse};

/// The released profiles. Append only.
const EMBEDDED: &[(&str, &str)] = &[
    ("profiles/org.dpdk.v22.11.toml", include_str!("../../profiles/org.dpdk.v22.11.toml")),
    ("profiles/org.isonic.net.v1.toml", include_str!("../../profiles/org.isonic.net.v1.toml")),
    (
        "profiles/org.openvswitch.v3.1.toml",
        include_str!("../../profiles/org.openvswitch.v3.1.toml"),
    ),
];

/// Largest profile file that is read, bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where a profile comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The binary.
    Embedded,
    /// A file of the profile directory.
    File(PathBuf),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str("the binary"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// One thing that is wrong with a profile directory.
#[derive(Debug, thiserror::Error)]
pub enum CatalogProblem {
    /// The directory or a file cannot be read.
    #[error("{}: cannot be read", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds mistakes.
    #[error(transparent)]
    Invalid(#[from] Problems),
    /// A file is no profile, to judge by its size.
    #[error("{}: {bytes} bytes, and a profile has at most {FILE_BYTES_MAX}", path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// Its size, bytes.
        bytes: u64,
    },
    /// Two profiles have the same name, and nobody could tell which a VM was given.
    #[error("{second}: the profile \"{name}\" is already in {first}; give it another name")]
    Duplicate {
        /// The name.
        name: String,
        /// Where it was seen first.
        first: Source,
        /// And where again.
        second: Source,
    },
}

/// Everything that is wrong with a profile directory, one thing a line.
#[derive(Debug)]
pub struct CatalogError {
    /// Never empty.
    pub problems: Vec<CatalogProblem>,
}

impl fmt::Display for CatalogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
            // The list has no single cause to pass on, so each line carries its own.
            if let Some(cause) = std::error::Error::source(problem) {
                write!(f, ": {cause}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for CatalogError {}

/// All profiles a port can name.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    profiles: BTreeMap<String, (Arc<Profile>, Source)>,
}

impl Catalog {
    /// The released profiles alone.
    #[must_use]
    #[allow(clippy::expect_used, reason = "a test reads every embedded profile")]
    pub fn embedded() -> Self {
        Self::load(None).expect("the embedded profiles are valid")
    }

    /// The released profiles and, if there is one, those of `directory`: its files named `*.toml`.
    ///
    /// # Errors
    /// [`CatalogError`], with the mistakes of all files.
    pub fn load(directory: Option<&Path>) -> Result<Self, CatalogError> {
        let mut catalog = Self::default();
        let mut problems = Vec::new();
        for (file, text) in EMBEDDED {
            catalog.read(Path::new(file), text, Source::Embedded, &mut problems);
        }
        match directory.map(profile_files) {
            None => {}
            Some(Err(problem)) => problems.push(problem),
            Some(Ok(files)) => {
                for path in files {
                    match read_file(&path) {
                        Ok(text) => {
                            let source = Source::File(path.clone());
                            catalog.read(&path, &text, source, &mut problems);
                        }
                        Err(problem) => problems.push(problem),
                    }
                }
            }
        }
        if problems.is_empty() { Ok(catalog) } else { Err(CatalogError { problems }) }
    }

    fn read(&mut self, path: &Path, text: &str, source: Source, found: &mut Vec<CatalogProblem>) {
        let profile = match parse(path, text) {
            Ok(profile) => profile,
            Err(problems) => return found.push(problems.into()),
        };
        match self.profiles.get(&profile.name) {
            Some((_, first)) => found.push(CatalogProblem::Duplicate {
                name: profile.name,
                first: first.clone(),
                second: source,
            }),
            None => {
                self.profiles.insert(profile.name.clone(), (Arc::new(profile), source));
            }
        }
    }

    /// Those profiles only that this version can keep on some uplink.
    #[must_use]
    pub fn usable(mut self) -> Self {
        self.profiles.retain(|_, (profile, _)| profile.host_blockers().is_empty());
        self
    }

    /// The profile of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Profile>> {
        self.profiles.get(name).map(|(profile, _)| profile)
    }

    /// Where the profile of this name comes from.
    #[must_use]
    pub fn source(&self, name: &str) -> Option<&Source> {
        self.profiles.get(name).map(|(_, source)| source)
    }

    /// All profiles, by name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<Profile>> {
        self.profiles.values().map(|(profile, _)| profile)
    }

    /// All names, in order.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        self.profiles.keys().map(String::as_str).collect()
    }

    /// The highest version of each family (`org.isonic.net` → its `.vN` of the highest N).
    #[must_use]
    pub fn latest(&self) -> BTreeMap<&str, &Arc<Profile>> {
        let mut latest: BTreeMap<&str, (u32, &Arc<Profile>)> = BTreeMap::new();
        for profile in self.iter() {
            let Some((family, version)) = profile.family() else { continue };
            if latest.get(family).is_none_or(|(seen, _)| *seen < version) {
                latest.insert(family, (version, profile));
            }
        }
        latest.into_iter().map(|(family, (_, profile))| (family, profile)).collect()
    }

    /// Whether the profile of this name is the latest of its family.
    #[must_use]
    pub fn is_latest(&self, name: &str) -> bool {
        self.latest().values().any(|profile| profile.name == name)
    }
}

/// The `*.toml` files of `directory`, by name.
fn profile_files(directory: &Path) -> Result<Vec<PathBuf>, CatalogProblem> {
    let unreadable = |source| CatalogProblem::Unreadable { path: directory.to_owned(), source };
    let entries = std::fs::read_dir(directory).map_err(unreadable)?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_file(path: &Path) -> Result<String, CatalogProblem> {
    let unreadable = |source| CatalogProblem::Unreadable { path: path.to_owned(), source };
    let bytes = std::fs::metadata(path).map_err(unreadable)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(CatalogProblem::TooLarge { path: path.to_owned(), bytes });
    }
    std::fs::read_to_string(path).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELEASED: &str = include_str!("../../profiles/released.sha256");

    fn in_directory(
        files: &[(&str, String)],
    ) -> (tempfile::TempDir, Result<Catalog, CatalogError>) {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        let catalog = Catalog::load(Some(directory.path()));
        (directory, catalog)
    }

    const V1: &str = include_str!("../../profiles/org.isonic.net.v1.toml");
    /// All embedded profiles.
    const RELEASED_NAMES: [&str; 3] =
        ["org.dpdk.v22.11", "org.isonic.net.v1", "org.openvswitch.v3.1"];

    fn named(name: &str) -> String {
        V1.replace("org.isonic.net.v1", name)
    }

    #[test]
    fn released_profiles_have_not_changed() {
        let catalog = Catalog::embedded();
        let digests: Vec<String> = catalog
            .iter()
            .map(|profile| format!("{}  {}", profile.digest(), profile.name))
            .collect();
        let released: Vec<&str> = RELEASED.lines().collect();
        assert_eq!(digests, released, "a released profile is final: add a new version instead");
    }

    #[test]
    fn no_version_is_made_when_the_interface_did_not_change() {
        let catalog = Catalog::embedded();
        let digests: std::collections::BTreeSet<String> =
            catalog.iter().map(|profile| profile.digest()).collect();
        assert_eq!(digests.len(), catalog.iter().len());
    }

    #[test]
    fn every_profile_of_the_folder_is_embedded() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        let files = profile_files(&folder.join("profiles")).unwrap();
        let embedded: Vec<PathBuf> = EMBEDDED.iter().map(|(file, _)| folder.join(file)).collect();
        assert_eq!(files, embedded);
    }

    #[test]
    fn a_directory_extends_the_catalog() {
        let (_directory, catalog) = in_directory(&[
            ("a.toml", named("org.isonic.net.v10")),
            ("b.toml", named("org.isonic.net.v9")),
            ("c.toml", named("com.example.nic")),
            ("README", "no profile".into()),
        ]);
        let catalog = catalog.unwrap();
        assert_eq!(
            catalog.names(),
            [
                "com.example.nic",
                "org.dpdk.v22.11",
                "org.isonic.net.v1",
                "org.isonic.net.v10",
                "org.isonic.net.v9",
                "org.openvswitch.v3.1",
            ]
        );
        assert!(catalog.is_latest("org.isonic.net.v10"));
        assert!(!catalog.is_latest("org.isonic.net.v9"));
        assert!(matches!(catalog.source("com.example.nic"), Some(Source::File(_))));
    }

    #[test]
    fn a_profile_this_version_cannot_keep_is_listed_and_not_usable() {
        let wide = named("com.x.v1").replace("\"mtu\",\n    \"mrg", "\"csum\",\n    \"mrg");
        let (_directory, catalog) = in_directory(&[("a.toml", wide)]);
        let catalog = catalog.unwrap();
        assert!(catalog.get("com.x.v1").is_some());
        assert_eq!(catalog.usable().names(), ["org.isonic.net.v1"]);
    }

    #[test]
    fn profiles_of_other_backends_are_listed_with_all_that_stands_against_them() {
        let catalog = Catalog::embedded();
        assert_eq!(catalog.names(), RELEASED_NAMES);
        for name in ["org.dpdk.v22.11", "org.openvswitch.v3.1"] {
            let told: Vec<String> = catalog
                .get(name)
                .unwrap()
                .host_blockers()
                .iter()
                .map(ToString::to_string)
                .collect();
            let [device, protocol] = &told[..] else { panic!("{told:?}") };
            for bit in ["guest_csum", "guest_tso4", "host_ecn", "guest_announce", "log_all"] {
                assert!(device.contains(bit), "{device}");
            }
            assert!(!device.contains("ctrl_vq"), "the front-end does it: {device}");
            assert!(protocol.contains("log_shmfd") && !protocol.contains("rarp"), "{protocol}");
        }
        assert_eq!(catalog.usable().names(), ["org.isonic.net.v1"]);
    }

    #[test]
    fn a_duplicate_name_is_refused_and_both_places_are_named() {
        let (directory, catalog) =
            in_directory(&[("a.toml", named("com.x.v1")), ("b.toml", named("com.x.v1"))]);
        let message = catalog.unwrap_err().to_string();
        for file in ["a.toml", "b.toml"] {
            assert!(message.contains(&directory.path().join(file).display().to_string()));
        }
        let (_directory, catalog) = in_directory(&[("a.toml", named("org.isonic.net.v1"))]);
        assert!(catalog.unwrap_err().to_string().contains("already in the binary"));
    }

    #[test]
    fn the_mistakes_of_all_files_are_told_at_once() {
        let (_directory, catalog) = in_directory(&[
            ("a.toml", named("com.x.v1") + "colour = 1\n"),
            ("b.toml", named("com.y.v1") + "shape = 1\n"),
        ]);
        let message = catalog.unwrap_err().to_string();
        assert!(message.contains("\"colour\"") && message.contains("\"shape\""), "{message}");
    }

    #[test]
    fn a_missing_directory_is_an_error_and_not_an_empty_one() {
        let error = Catalog::load(Some(Path::new("/nonexistent/profiles"))).unwrap_err();
        assert!(error.to_string().starts_with("/nonexistent/profiles: cannot be read"));
    }
}
