//! The reference device: a small, plain virtio-net device on the crates `vhost-user-backend` and
//! `virtio-queue`. Tests compare ours with it message by message and packet by packet, and benches
//! measure it. It is for tests and benches alone, behind the feature `reference`; it is not in the
//! daemon.
//!
//! [`RingLoop`] moves packets between a ring and memory of ours, without a session: benches use it
//! by itself. [`ReferenceDevice`] serves one connection with it. Packets from the guest leave on
//! the device's [`ReferenceWire`], and packets that arrive there go to the guest's first receive
//! ring.
//!
//! It shares no code with our session, rings or datapath, only a profile's numbers. Where it could
//! be faster or kinder by being less plain, it is plain. It never logs a dirty page and takes no
//! offloads. One daemon serves one connection, since `vhost-user-backend` accepts SET_OWNER only
//! once in a daemon's life.

#![forbid(unsafe_code)]

mod reference_device;
mod ring_loop;

pub use reference_device::{ReferenceDevice, ReferenceError, ReferenceWire};
pub use ring_loop::RingLoop;
