//! isonic: a vhost-user virtio-net backend whose datapath is AF_XDP, which binds a versioned
//! interface profile to every VM.
#![warn(missing_docs)]

pub mod device;
pub mod guest_memory;
pub mod profile;
pub mod vhost_user;
pub mod virtqueue;
