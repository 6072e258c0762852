//! Drivers: since when they have native XDP and zero-copy AF_XDP, and the problems of users.
//!
//! Linux tells both since 6.3; for earlier kernels, this table does. No program is attached to find
//! out: many drivers reset the NIC for it, under the traffic of its users.
//!
//! The first two columns are those of ebpf-docs (`docs/linux/program-type/BPF_PROG_TYPE_XDP.md`, as
//! of Linux 6.19). Faults have no version where we could not find out which one fixed them.

use super::kernel::Version;

/// The known abilities of a driver.
pub(super) struct Driver {
    /// As in sysfs.
    name: &'static str,
    /// The Linux that it has had native XDP since.
    native_since: Version,
    /// The Linux that it has had zero-copy AF_XDP since; None for one that has not.
    pub(super) zero_copy_since: Option<&'static str>,
    /// A problem that users ran into.
    pub(super) caveat: Option<&'static str>,
}

/// Native XDP since the Linux of these two numbers, and zero-copy since the other.
const fn with(name: &'static str, native: (u32, u32), since: &'static str) -> Driver {
    Driver { zero_copy_since: Some(since), ..without(name, native) }
}

/// Without zero-copy.
const fn without(name: &'static str, native: (u32, u32)) -> Driver {
    let native_since = Version::new(native.0, native.1, 0);
    Driver { name, native_since, zero_copy_since: None, caveat: None }
}

impl Driver {
    /// Whether it has native XDP in this Linux, and since when.
    pub(super) fn native(&self, kernel: Option<Version>) -> (bool, Version) {
        (kernel.is_none_or(|kernel| kernel >= self.native_since), self.native_since)
    }

    const fn but(self, caveat: &'static str) -> Self {
        Self { caveat: Some(caveat), ..self }
    }
}

const DRIVERS: [Driver; 40] = [
    with("ixgbe", (4, 12), "4.20"),
    with("i40e", (4, 13), "4.20").but(
        "packets of several frames may be damaged after sockets or the MTU changed; check the \
         kernel's changelog for \"i40e: fix registering XDP RxQ info\"",
    ),
    // firedancer-io/firedancer#273 for the first.
    with("ice", (5, 5), "5.5").but(
        "zero-copy is broken in backports to 4.18 (EL8); `ethtool -L` or a reset may end it for \
         good; check the kernel's changelog for \"ice: remove af_xdp_zc_qps bitmap\"",
    ),
    // VPP, src/plugins/af_xdp/af_xdp_doc.rst.
    with("mlx5_core", (4, 9), "5.3").but(
        "older kernels number zero-copy queues from the number of channels on: if nothing arrives, \
         compare with mode = \"copy\"",
    ),
    with("igc", (5, 13), "5.14"),
    // xdp-project/xdp-tutorial#466.
    with("igb", (5, 10), "6.14").but(
        "its receive ring was seen to fill up in 6.14 with frames that pass to the host: check \
         that the host's own traffic goes on",
    ),
    with("idpf", (6, 18), "6.18"),
    // analogdevicesinc/linux#3517.
    with("stmmac", (5, 13), "5.13")
        .but("a queue whose frames are taken too late was seen to stand still for good"),
    with("nfp", (4, 10), "5.18"),
    with("fsl_dpaa2_eth", (5, 0), "6.2"),
    with("tsnep", (6, 3), "6.4"),
    with("gve", (6, 4), "6.4"),
    // Documentation of virtio_net and testing with QEMU: it needs access_platform.
    with("virtio_net", (4, 10), "6.11").but(
        "zero-copy needs a device that is behind an IOMMU (iommu_platform=on in QEMU); without it \
         the bind fails, and auto takes copy mode",
    ),
    with("icssg-prueth", (6, 15), "6.19"),
    without("bnxt_en", (4, 11)),
    // amzn/amzn-drivers#221.
    without("ena", (5, 6))
        .but("a reset of the device ends AF_XDP on it until isonic is started again"),
    without("mlx4_en", (4, 8)),
    without("mana", (5, 17)),
    without("veth", (4, 19)),
    without("tun", (4, 14)),
    without("qede", (4, 10)),
    without("fsl_enetc", (5, 13)),
    without("ionic", (6, 9)),
    without("fbnic", (6, 18)),
    without("vmxnet3", (6, 6)),
    without("atlantic", (5, 19)),
    without("mvneta", (5, 5)),
    without("ixgbevf", (4, 17)),
    without("nicvf", (4, 12)),
    without("netsec", (5, 3)),
    without("cpsw", (5, 3)),
    without("sfc", (5, 5)),
    without("hv_netvsc", (5, 6)),
    without("mvpp2", (5, 9)),
    without("vif", (5, 9)),
    without("rvu_nicpf", (5, 16)),
    without("funeth", (5, 18)),
    without("mtk_soc_eth", (6, 0)),
    without("fec", (6, 2)),
    without("am65-cpsw-nuss", (6, 10)),
];

/// The driver of this name, if it is known.
pub(super) fn find(name: &str) -> Option<&'static Driver> {
    DRIVERS.iter().find(|driver| driver.name == name)
}
