//! Kernels: their numbers, their features by version, and their known faults.
//!
//! The numbers are mainline's and those of the stable releases. Distributions carry features and
//! fixes back under their own numbers, so that nothing here is more than a hint; what can be tried
//! is tried.

use std::fmt;

/// A kernel's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl Version {
    pub(super) const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }

    /// From `uname -r` and `-v`: Debian's release names its ABI, "6.1.0-50-amd64", and its build
    /// the kernel, "#1 SMP PREEMPT_DYNAMIC Debian 6.1.176-1 (2026-11-01)".
    pub(super) fn parse(release: &str, build: &str) -> Option<Self> {
        let debian = build.split("Debian ").nth(1).and_then(Self::leading);
        debian.or_else(|| Self::leading(release))
    }

    fn leading(text: &str) -> Option<Self> {
        let end =
            |rest: &str| rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len());
        let mut numbers = text.splitn(3, '.').map(|rest| rest[..end(rest)].parse().ok());
        let (major, minor) = (numbers.next()??, numbers.next()??);
        Some(Self::new(major, minor, numbers.next().flatten().unwrap_or(0)))
    }

    fn branch(self) -> (u32, u32) {
        (self.major, self.minor)
    }
}

/// Oldest kernel that loads our program, for packets in several buffers (`xdp.frags`).
pub(super) const OLDEST: Version = Version::new(5, 18, 0);

/// Oldest kernel on which the host can be joined to its VMs (tcx).
pub(super) const HOST_SHARING: Version = Version::new(6, 6, 0);
/// Oldest kernel that can suspend the interrupts of a queue.
pub(super) const IRQ_SUSPENSION: Version = Version::new(6, 13, 0);

/// Kernel features that serve us, and since when there are.
const FEATURES: [(Version, &str); 4] = [
    (Version::new(6, 3, 0), "drivers say whether they have zero-copy"),
    (Version::new(6, 6, 0), "packets longer than a frame (MTU above 3818)"),
    (Version::new(6, 13, 0), "interrupts that rest while a worker polls"),
    (Version::new(6, 17, 0), "more than 32 frames to one call in copy mode"),
];

/// The features that this kernel does not have, newest last.
pub(super) fn lacking(version: Version) -> Vec<String> {
    let lacking = FEATURES.iter().filter(|(since, _)| version < *since);
    lacking.map(|(since, what)| format!("{what} (Linux {}.{})", since.major, since.minor)).collect()
}

/// A fault of AF_XDP that was fixed.
pub(super) struct Fault {
    /// Its name.
    pub(super) id: &'static str,
    /// The effect.
    pub(super) what: &'static str,
    /// Whether isonic itself can run into it.
    pub(super) concerns_us: bool,
    since: Version,
    /// The first release with the fix in each stable branch, then in mainline.
    fixed: &'static [Version],
}

/// Versions as in the CVE records of the kernel's numbering authority (CVEProject/cvelistV5, read
/// 2026-11): "affected" and "unaffected" ranges.
const FAULTS: [Fault; 3] = [
    Fault {
        id: "CVE-2023-53240",
        what: "sending while the interface is down can crash the kernel",
        concerns_us: true,
        since: Version::new(5, 18, 0),
        fixed: &[Version::new(6, 1, 16), Version::new(6, 2, 3), Version::new(6, 3, 0)],
    },
    Fault {
        id: "CVE-2026-43093",
        what: "frames are used to their very end, which zero-copy packets of several frames do not \
               survive (fixed together with \"xsk: respect tailroom for ZC setups\")",
        concerns_us: true,
        since: Version::new(5, 7, 0),
        fixed: &[
            Version::new(6, 6, 136),
            Version::new(6, 12, 83),
            Version::new(6, 18, 24),
            Version::new(6, 19, 14),
            Version::new(7, 0, 0),
        ],
    },
    Fault {
        id: "CVE-2026-53250",
        what: "a program with AF_XDP sockets can read and write beyond its frames by transmit \
               metadata, which isonic does not use",
        concerns_us: false,
        since: Version::new(6, 8, 0),
        fixed: &[Version::new(6, 18, 36), Version::new(7, 0, 13), Version::new(7, 1, 0)],
    },
];

impl Fault {
    /// Whether a kernel of this number has it, if nobody carried the fix back.
    fn is_in(&self, version: Version) -> bool {
        let fixed_by = |fix: &Version| version.branch() == fix.branch() && version >= *fix;
        let mainline = self.fixed.last().expect("a fix");
        version >= self.since && version < *mainline && !self.fixed.iter().any(fixed_by)
    }

    /// The releases to look for.
    pub(super) fn fixed_in(&self) -> String {
        let releases = self.fixed.iter().map(|fix| match fix.patch {
            0 => format!("{}.{}", fix.major, fix.minor),
            _ => fix.to_string(),
        });
        releases.collect::<Vec<_>>().join(", ")
    }
}

/// The faults that a kernel of this number has.
pub(super) fn faults(version: Version) -> impl Iterator<Item = &'static Fault> {
    FAULTS.iter().filter(move |fault| fault.is_in(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        Version::parse(text, "#1 SMP").unwrap()
    }

    #[test]
    fn a_kernel_is_known_by_its_own_number_and_not_by_its_abi() {
        let debian = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.176-1 (2026-11-01)";
        assert_eq!(Version::parse("6.1.0-50-amd64", debian), Some(Version::new(6, 1, 176)));
        assert_eq!(version("6.18.44-fc-v782"), Version::new(6, 18, 44));
        assert_eq!(version("5.14.0-427.el9.x86_64"), Version::new(5, 14, 0));
        assert_eq!(version("7.1-rc3"), Version::new(7, 1, 0));
        assert_eq!(Version::parse("unknown", ""), None);
    }

    #[test]
    fn a_fault_is_in_every_branch_up_to_its_own_fix() {
        let found = |text| faults(version(text)).map(|fault| fault.id).collect::<Vec<_>>();
        assert_eq!(found("6.1.15"), ["CVE-2023-53240", "CVE-2026-43093"]);
        assert_eq!(found("6.1.16"), ["CVE-2026-43093"]);
        assert_eq!(found("6.6.136"), [""; 0]);
        assert_eq!(found("6.12.83"), ["CVE-2026-53250"]);
        assert_eq!(found("6.18.44"), [""; 0]);
        assert_eq!(found("7.0.12"), ["CVE-2026-53250"]);
        assert_eq!(found("7.1.0"), [""; 0]);
    }

    #[test]
    fn what_a_kernel_lacks_is_told_with_when_it_came() {
        assert_eq!(lacking(version("7.0.0")), [""; 0]);
        let old = lacking(version("6.1.0"));
        assert_eq!(old.len(), 4);
        assert!(old[1].contains("Linux 6.6"), "{old:?}");
    }
}
