//! The profiles of this daemon: the released ones, embedded, and those of a directory.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::platform::text_file::{FileError, read_text};
use crate::toml_document::Problems;

use super::definition::Profile;
use super::lock::{self, LOCK_FILE, Listed, LockProblem};
use super::parse::{Extension, ProfileFile, base_of, parse_file};

/// Drafts, and released profiles, which are never removed.
const EMBEDDED: &[(&str, &str)] = &[
    ("profiles/org.dpdk.v22.11.toml", include_str!("../../profiles/org.dpdk.v22.11.toml")),
    ("profiles/org.isonic.net.v1.toml", include_str!("../../profiles/org.isonic.net.v1.toml")),
    ("profiles/org.isonic.net.v2.toml", include_str!("../../profiles/org.isonic.net.v2.toml")),
    ("profiles/org.isonic.net.v3.toml", include_str!("../../profiles/org.isonic.net.v3.toml")),
    ("profiles/org.isonic.net.v4.toml", include_str!("../../profiles/org.isonic.net.v4.toml")),
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
    /// The directory cannot be read.
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
    /// A file is no profile, to judge by its size or kind.
    #[error(transparent)]
    File(#[from] FileError),
    /// Two profiles have the same name: it would be unclear which one a VM was given.
    #[error("{second}: the profile \"{name}\" is already in {first}; give it another name")]
    Duplicate {
        /// The name.
        name: String,
        /// The place where it was seen first.
        first: Source,
        /// The place where it was seen again.
        second: Source,
    },
    /// Two names of one family have the same interface: a version that changes nothing.
    #[error(
        "\"{second}\" and \"{first}\" are the same interface; a new version is made only when it \
         changes"
    )]
    SameInterface {
        /// The one by name.
        first: String,
        /// The other.
        second: String,
    },
    /// A final profile is made from one that may still change.
    #[error("\"{name}\" extends the draft \"{base}\", and so must be a draft itself")]
    ExtendsDraft {
        /// The profile.
        name: String,
        /// The profile that it extends.
        base: String,
    },
    /// A directory's list of released profiles and its files differ.
    #[error("{}: {problem}", path.display())]
    Lock {
        /// The list.
        path: PathBuf,
        /// The difference.
        problem: LockProblem,
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

/// A profile, and the facts about it that are not in its interface.
#[derive(Clone, Debug)]
struct Entry {
    profile: Arc<Profile>,
    source: Source,
    draft: bool,
    extends: Option<Extension>,
}

/// One file to be read.
struct Unread {
    path: PathBuf,
    text: String,
    source: Source,
}

/// All profiles a port can name.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    entries: BTreeMap<String, Entry>,
}

impl Catalog {
    /// The released profiles alone.
    #[must_use]
    #[allow(clippy::expect_used, reason = "a test reads every embedded profile")]
    pub fn embedded() -> Self {
        Self::load(None).expect("the embedded profiles are valid")
    }

    /// The released profiles and, if there is one, those of `directory`: its files named `*.toml`.
    /// If the directory has a list of released profiles, they must be as it says.
    ///
    /// # Errors
    /// [`CatalogError`], with the mistakes of all files.
    pub fn load(directory: Option<&Path>) -> Result<Self, CatalogError> {
        let mut catalog = Self::default();
        let mut problems = Vec::new();
        let mut unread: Vec<Unread> = EMBEDDED
            .iter()
            .map(|&(file, text)| Unread {
                path: file.into(),
                text: text.to_owned(),
                source: Source::Embedded,
            })
            .collect();
        if let Some(directory) = directory {
            unread.extend(unread_files(directory, &mut problems));
        }
        catalog.read_all(unread, &mut problems);
        problems.extend(catalog.same_interfaces());
        problems.extend(catalog.extended_drafts());
        // With unread files, the check would report the same files once more.
        if let Some(directory) = directory.filter(|_| problems.is_empty()) {
            catalog.check_lock(directory, &mut problems);
        }
        if problems.is_empty() { Ok(catalog) } else { Err(CatalogError { problems }) }
    }

    /// Read the files, each after the one that it extends.
    fn read_all(&mut self, files: Vec<Unread>, found: &mut Vec<CatalogProblem>) {
        let mut waiting: Vec<(Option<String>, Unread)> =
            files.into_iter().map(|file| (base_of(&file.text), file)).collect();
        while !waiting.is_empty() {
            let known = |base: &Option<String>| {
                base.as_ref().is_none_or(|base| self.entries.contains_key(base))
            };
            let (mut ready, later): (Vec<_>, Vec<_>) =
                waiting.into_iter().partition(|(base, _)| known(base));
            waiting = later;
            if ready.is_empty() {
                // No more bases can become known: each waiting file extends an absent profile, or a
                // waiting one. Reading them reports it.
                ready.append(&mut waiting);
            }
            for (_, file) in ready {
                self.read(file, found);
            }
        }
    }

