//! The configuration, typed. A [`PortConfig`] is a `[[ports]]` table of the file, the body of an
//! API request, and a line of the state file.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::device::groups::ForwardGroups;
use crate::device::mac::MacAddress;
use crate::platform::machine_id;

/// A word that is none of the possible ones.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{word}\" is not known here; write {possible}")]
pub struct WordError {
    word: String,
    possible: &'static str,
}

impl WordError {
    fn new(word: &str, possible: &'static str) -> Self {
        Self { word: word.to_owned(), possible }
    }
}

/// Who listens on a port's socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SocketMode {
    /// We do; the front-end connects.
    #[default]
    Server,
    /// The front-end does; we connect, again and again until it is there.
    Client,
}

impl FromStr for SocketMode {
    type Err = WordError;

    fn from_str(word: &str) -> Result<Self, WordError> {
        match word {
            "server" => Ok(Self::Server),
            "client" => Ok(Self::Client),
            _ => Err(WordError::new(word, "server or client")),
        }
    }
}

impl fmt::Display for SocketMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server => "server",
            Self::Client => "client",
        })
    }
}

/// How a port is joined to its uplink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Attach {
    /// Many ports on one uplink, told apart by MAC, with delivery between them.
    #[default]
    Switch,
    /// Queues of the uplink belong to this port alone; frames pass unparsed.
    Wire,
}

impl FromStr for Attach {
    type Err = WordError;

    fn from_str(word: &str) -> Result<Self, WordError> {
        match word {
            "switch" => Ok(Self::Switch),
            "wire" => Ok(Self::Wire),
            _ => Err(WordError::new(word, "switch or wire")),
        }
    }
}

impl fmt::Display for Attach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Switch => "switch",
            Self::Wire => "wire",
        })
    }
}

/// How AF_XDP is bound to an uplink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UplinkMode {
    /// The best the driver has: zero-copy, else copy, else generic.
    #[default]
    Auto,
    /// Zero-copy or nothing.
    Zerocopy,
    /// The driver's own XDP hook, with a copy.
    Copy,
    /// The kernel's generic XDP hook, for drivers without one.
    Generic,
}

impl FromStr for UplinkMode {
    type Err = WordError;

    fn from_str(word: &str) -> Result<Self, WordError> {
        match word {
            "auto" => Ok(Self::Auto),
            "zerocopy" => Ok(Self::Zerocopy),
            "copy" => Ok(Self::Copy),
            "generic" => Ok(Self::Generic),
            _ => Err(WordError::new(word, "auto, zerocopy, copy or generic")),
        }
    }
}

/// The treatment of queues that receive and have no socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UplinkSteering {
    /// They are found and told.
    #[default]
    Check,
    /// The NIC's indirection table is set so that there are none, and put back in the end.
    Set,
}

impl FromStr for UplinkSteering {
    type Err = WordError;

    fn from_str(word: &str) -> Result<Self, WordError> {
        match word {
            "check" => Ok(Self::Check),
            "set" => Ok(Self::Set),
            _ => Err(WordError::new(word, "check or set")),
        }
    }
}

/// The files that front-ends may share as their guests' memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemoryFiles {
    /// memfd, tmpfs and hugetlbfs.
    #[default]
    Shared,
    /// Any: a worker waits for their file systems.
    Any,
}

impl FromStr for MemoryFiles {
    type Err = WordError;

    fn from_str(word: &str) -> Result<Self, WordError> {
        match word {
            "shared" => Ok(Self::Shared),
            "any" => Ok(Self::Any),
            _ => Err(WordError::new(word, "shared or any")),
        }
    }
}

/// The permission bits of a socket file, written in octal: `0660`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SocketPermissions(pub u32);

impl SocketPermissions {
    /// A socket file's permissions by default.
    pub const OWNER_ONLY: Self = Self(0o600);
}

impl FromStr for SocketPermissions {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let refused = || WordError::new(text, "permissions in octal, such as \"0660\"");
        let octal = (3..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        let bits = u32::from_str_radix(text, 8).map_err(|_not_octal| refused())?;
        if octal && bits <= 0o777 { Ok(Self(bits)) } else { Err(refused()) }
    }
}

impl fmt::Display for SocketPermissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl TryFrom<String> for SocketPermissions {
    type Error = WordError;

    fn try_from(text: String) -> Result<Self, WordError> {
        text.parse()
    }
}

impl From<SocketPermissions> for String {
    fn from(permissions: SocketPermissions) -> Self {
        permissions.to_string()
    }
}

