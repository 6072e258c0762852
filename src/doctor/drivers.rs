//! Drivers: since when they have zero-copy AF_XDP, and what users ran into.
//!
//! The first column is that of ebpf-docs (`docs/linux/program-type/BPF_PROG_TYPE_XDP.md`, as of
//! Linux 6.19). Faults have no version where we could not find out which one fixed them.

/// What is known of a driver.
pub(super) struct Driver {
    /// As in sysfs.
    name: &'static str,
    /// The Linux that it has had zero-copy AF_XDP since; None for one that has not.
    pub(super) zero_copy_since: Option<&'static str>,
    /// What to look out for.
    pub(super) caveat: Option<&'static str>,
}

const fn with(name: &'static str, since: &'static str) -> Driver {
    Driver { name, zero_copy_since: Some(since), caveat: None }
}

const fn without(name: &'static str) -> Driver {
    Driver { name, zero_copy_since: None, caveat: None }
}

impl Driver {
    const fn but(self, caveat: &'static str) -> Self {
        Self { caveat: Some(caveat), ..self }
    }
}

const DRIVERS: [Driver; 28] = [
    with("ixgbe", "4.20"),
    with("i40e", "4.20").but(
        "packets of several frames may be damaged after sockets or the MTU changed; check the \
         kernel's changelog for \"i40e: fix registering XDP RxQ info\"",
    ),
    // firedancer-io/firedancer#273 for the first.
    with("ice", "5.5").but(
        "zero-copy is broken in backports to 4.18 (EL8); `ethtool -L` or a reset may end it for \
         good; check the kernel's changelog for \"ice: remove af_xdp_zc_qps bitmap\"",
    ),
    // VPP, src/plugins/af_xdp/af_xdp_doc.rst.
    with("mlx5_core", "5.3").but(
        "older kernels number zero-copy queues from the number of channels on: if nothing arrives, \
         compare with mode = \"copy\"",
    ),
    with("igc", "5.14"),
    // xdp-project/xdp-tutorial#466.
    with("igb", "6.14").but(
        "its receive ring was seen to fill up in 6.14 with frames that pass to the host: check \
         that the host's own traffic goes on",
    ),
    with("idpf", "6.18"),
    // analogdevicesinc/linux#3517.
    with("stmmac", "5.13")
        .but("a queue whose frames are taken too late was seen to stand still for good"),
    with("nfp", "5.18"),
    with("fsl_dpaa2_eth", "6.2"),
    with("tsnep", "6.4"),
    with("gve", "6.4"),
    // Documentation of virtio_net and testing with QEMU: it needs access_platform.
    with("virtio_net", "6.11").but(
        "zero-copy needs a device that is behind an IOMMU (iommu_platform=on in QEMU); without it \
         the bind fails, and auto takes copy mode",
    ),
    with("icssg-prueth", "6.19"),
    without("bnxt_en"),
    // amzn/amzn-drivers#221.
    without("ena").but("a reset of the device ends AF_XDP on it until isonic is started again"),
    without("mlx4_en"),
    without("mana"),
    without("veth"),
    without("tun"),
    without("bond"),
    without("qede"),
    without("fsl_enetc"),
    without("ionic"),
    without("fbnic"),
    without("vmxnet3"),
    without("atlantic"),
    without("mvneta"),
];

/// The driver of this name, if it is known.
pub(super) fn find(name: &str) -> Option<&'static Driver> {
    DRIVERS.iter().find(|driver| driver.name == name)
}