    fn read(&mut self, file: Unread, found: &mut Vec<CatalogProblem>) {
        let base = |name: &str| self.get(name).map(|profile| &**profile);
        let ProfileFile { profile, draft, extends } = match parse_file(&file.path, &file.text, base)
        {
            Ok(file) => file,
            Err(problems) => return found.push(problems.into()),
        };
        match self.entries.get(&profile.name) {
            // An update may bring a profile that the operator already had as a file: they are one
            // profile.
            Some(first)
                if first.source == Source::Embedded
                    && file.source != Source::Embedded
                    && first.profile.digest() == profile.digest() => {}
            Some(first) => found.push(CatalogProblem::Duplicate {
                name: profile.name,
                first: first.source.clone(),
                second: file.source,
            }),
            None => {
                let name = profile.name.clone();
                let profile = Arc::new(profile);
                let entry = Entry { profile, source: file.source, draft, extends };
                self.entries.insert(name, entry);
            }
        }
    }

    fn same_interfaces(&self) -> Vec<CatalogProblem> {
        let mut seen: BTreeMap<(&str, String), &str> = BTreeMap::new();
        let mut problems = Vec::new();
        for profile in self.iter() {
            let Some((family, _)) = profile.family() else { continue };
            match seen.get(&(family, profile.digest())) {
                Some(&first) => problems.push(CatalogProblem::SameInterface {
                    first: first.to_owned(),
                    second: profile.name.clone(),
                }),
                None => {
                    seen.insert((family, profile.digest()), &profile.name);
                }
            }
        }
        problems
    }

    fn extended_drafts(&self) -> Vec<CatalogProblem> {
        let of_a_draft = |(name, entry): (&String, &Entry)| {
            let base = entry.extends.as_ref().map(|extends| extends.base.clone())?;
            let wrong = !entry.draft && self.is_draft(&base);
            wrong.then(|| CatalogProblem::ExtendsDraft { name: name.clone(), base })
        };
        self.entries.iter().filter_map(of_a_draft).collect()
    }

    fn check_lock(&self, directory: &Path, found: &mut Vec<CatalogProblem>) {
        let path = directory.join(LOCK_FILE);
        let text = match read_text(&path, FILE_BYTES_MAX) {
            Ok(text) => text,
            Err(FileError::Unreadable { source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                return;
            }
            Err(error) => return found.push(error.into()),
        };
        let listed = self.listed(|source| matches!(source, Source::File(_)));
        let problems = lock::compare(&text, &listed).into_iter();
        found.extend(problems.map(|problem| CatalogProblem::Lock { path: path.clone(), problem }));
    }

    /// The profiles from these sources, for the comparison with a list of released ones.
    fn listed(&self, of: impl Fn(&Source) -> bool) -> BTreeMap<&str, Listed> {
        let entries = self.entries.iter().filter(|(_, entry)| of(&entry.source));
        let listed = |entry: &Entry| Listed { digest: entry.profile.digest(), draft: entry.draft };
        entries.map(|(name, entry)| (name.as_str(), listed(entry))).collect()
    }

    /// Keep only the profiles that this version can keep on some uplink.
    #[must_use]
    pub fn usable(mut self) -> Self {
        self.entries.retain(|_, entry| entry.profile.host_blockers().is_empty());
        self
    }

    /// Keep only the profiles that are final.
    #[must_use]
    pub fn released(mut self) -> Self {
        self.entries.retain(|_, entry| !entry.draft);
        self
    }

    /// The profile of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Profile>> {
        self.entries.get(name).map(|entry| &entry.profile)
    }

    /// Where the profile of this name comes from.
    #[must_use]
    pub fn source(&self, name: &str) -> Option<&Source> {
        self.entries.get(name).map(|entry| &entry.source)
    }

    /// Whether the profile of this name may still change.
    #[must_use]
    pub fn is_draft(&self, name: &str) -> bool {
        self.entries.get(name).is_some_and(|entry| entry.draft)
    }

    /// The predecessor of the profile of this name, and why it was extended.
    #[must_use]
    pub fn extends(&self, name: &str) -> Option<&Extension> {
        self.entries.get(name).and_then(|entry| entry.extends.as_ref())
    }

