//! The header in front of every packet (virtio 1.2, 5.1.6): parse, check, emit.

use crate::packet::{
    Offload, PartialChecksum, SegmentKind, Segmentation, Wanted, WantedKind, tag_bytes,
};

use super::features::{FeatureSet, MRG_RXBUF, VERSION_1};
use super::offloads::Offloads;

/// Bytes of the header of a modern device. It always has `num_buffers`, merged or not (5.1.6.4.1:
/// without merging it is set to 1).
pub const LEN: usize = 12;

/// Bytes of the header of a driver that acknowledged neither VERSION_1 nor MRG_RXBUF: without
/// `num_buffers` (5.1.6.1, "Legacy Interface").
pub const LEN_LEGACY: usize = 10;

/// Bytes of the header of a driver that acknowledged `features`.
#[must_use]
pub const fn len_of(features: FeatureSet) -> usize {
    if features.has(VERSION_1) || features.has(MRG_RXBUF) { LEN } else { LEN_LEGACY }
}

/// Bytes of an Ethernet header.
const ETHERNET_BYTES: u32 = 14;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_UDP: u8 = 3;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// A header that the guest must not send, given the negotiated features.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// VIRTIO_NET_HDR_F_NEEDS_CSUM without CSUM, or a type without its feature (5.1.6.2.1).
    #[error("asks for work that was not negotiated")]
    NotNegotiated,
    /// No such type.
    #[error("asks for segmentation of type {0:#x}, which there is not")]
    Type(u8),
    /// The checksum is not inside the frame, or in the bytes by which forwarding is decided.
    #[error("the checksum is not inside the frame, behind its Ethernet header and tags")]
    Checksum,
    /// The frame's own headers do not match the type, or would make too many frames.
    #[error("the frame cannot be segmented as it says")]
    Segmentation,
}

/// The header of a packet from a guest. We read only NEEDS_CSUM of its flags (5.1.6.2.2: the device
/// ignores the others).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetHeader {
    needs_checksum: bool,
    segmentation_type: u8,
    segment_size: u16,
    checksum: PartialChecksum,
}

impl NetHeader {
    /// Read its first ten bytes. The header's length field is a hint that we do not use.
    #[inline]
    #[must_use]
    pub fn parse(bytes: &[u8; LEN_LEGACY]) -> Self {
        let [flags, segmentation_type, _, _, s0, s1, c0, c1, o0, o1] = *bytes;
        let [segment_size, start, offset] = [[s0, s1], [c0, c1], [o0, o1]].map(u16::from_le_bytes);
        Self {
            needs_checksum: flags & NEEDS_CSUM != 0,
            segmentation_type,
            segment_size,
            checksum: PartialChecksum { start, offset },
        }
    }

    /// Whether nothing is left to do with the frame.
    #[inline]
    #[must_use]
    pub fn is_plain(&self) -> bool {
        !self.needs_checksum && self.segmentation_type == GSO_NONE
    }

    /// The work that the guest leaves to us, checked against the permitted work (`allowed`) and
    /// against the frame. `start` holds the frame's headers; `len` is the frame's length in bytes.
    ///
    /// # Errors
    /// [`HeaderError`]: the packet is dropped, the ring continues.
    pub fn offload(
        &self,
        start: &[u8],
        len: u32,
        allowed: Offloads,
    ) -> Result<Offload, HeaderError> {
        use HeaderError::NotNegotiated;
        let checksum = self.needs_checksum.then_some(self.checksum);
        if checksum.is_some_and(|checksum| !fits(checksum, start, len)) {
            return Err(HeaderError::Checksum);
        }
        let Some(wanted) = self.wanted()? else {
            let offload = Offload { checksum, segmentation: None };
            return if allowed.allow(&offload) { Ok(offload) } else { Err(NotNegotiated) };
        };
        // 5.1.6.2.1: a frame to be segmented needs its checksum too.
        let checksum = checksum.ok_or(HeaderError::Segmentation)?;
        let segmentation = Segmentation::check(start, len, wanted, checksum);
        let segmentation = segmentation.ok_or(HeaderError::Segmentation)?;
        let offload =
            |segmentation| Offload { checksum: Some(checksum), segmentation: Some(segmentation) };
        // Negotiation covers only the work that this header names. ECN in a frame whose header does
        // not mention it is still ECN to its receiver.
        let asked = offload(Segmentation { ecn: wanted.ecn, ..segmentation });
        if allowed.allow(&asked) { Ok(offload(segmentation)) } else { Err(NotNegotiated) }
    }

    /// The requested segmentation, if any.
    fn wanted(&self) -> Result<Option<Wanted>, HeaderError> {
        let kind = match self.segmentation_type & !GSO_ECN {
            GSO_NONE => return Ok(None),
            GSO_TCPV4 => WantedKind::Tcp4,
            GSO_TCPV6 => WantedKind::Tcp6,
            GSO_UDP => WantedKind::UdpFragments,
            GSO_UDP_L4 => WantedKind::Udp,
            _ => return Err(HeaderError::Type(self.segmentation_type)),
        };
        let ecn = self.segmentation_type & GSO_ECN != 0;
        Ok(Some(Wanted { kind, ecn, size: self.segment_size }))
    }
}

/// Whether the checksum's field is inside a frame of `len` bytes that begins with `frame`, and
/// behind its Ethernet header and tags. Forwarding was decided by those before the field is
/// written.
fn fits(PartialChecksum { start, offset }: PartialChecksum, frame: &[u8], len: u32) -> bool {
    let [start, offset] = [start, offset].map(u32::from);
    start >= ETHERNET_BYTES + tag_bytes(frame) && start + offset + 2 <= len
}

