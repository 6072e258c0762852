//! isonic: a vhost-user virtio-net backend whose datapath is AF_XDP, which binds a versioned
//! interface profile to every VM.
#![warn(missing_docs)]

pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod datapath;
pub mod device;
pub mod document;
pub mod guest_memory;
pub mod metrics;
pub mod platform;
pub mod profile;
pub mod report;
#[cfg(any(test, feature = "test-support"))]
pub mod test_support;
pub mod vhost_user;
pub mod virtqueue;
pub mod xdp;
