//! What the sources promise of themselves: who may import whom, where unsafe code may be, that the
//! module map and the list of counters are complete, and a few plain rules of style.
//!
//! It reads text, not syntax: enough for code that `cargo fmt` has been over.

#[path = "tidy/circles.rs"]
mod circles;
#[path = "tidy/code.rs"]
mod code;
#[path = "tidy/documents.rs"]
mod documents;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use isonic::metrics::{Counter, PortCounter, SocketCounter};

/// Longest line, characters.
const LINE_MAX: usize = 100;
/// Longest function, lines; of a flat `match` the arms do not count.
const FUNCTION_LINES_MAX: usize = 60;
/// Longest arm of a `match` that is flat, lines.
const ARM_LINES_MAX: usize = 8;

/// Imports that are part of a circle of files and are known: `FILE imports NAMES of FILE`.
const KNOWN_CIRCLES: &[&str] = &[];

/// Names that several files have. Every other name says by itself what is in its file.
const COMMON_NAMES: &[(&str, &str)] = &[
    ("mod.rs", "the face of its module, by Rust's rule"),
    ("tests.rs", "the unit tests of the module that it is in"),
];

/// Which modules each may import. `daemon`, where all meet, may import any but `cli`;
/// `test_support` any that has another side to play.
const ARROWS: &[(&str, &[&str])] = &[
    ("guest_memory", &[]),
    ("xdp", &["platform"]),
    ("device", &["packet"]),
    ("toml_document", &["report"]),
    ("metrics", &[]),
    ("packet", &[]),
    ("platform", &[]),
    ("report", &[]),
    ("virtqueue", &["device", "guest_memory"]),
    ("profile", &["device", "toml_document", "guest_memory", "platform"]),
    ("datapath", &["virtqueue", "xdp", "guest_memory", "device", "metrics", "packet", "platform"]),
    ("vhost_user", &["device", "guest_memory", "platform", "profile", "report", "virtqueue"]),
    ("reference", &["device", "profile"]),
    ("config", &["device", "toml_document", "platform", "profile"]),
    ("control", &["config", "device", "profile", "report"]),
    ("capture", &["device", "toml_document", "platform", "profile"]),
    ("libvirt", &["config", "control", "device", "profile"]),
    ("doctor", &["config", "control", "platform", "xdp"]),
    (
        "cli",
        &[
            "capture", "config", "control", "device", "doctor", "libvirt", "platform", "profile",
            "report", "xdp",
        ],
    ),
    (
        "daemon",
        &[
            "config",
            "control",
            "datapath",
            "device",
            "guest_memory",
            "metrics",
            "packet",
            "platform",
            "profile",
            "report",
            "vhost_user",
            "virtqueue",
            "xdp",
        ],
    ),
];

/// Modules whose work is unsafe: memory shared with guests and with the kernel, and system calls.
/// `test_support` plays their other sides.
const MAY_BE_UNSAFE: &[&str] = &["guest_memory", "virtqueue", "xdp", "platform", "test_support"];

/// One source file of the library.
struct Source {
    path: PathBuf,
    /// Its module of the first level; empty for `lib.rs` and `main.rs`.
    module: String,
    text: String,
}

impl Source {
    /// The lines that are neither comments nor unit tests.
    fn code(&self) -> impl Iterator<Item = &str> {
        let tests = self.text.find("#[cfg(test)]\nmod tests").unwrap_or(self.text.len());
        self.text[..tests].lines().filter(|line| !line.trim_start().starts_with("//"))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All files under a folder of the repository, with their paths from its root.
fn files_of(folder: &str) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(text) = fs::read_to_string(&path) {
                files.push((path.strip_prefix(root()).unwrap().to_owned(), text));
            }
        }
    }
    files.sort();
    files
}

fn sources() -> Vec<Source> {
    let source = |(path, text): (PathBuf, String)| {
        let mut parts = path.iter().skip(1);
        let first = Path::new(parts.next().unwrap()).file_stem().unwrap().to_str().unwrap();
        let module = if matches!(first, "lib" | "main") { "" } else { first };
        Source { module: module.to_owned(), path, text }
    };
    files_of("src").into_iter().map(source).collect()
}

/// The modules that `lib.rs` declares.
fn modules() -> Vec<String> {
    let name = |line: &str| Some(line.strip_prefix("pub mod ")?.strip_suffix(';')?.to_owned());
    read("src/lib.rs").lines().filter_map(name).collect()
}

