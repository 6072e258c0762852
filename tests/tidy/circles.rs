//! Which file imports which, and where that goes around in a circle.
//!
//! An edge is a path that begins with `crate`, `self`, `super` or a child module, in a `use` or in
//! the code, resolved to the deepest file that it names. `mod` lines are none, `pub use` lines are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::code::lex;

/// A module's path from the crate's root.
type Module = Vec<String>;

/// A crate's files, and what each names of which other.
pub struct Graph {
    files: BTreeMap<Module, PathBuf>,
    edges: BTreeMap<Module, BTreeMap<Module, BTreeSet<String>>>,
}

impl Graph {
    /// Of the files below a root folder, with their texts.
    pub fn new(root: &str, files: &[(PathBuf, String)]) -> Self {
        let rust = files.iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "rs"));
        let of_module = |(path, text): &(PathBuf, String)| {
            Some((module(root, path)?, (path.clone(), text.clone())))
        };
        let texts: BTreeMap<Module, (PathBuf, String)> = rust.filter_map(of_module).collect();
        let files: BTreeMap<Module, PathBuf> =
            texts.iter().map(|(module, (path, _))| (module.clone(), path.clone())).collect();
        let mut graph = Self { files, edges: BTreeMap::new() };
        for (module, (_, text)) in &texts {
            for path in paths(&lex(text).code) {
                graph.add(module, &path);
            }
        }
        graph
    }

    fn add(&mut self, from: &Module, path: &[String]) {
        let Some((mut to, rest)) = self.base(from, path) else { return };
        let mut rest = rest.iter();
        let mut names = Vec::new();
        for name in rest.by_ref() {
            to.push(name.clone());
            if !self.files.contains_key(&to) {
                to.pop();
                names.push(name.as_str());
                break;
            }
        }
        names.extend(rest.map(String::as_str));
        if names.is_empty() {
            names.push("all");
        }
        if to != *from && self.files.contains_key(&to) {
            let named = self.edges.entry(from.clone()).or_default().entry(to).or_default();
            named.insert(names.join("::"));
        }
    }

    /// Where a path begins, and what of it is left.
    fn base<'p>(&self, from: &Module, path: &'p [String]) -> Option<(Module, &'p [String])> {
        let supers = path.iter().take_while(|name| *name == "super").count();
        match path.first()?.as_str() {
            "crate" => Some((Module::new(), &path[1..])),
            "self" => Some((from.clone(), &path[1..])),
            "super" => Some((from[..from.len().checked_sub(supers)?].to_vec(), &path[supers..])),
            child => {
                let child = [from.as_slice(), &[child.to_owned()]].concat();
                self.files.contains_key(&child).then(|| (from.clone(), path))
            }
        }
    }

    /// All that can be reached from a module.
    fn reachable<'g>(&'g self, from: &'g Module) -> BTreeSet<&'g Module> {
        let (mut found, mut next) = (BTreeSet::new(), vec![from]);
        while let Some(module) = next.pop() {
            let ways = self.edges.get(module).into_iter().flat_map(BTreeMap::keys);
            next.extend(ways.filter(|way| found.insert(*way)));
        }
        found
    }

    /// Each import that is part of a circle, in words.
    pub fn circles(&self) -> Vec<String> {
        let reachable: BTreeMap<&Module, BTreeSet<&Module>> =
            self.edges.keys().map(|module| (module, self.reachable(module))).collect();
        let mut circles = Vec::new();
        for (from, ways) in &self.edges {
            for (to, names) in ways {
                if reachable.get(to).is_some_and(|reachable| reachable.contains(from)) {
                    let names: Vec<&str> = names.iter().map(String::as_str).collect();
                    let [from, to] = [from, to].map(|module| self.files[module].display());
                    circles.push(format!("{from} imports {} of {to}", names.join(", ")));
                }
            }
        }
        circles
    }
}

