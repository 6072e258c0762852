//! SIOCETHTOOL of linux/sockios.h, for the features that ethtool's netlink family lacks.
//!
//! The family has neither flow rules nor the driver's version. It reads an indirection table since
//! Linux 6.3, and writes it since 6.17. The ioctl has all of them on every kernel.
//!
//! The structures of linux/ethtool.h are written here as words of 32 bits, by their offsets. Three
//! of them end in an array, and the kernel copies bytes.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// SIOCETHTOOL of linux/sockios.h.
const SIOCETHTOOL: libc::c_ulong = 0x8946;
/// Longest interface name with its final zero (IFNAMSIZ of linux/if.h).
const NAME_BYTES: usize = 16;

const GDRVINFO: u32 = 0x03;
const GRXFH: u32 = 0x29;
const GRXCLSRLCNT: u32 = 0x2e;
const GRXCLSRULE: u32 = 0x2f;
const GRXCLSRLALL: u32 = 0x30;
const GRSSH: u32 = 0x46;
const SRSSH: u32 = 0x47;

/// Most entries of an indirection table that are accepted; drivers have up to 4096.
const TABLE_ENTRIES_MAX: u32 = 1 << 16;
/// Most flow rules that are read; NICs have up to some ten thousand.
const RULES_MAX: u32 = 1 << 16;

/// A command, and the kernel's answer, written over it.
struct Command {
    /// As long as the command's structure says in its own fields.
    words: Vec<u32>,
}

/// `struct ifreq` of linux/if.h, with the pointer of its union.
#[repr(C)]
struct Request {
    name: [u8; NAME_BYTES],
    data: *mut u32,
    // The union is as long as its longest member, struct ifmap.
    rest: [u64; 2],
}

impl Command {
    fn new(command: u32, words: usize) -> Self {
        let mut buffer = vec![0; words];
        buffer[0] = command;
        Self { words: buffer }
    }

    fn issue(mut self, interface: &str) -> io::Result<Vec<u32>> {
        let mut name = [0; NAME_BYTES];
        let bytes = interface.as_bytes();
        name.get_mut(..bytes.len())
            .filter(|room| room.len() < NAME_BYTES)
            .ok_or(io::ErrorKind::InvalidInput)?
            .copy_from_slice(bytes);
        let mut request = Request { name, data: self.words.as_mut_ptr(), rest: [0; 2] };
        let socket = any_socket()?;
        // SAFETY: the request has struct ifreq's form, and it and `words` outlive the call. The
        // kernel reads and writes no more of `words` than the sizes that the callers below put into
        // it.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(self.words) }
    }
}

/// A socket for the call. Any kind will do; this one needs no privilege and is open to a sandboxed
/// daemon too.
fn any_socket() -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?)
}

// ---- the driver ---------------------------------------------------------------------------------

/// struct ethtool_drvinfo: the command, six strings, and five numbers.
const DRIVER_INFO_WORDS: usize = 49;

/// Version of the driver and of the firmware, each if there is one.
pub(super) fn driver_info(interface: &str) -> Option<(Option<String>, Option<String>)> {
    let words = Command::new(GDRVINFO, DRIVER_INFO_WORDS).issue(interface).ok()?;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let text = |at: usize, len: usize| {
        let text = bytes[at..at + len].split(|&byte| byte == 0).next().unwrap_or_default();
        let text = String::from_utf8_lossy(text).trim().to_owned();
        (!text.is_empty() && text != "N/A").then_some(text)
    };
    // After `cmd` and `driver`: char version[32], fw_version[32].
    Some((text(36, 32), text(68, 32)))
}

// ---- the indirection table ----------------------------------------------------------------------

/// struct ethtool_rxfh before its array: cmd, rss_context, indir_size, key_size, hfunc and three
/// bytes, rsvd32.
const RXFH_WORDS: usize = 6;
const RXFH_TABLE_SIZE: usize = 2;
const RXFH_FUNCTION: usize = 4;

