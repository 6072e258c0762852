//! The choice of the sockets' mode. Only here does zero-copy fall back to copy mode, and packets of
//! several frames to packets of one.

use super::launcher::Handed;
use super::open_sockets::{Binding, SocketError, inherit, open_all};
use super::umem_frame::{FRAGMENTS_MAX, FRAME_PACKET_MAX};
use super::uplink_interface::Interface;
use super::xdp_attachment::{AttachMode, BindMode, ModeWish, XdpAttachment};
use super::xdp_socket::Socket;

/// The sockets of an uplink, and the reasons for their mode.
pub(super) struct Opened {
    pub sockets: Vec<Socket>,
    mode: BindMode,
    reason: String,
}

impl Opened {
    /// The record of it, with the given facts about the program; and the sockets.
    pub fn attachment(self, attach_mode: AttachMode, reason: &str) -> (XdpAttachment, Vec<Socket>) {
        let longest = self.sockets.iter().map(Socket::packet_max).min();
        let attachment = XdpAttachment {
            attach_mode,
            socket_mode: self.mode,
            reason: sentence(&[reason, &self.reason]),
            packet_max: longest.expect("a NIC has a queue"),
        };
        (attachment, self.sockets)
    }
}

/// A way to bind the sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Attempt {
    mode: BindMode,
    /// Most frames of a packet.
    frames: usize,
}

/// Open the sockets of an uplink in the best way that its NIC takes.
///
/// [`SocketError`] of the last attempt. A failure that no other attempt would avoid is returned at
/// once: a queue that has another socket.
pub(super) fn open_best(
    interface: &Interface,
    queues: &[u32],
    wish: ModeWish,
    attached: AttachMode,
) -> Result<Opened, SocketError> {
    const NO_MORE: &str = "the driver takes no more in this mode";
    let mut attempts = attempts(interface, wish, attached).into_iter();
    let mut attempt = attempts.next().expect("there is one for every wish");
    let mut why_mode = why_first(interface, wish, attached, attempt);
    let mut why_one_frame = NO_MORE.to_owned();
    loop {
        let Attempt { mode, frames } = attempt;
        let error = match open_all(interface, queues, Binding { mode: Some(mode), frames }, None) {
            Ok(sockets) => {
                let limit = match frames {
                    1 => format!(
                        "a packet is one frame of {FRAME_PACKET_MAX} bytes at most: {why_one_frame}"
                    ),
                    _ => String::new(),
                };
                return Ok(Opened { sockets, mode, reason: sentence(&[&why_mode, &limit]) });
            }
            Err(error) => error,
        };
        let next = attempts.next().filter(|_| !error.is_busy());
        let (SocketError::Bind { source, .. }, Some(next)) = (&error, next) else {
            return Err(error);
        };
        if next.mode == mode {
            // A kernel before 6.6 does not know the flag for packets of several frames.
            why_one_frame = source.to_string();
        } else {
            why_mode = format!("the driver refused zero-copy: {source}");
            why_one_frame = NO_MORE.to_owned();
        }
        attempt = next;
    }
}

/// The attempts, in their order.
fn attempts(interface: &Interface, wish: ModeWish, attached: AttachMode) -> Vec<Attempt> {
    let possible = attached == AttachMode::Native;
    let zero_copy = match wish {
        ModeWish::ZeroCopy => possible,
        // To try zero-copy costs making the frame memory twice. It takes some tens of milliseconds,
        // in which every guest of a restarted daemon waits.
        ModeWish::Auto => possible && interface.zero_copy_frames > 0,
        ModeWish::Copy | ModeWish::Generic => false,
    };
    let copy = !zero_copy || wish == ModeWish::Auto;
    let modes = [
        (zero_copy, BindMode::ZeroCopy, interface.zero_copy_frames as usize),
        (copy, BindMode::Copy, FRAGMENTS_MAX),
    ];
    let of_mode = |(_, mode, frames): (bool, BindMode, usize)| {
        let widest = (frames > 1).then_some(Attempt { mode, frames });
        widest.into_iter().chain([Attempt { mode, frames: 1 }])
    };
    modes.into_iter().filter(|(tried, ..)| *tried).flat_map(of_mode).collect()
}