/// One port: a VM's virtio-net device on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortConfig {
    /// 1 to 63 letters, digits, `.`, `_` and `-`.
    pub name: String,
    /// The vhost-user socket, an absolute path.
    pub socket: PathBuf,
    /// Who listens on it.
    #[serde(default)]
    pub mode: SocketMode,
    /// The profile that is bound when a front-end connects: a name or a list of values
    /// ([`crate::profile::Catalog::resolve`]).
    pub profile: String,
    /// Whether the profile may be a draft, which can change under the guest.
    #[serde(default, skip_serializing_if = "is_false")]
    pub allow_draft: bool,
    /// The interface behind the port.
    pub uplink: String,
    /// How it is joined to it.
    #[serde(default)]
    pub attach: Attach,
    /// The guest's address; [`PortConfig::mac`] has the one in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// For a wire port, the uplink's queues that are its own; all if None.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queues: Option<Vec<u32>>,
    /// The group that owns the socket file, by name or number; unchanged if None.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_group: Option<String>,
    /// The socket file's permissions; 0600 if None.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_permissions: Option<SocketPermissions>,
    /// The owner, which made the port and will remove it, such as a VM's UUID. It means nothing to
    /// us: a manager of ports knows its own ports by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for this form")]
fn is_false(flag: &bool) -> bool {
    !flag
}

impl PortConfig {
    /// The guest's address: the one given, or one derived from this host's identity and the name.
    #[must_use]
    pub fn mac(&self) -> MacAddress {
        self.mac.unwrap_or_else(|| MacAddress::derived(machine_id(), &self.name))
    }
}

/// One interface with AF_XDP sockets on its queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkConfig {
    /// The interface's name.
    pub interface: String,
    /// The queues to take; all if None.
    pub queues: Option<Vec<u32>>,
    /// How AF_XDP is bound to them.
    pub mode: UplinkMode,
    /// Merge received TCP segments for guests that take large packets (software GRO).
    pub coalesce: bool,
    /// Reserved groups that are forwarded between switch ports and the wire.
    pub forward_groups: ForwardGroups,
    /// Join the host itself to the VMs of this interface.
    pub host: bool,
    /// Serve no port while the link is down, so that guests see theirs down.
    pub link_to_guests: bool,
    /// Have the workers' own calls drive the NIC, at most so many packets a call; interrupts do if
    /// None.
    pub busy_poll: Option<u16>,
    /// Keep the NIC's interrupts off for longer while it is polled and has packets.
    pub irq_suspend: bool,
    /// The treatment of queues that receive and have no socket.
    pub steering: UplinkSteering,
    /// The resource that a launcher hands in whose XDP program is on the NIC; None if ours is.
    pub handed: Option<Handed>,
}

/// The resource that a privileged launcher hands in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handed {
    /// `socket_fds`: AF_XDP sockets made for `queues`, in their order, by their descriptors.
    Sockets(Vec<u32>),
    /// `map`: the XSKMAP of its program, pinned.
    Map(PathBuf),
    /// `device_plugin`: where the AF_XDP device plugin for Kubernetes gives that map.
    DevicePlugin(PathBuf),
}

impl UplinkConfig {
    /// An uplink with no setting but its interface.
    #[must_use]
    pub fn of(interface: &str) -> Self {
        Self {
            interface: interface.to_owned(),
            queues: None,
            mode: UplinkMode::default(),
            coalesce: true,
            forward_groups: ForwardGroups::NONE,
            host: false,
            link_to_guests: false,
            busy_poll: None,
            irq_suspend: false,
            steering: UplinkSteering::default(),
            handed: None,
        }
    }

    /// The queues of a launcher's sockets are the first ones unless it says otherwise.
    pub(crate) fn count_queues(&mut self) {
        if let (None, Some(Handed::Sockets(fds))) = (&self.queues, &self.handed) {
            self.queues = Some((0..).take(fds.len()).collect());
        }
    }
}

/// GiB of memory that one port's front-end may share by default: more than most hosts have.
pub const MEMORY_MAX_GIB: u32 = 4096;

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The API's socket; None for a daemon without one.
    pub api_socket: Option<PathBuf>,
    /// The directory of ports added at run time; None for a daemon that forgets them.
    pub state_dir: Option<PathBuf>,
    /// The directory of state that must outlive the process, but not the host. None for a daemon
    /// under which packed rings do not survive a restart.
    pub runtime_dir: Option<PathBuf>,
    /// A directory of profiles beside the released ones.
    pub profile_dir: Option<PathBuf>,
    /// The file in which the list of profiles is published; None for a daemon that does not.
    pub profiles_file: Option<PathBuf>,
    /// Threads that move packets.
    pub workers: usize,
    /// The CPU of each worker; chosen by the daemon if None.
    pub worker_cpus: Option<Vec<usize>>,
    /// The files that may be a guest's memory.
    pub memory_files: MemoryFiles,
    /// GiB of memory that one port's front-end may share.
    pub memory_max_gib: u32,
    /// The interfaces.
    pub uplinks: Vec<UplinkConfig>,
    /// The ports that are always there.
    pub ports: Vec<PortConfig>,
}

/// The file, under the runtime directory, that records an interface's indirection table as it was
/// before it was set.
#[must_use]
pub fn steering_note(runtime_dir: &Path, interface: &str) -> PathBuf {
    runtime_dir.join("steering").join(interface)
}

/// The options of `isonic run` beside the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunOptions {
    /// `--fd`: the inherited descriptor that is the only port's socket, listening or connected.
    /// The port's `socket` is then no file.
    pub socket_fd: Option<i32>,
}
