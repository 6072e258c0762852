//! METRICS: the counters. Workers count in plain integers of their own and publish them now and
//! then; readers add the workers up.

#![forbid(unsafe_code)]

mod counters;

pub use counters::{Counter, Counters, PortCounter, Published, SocketCounter, sum};
