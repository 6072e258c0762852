//! The Internet checksum (RFC 1071): the ones' complement of a ones' complement sum of 16-bit
//! words. Also the lengths in IP headers, since IPv4's header checksum covers its length.

use super::headers::{
    Headers, IPV6_LEN, Network, Transport, UDP_CHECKSUM_AT, low_u16, put_u16, u16_at,
};
use super::offload::PartialChecksum;

/// Words that are added side by side, so that the compiler can use vector registers.
const LANES: usize = 8;

/// The ones' complement sum of `bytes` as big-endian words; an odd last byte has a zero behind it.
/// It is already folded: 65536 of them may be added before the next [`fold`].
#[inline]
#[must_use]
pub fn sum(bytes: &[u8]) -> u32 {
    // In the machine's byte order, 32 bits at a time. Both change only the order of the two bytes
    // of the folded sum (RFC 1071, 2).
    let (blocks, rest) = bytes.as_chunks::<{ 4 * LANES }>();
    let mut lanes = [0; LANES];
    for block in blocks {
        let (words, _) = block.as_chunks();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    let (words, rest) = rest.as_chunks();
    let mut total: u64 = lanes.iter().sum();
    for word in words {
        total += u64::from(u32::from_ne_bytes(*word));
    }
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    total += u64::from(u32::from_ne_bytes(last));
    let halves = [(total >> 32) as u32, (total & 0xffff_ffff) as u32];
    let folded = fold(halves.map(|half| u32::from(fold(half))).iter().sum());
    u32::from(u16::from_be(folded))
}

/// A sum in 16 bits.
#[inline]
#[must_use]
pub fn fold(sum: u32) -> u16 {
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    // The first addition left at most 17 bits, the second 16.
    #[allow(clippy::cast_possible_truncation)]
    let sum = sum as u16;
    sum
}

/// The sum of the pseudo header in front of `len` bytes of transport header and payload (RFC 9293,
/// 3.1; RFC 768; RFC 8200, 8.1), with the addresses of the IP header. It is wrong for a packet that
/// a routing header still leads elsewhere.
#[inline]
#[must_use]
pub(super) fn pseudo_header(start: &[u8], headers: &Headers, len: usize) -> u32 {
    let len = u32::try_from(len).unwrap_or(0);
    let protocol = u32::from(headers.transport.protocol());
    sum(headers.addresses(start)) + protocol + (len >> 16) + (len & 0xffff)
}

/// Complete a checksum in place. False, and the frame unchanged, if the field is not inside.
#[inline]
#[must_use]
pub fn complete(frame: &mut [u8], partial: PartialChecksum) -> bool {
    let start = usize::from(partial.start);
    let at = start + usize::from(partial.offset);
    if at + 2 > frame.len() {
        return false;
    }
    let sum = sum(&frame[start..]);
    put_u16(frame, at, finished(sum, partial.offset));
    true
}

/// The checksum for a sum, to be put `offset` bytes into a transport header. In UDP's field, zero
/// would say that there is none (RFC 768), so its other form is used. In TCP's field it stays zero
/// (RFC 1624, 3).
#[inline]
pub(super) fn finished(sum: u32, offset: u16) -> u16 {
    match !fold(sum) {
        0 if offset == UDP_CHECKSUM_AT => 0xffff,
        checksum => checksum,
    }
}

/// Write the header fields that depend on the length of the IP packet whose `headers` are in
/// `bytes`. These are IPv4's total length and header checksum, or IPv6's payload length.
pub(super) fn set_packet_len(bytes: &mut [u8], headers: &Headers, network_end: usize, len: usize) {
    let at = usize::from(headers.network_at);
    match headers.network {
        Network::Ipv4 => {
            put_u16(bytes, at + 2, low_u16(len));
            put_u16(bytes, at + 10, 0);
            let sum = sum(&bytes[at..network_end]);
            put_u16(bytes, at + 10, !fold(sum));
        }
        Network::Ipv6 => put_u16(bytes, at + 4, low_u16(len - IPV6_LEN)),
    }
}

/// Whether the TCP or UDP checksum is right, and that of an IPv4 header. `frame` is whole; bytes
/// behind the IP packet are not summed. A UDP datagram over IPv4 without a checksum is right (RFC
/// 768).
#[must_use]
pub fn verify(frame: &[u8], headers: &Headers) -> bool {
    let Some(end) = headers.packet_end(frame) else { return false };
    let (network_at, transport_at) =
        (usize::from(headers.network_at), usize::from(headers.transport_at));
    if headers.network == Network::Ipv4 {
        if fold(sum(&frame[network_at..transport_at])) != 0xffff {
            return false;
        }
        let none = u16_at(frame, transport_at + 6) == Some(0);
        if headers.transport == Transport::Udp && none {
            return true;
        }
    }
    let pseudo = pseudo_header(frame, headers, end - transport_at);
    fold(pseudo + sum(&frame[transport_at..end])) == 0xffff
}
