//! One request, from its check to its answer.
//!
//! A front-end may believe that a refused setting is in force, since it hears of a refusal only if
//! it asks. So the setting before it does not take its place: a ring does not start until the
//! request comes again and is done. Rings that run continue as they are.

#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::sync::Arc;

use vhost::vhost_user::message::{FrontendReq, VhostUserVringState};
use vm_memory::ByteValued;

use crate::device::features::FeatureSet;
use crate::virtqueue::EventKind;

use super::device::Device;
use super::refusal::Refusal;
use super::requests::RequestRule;
use super::transport::{Message, reply_to};

/// The reply to a request that was done.
#[derive(Debug)]
pub(super) enum Answer {
    /// An acknowledgement, if one is asked for.
    Done,
    /// A number.
    Value(u64),
    /// A reply with a body of its own, whole.
    Reply(Vec<u8>),
    /// Zero, and the front-end's end of a channel.
    Channel(OwnedFd),
}

impl Device {
    /// Check what `message` asks for, and do it.
    pub(super) fn answer(
        &mut self,
        request: &RequestRule,
        message: &mut Message,
    ) -> Result<Answer, Refusal> {
        let (code, index) = (request.code, message.ring());
        let asked = message.features();
        let memory = Arc::as_ptr(&self.memory);
        // A new request takes the place of the refused one.
        self.expect_again(code, index, false);
        let checked = message.check_shape(request).and_then(|()| self.check(request, message));
        let answer = checked.and_then(|()| self.do_as_asked(code, message));
        if answer.is_err() {
            let in_force = match code {
                FrontendReq::SET_FEATURES => asked.is_some() && self.acknowledged == asked,
                FrontendReq::SET_MEM_TABLE => memory != Arc::as_ptr(&self.memory),
                _ => false,
            };
            self.expect_again(code, index, !in_force);
        }
        answer
    }

    /// Note whether the setting that this request makes was refused; no ring that depends on a
    /// refused setting starts.
    fn expect_again(&mut self, code: FrontendReq, index: Option<u64>, refused: bool) {
        match code {
            FrontendReq::SET_FEATURES => self.features_refused = refused,
            FrontendReq::SET_MEM_TABLE => self.memory_refused = refused,
            FrontendReq::SET_VRING_NUM
            | FrontendReq::SET_VRING_ADDR
            | FrontendReq::SET_VRING_BASE
            | FrontendReq::SET_VRING_KICK
            | FrontendReq::SET_VRING_CALL => {
                let ring = index.and_then(|index| self.ring_index(index).ok());
                if let Some(ring) = ring.map(|ring| &mut self.rings[ring]) {
                    ring.refused.retain(|&other| other != code);
                    ring.refused.extend(refused.then_some(code));
                }
            }
            _ => {}
        }
    }

    fn do_as_asked(&mut self, code: FrontendReq, message: &mut Message) -> Result<Answer, Refusal> {
        let value = match code {
            FrontendReq::GET_FEATURES => self.profile.features.0,
            FrontendReq::GET_PROTOCOL_FEATURES => self.profile.protocol_features.0,
            // Queue pairs, not rings: QEMU compares the number with `queues=`, which are pairs
            // (net/vhost-user.c, `vhost_user_start`).
            FrontendReq::GET_QUEUE_NUM => u64::from(self.profile.queue_pairs_max),
            FrontendReq::GET_MAX_MEM_SLOTS => u64::from(self.profile.memory_slots),
            FrontendReq::GET_STATUS => u64::from(self.status()),
            FrontendReq::GET_VRING_BASE => return self.position(message),
            FrontendReq::SET_LOG_BASE => {
                self.set_log(message)?;
                // The log's description again: QEMU takes any body, the `vhost` crate's front-end
                // this one.
                return Ok(Answer::Reply(reply_to(message, &message.body)));
            }
            _ => return self.set(code, message).map(|()| Answer::Done),
        };
        Ok(Answer::Value(value))
    }

    /// The requests that are only acknowledged.
    fn set(&mut self, code: FrontendReq, message: &mut Message) -> Result<(), Refusal> {
        match code {
            // Nothing to own: a connection is its session's. QEMU repeats the request for each
            // queue pair, and after it reconnects.
            FrontendReq::SET_OWNER => Ok(()),
            // "It is recommended that back-ends either ignore this message, or use it to disable
            // all rings": front-ends that still send it mean either.
            FrontendReq::RESET_OWNER => Ok(()),
            FrontendReq::RESET_DEVICE => self.reset(),
            FrontendReq::SET_FEATURES => self.acknowledge(FeatureSet(message.body())),
            FrontendReq::SET_PROTOCOL_FEATURES => {
                self.acknowledge_protocol(FeatureSet(message.body()));
                Ok(())
            }
            FrontendReq::SET_STATUS => self.set_status(message.body()),
            FrontendReq::SET_MEM_TABLE => self.set_memory(message),
            FrontendReq::ADD_MEM_REG => self.add_region(message),
            FrontendReq::REM_MEM_REG => self.remove_region(message),
            FrontendReq::SET_LOG_FD => self.set_log_event(message),
            FrontendReq::SET_BACKEND_REQ_FD => self.set_backend_channel(message.take_descriptor()),
            FrontendReq::CREATE_CRYPTO_SESSION | FrontendReq::CLOSE_CRYPTO_SESSION => {
                Err(Refusal::NoCrypto)
            }
            FrontendReq::NET_SET_MTU => self.set_mtu(message.body()),
            FrontendReq::SEND_RARP => {
                // The address is in the first six bytes as they lie (hw/virtio/vhost-user.c,
                // `vhost_user_migration_done`, copies it there).
                let [a, b, c, d, e, f, ..] = message.body::<u64>().to_ne_bytes();
                self.backend.announce([a, b, c, d, e, f]);
                Ok(())
            }
            _ => self.set_ring(code, message),
        }
    }

    /// The requests that set something of one ring.
    fn set_ring(&mut self, code: FrontendReq, message: &mut Message) -> Result<(), Refusal> {
        let index = self.ring_index(message.ring().ok_or(Refusal::Unknown)?)?;
        match code {
            FrontendReq::SET_VRING_NUM => {
                self.set_size(index, message.body::<VhostUserVringState>().num)
            }
            FrontendReq::SET_VRING_BASE => {
                self.set_base(index, message.body::<VhostUserVringState>().num)
            }
            FrontendReq::SET_VRING_ENABLE => {
                self.set_enable(index, message.body::<VhostUserVringState>().num)
            }
            FrontendReq::SET_VRING_ADDR => self.set_addresses(index, &message.body()),
            FrontendReq::SET_VRING_KICK => self.set_event(index, EventKind::Kick, message),
            FrontendReq::SET_VRING_CALL => self.set_event(index, EventKind::Call, message),
            FrontendReq::SET_VRING_ERR => self.set_event(index, EventKind::Err, message),
            _ => Err(Refusal::Unknown),
        }
    }

    /// GET_VRING_BASE.
    fn position(&mut self, message: &Message) -> Result<Answer, Refusal> {
        let number = message.body::<VhostUserVringState>().index;
        let base = self.ring_index(u64::from(number)).and_then(|index| self.stop(index));
        self.publish();
        let answer = VhostUserVringState::new(number, base?);
        Ok(Answer::Reply(reply_to(message, answer.as_slice())))
    }
}