/// `src/xdp/nic/mod.rs` → `xdp::nic`.
fn module(root: &str, path: &std::path::Path) -> Option<Module> {
    let path = path.strip_prefix(root).ok()?.with_extension("");
    let mut names: Module = path.iter().map(|name| name.to_string_lossy().into_owned()).collect();
    match names.last().map(String::as_str) {
        Some("mod") => drop(names.pop()),
        Some("lib") if names.len() == 1 => names.clear(),
        // A program of its own, which names the library from outside.
        Some("main") if names.len() == 1 => return None,
        _ => {}
    }
    Some(names)
}

/// All paths of two names or more that are in the code, those of `use` taken apart.
fn paths(code: &str) -> Vec<Vec<String>> {
    let (mut found, mut rest) = (Vec::new(), code);
    while let Some((before, after)) = next_use(rest) {
        found.extend(inline(before));
        let (tree, further) = after.split_once(';').unwrap_or((after, ""));
        found.extend(leaves(tree));
        rest = further;
    }
    found.extend(inline(rest));
    found
}

/// The code before and after the next `use `.
fn next_use(code: &str) -> Option<(&str, &str)> {
    let begins = |(at, _): &(usize, &str)| {
        let line = &code[code[..*at].rfind('\n').map_or(0, |end| end + 1)..*at];
        line.split_whitespace().all(|word| word.starts_with("pub"))
    };
    let (at, word) = code.match_indices("use ").find(begins)?;
    Some((&code[..at], &code[at + word.len()..]))
}

/// `a::{b, c::{d as e}}` → `a::b`, `a::c::d`.
fn leaves(tree: &str) -> Vec<Vec<String>> {
    let Some((stem, list)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        let names = path.split("::").map(|name| name.trim().to_owned());
        let mut names: Vec<String> = names.filter(|name| !name.is_empty()).collect();
        // In a list, the module itself.
        if names == ["self"] {
            names.clear();
        }
        return vec![names];
    };
    let list = list.rsplit_once('}').map_or(list, |(list, _)| list);
    let stem = leaves(stem).concat();
    let (mut depth, mut parts) = (0_usize, vec![String::new()]);
    for letter in list.chars() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(part) = parts.last_mut() {
            part.push(letter);
        }
    }
    let parts = parts.iter().filter(|part| !part.trim().is_empty());
    parts.flat_map(|part| leaves(part)).map(|leaf| [stem.clone(), leaf].concat()).collect()
}

/// The paths in code.
fn inline(code: &str) -> Vec<Vec<String>> {
    let is_part = |letter: char| letter.is_alphanumeric() || matches!(letter, '_' | ':');
    let words = code.split(|letter| !is_part(letter)).filter(|word| word.contains("::"));
    let whole = words.filter(|word| !word.starts_with(':'));
    let names = |word: &str| -> Vec<String> {
        word.split("::").filter(|name| !name.is_empty()).map(str::to_owned).collect()
    };
    whole.map(names).filter(|names| names.len() > 1).collect()
}

#[test]
fn a_circle_is_found_with_its_files_and_names() {
    let file = |path: &str, text: &str| (PathBuf::from(path), text.to_owned());
    let graph = Graph::new(
        "src",
        &[
            file("src/lib.rs", "mod a;\nmod b;\n"),
            file("src/a/mod.rs", "mod leaf;\nmod tip;\npub use tip::{Tip, self as t};\n"),
            file(
                "src/a/leaf.rs",
                "// crate::a::tip::Tip\npub struct Leaf; const S: &str = \"crate::b\";",
            ),
            file(
                "src/a/tip.rs",
                "use super::leaf::Leaf;\nfn tip() { crate::b::call::<Leaf>(); }\n",
            ),
            file(
                "src/b.rs",
                "use std::io;\npub use crate::{\n    a::{leaf::Leaf, Tip},\n};\n\
                 #[cfg(test)]\nmod tests {\n    use crate::c::*;\n}\n",
            ),
            file("src/c.rs", "use crate::b::C;"),
        ],
    );
    assert_eq!(
        graph.circles(),
        [
            "src/a/mod.rs imports Tip, all of src/a/tip.rs",
            "src/a/tip.rs imports call of src/b.rs",
            "src/b.rs imports Tip of src/a/mod.rs",
        ]
    );
}
