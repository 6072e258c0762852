//! The reference device: a small, plain virtio-net device on the crates `vhost-user-backend` and
//! `virtio-queue`, against which ours is checked message by message and packet by packet, and
//! measured. For tests and benches alone, behind the feature `reference`; it is not in the daemon.
//!
//! [`RingLoop`] moves packets between a ring and memory of ours, without a session: benches use it
//! by itself. [`ReferenceDevice`] serves one connection with it: what the guest sends leaves on
//! the device's [`ReferenceWire`], and what arrives there goes to the guest's first receive ring.
//!
//! It shares no code with our session, rings or datapath, only a profile's numbers; where it could
//! be faster or kinder by being less plain, it is plain. It never logs a dirty page, takes no
//! offloads, and one daemon serves one connection, since `vhost-user-backend` accepts SET_OWNER
//! only once in a daemon's life.

#![forbid(unsafe_code)]

mod reference_device;
mod ring_loop;

pub use reference_device::{ReferenceDevice, ReferenceError, ReferenceWire};
pub use ring_loop::RingLoop;
