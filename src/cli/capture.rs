//! `isonic profile capture`: another backend's interface as a profile file.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::capture::{Capture, CaptureTarget, HowFound, Side, capture};
use crate::control::api::BitsView;

use super::cli_error::CliError;
use super::standard_streams::{print_data, print_json};

/// The name of a profile that is given none; a `--name` makes a file worth keeping.
const UNNAMED: &str = "captured";

#[derive(Debug, Args)]
pub(super) struct CaptureArguments {
    /// The backend's vhost-user socket
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Listen on the socket: for a backend that connects by itself
    #[arg(long)]
    listen: bool,
    /// The profile's name
    #[arg(long, value_name = "NAME", default_value = UNNAMED)]
    name: String,
    /// How long each answer may take
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 5,
        value_parser = clap::value_parser!(u64).range(1..=3600),
    )]
    timeout: u64,
    /// Print what was found as JSON, the file among it
    #[arg(long)]
    json: bool,
}

/// A number and how it was found.
#[derive(Debug, Serialize)]
struct FoundView {
    value: u16,
    found: &'static str,
}

/// The capture, as `--json` has it.
#[derive(Debug, Serialize)]
struct CaptureView {
    name: String,
    digest: String,
    features: BitsView,
    frontend_features: BitsView,
    protocol_features: BitsView,
    ring_size_max: FoundView,
    queue_pairs_max: FoundView,
    mtu: FoundView,
    memory_slots: FoundView,
    /// Why this version of isonic could not keep the profile; empty if it can.
    blockers: Vec<String>,
    /// The profile file.
    file: String,
}

fn found(value: u16, finding: HowFound) -> FoundView {
    let found = match finding {
        HowFound::Told => "told",
        HowFound::Tried => "tried",
        HowFound::EverythingAcknowledged => "unknown: everything is acknowledged",
        HowFound::NotAskable => "unknown: there is no way to ask",
    };
    FoundView { value, found }
}

fn view(capture: Capture) -> CaptureView {
    let Capture { profile, measured, text } = capture;
    CaptureView {
        name: profile.name.clone(),
        digest: profile.digest(),
        features: BitsView::device(profile.features),
        frontend_features: BitsView::device(profile.frontend_features),
        protocol_features: BitsView::protocol(profile.protocol_features),
        ring_size_max: found(profile.ring_size_max, measured.ring_size),
        queue_pairs_max: found(profile.queue_pairs_max, measured.queue_pairs),
        mtu: found(profile.mtu, measured.mtu),
        memory_slots: found(profile.memory_slots, measured.memory_slots),
        blockers: profile.host_blockers().iter().map(ToString::to_string).collect(),
        file: text,
    }
}

pub(super) fn run(arguments: CaptureArguments) -> Result<(), CliError> {
    let CaptureArguments { socket, listen, name, timeout, json } = arguments;
    let side = if listen { Side::Listen } else { Side::Connect };
    let target = CaptureTarget { socket, side, timeout: Duration::from_secs(timeout) };
    let captured = capture(&target, &name)?;
    if json { print_json(&view(captured)) } else { print_data(&captured.text) }
}
