//! isonic: a vhost-user virtio-net backend whose datapath is AF_XDP, which binds a versioned
//! interface profile to every VM. This page is the contents; `docs/architecture.md` is the story.
//!
//! # A packet's path
//!
//! From a guest: [`datapath::Worker::turn`] → `datapath::from_guest` → [`virtqueue::SplitRing`]
//! (take) → [`guest_memory`] (translate) → [`device::net_header`] (check) → `datapath::decision`
//! (where to, by the table [`datapath::Forwarding`]) → `datapath::outlet`, copied once into a frame
//! of [`xdp::Umem`] → [`xdp::Socket`] → the NIC; or into another guest's buffers.
//!
//! To a guest: `bpf/redirect.bpf.c` → [`xdp::Socket`] → `datapath::from_uplink` →
//! `datapath::decision` → `datapath::deliver`, copied once into receive buffers →
//! [`virtqueue::SplitRing`] (complete, publish, notify); the frame goes back to its fill ring.
//!
//! # Four structures
//!
//! - **Session** ([`vhost_user::serve`]): one connection of a front-end; gathers the front-end's
//!   settings of its device and never sees a packet.
//! - **Profile** ([`profile::Profile`]): the guest-visible interface, bound to each session.
//! - **Ring** ([`virtqueue::Ring`]): one virtqueue with its event descriptors; belongs to its
//!   session or to one worker, never both.
//! - **Port** ([`config::PortConfig`], and the daemon's registry): one VM's device on this host; it
//!   outlives sessions and restarts.
//!
//! # Modules, in the order a packet meets them
//!
//! - [`xdp`]: AF_XDP sockets, their frames and rings, and our XDP program on a NIC.
//! - [`datapath`]: the workers, which move packets between sockets and rings.
//! - [`virtqueue`]: the device side of a ring shared with a guest.
//! - [`guest_memory`]: guests' memory, and the only translation of their addresses.
//! - [`packet`]: frames as bytes: headers, checksums, segmentation and coalescing, flows.
//! - [`device`]: feature bits, MAC addresses and the virtio-net header, as pure data.
//! - [`metrics`]: the counters.
//!
//! Modules that a packet never meets:
//!
//! - [`vhost_user`]: sessions: front-ends' messages, checked.
//! - [`profile`]: profiles: files, lists of values, digests, and blockers of a profile on a host.
//! - [`capture`]: another backend's interface, measured, as a profile.
//! - [`config`]: `isonic.toml`, and the rules for what ports may share.
//! - [`toml_document`]: reading TOML so that all mistakes are told at once, with their lines.
//! - [`daemon`]: where sessions, workers and sockets meet; owns all that lives long.
//! - [`doctor`]: whether ports can be served on a host, and what would mend it if not.
//! - [`control`]: the API: requests, answers, HTTP on a Unix socket.
//! - [`libvirt`]: domain XML: a profile stored with its VM, and the hook that binds it.
//! - [`cli`]: the command line.
//! - [`report`]: an error and its causes as one text, for people.
//! - [`platform`]: the duties of a well-behaved process to its operating system.
//! - `reference`: the plain device that ours is compared with, for tests and benches only.
//! - `test_support`: the other sides, for tests and benches only.
#![warn(missing_docs)]

pub mod capture;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod datapath;
pub mod device;
pub mod doctor;
pub mod guest_memory;
pub mod libvirt;
pub mod metrics;
pub mod packet;
pub mod platform;
pub mod profile;
#[cfg(feature = "reference")]
pub mod reference;
pub mod report;
#[cfg(any(test, feature = "test-support"))]
pub mod test_support;
pub mod toml_document;
pub mod vhost_user;
pub mod virtqueue;
pub mod xdp;
