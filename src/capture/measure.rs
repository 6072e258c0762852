//! What is asked, in which order, and what is tried.
//!
//! The order is QEMU's (`vhost_user_backend_init` in its `hw/virtio/vhost-user.c`): features,
//! protocol features, queue pairs, memory slots, owner, memory, and then one ring.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};

use crate::device::features::{
    FEATURES, FeatureSet, MQ, MTU, PROTOCOL, PROTOCOL_CONFIGURE_MEM_SLOTS, PROTOCOL_FEATURES,
    PROTOCOL_MQ, PROTOCOL_MTU, PROTOCOL_REPLY_ACK, VERSION_1,
};

use super::connection::{Code, Connection, Door, Outcome};
use super::{Capture, CaptureError, Target, render};

const GET_FEATURES: Code = Code(1, "GET_FEATURES");
const SET_FEATURES: Code = Code(2, "SET_FEATURES");
const SET_OWNER: Code = Code(3, "SET_OWNER");
const SET_MEM_TABLE: Code = Code(5, "SET_MEM_TABLE");
const SET_VRING_NUM: Code = Code(8, "SET_VRING_NUM");
const SET_VRING_ADDR: Code = Code(9, "SET_VRING_ADDR");
const GET_PROTOCOL_FEATURES: Code = Code(15, "GET_PROTOCOL_FEATURES");
const SET_PROTOCOL_FEATURES: Code = Code(16, "SET_PROTOCOL_FEATURES");
const GET_QUEUE_NUM: Code = Code(17, "GET_QUEUE_NUM");
const NET_SET_MTU: Code = Code(20, "NET_SET_MTU");
const GET_MAX_MEM_SLOTS: Code = Code(36, "GET_MAX_MEM_SLOTS");
const ADD_MEM_REG: Code = Code(37, "ADD_MEM_REG");

/// How often a connection is tried again.
const RETRY: Duration = Duration::from_millis(50);

/// What we agree to: no more than is needed to measure.
const DEVICE_WANTED: FeatureSet = FeatureSet(1 << MTU | 1 << PROTOCOL_FEATURES | 1 << VERSION_1);
const PROTOCOL_WANTED: FeatureSet = FeatureSet(
    1 << PROTOCOL_MQ
        | 1 << PROTOCOL_REPLY_ACK
        | 1 << PROTOCOL_MTU
        | 1 << PROTOCOL_CONFIGURE_MEM_SLOTS,
);

/// The largest split ring (virtio 1.2, 2.7), entries, as a power of two.
const RING_EXPONENT_MAX: u32 = 15;
/// Memory regions of a SET_MEM_TABLE ("Multiple memory regions"; QEMU's baseline).
const BASELINE_SLOTS: u16 = 8;
/// The MTU's range (virtio 1.2, 5.1.4.1).
const MTU_MIN: u16 = 68;
const MTU_MAX: u16 = 65535;
/// Tried where neither end of the range is acknowledged: a backend may take its own MTU only.
const MTU_CUSTOMARY: [u16; 8] = [1500, 9000, 9216, 9100, 8950, 4000, 1450, 1400];
/// Assumed where nothing is known: Ethernet's.
const MTU_ASSUMED: u16 = 1500;
/// Shared with the backend: room for the largest ring that is tried. Addresses of the front-end
/// and of the guest are only labels here.
const MEMORY_BYTES: u64 = 4 << 20;
const MEMORY_ADDRESS: u64 = 1 << 32;
const AVAILABLE_OFFSET: u64 = 1 << 20;
const USED_OFFSET: u64 = 2 << 20;

/// How a limit was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The backend said so.
    Told,
    /// It takes this and refuses what is beyond.
    Tried,
    /// It acknowledges everything, so nothing was learnt.
    EverythingAcknowledged,
    /// It has no message to ask with.
    NotAskable,
}

/// How the numbers of a profile were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// Of `ring_size_max`.
    pub ring_size: Finding,
    /// Of `queue_pairs_max`.
    pub queue_pairs: Finding,
    /// Of `mtu`.
    pub mtu: Finding,
    /// Of `memory_slots`.
    pub memory_slots: Finding,
}

/// All numbers found, each with how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Interface {
    pub features: FeatureSet,
    pub protocol_features: FeatureSet,
    pub ring_size: (u16, Finding),
    pub queue_pairs: (u16, Finding),
    pub mtu: (u16, Finding),
    pub memory_slots: (u16, Finding),
}

