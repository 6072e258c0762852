//! PROFILE: a named, immutable description of a guest-visible interface.
//!
//! Profiles are data: `profiles/*.toml`, embedded in the binary, and a directory that extends them
//! at run time ([`Catalog`]). A released one never changes, which its [`Profile::digest`] lets
//! anybody check, and the list of released digests makes sure of. A profile may ask for more than
//! this version can do; it loads and is listed, and [`Profile::blockers`] says why no port can use
//! it. Whoever names a profile may name it with changed values ([`Catalog::resolve`]).
//!
//! Pure but for the reading of profile files and of an uplink's MTU. It knows nothing of
//! sessions: the session offers what the profile says.
//!
//! Its files, each above those that it imports: `definition` (one profile); `contradictions` (what
//! no interface may be); `blockers` (what cannot be kept here); `parse` (a file); `lock` (the list
//! of released ones); `catalog` (all there are); `values` (a name or list of values); and
//! `qemu_device`, with `export_formats` above it, which write a profile for other programs.

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
