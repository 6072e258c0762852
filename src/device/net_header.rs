//! The header in front of every packet (virtio 1.2, 5.1.6): parse, check, emit.

/// Bytes of the header of a modern device: with `num_buffers` always, whether buffers are merged
/// or not (5.1.6: "num_buffers" is unused then and set to 1).
pub const LEN: usize = 12;