/// Measure the backend behind `target`, and describe it as the profile `name`.
///
/// # Errors
/// [`CaptureError`].
pub fn capture(target: &Target, name: &str) -> Result<Capture, CaptureError> {
    let mut backend = Backend::connect(target)?;
    let interface = backend.measure()?;
    let measured = Measured {
        ring_size: interface.ring_size.1,
        queue_pairs: interface.queue_pairs.1,
        mtu: interface.mtu.1,
        memory_slots: interface.memory_slots.1,
    };
    let (profile, text) = render::profile(name, &interface)?;
    Ok(Capture { profile, measured, text })
}

/// A backend, and the connection that is in use: one that closes the connection to refuse gets a
/// new one.
struct Backend<'t> {
    door: Door<'t>,
    connection: Connection,
    features: FeatureSet,
    protocol_features: FeatureSet,
    memory: OwnedFd,
}

impl<'t> Backend<'t> {
    fn connect(target: &'t Target) -> Result<Self, CaptureError> {
        let door = Door::open(target)?;
        let mut connection = door.connect()?;
        let (features, protocol_features) = offers(&mut connection)?;
        let file = memfd_create("isonic-capture", MemfdFlags::CLOEXEC);
        let file = File::from(file.map_err(std::io::Error::from)?);
        file.set_len(MEMORY_BYTES)?;
        Ok(Self { door, connection, features, protocol_features, memory: file.into() })
    }

    fn has(&self, protocol_feature: u8) -> bool {
        self.protocol_features.has(protocol_feature)
    }

    fn measure(&mut self) -> Result<Interface, CaptureError> {
        let queue_pairs = self.queue_pairs()?;
        let memory_slots = self.memory_slots()?;
        self.settle()?;
        let ring_size = self.ring_size()?;
        let mtu = self.mtu()?;
        Ok(Interface {
            features: self.features,
            protocol_features: self.protocol_features,
            ring_size,
            queue_pairs,
            mtu,
            memory_slots,
        })
    }

    fn queue_pairs(&mut self) -> Result<(u16, Finding), CaptureError> {
        // Without the feature MQ no guest ever sees a second pair.
        if !self.has(PROTOCOL_MQ) || !self.features.has(MQ) {
            return Ok((1, Finding::NotAskable));
        }
        Ok((self.told(GET_QUEUE_NUM)?, Finding::Told))
    }

    fn memory_slots(&mut self) -> Result<(u16, Finding), CaptureError> {
        if !self.has(PROTOCOL_CONFIGURE_MEM_SLOTS) {
            return Ok((BASELINE_SLOTS, Finding::NotAskable));
        }
        Ok((self.told(GET_MAX_MEM_SLOTS)?, Finding::Told))
    }

    fn told(&mut self, code: Code) -> Result<u16, CaptureError> {
        let value = self.connection.number(code)?;
        let count = u16::try_from(value).ok().filter(|&count| count > 0);
        count.ok_or(CaptureError::Absurd { request: code.1, value })
    }

    /// What a front-end does before it sets rings up: owner, features, memory.
    fn settle(&mut self) -> Result<(), CaptureError> {
        self.connection.tell(SET_OWNER, &[], None)?;
        let agreed = self.features.0 & DEVICE_WANTED.0;
        let region = [0, MEMORY_BYTES, MEMORY_ADDRESS, 0].map(u64::to_ne_bytes).concat();
        // Before the region stand the number of regions and padding, or padding alone.
        let (code, head) = match self.has(PROTOCOL_CONFIGURE_MEM_SLOTS) {
            true => (ADD_MEM_REG, [0_u32, 0]),
            false => (SET_MEM_TABLE, [1_u32, 0]),
        };
        let memory = [head.map(u32::to_ne_bytes).concat(), region].concat();
        let file = self.memory.try_clone()?;
        for (code, body, file) in
            [(SET_FEATURES, agreed.to_ne_bytes().to_vec(), None), (code, memory, Some(&file))]
        {
            if self.request(code, &body, file)? != Outcome::Answer(true) {
                return Err(CaptureError::Refused(code.1));
            }
        }
        Ok(())
    }

    /// Whether a request is done. Without REPLY_ACK a refusal shows only if the backend closes the
    /// connection, which the next answer tells.
    fn request(
        &mut self,
        code: Code,
        body: &[u8],
        file: Option<&OwnedFd>,
    ) -> Result<Outcome<bool>, CaptureError> {
        if self.has(PROTOCOL_REPLY_ACK) {
            return self.connection.acknowledged(code, body, file);
        }
        if self.connection.tell(code, body, file)? == Outcome::Closed {
            return Ok(Outcome::Closed);
        }
        Ok(self.connection.answer(GET_FEATURES)?.map(|_features| true))
    }

    /// As [`Self::request`], for requests that may be refused; a backend that closes the
    /// connection to refuse is connected to again.
    fn takes(&mut self, code: Code, body: &[u8]) -> Result<bool, CaptureError> {
        match self.request(code, body, None)? {
            Outcome::Answer(done) => Ok(done),
            Outcome::Closed => {
                self.connect_again()?;
                Ok(false)
            }
        }
    }

