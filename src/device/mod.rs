//! DEVICE: what the guest sees of a virtio-net device. Pure functions and data: no I/O.

#![forbid(unsafe_code)]

pub mod features;
pub mod groups;
pub mod mac;
pub mod net_header;
pub mod offloads;
