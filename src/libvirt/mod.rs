//! LIBVIRT: domain XML in, domain XML out.
//!
//! A profile travels with its VM in the domain's `<metadata>`, which libvirt keeps and sends along
//! with a migration and in save files. [`stamp`] puts it there, and libvirt's hook ([`hook`]) reads
//! it wherever the VM is about to run. The hook adds the values that only a host knows: the uplink
//! and the socket's path.
//!
//! Pure but for the requests of [`hook::Host`] to the daemon. libvirt itself is never called: its
//! hooks must not.
//!
//! Its files, each above those that it imports:
//! - `element`: one element, written or looked for;
//! - `domain_xml`: the XML, changed in places;
//! - `interface_element`: a profile as libvirt's interface;
//! - `domain`: the parts of a domain's XML that concern us;
//! - `stamp` and `hook`.

#![forbid(unsafe_code)]

mod domain;
mod domain_xml;
mod element;
pub mod hook;
mod interface_element;
mod stamp;

pub use domain::{DomainError, Record};
pub use domain_xml::{BYTES_MAX, XmlError};
pub use interface_element::{DeviceAttachment, QemuSocketMode, device, fragment};
pub use stamp::{Order, StampError, Stamped, stamp};
