//! Which flow a frame is of, as a number.

use super::headers::{self, Network, Transport};

/// As far into an IP packet as [`flow_hash`] looks: an IPv6 header, thirty bytes of extension
/// headers, and the ports. A packet whose ports come later counts by its addresses.
const IP_BYTES_MAX: usize = 74;

/// As far into a frame, behind an Ethernet header and two tags.
pub const FLOW_BYTES_MAX: usize = 22 + IP_BYTES_MAX;

/// A hash of the flow that a frame is of, the same for both of its directions: of addresses and
/// ports; of the addresses alone if there are no ports, and for every fragment, since only the
/// first has any; of the MAC addresses if it is not IP. `start` is the frame or its first bytes.
///
/// Any of its bits are good enough to choose by. It is not keyed: who wants his flows on one queue
/// can have that, as with a NIC's Toeplitz hash.
#[inline]
#[must_use]
pub fn flow_hash(start: &[u8]) -> u32 {
    let (one, other) = ip_ends(start).unwrap_or_else(|| mac_ends(start));
    // A sum, unlike an exclusive or, does not make all flows from an end to itself one.
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

/// An IPv6 address in 64 bits. The upper half, often the same at both ends, is mixed first so
/// that it does not cancel what differs in the lower.
#[inline]
fn ipv6(address: &[u8]) -> u64 {
    let half = |at: usize| address[at..].first_chunk().map_or(0, |half| u64::from_be_bytes(*half));
    mix(half(0)).wrapping_add(half(8))
}

/// The two ends of a frame; of less than a header, nothing.
#[inline]
fn mac_ends(start: &[u8]) -> (u64, u64) {
    let Some([a, b, c, d, e, f, rest @ ..]) = start.first_chunk::<12>() else {
        return (0, 0);
    };
    let [g, h, i, j, k, l] = rest;
    let number = |mac: [u8; 6]| mac.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    (number([*a, *b, *c, *d, *e, *f]), number([*g, *h, *i, *j, *k, *l]))
}

/// Spread what differs anywhere over all bits.
#[inline]
fn mix(value: u64) -> u64 {
    // The finaliser of splitmix64.
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}