    /// All profiles, by name.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<Profile>> {
        self.entries.values().map(|entry| &entry.profile)
    }

    /// All names, in order.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        self.entries.keys().map(String::as_str).collect()
    }

    /// The highest version of each family (`org.isonic.net` → its `.vN` of the highest N), of those
    /// that are final and that this version can keep.
    #[must_use]
    pub fn latest(&self) -> BTreeMap<&str, &Arc<Profile>> {
        let mut latest: BTreeMap<&str, (Vec<u32>, &Arc<Profile>)> = BTreeMap::new();
        let offered = |entry: &&Entry| !entry.draft && entry.profile.host_blockers().is_empty();
        for Entry { profile, .. } in self.entries.values().filter(offered) {
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

/// The profile files of `directory`; errors in reading are added to `found`.
fn unread_files(directory: &Path, found: &mut Vec<CatalogProblem>) -> Vec<Unread> {
    let files = profile_files(directory).unwrap_or_else(|problem| {
        found.push(problem);
        Vec::new()
    });
    let mut unread = Vec::new();
    for path in files {
        match read_text(&path, FILE_BYTES_MAX) {
            Ok(text) => {
                let source = Source::File(path.clone());
                unread.push(Unread { path, text, source });
            }
            Err(error) => found.push(error.into()),
        }
    }
    unread
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
    const EMBEDDED_NAMES: [&str; 6] = [
        "org.dpdk.v22.11",
        "org.isonic.net.v1",
        "org.isonic.net.v2",
        "org.isonic.net.v3",
        "org.isonic.net.v4",
        "org.openvswitch.v3.1",
    ];

    fn named(name: &str) -> String {
        V1.replace("org.isonic.net.v1", name)
    }

    #[test]
    fn released_profiles_have_not_changed_and_the_others_are_drafts() {
        let catalog = Catalog::embedded();
        let problems = lock::compare(RELEASED, &catalog.listed(|_| true));
        assert_eq!(problems, [], "a released profile is final: add a new version instead");
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
            ("a.toml", named("org.isonic.net.v10").replace("= 1024", "= 512")),
            ("b.toml", named("org.isonic.net.v9").replace("= 1024", "= 256")),
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
                "org.isonic.net.v2",
                "org.isonic.net.v3",
                "org.isonic.net.v4",
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
        let wide =
            named("com.x.v1").replace("\"mtu\",\n    \"mrg", "\"access_platform\",\n    \"mrg");
        let (_directory, catalog) = in_directory(&[("a.toml", wide)]);
        let catalog = catalog.unwrap();
        assert!(catalog.get("com.x.v1").is_some());
        assert_eq!(catalog.usable().names(), EMBEDDED_NAMES);
    }

    #[test]
    fn profiles_of_other_backends_are_as_usable_as_our_own() {
        let catalog = Catalog::embedded();
        assert_eq!(catalog.names(), EMBEDDED_NAMES);
        for name in EMBEDDED_NAMES {
            assert_eq!(catalog.get(name).unwrap().host_blockers(), [], "{name}");
        }
        assert_eq!(catalog.usable().names(), EMBEDDED_NAMES);
    }

    #[test]
    fn a_duplicate_name_is_refused_and_both_places_are_named() {
        let (directory, catalog) =
            in_directory(&[("a.toml", named("com.x.v1")), ("b.toml", named("com.x.v1"))]);
        let message = catalog.unwrap_err().to_string();
        for file in ["a.toml", "b.toml"] {
            assert!(message.contains(&directory.path().join(file).display().to_string()));
        }
        let edited = named("org.isonic.net.v1").replace("= 1024", "= 512");
        let (_directory, catalog) = in_directory(&[("a.toml", edited)]);
        assert!(catalog.unwrap_err().to_string().contains("already in the binary"));
    }

    #[test]
    fn a_profile_that_came_with_an_update_may_stay_in_the_directory() {
        let (_directory, catalog) = in_directory(&[("a.toml", named("org.isonic.net.v1"))]);
        assert_eq!(catalog.unwrap().source("org.isonic.net.v1"), Some(&Source::Embedded));
    }

    fn extension(name: &str, base: &str, more: &str) -> String {
        format!("name = \"{name}\"\nsummary = \"s\"\nextends = \"{base}\"\nwhy = \"w\"\n{more}\n")
    }

    #[test]
    fn files_extend_each_other_whatever_their_names() {
        let (_directory, catalog) = in_directory(&[
            ("a.toml", extension("com.x.v3", "com.x.v2", "mtu = 1400")),
            ("b.toml", extension("com.x.v2", "com.x.v1", "ring_size_max = 512")),
            ("c.toml", named("com.x.v1")),
        ]);
        let catalog = catalog.unwrap();
        let v3 = catalog.get("com.x.v3").unwrap();
        assert_eq!((v3.mtu, v3.ring_size_max, v3.queue_pairs_max), (1400, 512, 16));
        assert_eq!(catalog.extends("com.x.v3").unwrap().base, "com.x.v2");
        assert!(catalog.is_latest("com.x.v3"));
    }

    #[test]
    fn files_that_extend_each_other_in_a_circle_or_nothing_are_told() {
        let (_directory, catalog) = in_directory(&[
            ("a.toml", extension("com.x.v1", "com.x.v2", "mtu = 1400")),
            ("b.toml", extension("com.x.v2", "com.x.v1", "mtu = 1300")),
        ]);
        let message = catalog.unwrap_err().to_string();
        for told in ["a.toml:3: extends \"com.x.v2\"", "b.toml:3: extends \"com.x.v1\""] {
            assert!(message.contains(told), "{message}");
        }
    }

    #[test]
    fn two_names_of_one_family_for_one_interface_are_refused() {
        let (_directory, catalog) = in_directory(&[("a.toml", named("org.isonic.net.v9"))]);
        let message = catalog.unwrap_err().to_string();
        assert!(message.contains("\"org.isonic.net.v9\" and \"org.isonic.net.v1\" are the same"));
        let (_directory, catalog) = in_directory(&[("a.toml", named("com.other.v1"))]);
        catalog.unwrap();
    }

    #[test]
    fn a_draft_is_no_latest_and_nothing_final_is_made_of_it() {
        let draft = extension("org.isonic.net.v9", "org.isonic.net.v1", "mtu = 1400\ndraft = true");
        let (_directory, catalog) = in_directory(&[("a.toml", draft.clone())]);
        let catalog = catalog.unwrap();
        assert!(catalog.is_draft("org.isonic.net.v9"));
        assert!(catalog.is_latest("org.isonic.net.v3"));
        assert_eq!(catalog.resolve("latest").unwrap().profile.name, "org.isonic.net.v3");
        assert!(catalog.resolve("org.isonic.net.v9,max_ring=256").unwrap().draft);
        let mut released = EMBEDDED_NAMES.to_vec();
        released.retain(|name| RELEASED.contains(&format!("  {name}\n")));
        assert_eq!(catalog.released().names(), released);
        let next = extension("org.isonic.net.v10", "org.isonic.net.v9", "mtu = 1300");
        let (_directory, catalog) = in_directory(&[("a.toml", draft), ("b.toml", next)]);
        assert!(catalog.unwrap_err().to_string().contains("must be a draft itself"));
    }

    #[test]
    fn a_directory_with_a_list_of_released_profiles_is_held_to_it() {
        let digest = Catalog::embedded().get("org.isonic.net.v1").unwrap().digest();
        let list = |lines: &str| ("released.sha256", lines.to_owned());
        let good = format!("{digest}  com.x.v1\n");
        let (_directory, catalog) = in_directory(&[("a.toml", named("com.x.v1")), list(&good)]);
        catalog.unwrap();
        let edited = named("com.x.v1").replace("= 1024", "= 512");
        for (files, told) in [
            (vec![("a.toml", edited), list(&good)], "was released with digest"),
            (vec![list(&good)], "there is no such profile; put its file back"),
            (vec![("a.toml", named("com.x.v1")), list("")], "is not released"),
        ] {
            let (_directory, catalog) = in_directory(&files);
            let message = catalog.unwrap_err().to_string();
            assert!(message.contains("released.sha256: ") && message.contains(told), "{message}");
        }
    }

    #[test]
    fn what_is_no_file_or_enormous_is_refused_before_it_is_read() {
        let (directory, _) = in_directory(&[]);
        std::fs::create_dir(directory.path().join("a.toml")).unwrap();
        let large = std::fs::File::create(directory.path().join("b.toml")).unwrap();
        large.set_len(FILE_BYTES_MAX + 1).unwrap();
        let message = Catalog::load(Some(directory.path())).unwrap_err().to_string();
        assert!(message.contains("a.toml is no regular file"), "{message}");
        assert!(message.contains("b.toml has more than 1048576 bytes"), "{message}");
        let file = directory.path().join("b.toml");
        let message = Catalog::load(Some(&file)).unwrap_err().to_string();
        assert!(message.contains("cannot be read"), "{message}");
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
