//! CONFIG: what the administrator wants: `isonic.toml`, or one port from the command line.
//!
//! Everything is checked before anything is touched, and all mistakes are told at once, each with
//! its line ([`load`]). One function checks what ports may share, in a file and when a port is
//! added at run time ([`port_problems`]).
//!
//! Pure but for the reading of the file and of the profile directory it names. It does not look at
//! the host: the daemon finds out whether an interface or a queue exists.
//!
//! Its files, each above those that it imports: `types`, `rules` (what a port must be, and may
//! share), `load` (the file).

#![forbid(unsafe_code)]

mod load;
mod rules;
mod types;

pub use load::{ConfigError, RUNTIME_DIR, load, parse};
pub use rules::{
    HandedProblem, PortProblem, SOCKET_PATH_MAX, host_address_problem, is_port_name, names_a_file,
    port_differences, port_problems, resolve_profile, uplink_problems,
};
pub use types::{
    Attach, Config, Handed, MEMORY_MAX_GIB, MemoryFiles, PortConfig, RunOptions, SocketMode,
    SocketPermissions, UplinkConfig, UplinkMode, UplinkSteering, WordError, steering_note,
};
