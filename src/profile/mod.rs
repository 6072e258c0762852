//! PROFILE: a named, immutable description of a guest-visible interface.
//!
//! Profiles are data: `profiles/*.toml`, embedded in the binary, and a directory that extends them
//! at run time ([`Catalog`]). A released profile never changes: its [`Profile::digest`] lets
//! anybody check it, and the list of released digests enforces it. A profile may ask for more than
//! this version can do. It loads and is listed, and [`Profile::blockers`] says why no port can use
//! it. A profile may be named with changed values ([`Catalog::resolve`]).
//!
//! Pure but for the reading of profile files and of an uplink's MTU. It knows nothing of
//! sessions: the session offers what the profile says.
//!
//! Its files, each above those that it imports:
//! - `definition`: one profile;
//! - `contradictions`: combinations that no interface may have;
//! - `blockers`: reasons why this host cannot keep a profile;
//! - `parse`: a profile file;
//! - `lock`: the list of released profiles;
//! - `catalog`: all profiles;
//! - `values`: a name or list of values;
//! - `qemu_device`, with `export_formats` above it: a profile written for other programs.

#![forbid(unsafe_code)]

mod blockers;
mod catalog;
mod contradictions;
mod definition;
pub mod export_formats;
mod lock;
mod parse;
pub mod qemu_device;
mod values;

pub use blockers::{Blocker, UplinkFacts};
pub use catalog::{Catalog, CatalogError, CatalogProblem, Source};
pub use contradictions::Contradiction;
pub use definition::{CANONICAL_VERSION, Profile, digest, family_of, fingerprint};
pub use lock::LockProblem;
pub use parse::{Extension, parse};
pub use values::{Chosen, ResolveError, ValueProblem};
