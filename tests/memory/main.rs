//! The library by its interface, in memory: rings, sessions, the datapath and the API. Needs
//! neither root nor other programs.

mod api;
mod datapath;
mod datapath_sockets;
mod datapath_threads;
mod dirty_log;
mod fairness;
mod frames;
mod jumbo;
mod many_queues;
mod offloads;
mod packet;
mod session_memory;
mod session_refusals;
mod session_socket;
mod session_start;
mod session_state;
mod session_succession;
mod virtqueue;
mod virtqueue_packed;

/// For tests that open more than the 1024 descriptors that a shell gives, as the daemon does. They
/// call it first, or a test of another thread would lack what they have taken.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}
