//! What the documents quote is in the source: commands with their options.

use std::path::PathBuf;

use clap::CommandFactory;
use isonic::cli::Arguments;

use crate::{assert_none, files_of, read, root};

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