    /// A backend that has closed a connection may need a moment before it takes the next.
    fn connect_again(&mut self) -> Result<(), CaptureError> {
        let deadline = Instant::now() + self.door.timeout();
        loop {
            let attempt = self.door.connect().and_then(|mut connection| {
                offers(&mut connection)?;
                Ok(connection)
            });
            match attempt {
                Err(CaptureError::Turned | CaptureError::Connect { .. })
                    if Instant::now() < deadline =>
                {
                    std::thread::sleep(RETRY);
                }
                attempt => {
                    self.connection = attempt?;
                    return self.settle();
                }
            }
        }
    }

    /// The largest power of two that is taken, size and addresses, without ever kicking the ring.
    fn ring_size(&mut self) -> Result<(u16, Finding), CaptureError> {
        // No split ring may be so large: who takes it takes anything.
        if self.takes_ring(1 << (RING_EXPONENT_MAX + 1))? {
            return Ok((1 << RING_EXPONENT_MAX, Finding::EverythingAcknowledged));
        }
        // What is taken is taken up to some exponent: `taken` is the number of those.
        let (mut taken, mut refused) = (0, RING_EXPONENT_MAX + 1);
        while taken < refused {
            let exponent = taken.midpoint(refused);
            if self.takes_ring(1 << exponent)? {
                taken = exponent + 1;
            } else {
                refused = exponent;
            }
        }
        match taken.checked_sub(1) {
            Some(exponent) => Ok((1 << exponent, Finding::Tried)),
            None => Err(CaptureError::Refused(SET_VRING_NUM.1)),
        }
    }

    fn takes_ring(&mut self, entries: u32) -> Result<bool, CaptureError> {
        let size = [0, entries].map(u32::to_ne_bytes).concat();
        if !self.takes(SET_VRING_NUM, &size)? {
            return Ok(false);
        }
        let parts = [
            MEMORY_ADDRESS,
            MEMORY_ADDRESS + USED_OFFSET,
            MEMORY_ADDRESS + AVAILABLE_OFFSET,
            0, // no log
        ];
        // Ring 0, no flags.
        let addresses = [vec![0; 8], parts.map(u64::to_ne_bytes).concat()].concat();
        self.takes(SET_VRING_ADDR, &addresses)
    }

    fn mtu(&mut self) -> Result<(u16, Finding), CaptureError> {
        if !self.has(PROTOCOL_MTU) || !self.has(PROTOCOL_REPLY_ACK) {
            return Ok((MTU_ASSUMED, Finding::NotAskable));
        }
        if self.takes_mtu(MTU_MAX)? {
            return Ok((MTU_ASSUMED, Finding::EverythingAcknowledged));
        }
        if !self.takes_mtu(MTU_MIN)? {
            for mtu in MTU_CUSTOMARY {
                if self.takes_mtu(mtu)? {
                    return Ok((mtu, Finding::Tried));
                }
            }
            return Ok((MTU_ASSUMED, Finding::NotAskable));
        }
        let (mut taken, mut refused) = (MTU_MIN, MTU_MAX);
        while taken + 1 < refused {
            let mtu = taken.midpoint(refused);
            if self.takes_mtu(mtu)? { taken = mtu } else { refused = mtu }
        }
        Ok((taken, Finding::Tried))
    }

    fn takes_mtu(&mut self, mtu: u16) -> Result<bool, CaptureError> {
        self.takes(NET_SET_MTU, &u64::from(mtu).to_ne_bytes())
    }
}

/// What a new connection is offered; agrees to the protocol features that we use.
fn offers(connection: &mut Connection) -> Result<(FeatureSet, FeatureSet), CaptureError> {
    let offered = FeatureSet(connection.number(GET_FEATURES)?);
    named("features", offered, FEATURES.iter().map(|feature| feature.bit).collect())?;
    if !offered.has(PROTOCOL_FEATURES) {
        return Ok((offered, FeatureSet::default()));
    }
    let protocol = FeatureSet(connection.number(GET_PROTOCOL_FEATURES)?);
    named("protocol features", protocol, PROTOCOL.iter().map(|feature| feature.bit).collect())?;
    let agreed = protocol.0 & PROTOCOL_WANTED.0;
    connection.tell(SET_PROTOCOL_FEATURES, &agreed.to_ne_bytes(), None)?;
    Ok((offered, protocol))
}

fn named(kind: &'static str, offered: FeatureSet, known: FeatureSet) -> Result<(), CaptureError> {
    let bits = offered.without(known);
    if bits.is_empty() { Ok(()) } else { Err(CaptureError::UnknownBits { kind, bits }) }
}
