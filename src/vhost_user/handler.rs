//! The `vhost` crate's way into the [`Device`]: one method per request, each one call.
//!
//! The requests whose protocol features we never offer are refused by the table before they get
//! here; their methods exist because the trait asks for them.

#![forbid(unsafe_code)]

use std::fs::File;

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Error, GpuBackend, Result, VhostUserBackendReqHandlerMut, VhostUserProtocolFeatures,
};

use crate::device::features::FeatureSet;
use crate::guest_memory::GuestAddress;
use crate::virtqueue::EventKind;

use super::device::Device;
use super::memory::region_spec;
use super::refusal::Refusal;
use super::rings::addresses;

impl Device {
    /// Keep the reason for the log, and give the crate an error to acknowledge with.
    fn note<T>(&mut self, result: std::result::Result<T, Refusal>) -> Result<T> {
        result.map_err(|refusal| {
            self.refusal = Some(refusal);
            Error::InvalidParam
        })
    }

    fn unknown<T>(&mut self) -> Result<T> {
        self.note(Err(Refusal::Unknown))
    }
}

impl VhostUserBackendReqHandlerMut for Device {
    /// Nothing to own: a connection is its session's. QEMU repeats the request for each queue
    /// pair, and after it reconnects.
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        let done = self.reset();
        self.note(done)
    }

    fn reset_device(&mut self) -> Result<()> {
        let done = self.reset();
        self.note(done)
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.profile.features.0)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        let done = self.acknowledge(FeatureSet(features));
        self.note(done)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::from_bits_retain(self.profile.protocol_features.0))
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        self.acknowledge_protocol(FeatureSet(features));
        Ok(())
    }

    /// Queue pairs, not rings: QEMU compares the number with `queues=`, which are pairs
    /// (net/vhost-user.c, `vhost_user_start`).
    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(u64::from(self.profile.queue_pairs_max))
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let done = self.set_memory(regions, files);
        self.note(done.map(|()| None))
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(u64::from(self.profile.memory_slots))
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        let done = self.add_region(region_spec(region), file);
        self.note(done.map(|()| None))
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let done = self.remove_region(&region_spec(region));
        self.note(done)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let done = self.ring_index(u64::from(index)).and_then(|index| self.set_size(index, num));
        self.note(done)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Result<()> {
        let addresses = addresses(descriptor, available, used);
        let logged = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG);
        let log = logged.then_some(GuestAddress(log));
        let done = self
            .ring_index(u64::from(index))
            .and_then(|index| self.set_addresses(index, addresses, log));
        self.note(done)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let done = self.ring_index(u64::from(index)).and_then(|index| self.set_base(index, base));
        self.note(done)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let base = self.ring_index(u64::from(index)).and_then(|index| self.stop(index));
        self.publish();
        self.note(base.map(|base| VhostUserVringState::new(index, base)))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let done = self.set_event(index, EventKind::Kick, file);
        self.note(done)
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let done = self.set_event(index, EventKind::Call, file);
        self.note(done)
    }

    fn set_vring_err(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let done = self.set_event(index, EventKind::Err, file);
        self.note(done)
    }

    /// The session answers this one: the crate refuses it before SET_FEATURES.
    fn set_vring_enable(&mut self, _: u32, _: bool) -> Result<()> {
        self.unknown()
    }

    fn get_config(&mut self, _: u32, _: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        self.unknown()
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        self.unknown()
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        self.unknown()
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        self.unknown()
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        self.unknown()
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        self.unknown()
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        self.unknown()
    }

    fn check_device_state(&mut self) -> Result<()> {
        self.unknown()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        self.unknown()
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        self.unknown()
    }
}
