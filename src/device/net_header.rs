//! The header in front of every packet (virtio 1.2, 5.1.6): parse, check, emit.

/// Bytes of the header of a modern device: with `num_buffers` always, whether buffers are merged
/// or not (5.1.6.4.1: without merging it is set to 1).
pub const LEN: usize = 12;

/// A header that the guest must not send, given what was negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// VIRTIO_NET_HDR_F_NEEDS_CSUM without CSUM (5.1.6.2.1).
    #[error("asks for a checksum, which was not negotiated")]
    Checksum,
    /// A segmentation type without its feature (5.1.6.2.1).
    #[error("asks for segmentation type {0:#x}, which was not negotiated")]
    Segmentation(u8),
}

/// Check the header of a packet from a guest that negotiated no offloads. Bits that the driver
/// may set but the device ignores (5.1.6.2.2: "all other flags") are not looked at.
///
/// # Errors
/// [`HeaderError`]: the packet is dropped, the ring goes on.
#[inline]
pub fn check_plain(header: &[u8; LEN]) -> Result<(), HeaderError> {
    const NEEDS_CSUM: u8 = 1;
    const GSO_NONE: u8 = 0;
    let [flags, gso_type, ..] = *header;
    if flags & NEEDS_CSUM != 0 {
        return Err(HeaderError::Checksum);
    }
    if gso_type != GSO_NONE {
        return Err(HeaderError::Segmentation(gso_type));
    }
    Ok(())
}

/// The header of a plain packet to the guest that takes `buffers` receive buffers.
#[inline]
#[must_use]
pub fn plain(buffers: u16) -> [u8; LEN] {
    let mut header = [0; LEN];
    header[10..].copy_from_slice(&buffers.to_le_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offloads_nobody_negotiated_are_refused() {
        let with = |at: usize, value| {
            let mut header = [0; LEN];
            header[at] = value;
            header
        };
        assert_eq!(check_plain(&[0; LEN]), Ok(()));
        assert_eq!(check_plain(&with(0, 1)), Err(HeaderError::Checksum));
        assert_eq!(check_plain(&with(1, 4)), Err(HeaderError::Segmentation(4)));
        assert_eq!(check_plain(&with(0, 2)), Ok(()), "DATA_VALID is for the other direction");
    }

    #[test]
    fn the_number_of_buffers_is_little_endian_at_its_end() {
        assert_eq!(plain(0x102), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 1]);
    }
}
