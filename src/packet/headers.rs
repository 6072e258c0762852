//! The places of a frame's headers.

use super::offload::{HEADERS_MAX, PartialChecksum};

/// Bytes of an IPv4 header without options.
pub(super) const IPV4_LEN: usize = 20;
/// Bytes of an IPv6 header without extension headers.
pub(super) const IPV6_LEN: usize = 40;
/// TCP's number among the protocols over IP.
pub(super) const TCP: u8 = 6;
/// Bytes of a TCP header without options.
pub(super) const TCP_LEN: usize = 20;
/// Bytes of a UDP header.
pub(super) const UDP_LEN: usize = 8;

/// IPv4's flags and fragment offset (RFC 791, 3.1): don't fragment, and more fragments.
pub(super) const DONT_FRAGMENT: u16 = 0x4000;
pub(super) const MORE_FRAGMENTS: u16 = 0x2000;
pub(super) const FRAGMENT_OFFSET: u16 = 0x1fff;

/// IPv6's extension headers that may stand in front of a transport header (RFC 8200, 4.1).
pub(super) const HOP_BY_HOP: u8 = 0;
pub(super) const ROUTING: u8 = 43;
pub(super) const FRAGMENT: u8 = 44;
pub(super) const DESTINATION: u8 = 60;
/// Most of them in one packet; RFC 8200 recommends four at most.
pub(super) const EXTENSIONS_MAX: usize = 8;

/// Where the checksum is in a UDP header.
pub(super) const UDP_CHECKSUM_AT: u16 = 6;
/// The EtherTypes of a VLAN tag (IEEE 802.1Q, 9.6).
const TAG: u16 = 0x8100;
const SERVICE_TAG: u16 = 0x88a8;
/// Most VLAN tags in front of the EtherType that counts.
const TAGS_MAX: usize = 2;

/// The network protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

/// The transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    pub(super) fn from_protocol(protocol: u8) -> Option<Self> {
        match protocol {
            TCP => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }

    pub(super) fn protocol(self) -> u8 {
        match self {
            Self::Tcp => TCP,
            Self::Udp => 17,
        }
    }
}

/// The places of the headers of a TCP or UDP packet. All of them are within [`HEADERS_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// The network protocol.
    pub network: Network,
    /// Its header.
    pub network_at: u16,
    /// The transport protocol.
    pub transport: Transport,
    /// Its header, behind all IPv4 options or IPv6 extension headers.
    pub transport_at: u16,
    /// The end of all headers, where the payload begins.
    pub payload_at: u16,
}

impl Headers {
    /// The headers in `start`, a frame or its first bytes. They are Ethernet II, up to two tags,
    /// IPv4 with options or IPv6 with hop-by-hop, routing and destination headers, then TCP or UDP.
    ///
    /// None for anything else, for fragments, and for incomplete headers. The lengths in the
    /// headers are not checked.
    #[inline]
    #[must_use]
    pub fn parse(start: &[u8]) -> Option<Self> {
        let start = clip(start);
        let (network, network_at) = network(start)?;
        let upper = upper_layer(start, network, network_at)?;
        let transport = Transport::from_protocol(upper.protocol)?;
        let header_len = match transport {
            Transport::Tcp => usize::from(start.get(upper.at + 12)? >> 4) * 4,
            Transport::Udp => UDP_LEN,
        };
        let too_short = transport == Transport::Tcp && header_len < TCP_LEN;
        let payload_at = upper.at + header_len;
        if upper.fragment || too_short || payload_at > start.len() {
            return None;
        }
        Some(Self {
            network,
            network_at: u16::try_from(network_at).ok()?,
            transport,
            transport_at: u16::try_from(upper.at).ok()?,
            payload_at: u16::try_from(payload_at).ok()?,
        })
    }

    /// The transport's own checksum, as a partial one.
    #[inline]
    #[must_use]
    pub fn checksum(&self) -> PartialChecksum {
        let offset = match self.transport {
            Transport::Tcp => 16,
            Transport::Udp => UDP_CHECKSUM_AT,
        };
        PartialChecksum { start: self.transport_at, offset }
    }

