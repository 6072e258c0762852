//! Settings that decide when polling replaces a NIC's interrupts.
//!
//! Each NAPI instance has its own over the netdev netlink family (the kernel's
//! Documentation/netlink/specs/netdev.yaml, since Linux 6.13). The whole NIC has them in sysfs
//! (Documentation/ABI/testing/sysfs-class-net, since 5.8).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP};
use serde::{Deserialize, Serialize};

use super::netdev::{NetdevMessage, ask};

/// The settings for how long interrupts stay off after a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deferral {
    /// Polls that find nothing before interrupts are on again.
    pub defer_hard_irqs: u64,
    /// After this time without a poll the kernel polls by itself, ns.
    pub gro_flush_timeout: u64,
    /// As `gro_flush_timeout`, ns, but while the poller finds packets by epoll(7); 0 for no
    /// difference. Only an instance has it.
    #[serde(default)]
    pub irq_suspend_timeout: u64,
}

/// One NAPI instance: one queue or a few that are polled together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Napi {
    /// Its number, unique on the host.
    pub id: u64,
    /// Its settings.
    pub deferral: Deferral,
}

// ---- each instance ------------------------------------------------------------------------------

// linux/netdev.h.
const NAPI_GET: u8 = 11;
const NAPI_SET: u8 = 14;
const NAPI_IFINDEX: u16 = 1;
const NAPI_ID: u16 = 2;
const NAPI_DEFER_HARD_IRQS: u16 = 5;
const NAPI_GRO_FLUSH_TIMEOUT: u16 = 6;
const NAPI_IRQ_SUSPEND_TIMEOUT: u16 = 7;

/// The instances of the NIC with this index; none on a kernel whose instances have no settings of
/// their own.
///
/// # Errors
/// The kernel's; for example, there is no such NIC.
pub fn instances(index: u32) -> io::Result<Vec<Napi>> {
    let question = NetdevMessage::new(NAPI_GET, &[(NAPI_IFINDEX, index.into())]);
    let answers = ask(question, NLM_F_DUMP)?;
    Ok(answers.iter().filter_map(napi).collect())
}

/// Give an instance these settings. It takes CAP_NET_ADMIN.
pub(super) fn set_instance(napi: Napi) -> io::Result<()> {
    let Deferral { defer_hard_irqs, gro_flush_timeout, irq_suspend_timeout } = napi.deferral;
    let request = NetdevMessage::new(
        NAPI_SET,
        &[
            (NAPI_ID, napi.id),
            (NAPI_DEFER_HARD_IRQS, defer_hard_irqs),
            (NAPI_GRO_FLUSH_TIMEOUT, gro_flush_timeout),
            (NAPI_IRQ_SUSPEND_TIMEOUT, irq_suspend_timeout),
        ],
    );
    ask(request, NLM_F_ACK).map(drop)
}

fn napi(answer: &NetdevMessage) -> Option<Napi> {
    let deferral = Deferral {
        defer_hard_irqs: answer.number(NAPI_DEFER_HARD_IRQS)?,
        gro_flush_timeout: answer.number(NAPI_GRO_FLUSH_TIMEOUT)?,
        irq_suspend_timeout: answer.number(NAPI_IRQ_SUSPEND_TIMEOUT)?,
    };
    Some(Napi { id: answer.number(NAPI_ID)?, deferral })
}

// ---- the whole NIC ------------------------------------------------------------------------------

const DEFER_HARD_IRQS: &str = "napi_defer_hard_irqs";
const GRO_FLUSH_TIMEOUT: &str = "gro_flush_timeout";

/// The settings that all instances of a NIC have, or had before one was given its own.
pub(super) fn of_device(interface: &str) -> io::Result<Deferral> {
    let number = |name| {
        let text = fs::read_to_string(file(interface, name))?;
        text.trim().parse().map_err(io::Error::other)
    };
    Ok(Deferral {
        defer_hard_irqs: number(DEFER_HARD_IRQS)?,
        gro_flush_timeout: number(GRO_FLUSH_TIMEOUT)?,
        irq_suspend_timeout: 0,
    })
}

/// Give all instances these settings. The process must be allowed to write root's files.
pub(super) fn set_device(interface: &str, deferral: Deferral) -> io::Result<()> {
    fs::write(file(interface, GRO_FLUSH_TIMEOUT), deferral.gro_flush_timeout.to_string())?;
    fs::write(file(interface, DEFER_HARD_IRQS), deferral.defer_hard_irqs.to_string())
}

fn file(interface: &str, name: &str) -> PathBuf {
    Path::new("/sys/class/net").join(interface).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_read_whole_or_not_at_all() {
        let numbers = [
            (NAPI_ID, 8193),
            (NAPI_DEFER_HARD_IRQS, 2),
            (NAPI_GRO_FLUSH_TIMEOUT, 9),
            (NAPI_IRQ_SUSPEND_TIMEOUT, 11),
        ];
        let deferral =
            Deferral { defer_hard_irqs: 2, gro_flush_timeout: 9, irq_suspend_timeout: 11 };
        let answer = NetdevMessage::new(NAPI_GET, &numbers);
        assert_eq!(napi(&answer), Some(Napi { id: 8193, deferral }));
        // Linux before 6.13 names its instances without settings.
        assert_eq!(napi(&NetdevMessage::new(NAPI_GET, &numbers[..1])), None);
    }
}
