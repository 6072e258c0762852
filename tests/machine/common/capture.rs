//! The frames on the wire, recorded whole and judged by Wireshark, which shares no code with ours.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::{Bed, PacketSocket, Process, run, wait_for};

/// A running capture on the wire's end of an uplink; ended on drop.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    file: PathBuf,
    /// For the frame that says that all before it is recorded.
    socket: PacketSocket,
}

/// The frame that ends a recording: to nobody, of the type for experiments (IEEE 802, 9.2.4).
const LAST: &[u8; 60] = b"\x02\xff\0\0\0\x01\x02\xff\0\0\0\x02\x88\xb5\
    no frame before this one is still under way...";

/// Wireshark's description of one TCP segment.
#[derive(Clone, Debug)]
pub struct TcpFrame {
    /// Who sent it.
    pub from: IpAddr,
    /// Its VLAN, if it has a tag.
    pub vlan: Option<u16>,
    /// Bytes, Ethernet header included.
    pub len: usize,
    /// Its TCP checksum, and that of its IPv4 header.
    pub checksums: Checksums,
}

/// The result of computing the checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksums {
    /// Right.
    Good,
    /// 0xffff where RFC 1624 has zero. Receivers take both; Linux sends it (`CSUM_MANGLED_0` in its
    /// `skb_checksum_help`).
    OtherZero,
    /// Wrong, or there is none.
    Bad,
}

impl Capture {
    /// Starts to record the frames that pass `isonic-peerN`.
    pub fn start(bed: &Bed, uplink: usize) -> Self {
        let file = bed.path("wire.pcap");
        let _ = std::fs::remove_file(&file);
        let words =
            format!("dumpcap -q -i {} -s 0 -B 64 -w {}", bed.uplinks[uplink].peer, file.display());
        let command_line: Vec<String> = words.split(' ').map(str::to_owned).collect();
        let log = bed.path("dumpcap.log");
        let mut process = Process::start("dumpcap", bed.wire.name(), &command_line, &log);
        wait_for("dumpcap records", 20, || {
            if let Some(status) = process.ended() {
                panic!("dumpcap ended with {status}");
            }
            // It writes the file's head when all is set up.
            std::fs::metadata(&file).is_ok_and(|file| file.len() > 0)
        });
        let peer = &bed.uplinks[uplink].peer;
        let socket = PacketSocket::open(&bed.wire, peer, Duration::from_secs(1));
        Self { process, file, socket }
    }

    /// Ends it: all TCP segments that it has seen. Panics if it has lost some.
    pub fn tcp_frames(mut self) -> Vec<TcpFrame> {
        self.socket.send(LAST);
        wait_for("dumpcap has recorded all", 20, || {
            let recorded = std::fs::read(&self.file).expect("capture file");
            recorded.windows(LAST.len()).rev().any(|frame| frame == LAST)
        });
        self.process.terminate();
        let log = self.process.log();
        let all = log.lines().rfind(|line| line.contains("received/dropped"));
        let none_lost = all.is_some_and(|line| line.contains("/0 (pcap:0/"));
        assert!(none_lost, "dumpcap lost packets, or does not say: {log}");
        let mut tshark = Command::new("tshark");
        tshark.arg("-r").arg(&self.file).args(["-Y", "tcp", "-T", "fields", "-E", "separator=,"]);
        for preference in [
            "ip.check_checksum:TRUE",
            "tcp.check_checksum:TRUE",
            "tcp.desegment_tcp_streams:FALSE",
            "tcp.try_heuristic_first:FALSE",
        ] {
            tshark.args(["-o", preference]);
        }
        for field in [
            "ip.src",
            "ipv6.src",
            "vlan.id",
            "frame.len",
            "ip.checksum.status",
            "tcp.checksum.status",
            "tcp.checksum.ffff",
        ] {
            tshark.args(["-e", field]);
        }
        run(&mut tshark).lines().map(parse).collect()
    }
}

fn parse(line: &str) -> TcpFrame {
    let fields: Vec<&str> = line.split(',').collect();
    let [ipv4, ipv6, vlan, len, ip_status, tcp_status, other_zero] = fields[..] else {
        panic!("tshark: {line:?}")
    };
    // 1 is "Good"; IPv6 has no checksum of its own.
    let ip_is_good = ip_status == "1" || (ipv4.is_empty() && ip_status.is_empty());
    let checksums = match (ip_is_good, tcp_status, other_zero) {
        (true, "1", "") => Checksums::Good,
        (true, _, text) if !text.is_empty() => Checksums::OtherZero,
        _ => Checksums::Bad,
    };
    let from = if ipv4.is_empty() { ipv6 } else { ipv4 };
    TcpFrame {
        from: from.parse().unwrap_or_else(|_| panic!("tshark: {line:?}")),
        vlan: vlan.parse().ok(),
        len: len.parse().unwrap_or_else(|_| panic!("tshark: {line:?}")),
        checksums,
    }
}