/// The modules of the library that a line names by `crate::`.
fn imports(line: &str) -> impl Iterator<Item = &str> {
    let end = |rest: &str| {
        rest.find(|letter: char| !letter.is_ascii_lowercase() && letter != '_')
            .unwrap_or(rest.len())
    };
    line.split("crate::").skip(1).map(move |rest| &rest[..end(rest)])
}

fn assert_none(problems: &[String], rule: &str) {
    assert!(problems.is_empty(), "{rule}:\n{}", problems.join("\n"));
}

#[test]
fn imports_follow_the_arrows() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| !source.module.is_empty()) {
        if source.module == "test_support" {
            continue;
        }
        let arrows = ARROWS.iter().find(|(module, _)| *module == source.module);
        let (_, allowed) = arrows.unwrap_or_else(|| panic!("{} has no arrows", source.module));
        for import in source.code().flat_map(imports) {
            if import != source.module && !allowed.contains(&import) {
                wrong.push(format!("{} imports {import}", source.path.display()));
            }
        }
    }
    assert_none(&wrong, "not among the arrows");
}

#[test]
fn every_arrow_is_used() {
    let mut unused = Vec::new();
    for (module, allowed) in ARROWS {
        let sources = sources();
        let own = sources.iter().filter(|source| source.module == *module);
        let used: BTreeSet<&str> = own.flat_map(|source| source.code().flat_map(imports)).collect();
        let missing = allowed.iter().filter(|import| !used.contains(**import));
        unused.extend(missing.map(|import| format!("{module} no longer imports {import}")));
    }
    assert_none(&unused, "the arrows say more than the code");
}

#[test]
fn unsafe_code_is_forbidden_but_where_it_is_the_work() {
    let mut missing = Vec::new();
    for module in modules().iter().filter(|module| !MAY_BE_UNSAFE.contains(&module.as_str())) {
        let folder = format!("src/{module}/mod.rs");
        let path = if root().join(&folder).exists() { folder } else { format!("src/{module}.rs") };
        if !read(&path).contains("#![forbid(unsafe_code)]") {
            missing.push(path);
        }
    }
    assert_none(&missing, "#![forbid(unsafe_code)] is missing");
}

#[test]
fn the_module_map_names_every_module() {
    let map = read("src/lib.rs");
    let listed = |module: &str| {
        let linked = map.contains(&format!("//! - [`{module}`]: "));
        linked || map.contains(&format!("//! - `{module}`: "))
    };
    let missing: Vec<String> = modules().into_iter().filter(|module| !listed(module)).collect();
    assert_none(&missing, "not in the contents page of src/lib.rs");
}

#[test]
fn every_counter_is_counted_and_documented() {
    let manual = read("docs/operations/counters.md");
    let counting: String = sources()
        .iter()
        .filter(|source| matches!(source.module.as_str(), "datapath" | "daemon"))
        .flat_map(|source| source.code().map(|line| format!("{line}\n")).collect::<Vec<_>>())
        .collect();
    let mut wrong = Vec::new();
    for (kind, names) in
        [("PortCounter", PortCounter::NAMES), ("SocketCounter", SocketCounter::NAMES)]
    {
        for name in names {
            if !manual.contains(&format!("| `{name}` |")) {
                wrong.push(format!("{name} is not in docs/operations/counters.md"));
            }
            let variant = format!("{kind}::{}", camel_case(name));
            let ends = |rest: &str| !rest.starts_with(|letter: char| letter.is_alphanumeric());
            if !counting.split(&variant).skip(1).any(ends) {
                wrong.push(format!("nobody counts {variant}"));
            }
        }
    }
    assert_none(&wrong, "counters");
}

/// `from_guest_packets` → `FromGuestPackets`.
fn camel_case(name: &str) -> String {
    let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
    name.split('_').map(capital).collect()
}

