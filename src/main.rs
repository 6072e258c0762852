//! The isonic binary.
fn main() {}
