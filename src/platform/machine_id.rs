//! The identity of this host.

use std::sync::OnceLock;

/// The identifier that distinguishes this host from others (machine-id(5)); empty where there is
/// none.
#[must_use]
pub fn machine_id() -> &'static str {
    static ID: OnceLock<String> = OnceLock::new();
    ID.get_or_init(|| {
        let text = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
        text.trim().to_owned()
    })
}
