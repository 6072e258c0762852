//! The list of released profiles, `released.sha256`: a digest and a name a line, as sha256sum(1)
//! writes them.
//!
//! A profile in the list is final: it may neither be edited nor removed. A profile that is not in
//! it is a draft, and must say so. The check is the same for the profiles of the binary and for a
//! directory that has such a file. A test checks the binary; each load checks the directory.

use std::collections::{BTreeMap, BTreeSet};

/// The list's name within its directory.
pub(super) const LOCK_FILE: &str = "released.sha256";

/// One way in which profiles and their list of released ones differ.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LockProblem {
    /// A line of the list is none.
    #[error("line {line} is not \"DIGEST  NAME\" with 64 hexadecimal digits, and a name once")]
    Line {
        /// Counted from 1.
        line: usize,
    },
    /// A released profile was edited.
    #[error(
        "\"{name}\" was released with digest {released}, and its file now has {found}; put it \
         back, and give the change a new name"
    )]
    Edited {
        /// The profile.
        name: String,
        /// As released.
        released: String,
        /// As found.
        found: String,
    },
    /// A released profile is gone.
    #[error("\"{0}\" was released, and there is no such profile; put its file back")]
    Removed(String),
    /// A released profile calls itself a draft.
    #[error("\"{0}\" is released, and its file says draft = true; take that line out")]
    Draft(String),
    /// A profile that is neither released nor a draft.
    #[error(
        "\"{name}\" is not released: add draft = true to its file, or, when it is final, the line \
         \"{digest}  {name}\" to {LOCK_FILE}"
    )]
    Unlisted {
        /// The profile.
        name: String,
        /// Its digest.
        digest: String,
    },
}

/// One profile as the list is compared with it.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    pub(super) digest: String,
    pub(super) draft: bool,
}

/// Everything in which the profiles, by name, differ from the list in `text`.
pub(super) fn compare(text: &str, profiles: &BTreeMap<&str, Listed>) -> Vec<LockProblem> {
    let mut problems = Vec::new();
    let mut released = BTreeSet::new();
    for (line, entry) in (1..).zip(text.lines()) {
        let Some((digest, name)) = entry.split_once("  ").filter(|(digest, _)| is_digest(digest))
        else {
            problems.push(LockProblem::Line { line });
            continue;
        };
        if !released.insert(name) {
            problems.push(LockProblem::Line { line });
        }
        problems.extend(difference(name, digest, profiles.get(name)));
    }
    let unlisted = profiles.iter().filter(|(name, it)| !it.draft && !released.contains(*name));
    problems.extend(unlisted.map(|(name, it)| LockProblem::Unlisted {
        name: (*name).to_owned(),
        digest: it.digest.clone(),
    }));
    problems
}

fn difference(name: &str, released: &str, profile: Option<&Listed>) -> Option<LockProblem> {
    let name = name.to_owned();
    match profile {
        None => Some(LockProblem::Removed(name)),
        Some(profile) if profile.digest != released => {
            let (released, found) = (released.to_owned(), profile.digest.clone());
            Some(LockProblem::Edited { name, released, found })
        }
        Some(profile) => profile.draft.then_some(LockProblem::Draft(name)),
    }
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| b"0123456789abcdef".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_released_is_there_unchanged_and_the_rest_are_drafts() {
        let digest = |letter: &str| letter.repeat(64);
        let listed = |letter, draft| Listed { digest: digest(letter), draft };
        let profiles = BTreeMap::from([
            ("good", listed("a", false)),
            ("edited", listed("b", false)),
            ("draft", listed("c", true)),
            ("listed-draft", listed("d", true)),
            ("unlisted", listed("e", false)),
        ]);
        let text = format!(
            "{}  good\n{}  edited\n{}  gone\n{}  listed-draft\n{}  good\nrubbish\n",
            digest("a"),
            digest("0"),
            digest("f"),
            digest("d"),
            digest("a")
        );
        let (released, found) = (digest("0"), digest("b"));
        assert_eq!(
            compare(&text, &profiles),
            [
                LockProblem::Edited { name: "edited".into(), released, found },
                LockProblem::Removed("gone".into()),
                LockProblem::Draft("listed-draft".into()),
                LockProblem::Line { line: 5 },
                LockProblem::Line { line: 6 },
                LockProblem::Unlisted { name: "unlisted".into(), digest: digest("e") },
            ]
        );
    }
}
