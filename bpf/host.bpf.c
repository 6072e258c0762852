// SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause)
//
// How the host and its own VMs reach each other on a NIC that they share (`host = true`).
//
// The NIC does not send to itself, so what one has for the other goes through a TAP device of
// isonic's, which the host's stack never uses by itself:
//
//   isonic_offer      on the NIC, sending: what the host sends to a VM's MAC goes to the device
//                     and not to the wire; of multicast the device gets a copy
//   isonic_admit      on the device, sending: nothing but that
//   isonic_deliver    on the device, receiving: what isonic has for the host is received as if
//                     from the wire
//   isonic_multicast  on isonic's packet socket, which brings the wire's multicast to the VMs:
//                     not what a VM has just sent to the host

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#define MACS_MAX 4096

// In tc_index, which means nothing outside of one device's queueing: passed through the device.
#define PASSED 0x1500

// Set before the programs are loaded: the indices of the NIC and of the device.
const volatile __u32 nic;
const volatile __u32 device;

// The map of redirect.bpf.c.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MACS_MAX);
	__type(key, __u64);
	__type(value, __u8);
} macs SEC(".maps");

// For TC_ACT_UNSPEC the next program decides, and after the last one the frame goes on.

SEC("tc")
int isonic_offer(struct __sk_buff *skb)
{
	__u64 mac = 0;

	if (bpf_skb_load_bytes(skb, 0, &mac, ETH_ALEN))
		return TC_ACT_UNSPEC;
	if (*(__u8 *)&mac & 1) {
		__u16 before = skb->tc_index;

		skb->tc_index = PASSED;
		bpf_clone_redirect(skb, device, 0);
		skb->tc_index = before;
		return TC_ACT_UNSPEC;
	}
	if (!bpf_map_lookup_elem(&macs, &mac))
		return TC_ACT_UNSPEC;
	skb->tc_index = PASSED;
	return bpf_redirect(device, 0);
}

SEC("tc")
int isonic_admit(struct __sk_buff *skb)
{
	return skb->tc_index == PASSED ? TC_ACT_UNSPEC : TC_ACT_SHOT;
}

SEC("tc")
int isonic_deliver(struct __sk_buff *skb)
{
	skb->tc_index = PASSED;
	return bpf_redirect(nic, BPF_F_INGRESS);
}

SEC("socket")
int isonic_multicast(struct __sk_buff *skb)
{
	__u8 first;

	if (skb->tc_index == PASSED || bpf_skb_load_bytes(skb, 0, &first, 1))
		return 0;
	return first & 1 ? -1 : 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
