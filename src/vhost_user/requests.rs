//! The requests we answer, as a table, and the check of a message against it.
//!
//! For each request the table has the length of its body, the number of its descriptors and the
//! protocol feature that it needs. Requests that are not in the table are refused. Numbers and
//! layouts are those of QEMU's `docs/interop/vhost-user.rst`, "Front-end message types".

#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use vhost::vhost_user::message::{
    FrontendReq, MAX_ATTACHED_FD_ENTRIES, VhostUserHeaderFlag, VhostUserLog, VhostUserMemory,
    VhostUserMemoryRegion, VhostUserSingleMemoryRegion, VhostUserTransferDeviceState, VhostUserU64,
    VhostUserVringAddr, VhostUserVringState,
};

use crate::device::features::{
    FeatureSet, PROTOCOL_BACKEND_REQ, PROTOCOL_CONFIGURE_MEM_SLOTS, PROTOCOL_CRYPTO_SESSION,
    PROTOCOL_DEVICE_STATE, PROTOCOL_LOG_SHMFD, PROTOCOL_MQ, PROTOCOL_MTU, PROTOCOL_RARP,
    PROTOCOL_RESET_DEVICE, PROTOCOL_STATUS,
};

use super::refusal::Refusal;
use super::transport::{BODY_MAX, Message};

/// Flag bits that a request must not have: one is a reply's, the others have no meaning.
const NOT_OF_A_REQUEST: u32 =
    VhostUserHeaderFlag::REPLY.bits() | VhostUserHeaderFlag::RESERVED_BITS.bits();

/// The flag of SET_VRING_KICK, CALL and ERR that no descriptor comes with it ("Front-end message
/// types").
pub(super) const NO_DESCRIPTOR: u64 = 0x100;

const NO_BODY: RangeInclusive<usize> = 0..=0;
const U64: RangeInclusive<usize> = body_of::<VhostUserU64>();
const RING_STATE: RangeInclusive<usize> = body_of::<VhostUserVringState>();
const STATE_TRANSFER: RangeInclusive<usize> = body_of::<VhostUserTransferDeviceState>();
const REGION: RangeInclusive<usize> = body_of::<VhostUserSingleMemoryRegion>();
/// Up to as many regions as one message has descriptors.
const MEMORY_TABLE: RangeInclusive<usize> =
    size_of::<VhostUserMemory>()..=memory_table_len(MAX_ATTACHED_FD_ENTRIES);

/// A body that is a `T`, no more and no less.
const fn body_of<T>() -> RangeInclusive<usize> {
    size_of::<T>()..=size_of::<T>()
}

/// Bytes of a SET_MEM_TABLE with this many regions.
pub(super) const fn memory_table_len(regions: usize) -> usize {
    size_of::<VhostUserMemory>() + regions * size_of::<VhostUserMemoryRegion>()
}

/// One row of the table.
#[derive(Debug)]
pub(super) struct RequestRule {
    pub code: FrontendReq,
    pub name: &'static str,
    /// Bytes.
    pub body: RangeInclusive<usize>,
    pub descriptors: RangeInclusive<usize>,
    /// The protocol feature without which it must not come.
    pub feature: Option<u8>,
    /// Whether the answer has a payload of its own, so that refusing it leaves the front-end
    /// without an answer it can understand.
    pub payload_reply: bool,
    /// The number that answers a refused request, where the payload has room for a refusal.
    pub refusal: Option<u64>,
}

const fn request(
    code: FrontendReq,
    name: &'static str,
    body: RangeInclusive<usize>,
) -> RequestRule {
    RequestRule {
        code,
        name,
        body,
        descriptors: 0..=0,
        feature: None,
        payload_reply: false,
        refusal: None,
    }
}

impl RequestRule {
    const fn needs(mut self, protocol_feature: u8) -> Self {
        self.feature = Some(protocol_feature);
        self
    }

    const fn descriptors(mut self, count: RangeInclusive<usize>) -> Self {
        self.descriptors = count;
        self
    }

    const fn replies(mut self) -> Self {
        self.payload_reply = true;
        self
    }

