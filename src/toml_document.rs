//! TOML read by hand, so that a file with five mistakes is answered with five lines.
//!
//! serde stops at the first mistake and loses the place of the others. Here a [`Section`] is asked
//! for its keys one by one. A mistake is noted with its line, and reading continues. When the
//! section ends, keys that were not asked for are reported, with the name that was probably meant.
//!
//! Used by configuration and profiles. It does no I/O and knows no key by itself.

#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::report::printable;

/// One mistake in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line, counted from 1.
    pub line: usize,
    /// The mistake, and what would be right.
    pub message: String,
}

/// Every mistake in one file, by line: each displayed as `file:line: message`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    /// The file as it was named to us.
    pub file: PathBuf,
    /// Never empty.
    pub list: Vec<Problem>,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.list.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            // A line each, whatever names are in it.
            let (file, message) = (self.file.display(), printable(&problem.message));
            write!(f, "{separator}{file}:{}: {message}", problem.line)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// A value and the line it stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Line, counted from 1.
    pub line: usize,
}

/// Why a value cannot be read.
#[derive(Debug)]
pub enum Unreadable {
    /// Another kind of value is wanted, such as "a string".
    Kind(&'static str),
    /// The kind is right and the value is not; says which values are right.
    Value(String),
}

/// A type that a TOML value can be read as.
pub trait Read: Sized {
    /// The value as this type.
    ///
    /// # Errors
    /// [`Unreadable`].
    fn read(value: &DeValue<'_>) -> Result<Self, Unreadable>;
}

impl Read for String {
    fn read(value: &DeValue<'_>) -> Result<Self, Unreadable> {
        value.as_str().map(str::to_owned).ok_or(Unreadable::Kind("a string"))
    }
}

impl Read for PathBuf {
    fn read(value: &DeValue<'_>) -> Result<Self, Unreadable> {
        String::read(value).map(Self::from)
    }
}

impl Read for bool {
    fn read(value: &DeValue<'_>) -> Result<Self, Unreadable> {
        value.as_bool().ok_or(Unreadable::Kind("true or false"))
    }
}

impl Read for i64 {
    fn read(value: &DeValue<'_>) -> Result<Self, Unreadable> {
        let integer = value.as_integer().ok_or(Unreadable::Kind("an integer"))?;
        Self::from_str_radix(integer.as_str(), integer.radix())
            .map_err(|error| Unreadable::Value(format!("{} is no use: {error}", integer.as_str())))
    }
}

/// Read a string as a type with a textual form.
///
/// # Errors
/// [`Unreadable`], with the type's own message.
pub fn read_text<T>(value: &DeValue<'_>) -> Result<T, Unreadable>
where
    T: std::str::FromStr,
    T::Err: fmt::Display,
{
    let text = value.as_str().ok_or(Unreadable::Kind("a string"))?;
    text.parse().map_err(|error: T::Err| Unreadable::Value(error.to_string()))
}

/// The mistakes noted so far, and what turns an offset into a line.
struct Notes<'i> {
    text: &'i str,
    problems: RefCell<Vec<Problem>>,
}

impl Notes<'_> {
    fn line(&self, offset: usize) -> usize {
        let before = self.text.as_bytes().get(..offset).unwrap_or(self.text.as_bytes());
        1 + before.iter().filter(|&&byte| byte == b'\n').count()
    }

    fn note(&self, line: usize, message: String) {
        self.problems.borrow_mut().push(Problem { line, message });
    }
}

/// Read a whole document.
///
/// # Errors
/// [`Problems`]: the mistakes of syntax, and whatever `reader` noted.
pub fn read<T>(
    file: &Path,
    text: &str,
    reader: impl FnOnce(&Section<'_>) -> Option<T>,
) -> Result<T, Problems> {
    let (root, errors) = DeTable::parse_recoverable(text);
    let notes = Notes { text, problems: RefCell::default() };
    for error in errors {
        let line = error.span().map_or(1, |span| notes.line(span.start));
        notes.note(line, error.message().to_owned());
    }
    let section = Section::new(&notes, root.get_ref(), 1);
    let value = reader(&section);
    section.report_unknown_keys();
    let mut list = notes.problems.into_inner();
    list.sort_by_key(|problem| problem.line);
    match value {
        Some(value) if list.is_empty() => Ok(value),
        _ => Err(Problems { file: file.to_owned(), list }),
    }
}

/// One table of a document.
pub struct Section<'a> {
    notes: &'a Notes<'a>,
    table: &'a DeTable<'a>,
    line: usize,
    asked: RefCell<Vec<&'static str>>,
}

impl fmt::Debug for Section<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Section").field("line", &self.line).finish_non_exhaustive()
    }
}

