//! The netdev netlink family (Documentation/netlink/specs/netdev.yaml of the kernel, since Linux
//! 6.3): messages of numbers, asked and answered.

use std::io;

use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use rtnetlink::packet_core::{
    DecodeError, DefaultNla, Emitable, NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
    Nla, NlasIterator, Parseable, ParseableParametrized,
};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};

// linux/genetlink.h: the controller, which knows the families' numbers.
const CONTROLLER: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// Alignment of messages in a datagram (NLMSG_ALIGNTO of linux/netlink.h).
const ALIGNMENT: u32 = 4;

/// All answers to a question.
///
/// It uses a socket of its own. The kernel does not mark this family's answers as parts of several
/// (NLM_F_MULTI), so netlink-proto would end at the first.
pub(super) fn ask(question: NetdevMessage, flags: u16) -> io::Result<Vec<NetdevMessage>> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let name = DefaultNla::new(FAMILY_NAME, b"netdev\0".to_vec());
    let whose = NetdevMessage { command: GET_FAMILY, attributes: vec![name] };
    let families = exchange(&socket, CONTROLLER, whose, NLM_F_ACK)?;
    let family = families.first().and_then(|family| family.number(FAMILY_ID));
    let family = family.and_then(|id| u16::try_from(id).ok()).ok_or(io::ErrorKind::InvalidData)?;
    exchange(&socket, family, question, flags)
}

fn exchange(
    socket: &Socket,
    family: u16,
    question: NetdevMessage,
    how: u16,
) -> io::Result<Vec<NetdevMessage>> {
    let mut message = GenlMessage::from_payload(question);
    message.set_resolved_family_id(family);
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | how;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut answers = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let answer = NetlinkMessage::<GenlMessage<NetdevMessage>>::deserialize(rest)
                .map_err(io::Error::other)?;
            let length = answer.header.length.next_multiple_of(ALIGNMENT) as usize;
            rest = rest.get(length..).unwrap_or_default();
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => answers.push(message.payload),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                // The end of several answers, or the acknowledgement of one request.
                NetlinkPayload::Done(_) | NetlinkPayload::Error(_) => return Ok(answers),
                _ => {}
            }
        }
    }
}

/// A message of the family: a command, and its attributes as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NetdevMessage {
    command: u8,
    attributes: Vec<DefaultNla>,
}

impl NetdevMessage {
    /// A message with these numbers.
    pub fn new(command: u8, numbers: &[(u16, u64)]) -> Self {
        let attribute = |&(kind, number): &(u16, u64)| {
            // The kernel's "uint" may have either size; all others have the shorter.
            let short = u32::try_from(number).map(|number| number.to_ne_bytes().to_vec());
            DefaultNla::new(kind, short.unwrap_or_else(|_| number.to_ne_bytes().to_vec()))
        };
        Self { command, attributes: numbers.iter().map(attribute).collect() }
    }

    /// A number, whatever its size; none is longer than 64 bits.
    pub fn number(&self, kind: u16) -> Option<u64> {
        let attribute = self.attributes.iter().find(|attribute| attribute.kind() == kind)?;
        let mut bytes = vec![0; attribute.value_len()];
        attribute.emit_value(&mut bytes);
        match *bytes.as_slice() {
            [a, b] => Some(u16::from_ne_bytes([a, b]).into()),
            [a, b, c, d] => Some(u32::from_ne_bytes([a, b, c, d]).into()),
            [a, b, c, d, e, f, g, h] => Some(u64::from_ne_bytes([a, b, c, d, e, f, g, h])),
            _ => None,
        }
    }
}

impl GenlFamily for NetdevMessage {
    fn family_name() -> &'static str {
        "netdev"
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for NetdevMessage {
    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for NetdevMessage {
    fn parse_with_param(bytes: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        let attributes = NlasIterator::new(bytes).map(|attribute| DefaultNla::parse(&attribute?));
        Ok(Self { command: header.cmd, attributes: attributes.collect::<Result<_, _>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's "uint" comes in the size that its value needs.
    #[test]
    fn a_message_is_the_same_after_a_way_over_the_wire() {
        let hour = 3_600_000_000_000;
        let sent = NetdevMessage::new(7, &[(1, 8193), (6, hour)]);
        let mut bytes = vec![0; sent.buffer_len()];
        sent.emit(&mut bytes);
        let read =
            NetdevMessage::parse_with_param(&bytes, GenlHeader { cmd: 7, version: 1 }).unwrap();
        assert_eq!(read, sent);
        assert_eq!([1, 6, 2].map(|kind| read.number(kind)), [Some(8193), Some(hour), None]);
    }
}