    const fn replies_or(mut self, refusal: u64) -> Self {
        (self.payload_reply, self.refusal) = (true, Some(refusal));
        self
    }
}

/// All requests that are answered.
pub(super) static REQUESTS: &[RequestRule] = &[
    request(FrontendReq::GET_FEATURES, "GET_FEATURES", NO_BODY).replies(),
    request(FrontendReq::SET_FEATURES, "SET_FEATURES", U64),
    request(FrontendReq::SET_OWNER, "SET_OWNER", NO_BODY),
    request(FrontendReq::RESET_OWNER, "RESET_OWNER", NO_BODY),
    request(FrontendReq::SET_MEM_TABLE, "SET_MEM_TABLE", MEMORY_TABLE)
        .descriptors(0..=MAX_ATTACHED_FD_ENTRIES),
    request(FrontendReq::SET_LOG_BASE, "SET_LOG_BASE", body_of::<VhostUserLog>())
        .needs(PROTOCOL_LOG_SHMFD)
        .descriptors(1..=1)
        .replies(),
    request(FrontendReq::SET_LOG_FD, "SET_LOG_FD", NO_BODY)
        .needs(PROTOCOL_LOG_SHMFD)
        .descriptors(1..=1),
    request(FrontendReq::SET_VRING_NUM, "SET_VRING_NUM", RING_STATE),
    request(FrontendReq::SET_VRING_ADDR, "SET_VRING_ADDR", body_of::<VhostUserVringAddr>()),
    request(FrontendReq::SET_VRING_BASE, "SET_VRING_BASE", RING_STATE),
    request(FrontendReq::GET_VRING_BASE, "GET_VRING_BASE", RING_STATE).replies(),
    request(FrontendReq::SET_VRING_KICK, "SET_VRING_KICK", U64).descriptors(0..=1),
    request(FrontendReq::SET_VRING_CALL, "SET_VRING_CALL", U64).descriptors(0..=1),
    request(FrontendReq::SET_VRING_ERR, "SET_VRING_ERR", U64).descriptors(0..=1),
    request(FrontendReq::GET_PROTOCOL_FEATURES, "GET_PROTOCOL_FEATURES", NO_BODY).replies(),
    request(FrontendReq::SET_PROTOCOL_FEATURES, "SET_PROTOCOL_FEATURES", U64),
    request(FrontendReq::GET_QUEUE_NUM, "GET_QUEUE_NUM", NO_BODY).needs(PROTOCOL_MQ).replies(),
    request(FrontendReq::SET_VRING_ENABLE, "SET_VRING_ENABLE", RING_STATE),
    request(FrontendReq::SEND_RARP, "SEND_RARP", U64).needs(PROTOCOL_RARP),
    request(FrontendReq::NET_SET_MTU, "NET_SET_MTU", U64).needs(PROTOCOL_MTU),
    request(FrontendReq::SET_BACKEND_REQ_FD, "SET_BACKEND_REQ_FD", NO_BODY)
        .needs(PROTOCOL_BACKEND_REQ)
        .descriptors(1..=1),
    // The length of its body depends on the front-end's version; the body is not read.
    request(FrontendReq::CREATE_CRYPTO_SESSION, "CREATE_CRYPTO_SESSION", 0..=BODY_MAX)
        .needs(PROTOCOL_CRYPTO_SESSION)
        .replies(),
    request(FrontendReq::CLOSE_CRYPTO_SESSION, "CLOSE_CRYPTO_SESSION", U64)
        .needs(PROTOCOL_CRYPTO_SESSION),
    request(FrontendReq::RESET_DEVICE, "RESET_DEVICE", NO_BODY).needs(PROTOCOL_RESET_DEVICE),
    request(FrontendReq::GET_MAX_MEM_SLOTS, "GET_MAX_MEM_SLOTS", NO_BODY)
        .needs(PROTOCOL_CONFIGURE_MEM_SLOTS)
        .replies(),
    request(FrontendReq::ADD_MEM_REG, "ADD_MEM_REG", REGION)
        .needs(PROTOCOL_CONFIGURE_MEM_SLOTS)
        .descriptors(1..=1),
    // "The back-end MAY accept messages with one file descriptor", for old front-ends.
    request(FrontendReq::REM_MEM_REG, "REM_MEM_REG", REGION)
        .needs(PROTOCOL_CONFIGURE_MEM_SLOTS)
        .descriptors(0..=1),
    request(FrontendReq::SET_STATUS, "SET_STATUS", U64).needs(PROTOCOL_STATUS),
    request(FrontendReq::GET_STATUS, "GET_STATUS", NO_BODY).needs(PROTOCOL_STATUS).replies(),
    // "Bits 0-7 are 0 on success, and non-zero on error. Bit 8 is the invalid FD flag".
    request(FrontendReq::SET_DEVICE_STATE_FD, "SET_DEVICE_STATE_FD", STATE_TRANSFER)
        .needs(PROTOCOL_DEVICE_STATE)
        .descriptors(1..=1)
        .replies_or(0x101),
    request(FrontendReq::CHECK_DEVICE_STATE, "CHECK_DEVICE_STATE", NO_BODY)
        .needs(PROTOCOL_DEVICE_STATE)
        .replies_or(1),
];