#[test]
fn tests_that_need_a_machine_are_ignored_by_cargo_test_and_no_others() {
    const REASON: &str = "#[ignore = \"needs root and a machine: scripts/test\"]";
    let mut wrong = Vec::new();
    let mut found = 0;
    for (path, text) in ["src", "tests"].into_iter().flat_map(files_of) {
        let wanted = path.starts_with("tests/machine");
        // What runs inside guests is started as tests are, and is none.
        if path.extension().is_none_or(|extension| extension != "rs") || path.ends_with("inside.rs")
        {
            continue;
        }
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (number, line) in (1..).zip(&lines) {
            let next = lines.get(number).copied().unwrap_or_default();
            let place = format!("{}:{number}", path.display());
            if wanted && *line == "#[test]" {
                found += 1;
                wrong.extend((next != REASON).then(|| format!("{place}: no {REASON}")));
            } else if !wanted && line.starts_with("#[ignore") {
                wrong.push(format!("{place}: runs nowhere, or belongs in tests/machine"));
            }
        }
    }
    assert!(found > 200, "only {found} tests found: the reader is broken");
    assert_none(&wrong, "tests that are ignored, or are not");
}

#[test]
fn every_file_of_a_test_program_is_part_of_it() {
    let mut wrong = Vec::new();
    for folder in ["alone", "machine", "memory", "program", "reference"] {
        let folder = format!("tests/{folder}");
        let program = read(&format!("{folder}/main.rs"));
        for (path, _) in files_of(&folder) {
            let is_module = path.parent() == Some(Path::new(&folder))
                && path.extension().is_some_and(|extension| extension == "rs")
                && !path.ends_with("main.rs");
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            if is_module && !program.contains(&format!("\nmod {name};\n")) {
                wrong.push(format!("{} is not in {folder}/main.rs", path.display()));
            }
        }
    }
    assert_none(&wrong, "tests that never run");
}

#[test]
fn lines_are_short_and_nothing_is_left_for_later() {
    // Written so that this file does not contain them.
    let leftovers = [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["dbg", "!("].concat()];
    let mut wrong = Vec::new();
    for (path, text) in ["src", "tests", "scripts", "bpf"].into_iter().flat_map(files_of) {
        for (number, line) in (1..).zip(text.lines()) {
            let place = format!("{}:{number}", path.display());
            // A tab counts as eight in the C sources.
            let width = line.chars().count() + 7 * line.matches('\t').count();
            if width > LINE_MAX && path.extension().is_none_or(|extension| extension != "md") {
                wrong.push(format!("{place}: {width} characters"));
            }
            let left = leftovers.iter().filter(|leftover| line.contains(leftover.as_str()));
            wrong.extend(left.map(|leftover| format!("{place}: {leftover}")));
        }
    }
    assert_none(&wrong, "lines");
}

#[test]
fn no_circle_of_files() {
    let mut circles = Vec::new();
    for root in ["src", "benches/peers", "benches/tcp"] {
        circles.extend(circles::Graph::new(root, &files_of(root)).circles());
    }
    let known = |import: &String| KNOWN_CIRCLES.contains(&import.as_str());
    let gone = KNOWN_CIRCLES.iter().filter(|known| !circles.iter().any(|import| import == *known));
    let gone = gone.map(|known| format!("no longer: {known}")).collect::<Vec<_>>();
    assert_none(&gone, "KNOWN_CIRCLES says more than the code");
    circles.retain(|import| !known(import));
    assert_none(&circles, "files import each other in a circle");
}

#[test]
fn no_two_files_of_one_name() {
    let common = |name: &str| COMMON_NAMES.iter().any(|(common, _)| *common == name);
    let mut of_name = BTreeMap::<String, Vec<String>>::new();
    for source in sources() {
        let name = source.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        of_name.entry(name).or_default().push(source.path.display().to_string());
    }
    let several = of_name.iter().filter(|(name, paths)| paths.len() > 1 && !common(name));
    let several: Vec<String> = several.map(|(_, paths)| paths.join(", ")).collect();
    assert_none(&several, "files of one name");
}

#[test]
fn functions_are_short() {
    let (mut seen, mut wrong) = (0, Vec::new());
    for source in sources().iter().filter(|source| !source.path.ends_with("tests.rs")) {
        let text = code::without_unit_tests(&source.text);
        for function in code::functions(&text) {
            seen += 1;
            let lines = function.lines_without_arms(ARM_LINES_MAX);
            if lines > FUNCTION_LINES_MAX {
                let (path, name) = (source.path.display(), function.name());
                wrong.push(format!("{path}: {lines} lines: {name}"));
            }
        }
    }
    assert!(seen > 500, "only {seen} functions found: the reader is broken");
    assert_none(&wrong, "long functions");
}