impl<'a> Section<'a> {
    fn new(notes: &'a Notes<'a>, table: &'a DeTable<'a>, line: usize) -> Self {
        Self { notes, table, line, asked: RefCell::default() }
    }

    /// The line on which the table begins.
    #[must_use]
    pub fn line(&self) -> usize {
        self.line
    }

    /// Note a mistake.
    pub fn note(&self, line: usize, message: impl fmt::Display) {
        self.notes.note(line, message.to_string());
    }

    fn find(&self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.asked.borrow_mut().push(key);
        self.table.get(key)
    }

    fn value<T: Read>(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Option<Located<T>> {
        let line = self.notes.line(value.span().start);
        match T::read(value.get_ref()) {
            Ok(value) => return Some(Located { value, line }),
            Err(Unreadable::Value(message)) => self.note(line, format!("{key}: {message}")),
            Err(Unreadable::Kind(wanted)) => {
                let found = value.get_ref().type_str();
                self.note(line, format!("{key} must be {wanted}, and this is of type {found}"));
            }
        }
        None
    }

    /// The value of `key`; None if it is absent, or unreadable and noted as such.
    pub fn optional<T: Read>(&self, key: &'static str) -> Option<Located<T>> {
        self.find(key).and_then(|value| self.value(key, value))
    }

    /// The value of `key`, whose absence is a mistake.
    pub fn required<T: Read>(&self, key: &'static str) -> Option<Located<T>> {
        self.expect(key);
        self.optional(key)
    }

    fn expect(&self, key: &'static str) {
        if !self.table.contains_key(key) {
            self.note(self.line, format!("{key} is missing"));
        }
    }

    /// The integer `key`, which must be in `range`; None as in [`Section::optional`].
    pub fn integer<T: TryFrom<i64>>(
        &self,
        key: &'static str,
        range: RangeInclusive<i64>,
    ) -> Option<Located<T>> {
        let Located { value, line } = self.optional::<i64>(key)?;
        let fitting = if range.contains(&value) { T::try_from(value).ok() } else { None };
        if fitting.is_none() {
            let (least, most) = (range.start(), range.end());
            self.note(line, format!("{key} is {value}, and must be {least} to {most}"));
        }
        fitting.map(|value| Located { value, line })
    }

    /// As [`Section::integer`], for a key whose absence is a mistake.
    pub fn required_integer<T: TryFrom<i64>>(
        &self,
        key: &'static str,
        range: RangeInclusive<i64>,
    ) -> Option<Located<T>> {
        self.expect(key);
        self.integer(key, range)
    }

    /// The elements of the array `key`, each on its line; None if it is absent or no array.
    /// Elements that cannot be read are noted and left out.
    pub fn list<T: Read>(&self, key: &'static str) -> Option<Vec<Located<T>>> {
        let value = self.find(key)?;
        let Some(array) = value.get_ref().as_array() else {
            let line = self.notes.line(value.span().start);
            let found = value.get_ref().type_str();
            self.note(line, format!("{key} must be an array, and this is of type {found}"));
            return None;
        };
        Some(array.iter().filter_map(|element| self.value(key, element)).collect())
    }

    /// Read every table of the array of tables `key` (`[[key]]`); those for which `reader` finds
    /// no value are left out.
    pub fn sections<T>(
        &self,
        key: &'static str,
        mut reader: impl FnMut(&Section<'_>) -> Option<T>,
    ) -> Vec<T> {
        let Some(value) = self.find(key) else { return Vec::new() };
        let line = self.notes.line(value.span().start);
        let Some(array) = value.get_ref().as_array() else {
            self.note(line, format!("{key} must be an array of tables: write [[{key}]]"));
            return Vec::new();
        };
        let mut values = Vec::new();
        for element in array.iter() {
            let line = self.notes.line(element.span().start);
            let Some(table) = element.get_ref().as_table() else {
                self.note(line, format!("{key} holds something that is no table"));
                continue;
            };
            let section = Section::new(self.notes, table, line);
            values.extend(reader(&section));
            section.report_unknown_keys();
        }
        values
    }

    fn report_unknown_keys(&self) {
        let asked = self.asked.borrow();
        for (key, _) in self.table.iter() {
            let name = key.get_ref();
            if asked.iter().any(|known| known == name) {
                continue;
            }
            let line = self.notes.line(key.span().start);
            let message = match closest(name, &asked) {
                Some(known) => format!("unknown key \"{name}\"; did you mean \"{known}\"?"),
                None => format!("unknown key \"{name}\"; known here: {}", asked.join(", ")),
            };
            self.note(line, message);
        }
    }
}

/// The candidate that `name` was probably meant to be: at most two letters added, left out or
/// changed, and at most half of it.
#[must_use]
pub fn closest<'c>(name: &str, candidates: &[&'c str]) -> Option<&'c str> {
    let nearest = candidates.iter().map(|known| (distance(name, known), *known)).min()?;
    (nearest.0 <= 2 && nearest.0 * 2 <= name.len()).then_some(nearest.1)
}