impl Message {
    /// The table's row for this message.
    pub fn request(&self) -> Option<&'static RequestRule> {
        REQUESTS.iter().find(|request| u32::from(request.code) == self.code)
    }

    /// The request's name, or its number where it has none here.
    pub fn name(&self) -> String {
        match self.request() {
            Some(request) => request.name.to_owned(),
            None => format!("request {}", self.code),
        }
    }

    /// The request's ring, if it has one: the first half of the body. SET_VRING_KICK, CALL and ERR
    /// have the ring in bits 0 to 7; bit 8 is a flag.
    pub fn ring(&self) -> Option<u64> {
        match self.request()?.code {
            FrontendReq::SET_VRING_KICK
            | FrontendReq::SET_VRING_CALL
            | FrontendReq::SET_VRING_ERR => Some(self.word()? & !NO_DESCRIPTOR),
            FrontendReq::SET_VRING_NUM
            | FrontendReq::SET_VRING_ADDR
            | FrontendReq::SET_VRING_BASE
            | FrontendReq::SET_VRING_ENABLE => self.word().map(|word| word & 0xffff_ffff),
            _ => None,
        }
    }

    /// The features of a SET_FEATURES.
    pub fn features(&self) -> Option<FeatureSet> {
        let code = self.request()?.code;
        self.word().filter(|_| code == FrontendReq::SET_FEATURES).map(FeatureSet)
    }

    /// Flags, length and descriptors, against the table's row.
    pub fn check_shape(&self, request: &RequestRule) -> Result<(), Refusal> {
        if self.flags & NOT_OF_A_REQUEST != 0 {
            return Err(Refusal::Flags(self.flags));
        }
        if !request.body.contains(&self.body.len()) {
            let expected = request.body.clone();
            return Err(Refusal::Length { actual: self.body.len(), expected });
        }
        if self.descriptors_cut {
            return Err(Refusal::DescriptorsCut);
        }
        let actual = self.descriptors.len();
        if !request.descriptors.contains(&actual) {
            let expected = request.descriptors.clone();
            return Err(Refusal::Descriptors { actual, expected });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::transport::DESCRIPTORS_MAX;
    use super::*;

    #[test]
    fn every_request_occurs_once_under_its_own_name() {
        for (index, request) in REQUESTS.iter().enumerate() {
            assert_eq!(request.name, format!("{:?}", request.code));
            assert!(REQUESTS[..index].iter().all(|other| other.code != request.code));
        }
    }

    #[test]
    fn every_request_fits_what_is_read_and_one_descriptor_too_many_shows() {
        for request in REQUESTS {
            assert!(*request.body.end() <= BODY_MAX, "{}", request.name);
            assert!(*request.descriptors.end() < DESCRIPTORS_MAX, "{}", request.name);
        }
    }
}
