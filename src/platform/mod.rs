//! PLATFORM: what the operating system asks of a well-behaved process.

pub mod interrupt;
pub mod unix_socket;
