//! The flow of a frame, as a number.

use super::headers::{self, Network, Transport};

/// Bytes of an IP packet that [`flow_hash`] reads: an IPv6 header, thirty bytes of extension
/// headers, and the ports. A packet whose ports come later counts by its addresses.
const IP_BYTES_MAX: usize = 74;

/// Bytes of a frame that it reads: those, behind an Ethernet header and two tags.
pub const FLOW_BYTES_MAX: usize = 22 + IP_BYTES_MAX;

/// A hash of a frame's flow, the same for both of its directions. `start` is the frame or its first
/// bytes.
///
/// It covers addresses and ports. It covers the addresses alone if there are no ports, and for
/// every fragment, since only the first has ports. It covers the MAC addresses if the frame is not
/// IP.
///
/// Any of its bits are good enough to choose by. It is not keyed. A sender that wants its flows on
/// one queue can have that, as with a NIC's Toeplitz hash.
#[inline]
#[must_use]
pub fn flow_hash(start: &[u8]) -> u32 {
    let (one, other) = ip_ends(start).unwrap_or_else(|| mac_ends(start));
    // With a sum, unlike an exclusive or, flows from an end to itself differ.
    let hash = mix(mix(one).wrapping_add(mix(other)));
    (hash >> 32) as u32
}

/// The two ends of an IP packet.
#[inline]
fn ip_ends(start: &[u8]) -> Option<(u64, u64)> {
    let (network, at) = headers::network(start)?;
    let start = &start[..start.len().min(at + IP_BYTES_MAX)];
    let (one, other) = match network {
        Network::Ipv4 => {
            let [a, b, c, d, e, f, g, h] = *start.get(at + 12..)?.first_chunk()?;
            (u32::from_be_bytes([a, b, c, d]).into(), u32::from_be_bytes([e, f, g, h]).into())
        }
        Network::Ipv6 => {
            let addresses: &[u8; 32] = start.get(at + 8..)?.first_chunk()?;
            let (one, other) = addresses.split_at(16);
            (ipv6(one), ipv6(other))
        }
    };
    let [from, to] = ports(start, network, at).unwrap_or_default();
    Some((one ^ from << 48, other ^ to << 48))
}

#[inline]
fn ports(start: &[u8], network: Network, at: usize) -> Option<[u64; 2]> {
    let upper = headers::upper_layer(start, network, at)?;
    if upper.fragment {
        return None;
    }
    Transport::from_protocol(upper.protocol)?;
    let [a, b, c, d] = *start.get(upper.at..)?.first_chunk()?;
    Some([u16::from_be_bytes([a, b]).into(), u16::from_be_bytes([c, d]).into()])
}

/// An IPv6 address in 64 bits. The upper half, often the same at both ends, is mixed first so that
/// it does not cancel differences in the lower.
#[inline]
fn ipv6(address: &[u8]) -> u64 {
    let half = |at: usize| address[at..].first_chunk().map_or(0, |half| u64::from_be_bytes(*half));
    mix(half(0)).wrapping_add(half(8))
}

/// The two ends of a frame; zero for less than a header.
#[inline]
fn mac_ends(start: &[u8]) -> (u64, u64) {
    let Some([a, b, c, d, e, f, rest @ ..]) = start.first_chunk::<12>() else {
        return (0, 0);
    };
    let [g, h, i, j, k, l] = rest;
    let number = |mac: [u8; 6]| mac.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    (number([*a, *b, *c, *d, *e, *f]), number([*g, *h, *i, *j, *k, *l]))
}

/// Spread any difference over all bits.
#[inline]
fn mix(value: u64) -> u64 {
    // The finaliser of splitmix64.
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}
