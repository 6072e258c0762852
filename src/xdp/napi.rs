//! When a NIC's interrupts give way to polling: the settings of its NAPI instances, over the netdev
//! netlink family (Documentation/netlink/specs/netdev.yaml of the kernel, since Linux 6.13), or of
//! the whole NIC by its files in sysfs (Documentation/ABI/testing/sysfs-class-net, since 5.8).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use rtnetlink::packet_core::{
    DecodeError, DefaultNla, Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload, Nla, NlasIterator, Parseable, ParseableParametrized,
};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};
use serde::{Deserialize, Serialize};

/// What decides how long interrupts stay off after a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deferral {
    /// Polls that find nothing before interrupts are on again.
    pub defer_hard_irqs: u64,
    /// After this time without a poll the kernel polls by itself, ns.
    pub gro_flush_timeout: u64,
}

/// One NAPI instance: what is polled together, a queue or a few.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Napi {
    /// Its number, of no other instance on the host.
    pub id: u64,
    /// Its settings.
    pub deferral: Deferral,
}

// ---- each instance ------------------------------------------------------------------------------

// linux/netdev.h.
const NAPI_GET: u8 = 11;
const NAPI_SET: u8 = 14;
const NAPI_IFINDEX: u16 = 1;
const NAPI_ID: u16 = 2;
const NAPI_DEFER_HARD_IRQS: u16 = 5;
const NAPI_GRO_FLUSH_TIMEOUT: u16 = 6;

// linux/genetlink.h: who knows the families' numbers.
const CONTROLLER: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// Of messages in a datagram (NLMSG_ALIGNTO of linux/netlink.h).
const ALIGNMENT: u32 = 4;

/// The instances of the NIC with this index; none on a kernel whose instances have no settings of
/// their own.
///
/// # Errors
/// The kernel's, for a NIC that is not there say.
pub fn instances(index: u32) -> io::Result<Vec<Napi>> {
    let question = Message::new(NAPI_GET, &[(NAPI_IFINDEX, index.into())]);
    let answers = ask(question, NLM_F_DUMP)?;
    Ok(answers.iter().filter_map(Message::napi).collect())
}

/// Give an instance these settings. It takes CAP_NET_ADMIN.
pub(super) fn set_instance(napi: Napi) -> io::Result<()> {
    let Deferral { defer_hard_irqs, gro_flush_timeout } = napi.deferral;
    let request = Message::new(
        NAPI_SET,
        &[
            (NAPI_ID, napi.id),
            (NAPI_DEFER_HARD_IRQS, defer_hard_irqs),
            (NAPI_GRO_FLUSH_TIMEOUT, gro_flush_timeout),
        ],
    );
    ask(request, NLM_F_ACK).map(drop)
}

/// All answers to a question.
///
/// Over a socket of its own: the kernel does not mark this family's answers as parts of several
/// (NLM_F_MULTI), so netlink-proto takes the first for all of them.
fn ask(question: Message, flags: u16) -> io::Result<Vec<Message>> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let name = DefaultNla::new(FAMILY_NAME, b"netdev\0".to_vec());
    let whose = Message { command: GET_FAMILY, attributes: vec![name] };
    let families = exchange(&socket, CONTROLLER, whose, NLM_F_ACK)?;
    let family = families.first().and_then(|family| family.number(FAMILY_ID));
    let family = family.and_then(|id| u16::try_from(id).ok()).ok_or(io::ErrorKind::InvalidData)?;
    exchange(&socket, family, question, flags)
}

fn exchange(socket: &Socket, family: u16, question: Message, how: u16) -> io::Result<Vec<Message>> {
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
            let answer = NetlinkMessage::<GenlMessage<Message>>::deserialize(rest)
                .map_err(io::Error::other)?;
            let length = answer.header.length.next_multiple_of(ALIGNMENT) as usize;
            rest = rest.get(length..).unwrap_or_default();
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => answers.push(message.payload),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                // The end of many, or the acknowledgement of one.
                NetlinkPayload::Done(_) | NetlinkPayload::Error(_) => return Ok(answers),
                _ => {}
            }
        }
    }
}

