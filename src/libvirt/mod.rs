//! LIBVIRT: domain XML in, domain XML out.
//!
//! A profile travels with its VM in the domain's `<metadata>`, which libvirt keeps and sends along
//! with a migration and in save files. [`stamp`] puts it there, and libvirt's hook ([`hook`]) reads
//! it wherever the VM is about to run. What only a host knows (uplink, path of the socket) is the
//! hook's.
//!
//! Pure but for what [`hook::Host`] asks of the daemon. libvirt itself is never called: its hooks
//! must not.

#![forbid(unsafe_code)]

mod document;
mod domain;
mod element;
pub mod hook;
mod interface;
mod stamp;

pub use document::{BYTES_MAX, XmlError};
pub use domain::{DomainError, Record};
pub use interface::{Attachment, Mode, device, fragment};
pub use stamp::{Order, StampError, Stamped, stamp};
