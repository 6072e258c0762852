//! DEVICE: a virtio-net device as the guest sees it. Pure functions and data: no I/O.

#![forbid(unsafe_code)]

pub mod features;
pub mod groups;
pub mod mac;
pub mod net_header;
pub mod offloads;