/// A message of the family: a command, and its attributes as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Message {
    command: u8,
    attributes: Vec<DefaultNla>,
}

impl Message {
    fn new(command: u8, numbers: &[(u16, u64)]) -> Self {
        let attribute = |&(kind, number): &(u16, u64)| {
            // What the kernel calls a "uint" may have either size, all others the shorter.
            let short = u32::try_from(number).map(|number| number.to_ne_bytes().to_vec());
            DefaultNla::new(kind, short.unwrap_or_else(|_| number.to_ne_bytes().to_vec()))
        };
        Self { command, attributes: numbers.iter().map(attribute).collect() }
    }

    /// A number, whatever its size; none is longer than 64 bits.
    fn number(&self, kind: u16) -> Option<u64> {
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

    fn napi(&self) -> Option<Napi> {
        let deferral = Deferral {
            defer_hard_irqs: self.number(NAPI_DEFER_HARD_IRQS)?,
            gro_flush_timeout: self.number(NAPI_GRO_FLUSH_TIMEOUT)?,
        };
        Some(Napi { id: self.number(NAPI_ID)?, deferral })
    }
}

impl GenlFamily for Message {
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

impl Emitable for Message {
    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Message {
    fn parse_with_param(bytes: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        let attributes = NlasIterator::new(bytes).map(|attribute| DefaultNla::parse(&attribute?));
        Ok(Self { command: header.cmd, attributes: attributes.collect::<Result<_, _>>()? })
    }
}

// ---- the whole NIC ------------------------------------------------------------------------------

const DEFER_HARD_IRQS: &str = "napi_defer_hard_irqs";
const GRO_FLUSH_TIMEOUT: &str = "gro_flush_timeout";

/// The settings that all instances of a NIC have, or had before one was given its own.
pub(super) fn of_device(interface: &str) -> io::Result<Deferral> {
    let number = |name| {
        let text = fs::read_to_string(file(interface, name))?;
        text.trim().parse().map_err(io::Error::other)
    };
    Ok(Deferral {
        defer_hard_irqs: number(DEFER_HARD_IRQS)?,
        gro_flush_timeout: number(GRO_FLUSH_TIMEOUT)?,
    })
}

/// Give them to all instances. It takes a file of root's to be written.
pub(super) fn set_device(interface: &str, deferral: Deferral) -> io::Result<()> {
    fs::write(file(interface, GRO_FLUSH_TIMEOUT), deferral.gro_flush_timeout.to_string())?;
    fs::write(file(interface, DEFER_HARD_IRQS), deferral.defer_hard_irqs.to_string())
}

fn file(interface: &str, name: &str) -> PathBuf {
    Path::new("/sys/class/net").join(interface).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_read_as_the_kernel_writes_it() {
        let numbers = [(NAPI_ID, 8193), (NAPI_DEFER_HARD_IRQS, 2), (NAPI_GRO_FLUSH_TIMEOUT, 9)];
        let sent = Message::new(NAPI_GET, &numbers);
        let mut bytes = vec![0; sent.buffer_len()];
        sent.emit(&mut bytes);
        let header = GenlHeader { cmd: NAPI_GET, version: 1 };
        let read = Message::parse_with_param(&bytes, header).unwrap();
        let deferral = Deferral { defer_hard_irqs: 2, gro_flush_timeout: 9 };
        assert_eq!(read.napi(), Some(Napi { id: 8193, deferral }));
        // Linux before 6.13 names its instances and no settings of theirs.
        assert_eq!(Message::new(NAPI_GET, &numbers[..1]).napi(), None);
    }

    #[test]
    fn a_long_time_takes_the_longer_form() {
        let hour = 3_600_000_000_000;
        let message = Message::new(NAPI_SET, &[(NAPI_GRO_FLUSH_TIMEOUT, hour)]);
        assert_eq!(message.number(NAPI_GRO_FLUSH_TIMEOUT), Some(hour));
    }
}