/// The header of a packet to a guest with this work left to do, in `buffers` receive buffers. A
/// driver without `num_buffers` is not sent the last two bytes (5.1.6.4.1).
#[inline]
#[must_use]
pub fn emit(offload: &Offload, buffers: u16) -> [u8; LEN] {
    let mut header = [0; LEN];
    header[10..].copy_from_slice(&buffers.to_le_bytes());
    if !offload.is_plain() {
        emit_offload(offload, &mut header);
    }
    header
}

fn emit_offload(offload: &Offload, header: &mut [u8; LEN]) {
    let mut put = |at: usize, value: u16| {
        header[at..at + 2].copy_from_slice(&value.to_le_bytes());
    };
    if let Some(PartialChecksum { start, offset }) = offload.checksum {
        put(6, start);
        put(8, offset);
    }
    if let Some(segmentation) = &offload.segmentation {
        put(2, segmentation.header_len);
        put(4, segmentation.size);
        let kind = match segmentation.kind {
            SegmentKind::Tcp4 => GSO_TCPV4,
            SegmentKind::Tcp6 => GSO_TCPV6,
            SegmentKind::UdpFragments => GSO_UDP,
            SegmentKind::Udp4 | SegmentKind::Udp6 => GSO_UDP_L4,
        };
        header[1] = kind | if segmentation.ecn { GSO_ECN } else { 0 };
    }
    if offload.checksum.is_some() {
        header[0] = NEEDS_CSUM;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::features::{CSUM, HOST_TSO4};

    fn with(changes: &[(usize, u8)]) -> NetHeader {
        let mut header = [0; LEN_LEGACY];
        for &(at, value) in changes {
            header[at] = value;
        }
        NetHeader::parse(&header)
    }

    fn sent(bits: &[u8]) -> Offloads {
        Offloads::sent(bits.iter().copied().collect::<FeatureSet>())
    }

    #[test]
    fn only_work_is_looked_at_not_hints() {
        assert!(with(&[]).is_plain());
        assert!(with(&[(0, 2), (2, 9), (4, 9), (6, 9)]).is_plain(), "DATA_VALID, and no work");
        assert!(!with(&[(0, 1)]).is_plain());
        assert!(!with(&[(1, 1)]).is_plain());
    }

    #[test]
    fn work_nobody_negotiated_is_refused() {
        let frame = [0; 64];
        let needs_checksum = with(&[(0, 1), (6, 34), (8, 16)]);
        let refused = needs_checksum.offload(&frame, 64, Offloads::NONE);
        assert_eq!(refused, Err(HeaderError::NotNegotiated));
        let checksum = Some(PartialChecksum { start: 34, offset: 16 });
        let taken = needs_checksum.offload(&frame, 64, sent(&[CSUM]));
        assert_eq!(taken, Ok(Offload { checksum, segmentation: None }));
    }

    #[test]
    fn a_checksum_outside_its_frame_or_within_its_link_header_is_refused() {
        let frame = [0; 64];
        for (start, offset, fits) in
            [(46, 16, true), (47, 16, false), (62, 0, true), (255, 0, false)]
        {
            let header = with(&[(0, 1), (6, start), (8, offset)]);
            let taken = header.offload(&frame, 64, sent(&[CSUM]));
            assert_eq!(taken.is_ok(), fits, "{start} + {offset}: {taken:?}");
        }
        let tagged = [&[0; 12][..], &[0x81, 0, 0, 5, 0x88, 0xb5], &[0; 46]].concat();
        for (frame, start, fits) in [
            (&frame[..], 0, false),
            (&frame, 13, false),
            (&frame, 14, true),
            (&tagged, 14, false),
            (&tagged, 17, false),
            (&tagged, 18, true),
        ] {
            let taken = with(&[(0, 1), (6, start)]).offload(frame, 64, sent(&[CSUM]));
            assert_eq!(taken.is_ok(), fits, "{start}: {taken:?}");
        }
        let wraps = with(&[(0, 1), (6, 0xff), (7, 0xff), (8, 0xff), (9, 0xff)]);
        let refused = wraps.offload(&frame, 64, sent(&[CSUM]));
        assert_eq!(refused, Err(HeaderError::Checksum));
    }

    #[test]
    fn segmentation_without_a_checksum_or_of_what_it_is_not_is_refused() {
        let (frame, all) = ([0; 128], sent(&[CSUM, HOST_TSO4]));
        for changes in [&[(1, 1), (4, 9)][..], &[(0, 1), (1, 1), (4, 9), (6, 34), (8, 16)]] {
            let refused = with(changes).offload(&frame, 128, all);
            assert_eq!(refused, Err(HeaderError::Segmentation));
        }
        assert_eq!(with(&[(1, 7)]).offload(&frame, 128, all), Err(HeaderError::Type(7)));
    }

    #[test]
    fn what_is_emitted_reads_back() {
        assert_eq!(emit(&Offload::PLAIN, 0x102), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 1]);
        let offload = Offload {
            checksum: Some(PartialChecksum { start: 34, offset: 16 }),
            segmentation: Some(Segmentation {
                kind: SegmentKind::Tcp4,
                ecn: true,
                size: 1448,
                header_len: 66,
                cut_at: 66,
                repeated_len: 66,
            }),
        };
        assert_eq!(emit(&offload, 3), [1, 0x81, 66, 0, 0xa8, 5, 34, 0, 16, 0, 3, 0]);
    }
}