    /// The end of the IP packet, by its own length, in the whole `frame`; padding follows. None if
    /// that is outside, or within the headers.
    pub(super) fn packet_end(&self, frame: &[u8]) -> Option<usize> {
        let at = usize::from(self.network_at);
        let end = at
            + match self.network {
                Network::Ipv4 => usize::from(u16_at(frame, at + 2)?),
                Network::Ipv6 => IPV6_LEN + usize::from(u16_at(frame, at + 4)?),
            };
        (usize::from(self.payload_at)..=frame.len()).contains(&end).then_some(end)
    }

    /// The source and destination addresses, in `start`.
    pub(super) fn addresses<'s>(&self, start: &'s [u8]) -> &'s [u8] {
        let at = usize::from(self.network_at);
        match self.network {
            Network::Ipv4 => &start[at + 12..at + IPV4_LEN],
            Network::Ipv6 => &start[at + 8..at + IPV6_LEN],
        }
    }
}

impl PartialChecksum {
    /// Whether it is the checksum of the frame's own TCP or UDP. `start` is the frame or its
    /// headers.
    #[inline]
    #[must_use]
    pub fn is_of_transport(self, start: &[u8]) -> bool {
        Headers::parse(start).is_some_and(|headers| headers.checksum() == self)
    }
}

/// The IP header's data about the part behind it.
pub(super) struct UpperLayer {
    pub protocol: u8,
    pub at: usize,
    /// It is only a fragment of that part.
    pub fragment: bool,
}

/// The part of a frame in which headers are searched.
#[inline]
pub(super) fn clip(start: &[u8]) -> &[u8] {
    &start[..start.len().min(HEADERS_MAX)]
}

/// The network protocol of a frame and the place of its header.
#[inline]
pub(super) fn network(start: &[u8]) -> Option<(Network, usize)> {
    const IPV4: u16 = 0x0800;
    const IPV6: u16 = 0x86dd;
    let mut at = 12;
    for _ in 0..=TAGS_MAX {
        match u16_at(start, at)? {
            IPV4 => return Some((Network::Ipv4, at + 2)),
            IPV6 => return Some((Network::Ipv6, at + 2)),
            TAG | SERVICE_TAG => at += 4,
            _ => return None,
        }
    }
    None
}

/// Bytes of the VLAN tags behind a frame's addresses, of two at most. `start` is the frame or its
/// first bytes; a tag beyond them does not count.
#[inline]
#[must_use]
pub fn tag_bytes(start: &[u8]) -> u32 {
    let is_tag = |at| matches!(u16_at(start, at), Some(TAG | SERVICE_TAG));
    match (is_tag(12), is_tag(16)) {
        (true, true) => 8,
        (true, false) => 4,
        (false, _) => 0,
    }
}

/// The part behind the IP header at `at` and its options or extension headers.
#[inline]
pub(super) fn upper_layer(start: &[u8], network: Network, at: usize) -> Option<UpperLayer> {
    match network {
        Network::Ipv4 => after_ipv4(start, at),
        Network::Ipv6 => after_ipv6(start, at),
    }
}

#[inline]
fn after_ipv4(start: &[u8], at: usize) -> Option<UpperLayer> {
    let header: &[u8; IPV4_LEN] = start.get(at..)?.first_chunk()?;
    let len = usize::from(header[0] & 0xf) * 4;
    if header[0] >> 4 != 4 || len < IPV4_LEN || at + len > start.len() {
        return None;
    }
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    Some(UpperLayer {
        protocol: header[9],
        at: at + len,
        fragment: fragment & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0,
    })
}

#[inline]
fn after_ipv6(start: &[u8], at: usize) -> Option<UpperLayer> {
    let header: &[u8; IPV6_LEN] = start.get(at..)?.first_chunk()?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let (mut protocol, mut at) = (header[6], at + IPV6_LEN);
    for _ in 0..=EXTENSIONS_MAX {
        if !matches!(protocol, HOP_BY_HOP | ROUTING | DESTINATION) {
            return Some(UpperLayer { protocol, at, fragment: protocol == FRAGMENT });
        }
        let extension = start.get(at..at + 2)?;
        protocol = extension[0];
        at += 8 * (1 + usize::from(extension[1]));
    }
    None
}

/// A length, checked to be one of an IP packet, in the size of its field.
#[inline]
#[allow(clippy::cast_possible_truncation)]
pub(super) fn low_u16(value: usize) -> u16 {
    debug_assert!(value <= usize::from(u16::MAX));
    value as u16
}

#[inline]
pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_be_bytes)
}

#[inline]
pub(super) fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[inline]
pub(super) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}
