//! What needs root and a machine: network namespaces, the daemon, QEMU, DPDK and libvirt, all real.
//!
//! `scripts/test` runs these; `cargo test` reports them as ignored. One program, because each of
//! them would link the whole library again. Beds exclude each other (`common/bed.rs`), so most of
//! these tests run one after the other, whichever module they are of.

mod common;
mod inside;

mod accounting;
mod bad_days;
mod busy_poll;
mod capabilities;
mod device_state_qemu;
mod doctor;
mod dpdk_capture;
mod dpdk_matrix;
mod dpdk_migration;
mod dpdk_virtio_user;
mod host_sharing;
mod jumbo;
mod launcher;
mod libvirt;
mod libvirt_hook;
mod libvirt_schema;
mod mute_guests;
mod nic_life;
mod operators;
mod packaging;
mod profile_binding;
mod qemu_basics;
mod qemu_kill;
mod qemu_migration;
mod qemu_migration_refused;
mod qemu_offloads;
mod qemu_pktgen;
mod qemu_profiles;
mod qemu_queues;
mod qemu_reconnect;
mod qemu_resilience;
mod qemu_switch;
mod qemu_wire;
mod steering;
mod upgrade;
mod uplink_kinds;
mod uplink_kinds_inner;
mod veth_daemon;
mod zero_copy;