/// The reason for the mode of the first attempt.
fn why_first(
    interface: &Interface,
    wish: ModeWish,
    attached: AttachMode,
    first: Attempt,
) -> String {
    match (first.mode, wish, attached) {
        (BindMode::ZeroCopy, ..) => "the driver has zero-copy".to_owned(),
        (BindMode::Copy, ModeWish::Copy, _) => "copy mode as configured".to_owned(),
        (BindMode::Copy, ModeWish::Auto, AttachMode::Native) => {
            format!("driver {} has no zero-copy", interface.driver)
        }
        // A generic program has no zero-copy; the program's own reason says so.
        (BindMode::Copy, ..) => String::new(),
    }
}

/// Open sockets for a launcher's program. A launcher's socket can be bound once, so the kernel
/// itself falls back to copy mode. It also does so if packets are to have more frames than the
/// driver takes.
///
/// # Errors
/// [`SocketError`].
pub(super) fn open_handed(
    interface: &Interface,
    queues: &[u32],
    wish: ModeWish,
    handed: &Handed,
) -> Result<Opened, SocketError> {
    let mode = match wish {
        ModeWish::ZeroCopy => Some(BindMode::ZeroCopy),
        ModeWish::Copy => Some(BindMode::Copy),
        ModeWish::Auto | ModeWish::Generic => None,
    };
    let frames = match (mode, interface.zero_copy_frames as usize) {
        (Some(BindMode::Copy), _) | (None, 0) => FRAGMENTS_MAX,
        (_, frames) => frames.max(1),
    };
    let inherited = match handed {
        Handed::Sockets(numbers) => Some(inherit(numbers)?),
        Handed::Map(_) | Handed::DevicePlugin(_) => None,
    };
    let sockets = open_all(interface, queues, Binding { mode, frames }, inherited)?;
    let mode = sockets.first().and_then(Socket::mode).unwrap_or(BindMode::Copy);
    let reason = "the program is a launcher's; the kernel chose the sockets' mode".to_owned();
    Ok(Opened { sockets, mode, reason })
}

/// The parts that are not empty, joined.
fn sentence(parts: &[&str]) -> String {
    let parts: Vec<&str> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xdp::nic::Device;

    fn interface(zero_copy_frames: u32) -> Interface {
        Interface {
            name: "up0".to_owned(),
            index: 2,
            driver: "ice".to_owned(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            up: true,
            receive_queues: 1,
            zero_copy_frames,
            device: Device::default(),
        }
    }

    #[test]
    fn the_best_mode_that_may_be_had_is_tried_first() {
        let zero_copy = |frames| Attempt { mode: BindMode::ZeroCopy, frames };
        let copy = |frames| Attempt { mode: BindMode::Copy, frames };
        let copies = [copy(FRAGMENTS_MAX), copy(1)];
        let (native, generic) = (AttachMode::Native, AttachMode::Generic);
        let tried = |frames, wish, attached| attempts(&interface(frames), wish, attached);
        assert_eq!(
            tried(8, ModeWish::Auto, native),
            [zero_copy(8), zero_copy(1), copies[0], copies[1]]
        );
        assert_eq!(tried(1, ModeWish::Auto, native), [zero_copy(1), copies[0], copies[1]]);
        assert_eq!(tried(0, ModeWish::Auto, native), copies, "the driver says that it has none");
        assert_eq!(tried(0, ModeWish::ZeroCopy, native), [zero_copy(1)], "or the uplink fails");
        assert_eq!(tried(8, ModeWish::ZeroCopy, native), [zero_copy(8), zero_copy(1)]);
        for (wish, attached) in
            [(ModeWish::Copy, native), (ModeWish::Generic, generic), (ModeWish::Auto, generic)]
        {
            assert_eq!(tried(8, wish, attached), copies, "{wish:?}, {attached:?}");
        }
    }

    #[test]
    fn the_reason_names_what_decided() {
        let why = |frames, wish, attached| {
            let nic = interface(frames);
            why_first(&nic, wish, attached, attempts(&nic, wish, attached)[0])
        };
        let (native, generic) = (AttachMode::Native, AttachMode::Generic);
        assert_eq!(why(1, ModeWish::Auto, native), "the driver has zero-copy");
        assert_eq!(why(0, ModeWish::Auto, native), "driver ice has no zero-copy");
        assert_eq!(why(8, ModeWish::Copy, native), "copy mode as configured");
        assert_eq!(why(8, ModeWish::Auto, generic), "", "said of the program already");
        assert_eq!(sentence(&["", "a", "", "b"]), "a; b");
    }
}
