//! Standard input and output.

use std::io::{self, Read, Write};

use crate::libvirt::BYTES_MAX;
use crate::report::printable_lines;

use super::cli_error::CliError;

/// Whether the output still has a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OutputReader {
    Present,
    Gone,
}

/// Write to standard output, to the letter. If the reader has gone (`isonic port list | head`),
/// that is no failure.
pub(super) fn write_out(text: &str) -> Result<OutputReader, CliError> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Ok(()) => Ok(OutputReader::Present),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(OutputReader::Gone),
        Err(error) => Err(CliError::Output(error)),
    }
}

/// Print lines for people, on whose terminal nothing happens that others have chosen.
pub(super) fn print(text: &str) -> Result<(), CliError> {
    write_out(&printable_lines(text)).map(|_reader| ())
}

/// Print what another program reads, to the letter.
pub(super) fn print_data(text: &str) -> Result<(), CliError> {
    write_out(text).map(|_reader| ())
}

pub(super) fn json_text(value: &impl serde::Serialize) -> Result<String, CliError> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

pub(super) fn print_json(value: &impl serde::Serialize) -> Result<(), CliError> {
    print_data(&json_text(value)?)
}

/// All of standard input, which may be one domain's XML: of more, one byte more.
pub(super) fn standard_input() -> Result<Vec<u8>, CliError> {
    let limit = u64::try_from(BYTES_MAX).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    io::stdin().lock().take(limit + 1).read_to_end(&mut bytes).map_err(CliError::Input)?;
    Ok(bytes)
}
