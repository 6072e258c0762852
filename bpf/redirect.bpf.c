// SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause)
//
// Which frames of the NIC come to isonic, and which stay with the host.
//
// The verdict depends on how the receive queue is used:
//
//   wire     the queue belongs to one VM: every frame comes to us, unparsed
//   shared   frames to a VM's MAC come to us; all others pass to the host. Broadcast and
//            multicast pass too, so that the host keeps its own (ARP, neighbour discovery): the
//            daemon gets its copy of those from a packet socket on the same NIC.
//
// A frame for us that cannot be redirected (its queue has no socket) passes to the host. Every
// frame is counted under one verdict.
//
// "xdp.frags": a driver may hand over a jumbo frame in several buffers (Linux 5.18). data to
// data_end is then the first of them only; the Ethernet header, all that is read, is always there.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#define QUEUES_MAX 256
#define MACS_MAX 4096

enum queue_use { QUEUE_SHARED = 0, QUEUE_WIRE = 1 };
enum verdict { REDIRECTED = 0, PASSED = 1, NO_SOCKET = 2, VERDICTS };

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, QUEUES_MAX);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, QUEUES_MAX);
	__type(key, __u32);
	__type(value, __u32);
} queue_uses SEC(".maps");

// The VMs' MACs, six bytes and two of padding.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MACS_MAX);
	__type(key, __u64);
	__type(value, __u8);
} macs SEC(".maps");

// How many frames met which verdict.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, VERDICTS);
	__type(key, __u32);
	__type(value, __u64);
} verdicts SEC(".maps");

static __always_inline void count(__u32 verdict)
{
	__u64 *frames = bpf_map_lookup_elem(&verdicts, &verdict);

	if (frames)
		(*frames)++;
}

static __always_inline int is_for_a_vm(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	__u64 mac = 0;

	if ((void *)(eth + 1) > data_end)
		return 0;
	if (eth->h_dest[0] & 1)
		return 0;
	__builtin_memcpy(&mac, eth->h_dest, ETH_ALEN);
	return bpf_map_lookup_elem(&macs, &mac) != 0;
}

SEC("xdp.frags")
int isonic_redirect(struct xdp_md *ctx)
{
	__u32 queue = ctx->rx_queue_index;
	__u32 *use = bpf_map_lookup_elem(&queue_uses, &queue);
	int action;

	if (!(use && *use == QUEUE_WIRE) && !is_for_a_vm(ctx)) {
		count(PASSED);
		return XDP_PASS;
	}
	action = bpf_redirect_map(&sockets, queue, XDP_PASS);
	count(action == XDP_REDIRECT ? REDIRECTED : NO_SOCKET);
	return action;
}

char _license[] SEC("license") = "Dual BSD/GPL";
