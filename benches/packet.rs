//! The cost of frames as bytes: checksums, segmentation, coalescing, flows.
//!
//! No payload is copied: the cost of carrying a segment to its place is in the bench `datapath`.
//! The bytes are in the cache.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use etherparse::{PacketBuilder, TcpHeader};
use isonic::packet::{Offload, TcpSegment, Train, checksum, flow_hash, segment};

/// Payload of a segment at an MTU of 1500, with time stamps.
const SIZE: u16 = 1448;
/// Segments in the longest packet.
const SEGMENTS: u16 = 44;

/// The `number`th segment of a flow.
fn nth(number: u16) -> Vec<u8> {
    let sequence = u32::from(number) * u32::from(SIZE);
    let mut header = TcpHeader::new(40000, 443, sequence, 512);
    header.set_options_raw(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]).unwrap();
    header.ack = true;
    let mut ip = etherparse::Ipv4Header::default();
    (ip.source, ip.destination, ip.time_to_live) = ([10, 0, 0, 1], [10, 0, 0, 2], 64);
    ip.identification = number;
    let ip = etherparse::IpHeaders::Ipv4(ip, etherparse::Ipv4Extensions::default());
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let mut frame = Vec::new();
    builder.ip(ip).tcp_header(header).write(&mut frame, &[0x5a; SIZE as usize]).unwrap();
    frame
}

/// All of them in one train.
fn coalesce(frames: &[Vec<u8>]) -> Train {
    let first = TcpSegment::parse(&frames[0], |_| true).unwrap();
    let mut train = Train::start(0, &frames[0], &first);
    for (token, frame) in (0..).zip(frames).skip(1) {
        let segment = TcpSegment::parse(frame, |_| true).unwrap();
        black_box(train.push(token, frame, &segment));
    }
    train
}

/// The merged frame, and the offload that remains.
fn merged(frames: &[Vec<u8>]) -> (Vec<u8>, Offload) {
    let mut train = coalesce(frames);
    assert_eq!(train.pieces().len(), frames.len());
    let (headers, offload) = train.headers();
    let payload = frames.iter().flat_map(|frame| &frame[headers.len()..]);
    let frame = headers.iter().chain(payload).copied().collect();
    (frame, offload)
}

fn packet(criterion: &mut Criterion) {
    let frames: Vec<_> = (0..SEGMENTS).map(nth).collect();
    let (whole, offload) = merged(&frames);
    let (what, partial) = (offload.segmentation.unwrap(), offload.checksum.unwrap());
    let mut group = criterion.benchmark_group("packet");

    group.throughput(Throughput::Bytes(1500));
    let bytes = vec![0x5a; 1500];
    group.bench_function("sum", |bencher| bencher.iter(|| checksum::sum(black_box(&bytes))));

    group.throughput(Throughput::Elements(1));
    group.bench_function("flow_hash", |bencher| bencher.iter(|| flow_hash(black_box(&frames[0]))));

    group.throughput(Throughput::Bytes(u64::try_from(whole.len()).unwrap()));
    group.bench_function("segment", |bencher| {
        bencher.iter(|| {
            segment(black_box(&whole), &what, partial, 0, |headers, payload| {
                black_box((headers, payload));
            })
        });
    });
    group.bench_function("coalesce", |bencher| {
        bencher.iter(|| {
            let mut train = coalesce(black_box(&frames));
            black_box(train.headers());
        });
    });
    group.finish();
}

criterion_group!(benches, packet);
criterion_main!(benches);