/// The indirection table of the default context; None where the NIC has none.
pub(super) fn indirection_table(interface: &str) -> Option<Vec<u32>> {
    let sizes = Command::new(GRSSH, RXFH_WORDS).issue(interface).ok()?;
    let entries = sizes[RXFH_TABLE_SIZE];
    if entries == 0 || entries > TABLE_ENTRIES_MAX {
        return None;
    }
    let mut command = Command::new(GRSSH, RXFH_WORDS + entries as usize);
    command.words[RXFH_TABLE_SIZE] = entries;
    let mut words = command.issue(interface).ok()?;
    Some(words.split_off(RXFH_WORDS))
}

/// Set the indirection table; an empty one is the driver's default. Key and function stay.
pub(super) fn set_indirection_table(interface: &str, table: &[u32]) -> io::Result<()> {
    let now = Command::new(GRSSH, RXFH_WORDS).issue(interface)?;
    let mut command = Command::new(SRSSH, RXFH_WORDS + table.len());
    command.words[RXFH_TABLE_SIZE] =
        u32::try_from(table.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // The first byte is the hash function, where 0 means no change. The second, since Linux 6.8, is
    // the transformation of its input, where only the present value means no change.
    let [_, transformation, ..] = now[RXFH_FUNCTION].to_ne_bytes();
    command.words[RXFH_FUNCTION] = u32::from_ne_bytes([0, transformation, 0, 0]);
    command.words[RXFH_WORDS..].copy_from_slice(table);
    command.issue(interface).map(drop)
}

// ---- flow rules ---------------------------------------------------------------------------------

/// struct ethtool_rxnfc: cmd, flow_type, data (64 bits), the flow specification of 168 bytes,
/// rule_cnt, the array of locations. The whole is padded to 192 bytes.
const RXNFC_WORDS: usize = 48;
const RXNFC_FLOW_TYPE: usize = 1;
const RXNFC_DATA: usize = 2;
const RXNFC_COOKIE: usize = (16 + 152) / 4;
const RXNFC_LOCATION: usize = (16 + 160) / 4;
const RXNFC_RULE_COUNT: usize = 184 / 4;
const RXNFC_RULES: usize = 188 / 4;

/// The locations of all flow rules; empty where the NIC takes none.
pub(super) fn rule_locations(interface: &str) -> Vec<u32> {
    let counted = Command::new(GRXCLSRLCNT, RXNFC_WORDS).issue(interface);
    let count = counted.map_or(0, |words| words[RXNFC_RULE_COUNT].min(RULES_MAX));
    if count == 0 {
        return Vec::new();
    }
    let mut command = Command::new(GRXCLSRLALL, RXNFC_WORDS + count as usize);
    command.words[RXNFC_RULE_COUNT] = count;
    let Ok(words) = command.issue(interface) else { return Vec::new() };
    // There may be fewer by now.
    let count = words[RXNFC_RULE_COUNT].min(count) as usize;
    words[RXNFC_RULES..RXNFC_RULES + count].to_vec()
}

/// The target of the rule at this location: a queue in the lower 32 bits, or all ones to drop its
/// frames (RX_CLS_FLOW_DISC). The upper 32 bits name a virtual function, if the frames go to one.
/// None if the rule is gone.
pub(super) fn rule_target(interface: &str, location: u32) -> Option<u64> {
    let mut command = Command::new(GRXCLSRULE, RXNFC_WORDS);
    command.words[RXNFC_LOCATION] = location;
    let words = command.issue(interface).ok()?;
    let cookie = (words[RXNFC_COOKIE], words[RXNFC_COOKIE + 1]);
    Some(u64::from(cookie.0) | u64::from(cookie.1) << 32)
}

/// The fields that the NIC hashes of this type of flow (RXH_ bits); None where it does not say.
pub(super) fn hash_fields(interface: &str, flow_type: u32) -> Option<u32> {
    let mut command = Command::new(GRXFH, RXNFC_WORDS);
    command.words[RXNFC_FLOW_TYPE] = flow_type;
    Some(command.issue(interface).ok()?[RXNFC_DATA])
}
