//! The frame that tells a network where a guest is now (SEND_RARP of vhost-user).

/// Bytes of the frame: the shortest Ethernet has, without the frame check sequence.
const FRAME_BYTES: usize = 60;

/// A reverse ARP request by which `mac` asks for its own address, as QEMU and DPDK announce guests
/// (RFC 903). It is broadcast, so that every switch on the way learns the new place.
#[must_use]
pub fn request(mac: [u8; 6]) -> [u8; FRAME_BYTES] {
    const ETHERTYPE_RARP: [u8; 2] = [0x80, 0x35];
    const HARDWARE_ETHERNET: [u8; 2] = [0, 1];
    const PROTOCOL_IPV4: [u8; 2] = [0x08, 0];
    const LENGTHS: [u8; 2] = [6, 4];
    const REVERSE_REQUEST: [u8; 2] = [0, 3];
    const NO_ADDRESS: [u8; 4] = [0; 4];
    let fields: [&[u8]; 11] = [
        &[0xff; 6],
        &mac,
        &ETHERTYPE_RARP,
        &HARDWARE_ETHERNET,
        &PROTOCOL_IPV4,
        &LENGTHS,
        &REVERSE_REQUEST,
        &mac,
        &NO_ADDRESS,
        &mac,
        &NO_ADDRESS,
    ];
    let mut frame = [0; FRAME_BYTES];
    let mut at = 0;
    for field in fields {
        frame[at..at + field.len()].copy_from_slice(field);
        at += field.len();
    }
    frame
}

#[cfg(test)]
mod tests {
    use etherparse::{ArpHardwareId, ArpOperation, EtherType, SlicedPacket};

    #[test]
    fn another_parser_reads_the_announcement() {
        let mac = [0x52, 0x54, 0, 1, 2, 3];
        let frame = super::request(mac);
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let ethernet = packet.link.unwrap().to_header().unwrap();
        let ethernet = ethernet.ethernet2().unwrap();
        assert_eq!(ethernet.ether_type, EtherType(0x8035));
        assert_eq!((ethernet.destination, ethernet.source), ([0xff; 6], mac));
        let arp = etherparse::ArpPacketSlice::from_slice(&frame[14..]).unwrap();
        assert_eq!(arp.hw_addr_type(), ArpHardwareId::ETHERNET);
        assert_eq!(arp.operation(), ArpOperation(3));
        assert_eq!((arp.sender_hw_addr(), arp.target_hw_addr()), (&mac[..], &mac[..]));
    }
}