/// Levenshtein's distance, in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.bytes().enumerate() {
            let changed = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str, reader: impl FnOnce(&Section<'_>) -> Option<()>) -> Vec<String> {
        let problems = read(Path::new("f.toml"), text, reader).unwrap_err();
        problems.to_string().lines().map(str::to_owned).collect()
    }

    #[test]
    fn every_mistake_is_reported_with_its_line() {
        let text = "a = 1\nnonsense = \"x\"\nlist = [1,\n \"two\"]\nbig = 99\n";
        let lines = problems(text, |section| {
            section.required::<String>("a");
            section.optional::<String>("bee");
            section.list::<i64>("list");
            section.integer::<u8>("big", 1..=9);
            section.required::<i64>("absent").map(|_| ())
        });
        assert_eq!(
            lines,
            [
                "f.toml:1: a must be a string, and this is of type integer",
                "f.toml:1: absent is missing",
                "f.toml:2: unknown key \"nonsense\"; known here: a, bee, list, big, absent",
                "f.toml:4: list must be an integer, and this is of type string",
                "f.toml:5: big is 99, and must be 1 to 9",
            ]
        );
    }

    #[test]
    fn broken_syntax_and_duplicate_keys_are_located() {
        let lines = problems("a = 1\na = 2\nb = \n", |_| Some(()));
        assert!(lines.iter().any(|line| line.starts_with("f.toml:2: duplicate key")), "{lines:?}");
        assert!(lines.iter().any(|line| line.starts_with("f.toml:3: ")), "{lines:?}");
    }

    #[test]
    fn a_slip_of_the_finger_is_recognised_and_another_word_is_not() {
        assert_eq!(closest("sockt", &["name", "socket"]), Some("socket"));
        assert_eq!(closest("colour", &["name", "socket"]), None);
        assert_eq!(closest("of", &["on"]), Some("on"));
    }

    #[test]
    fn tables_of_an_array_are_read_each_on_its_own() {
        let read = read(Path::new("f"), "[[t]]\nn = 1\n[[t]]\nn = 2\n", |root| {
            Some(root.sections("t", |table| Some((table.line(), table.required::<i64>("n")?))))
        });
        let seen: Vec<(usize, i64)> =
            read.unwrap().into_iter().map(|(line, n)| (line, n.value)).collect();
        assert_eq!(seen, [(1, 1), (3, 2)]);
    }
}
