//! One thing that was looked at.

use serde::Serialize;

/// How it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Good to know; nothing has to be done.
    Note,
    /// Ports can be served, and something will go wrong or slowly.
    Warning,
    /// No port can be served before this is mended.
    Problem,
}

/// A check's result, its meaning, and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The name of the check; it never changes.
    pub id: &'static str,
    /// How it is.
    pub status: Status,
    /// The observation.
    pub found: String,
    /// The consequence; empty if all is well.
    pub meaning: String,
    /// A command, or a line of the configuration, that mends it or shows more.
    pub remedy: Option<String>,
}

impl Finding {
    pub(super) fn ok(id: &'static str, found: impl Into<String>) -> Self {
        Self::new(id, Status::Ok, found)
    }

    pub(super) fn note(id: &'static str, found: impl Into<String>) -> Self {
        Self::new(id, Status::Note, found)
    }

    pub(super) fn warning(id: &'static str, found: impl Into<String>) -> Self {
        Self::new(id, Status::Warning, found)
    }

    pub(super) fn problem(id: &'static str, found: impl Into<String>) -> Self {
        Self::new(id, Status::Problem, found)
    }

    fn new(id: &'static str, status: Status, found: impl Into<String>) -> Self {
        Self { id, status, found: found.into(), meaning: String::new(), remedy: None }
    }

    pub(super) fn means(self, meaning: impl Into<String>) -> Self {
        Self { meaning: meaning.into(), ..self }
    }

    pub(super) fn mend(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }
}

/// Several things in one line: "a, b and c"; "none" if there are none.
pub(super) fn list<T: ToString>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    match items.as_slice() {
        [] => "none".to_owned(),
        [only] => only.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// Queue numbers or CPUs, as ranges: "0-3, 8"; "none" if there are none.
pub(super) fn ranges(numbers: impl IntoIterator<Item = impl Into<u64>>) -> String {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for number in numbers.into_iter().map(Into::into) {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let word = |&(first, last): &(u64, u64)| match last - first {
        0 => first.to_string(),
        _ => format!("{first}-{last}"),
    };
    let words: Vec<String> = runs.iter().map(word).collect();
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_numbers_are_few_words() {
        assert_eq!(ranges([0u32, 1, 2, 3, 8]), "0-3, 8");
        assert_eq!(ranges([7u32]), "7");
        assert_eq!(ranges([0u32; 0]), "none");
        assert_eq!(list(&["a", "b", "c"]), "a, b and c");
    }

    #[test]
    fn statuses_are_ordered_by_how_bad_they_are() {
        assert!(Status::Ok < Status::Note && Status::Note < Status::Warning);
        assert!(Status::Warning < Status::Problem);
    }
}
