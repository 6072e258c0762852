//! PLATFORM: the operating system's demands on a well-behaved process.
//!
//! No file imports another, except `host_facts`, which uses `privilege`.

pub mod descriptors;
pub mod directory;
mod eventfd_counter;
pub mod host_facts;
pub mod interrupt;
pub mod log_queue;
mod machine_id;
pub mod privilege;
pub mod text_file;
pub mod unix_socket;

pub use eventfd_counter::signals;
pub use machine_id::machine_id;
