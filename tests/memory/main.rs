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
