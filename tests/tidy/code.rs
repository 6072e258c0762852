//! Rust as text: what is code, what is a string, and where functions begin and end.
//!
//! A lexer and no parser: enough for code that `cargo fmt` has been over.

/// A source text, taken apart.
pub struct Lexed {
    /// The code, its comments left out and its strings empty.
    pub code: String,
    /// What its strings say.
    pub strings: Vec<String>,
}

/// Takes a text apart; its unit tests are left out.
pub fn lex(text: &str) -> Lexed {
    let text = without_unit_tests(text);
    let letters: Vec<char> = text.chars().collect();
    let mut lexed = Lexed { code: String::with_capacity(text.len()), strings: Vec::new() };
    let mut at = 0;
    while at < letters.len() {
        at = match (letters[at], letters.get(at + 1)) {
            ('/', Some('/')) => line_end(&letters, at),
            ('/', Some('*')) => find(&letters, at, &['*', '/']) + 2,
            ('r', Some('"' | '#')) if !ends_in_word(&lexed.code) => raw(&letters, at, &mut lexed),
            ('"', _) => string(&letters, at + 1, &mut lexed),
            ('\'', Some('\\')) => find(&letters, at + 3, &['\'']) + 1,
            ('\'', _) if letters.get(at + 2) == Some(&'\'') => at + 3,
            (letter, _) => {
                lexed.code.push(letter);
                at + 1
            }
        };
    }
    lexed
}

fn ends_in_word(code: &str) -> bool {
    code.ends_with(|letter: char| letter.is_alphanumeric() || letter == '_')
}

fn line_end(letters: &[char], from: usize) -> usize {
    find(letters, from, &['\n'])
}

/// Where this begins, or the end.
fn find(letters: &[char], from: usize, what: &[char]) -> usize {
    let from = from.min(letters.len());
    let found = letters[from..].windows(what.len()).position(|window| window == what);
    found.map_or(letters.len(), |place| from + place)
}

/// A raw string at `from`, or an identifier like `r#type`.
fn raw(letters: &[char], from: usize, lexed: &mut Lexed) -> usize {
    let hashes = letters[from + 1..].iter().take_while(|letter| **letter == '#').count();
    let begin = from + 1 + hashes;
    if letters.get(begin) != Some(&'"') {
        lexed.code.push('r');
        return from + 1;
    }
    let end_mark: Vec<char> = std::iter::once('"').chain(vec!['#'; hashes]).collect();
    let end = find(letters, begin + 1, &end_mark);
    lexed.strings.push(letters[begin + 1..end].iter().collect());
    lexed.code.push_str("\"\"");
    end + end_mark.len()
}

/// A string whose first character is at `from`. A line that goes on after a backslash is one line.
fn string(letters: &[char], from: usize, lexed: &mut Lexed) -> usize {
    let (mut at, mut text) = (from, String::new());
    while at < letters.len() && letters[at] != '"' {
        if letters[at] != '\\' {
            text.push(letters[at]);
            at += 1;
        } else if letters.get(at + 1) == Some(&'\n') {
            at += 1;
            at += letters[at..].iter().take_while(|letter| letter.is_whitespace()).count();
        } else {
            text.extend(letters.get(at + 1));
            at += 2;
        }
    }
    lexed.strings.push(text);
    lexed.code.push_str("\"\"");
    at + 1
}

/// The text without its `#[cfg(test)]` modules.
pub fn without_unit_tests(text: &str) -> String {
    let (mut kept, mut lines) = (String::with_capacity(text.len()), text.lines().peekable());
    while let Some(line) = lines.next() {
        let indent = line.len() - line.trim_start().len();
        let is_module = |next: &&str| {
            next.split_whitespace().find(|word| !word.starts_with("pub")) == Some("mod")
        };
        if line.trim_start() == "#[cfg(test)]" && lines.peek().is_some_and(is_module) {
            let opened = lines.next().is_some_and(|module| module.ends_with('{'));
            let end = " ".repeat(indent) + "}";
            while opened && lines.next().is_some_and(|line| line != end) {}
            continue;
        }
        kept.push_str(line);
        kept.push('\n');
    }
    kept
}

/// A function's lines, its first and its last among them.
pub struct Function<'t>(Vec<&'t str>);

/// All functions of a text whose unit tests were left out.
pub fn functions(text: &str) -> Vec<Function<'_>> {
    let lines: Vec<&str> = text.lines().collect();
    let begins = (0..lines.len()).filter(|at| begins_function(lines[*at]));
    let function = |from: usize| {
        let end = " ".repeat(indent(lines[from])) + "}";
        let len = lines[from..].iter().position(|line| *line == end)?;
        // Another that begins before: this one has no body, or one of one line.
        let next = lines[from + 1..from + len]
            .iter()
            .position(|line| begins_function(line) && indent(line) <= indent(lines[from]));
        next.is_none().then(|| Function(lines[from..=from + len].to_vec()))
    };
    begins.filter_map(function).collect()
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

fn begins_function(line: &str) -> bool {
    let qualifier = |word: &str| {
        matches!(word, "pub" | "const" | "unsafe" | "async" | "extern" | "\"C\"")
            || word.starts_with("pub(")
    };
    line.split_once("fn ").is_some_and(|(before, _)| before.split_whitespace().all(qualifier))
}

impl Function<'_> {
    /// Its first line.
    pub fn name(&self) -> &str {
        self.0[0].trim()
    }

    /// How many lines it has; without the arms if most of it is a `match` whose arms are short.
    pub fn lines_without_arms(&self, arm_max: usize) -> usize {
        let body = indent(self.0[0]) + 4;
        let opens =
            |line: &&str| indent(line) == body && line.contains("match ") && line.ends_with('{');
        let Some(from) = self.0.iter().position(opens) else { return self.0.len() };
        let rest = &self.0[from + 1..];
        let len = rest.iter().position(|line| indent(line) <= body && !line.is_empty());
        let arms = &rest[..len.unwrap_or(rest.len())];
        let (mut longest, mut lines) = (0, 0);
        for line in arms {
            lines = if indent(line) == body + 4 && line.trim() != "}" { 1 } else { lines + 1 };
            longest = longest.max(lines);
        }
        let is_flat = longest <= arm_max && 2 * arms.len() > self.0.len();
        self.0.len() - if is_flat { arms.len() } else { 0 }
    }
}
