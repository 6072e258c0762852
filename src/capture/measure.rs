//! The requests and trials of a measurement, in their order.
//!
//! The order is QEMU's (`vhost_user_backend_init` in its `hw/virtio/vhost-user.c`): features,
//! protocol features, queue pairs, memory slots, owner, memory, and then one ring.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use vhost::vhost_user::message::{
    FrontendReq, VhostUserMemory, VhostUserMemoryRegion, VhostUserSingleMemoryRegion,
    VhostUserVringAddr, VhostUserVringState,
};
use vm_memory::ByteValued;

use crate::device::features::{
    FEATURES, FeatureSet, MQ, MTU, PROTOCOL, PROTOCOL_CONFIGURE_MEM_SLOTS, PROTOCOL_FEATURES,
    PROTOCOL_MQ, PROTOCOL_MTU, PROTOCOL_REPLY_ACK, VERSION_1,
};

use crate::profile::Profile;

use super::backend_connection::{BackendConnection, BackendSocket, Outcome};
use super::measured::{HowFound, Measured, MeasuredInterface};
use super::profile_text;
use super::target::{CaptureError, CaptureTarget};

/// How often a connection is tried again.
const RETRY: Duration = Duration::from_millis(50);

/// The features that we agree to: no more than a measurement needs.
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

/// A captured interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capture {
    /// As it loads from `text`.
    pub profile: Profile,
    /// How its numbers were found.
    pub measured: Measured,
    /// The profile file, with comments.
    pub text: String,
}

/// Measure the backend behind `target`, and describe it as the profile `name`.
///
/// # Errors
/// [`CaptureError`].
pub fn capture(target: &CaptureTarget, name: &str) -> Result<Capture, CaptureError> {
    let mut backend = MeasuredBackend::connect(target)?;
    let interface = backend.measure()?;
    let measured = Measured {
        ring_size: interface.ring_size.1,
        queue_pairs: interface.queue_pairs.1,
        mtu: interface.mtu.1,
        memory_slots: interface.memory_slots.1,
    };
    let (profile, text) = profile_text::profile(name, &interface)?;
    Ok(Capture { profile, measured, text })
}

/// A backend, and the present connection. If the backend closes it to refuse a request, there is a
/// new one.
struct MeasuredBackend<'t> {
    backend_socket: BackendSocket<'t>,
    connection: BackendConnection,
    features: FeatureSet,
    protocol_features: FeatureSet,
    memory: OwnedFd,
}

impl<'t> MeasuredBackend<'t> {
    fn connect(target: &'t CaptureTarget) -> Result<Self, CaptureError> {
        let backend_socket = BackendSocket::open(target)?;
        let mut connection = backend_socket.connect()?;
        let (features, protocol_features) = offers(&mut connection)?;
        let file = memfd_create("isonic-capture", MemfdFlags::CLOEXEC);
        let file = File::from(file.map_err(std::io::Error::from)?);
        file.set_len(MEMORY_BYTES)?;
        Ok(Self { backend_socket, connection, features, protocol_features, memory: file.into() })
    }

    fn has(&self, protocol_feature: u8) -> bool {
        self.protocol_features.has(protocol_feature)
    }

    fn measure(&mut self) -> Result<MeasuredInterface, CaptureError> {
        let queue_pairs = self.queue_pairs()?;
        let memory_slots = self.memory_slots()?;
        self.settle()?;
        let ring_size = self.ring_size()?;
        let mtu = self.mtu()?;
        Ok(MeasuredInterface {
            features: self.features,
            protocol_features: self.protocol_features,
            ring_size,
            queue_pairs,
            mtu,
            memory_slots,
        })
    }

    fn queue_pairs(&mut self) -> Result<(u16, HowFound), CaptureError> {
        // Without the feature MQ no guest ever sees a second pair.
        if !self.has(PROTOCOL_MQ) || !self.features.has(MQ) {
            return Ok((1, HowFound::NotAskable));
        }
        Ok((self.told(FrontendReq::GET_QUEUE_NUM)?, HowFound::Told))
    }

    fn memory_slots(&mut self) -> Result<(u16, HowFound), CaptureError> {
        if !self.has(PROTOCOL_CONFIGURE_MEM_SLOTS) {
            return Ok((BASELINE_SLOTS, HowFound::NotAskable));
        }
        Ok((self.told(FrontendReq::GET_MAX_MEM_SLOTS)?, HowFound::Told))
    }

    fn told(&mut self, code: FrontendReq) -> Result<u16, CaptureError> {
        let value = self.connection.number(code)?;
        let count = u16::try_from(value).ok().filter(|&count| count > 0);
        count.ok_or(CaptureError::Absurd { request: code, value })
    }

    /// The steps of a front-end before it sets rings up: owner, features, memory.
    fn settle(&mut self) -> Result<(), CaptureError> {
        self.connection.tell(FrontendReq::SET_OWNER, &[], None)?;
        let agreed = self.features.0 & DEVICE_WANTED.0;
        let (code, memory) = if self.has(PROTOCOL_CONFIGURE_MEM_SLOTS) {
            let region = VhostUserSingleMemoryRegion::new(0, MEMORY_BYTES, MEMORY_ADDRESS, 0);
            (FrontendReq::ADD_MEM_REG, region.as_slice().to_vec())
        } else {
            let region = VhostUserMemoryRegion::new(0, MEMORY_BYTES, MEMORY_ADDRESS, 0);
            let table = [VhostUserMemory::new(1).as_slice(), region.as_slice()].concat();
            (FrontendReq::SET_MEM_TABLE, table)
        };
        let file = self.memory.try_clone()?;
        for (code, body, file) in [
            (FrontendReq::SET_FEATURES, agreed.to_ne_bytes().to_vec(), None),
            (code, memory, Some(&file)),
        ] {
            if self.request(code, &body, file)? != Outcome::Answer(true) {
                return Err(CaptureError::Refused(code));
            }
        }
        Ok(())
    }

