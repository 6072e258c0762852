//! What the documents quote is in the source: commands with their options, log lines, structs, the
//! paths of tests.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use isonic::cli::Arguments;

use crate::code::lex;
use crate::{assert_none, files_of, read, root, sources};

/// README.md, CONTRIBUTING.md and docs/, but for the history.
fn documents() -> Vec<(PathBuf, String)> {
    let top =
        ["README.md", "CONTRIBUTING.md"].into_iter().filter(|name| root().join(name).exists());
    let top = top.map(|name| (PathBuf::from(name), read(name)));
    top.chain(files_of("docs"))
        .filter(|(path, _)| path.extension().is_some_and(|e| e == "md"))
        .collect()
}

/// What is between backticks, and the lines of code blocks.
fn quotes(text: &str) -> (Vec<&str>, Vec<&str>) {
    let (mut spans, mut lines, mut fenced) = (Vec::new(), Vec::new(), false);
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced || line.starts_with("    ") {
            lines.push(line.trim());
        } else {
            spans.extend(line.split('`').skip(1).step_by(2));
        }
    }
    (spans, lines)
}

#[test]
fn every_quoted_command_and_option_exists() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (path, text) in documents() {
        let (spans, lines) = quotes(&text);
        for quote in spans.into_iter().chain(lines) {
            let words = quote.split_whitespace().skip_while(|word| matches!(*word, "sudo" | "$"));
            let words: Vec<&str> = words.collect();
            if words.len() > 1 && (words[0] == "isonic" || words[0].ends_with("/isonic")) {
                seen += 1;
                wrong.extend(
                    mistake(&words[1..])
                        .map(|what| format!("{}: `{quote}`: {what}", path.display())),
                );
            }
        }
    }
    assert!(seen > 20, "only {seen} commands are quoted: the reader is broken");
    assert_none(&wrong, "commands that do not exist");
}

/// What is wrong with the words after `isonic`.
fn mistake(words: &[&str]) -> Option<String> {
    let mut command = Arguments::command();
    command.build();
    let mut command = &command;
    for word in words.iter().take_while(|word| !matches!(**word, "--" | "|" | ";" | "&&" | "#")) {
        let word = word.trim_matches(|letter: char| "[](),;…".contains(letter));
        if let Some(option) = word.strip_prefix("--") {
            let name = option.split('=').next().unwrap_or_default();
            let mut options = command.get_arguments().filter_map(clap::Arg::get_long);
            if !name.is_empty() && !options.any(|long| long == name) {
                return Some(format!("{} has no --{name}", command.get_name()));
            }
        } else if command.has_subcommands() && word.starts_with(|c: char| c.is_ascii_lowercase()) {
            match command.find_subcommand(word) {
                Some(found) => command = found,
                None => return Some(format!("{} has no {word}", command.get_name())),
            }
        }
    }
    None
}

#[test]
fn every_quoted_log_line_is_logged() {
    const TABLE: &str = "\n| line | level | what |\n";
    let strings: Vec<String> =
        sources().iter().flat_map(|source| lex(&source.text).strings).collect();
    let documents = documents();
    let tables = documents.iter().flat_map(|(_, text)| text.split(TABLE).skip(1));
    let (mut seen, mut wrong) = (0, Vec::new());
    for row in tables.flat_map(|table| table.lines().take_while(|line| line.starts_with('|'))) {
        for line in row.split('|').nth(1).unwrap_or_default().split('`').skip(1).step_by(2) {
            seen += 1;
            let line = line.trim_start_matches("… ");
            if !strings.iter().any(|string| string.contains(line)) {
                wrong.push(format!("`{line}`"));
            }
        }
    }
    assert!(seen > 40, "only {seen} log lines are quoted: the reader is broken");
    assert_none(&wrong, "log lines that nobody logs");
}

#[test]
fn quoted_tests_exist() {
    let mut wrong = Vec::new();
    for (path, text) in documents() {
        let words: Vec<&str> = text
            .split(|letter: char| letter.is_whitespace() || "`(),:;".contains(letter))
            .collect();
        let files = words.iter().filter(|word| word.starts_with("tests/") && word.ends_with(".rs"));
        let gone = files.filter(|file| !root().join(file).exists());
        wrong.extend(gone.map(|file| format!("{}: no {file}", path.display())));
        for pair in words.windows(2).filter(|pair| pair[0] == "--test") {
            let program = Path::new("tests").join(pair[1]);
            let there = [program.join("main.rs"), program.with_extension("rs")];
            if !there.iter().any(|file| root().join(file).exists()) {
                wrong.push(format!("{}: no test program {}", path.display(), pair[1]));
            }
        }
    }
    assert_none(&wrong, "tests that do not exist");
}

#[test]
fn quoted_structs_are_those_of_the_source() {
    let defined: Vec<(String, BTreeSet<String>)> =
        sources().iter().flat_map(|source| structs(&lex(&source.text).code)).collect();
    let mut wrong = Vec::new();
    for (path, text) in documents() {
        for block in text.split("```rust\n").skip(1) {
            let block = block.split("```").next().unwrap_or_default();
            for (name, fields) in structs(&lex(block).code) {
                let of_name = || defined.iter().filter(|(defined, _)| *defined == name);
                if of_name().any(|(_, defined)| defined.is_superset(&fields)) {
                    continue;
                }
                let known: BTreeSet<&String> = of_name().flat_map(|(_, fields)| fields).collect();
                let missing: Vec<&str> = fields
                    .iter()
                    .filter(|field| !known.contains(field))
                    .map(String::as_str)
                    .collect();
                wrong.push(format!("{}: {name} has no {}", path.display(), missing.join(", ")));
            }
        }
    }
    assert_none(&wrong, "structs are quoted that are otherwise");
}

/// The structs in code, with their fields as `name:Type`.
fn structs(code: &str) -> Vec<(String, BTreeSet<String>)> {
    let mut found = Vec::new();
    for after in code.split("struct ").skip(1) {
        let name: String = after.chars().take_while(|letter| letter.is_alphanumeric()).collect();
        let Some((head, body)) = after.split_once('{') else { continue };
        if name.is_empty() || head.contains([';', '(']) {
            continue;
        }
        let body = body.split('}').next().unwrap_or_default();
        found.push((name, fields(body)));
    }
    found
}

fn fields(body: &str) -> BTreeSet<String> {
    let (mut depth, mut parts) = (0_i32, vec![String::new()]);
    for letter in body.replace("->", "").chars() {
        match letter {
            '<' | '(' | '[' => depth += 1,
            '>' | ')' | ']' => depth -= 1,
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
    parts.iter().map(|part| field(part)).filter(|field| field.contains(':')).collect()
}

/// `#[attribute] pub(super) name: Type<A, B>` → `name:Type<A,B>`.
fn field(text: &str) -> String {
    let mut words = text
        .split_whitespace()
        .skip_while(|word| word.starts_with('#') || *word == "pub" || word.starts_with("pub("));
    words.by_ref().collect()
}