    /// Whether a request is done. Without REPLY_ACK, the only sign of a refusal is that the backend
    /// closes the connection. The next request then finds it closed.
    fn request(
        &mut self,
        code: FrontendReq,
        body: &[u8],
        file: Option<&OwnedFd>,
    ) -> Result<Outcome<bool>, CaptureError> {
        if self.has(PROTOCOL_REPLY_ACK) {
            return self.connection.acknowledged(code, body, file);
        }
        if self.connection.tell(code, body, file)? == Outcome::Closed {
            return Ok(Outcome::Closed);
        }
        Ok(self.connection.answer(FrontendReq::GET_FEATURES)?.map(|_features| true))
    }

    /// As [`Self::request`], for requests that may be refused. It connects again to a backend that
    /// closes the connection to refuse.
    fn takes(&mut self, code: FrontendReq, body: &[u8]) -> Result<bool, CaptureError> {
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
        let deadline = Instant::now() + self.backend_socket.timeout();
        loop {
            let attempt = self.backend_socket.connect().and_then(|mut connection| {
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
    fn ring_size(&mut self) -> Result<(u16, HowFound), CaptureError> {
        // No split ring may be so large: who takes it takes anything.
        if self.takes_ring(1 << (RING_EXPONENT_MAX + 1))? {
            return Ok((1 << RING_EXPONENT_MAX, HowFound::EverythingAcknowledged));
        }
        // All exponents below some limit are taken: `taken` counts those known to be.
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
            Some(exponent) => Ok((1 << exponent, HowFound::Tried)),
            None => Err(CaptureError::Refused(FrontendReq::SET_VRING_NUM)),
        }
    }

    fn takes_ring(&mut self, entries: u32) -> Result<bool, CaptureError> {
        if !self
            .takes(FrontendReq::SET_VRING_NUM, VhostUserVringState::new(0, entries).as_slice())?
        {
            return Ok(false);
        }
        let addresses = VhostUserVringAddr {
            descriptor: MEMORY_ADDRESS,
            used: MEMORY_ADDRESS + USED_OFFSET,
            available: MEMORY_ADDRESS + AVAILABLE_OFFSET,
            ..VhostUserVringAddr::default()
        };
        self.takes(FrontendReq::SET_VRING_ADDR, addresses.as_slice())
    }

    fn mtu(&mut self) -> Result<(u16, HowFound), CaptureError> {
        if !self.has(PROTOCOL_MTU) || !self.has(PROTOCOL_REPLY_ACK) {
            return Ok((MTU_ASSUMED, HowFound::NotAskable));
        }
        if self.takes_mtu(MTU_MAX)? {
            return Ok((MTU_ASSUMED, HowFound::EverythingAcknowledged));
        }
        if !self.takes_mtu(MTU_MIN)? {
            for mtu in MTU_CUSTOMARY {
                if self.takes_mtu(mtu)? {
                    return Ok((mtu, HowFound::Tried));
                }
            }
            return Ok((MTU_ASSUMED, HowFound::NotAskable));
        }
        let (mut taken, mut refused) = (MTU_MIN, MTU_MAX);
        while taken + 1 < refused {
            let mtu = taken.midpoint(refused);
            if self.takes_mtu(mtu)? { taken = mtu } else { refused = mtu }
        }
        Ok((taken, HowFound::Tried))
    }

    fn takes_mtu(&mut self, mtu: u16) -> Result<bool, CaptureError> {
        self.takes(FrontendReq::NET_SET_MTU, &u64::from(mtu).to_ne_bytes())
    }
}

/// The features that a new connection is offered; agrees to the protocol features that we use.
fn offers(connection: &mut BackendConnection) -> Result<(FeatureSet, FeatureSet), CaptureError> {
    let offered = FeatureSet(connection.number(FrontendReq::GET_FEATURES)?);
    named("features", offered, FEATURES.iter().map(|feature| feature.bit).collect())?;
    if !offered.has(PROTOCOL_FEATURES) {
        return Ok((offered, FeatureSet::default()));
    }
    let protocol = FeatureSet(connection.number(FrontendReq::GET_PROTOCOL_FEATURES)?);
    named("protocol features", protocol, PROTOCOL.iter().map(|feature| feature.bit).collect())?;
    let agreed = protocol.0 & PROTOCOL_WANTED.0;
    connection.tell(FrontendReq::SET_PROTOCOL_FEATURES, &agreed.to_ne_bytes(), None)?;
    Ok((offered, protocol))
}

fn named(kind: &'static str, offered: FeatureSet, known: FeatureSet) -> Result<(), CaptureError> {
    let bits = offered.without(known);
    if bits.is_empty() { Ok(()) } else { Err(CaptureError::UnknownBits { kind, bits }) }
}
