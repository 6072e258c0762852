# shellcheck shell=bash
# What the scripts share: messages, packages, the guest's files, namespaces.
#
# To be sourced by a script that has set -euo pipefail. Defines functions and the variables
# `root` (the repository) and `guest_directory`; does nothing by itself.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
guest_directory=$root/cache/guest

# What `cargo build` needs, and what the tests and the demo run.
# shellcheck disable=SC2034 # used by the scripts that source this file
build_packages=(build-essential clang llvm libclang-dev libbpf-dev libelf-dev zlib1g-dev m4
    pkg-config)
# shellcheck disable=SC2034 # likewise
run_packages=(qemu-system-x86 ipxe-qemu seabios dpdk-dev iproute2 ethtool iperf3 busybox-static
    cpio kmod iputils-ping socat python3 procps util-linux zstd lz4 libvirt0 libxml2-utils tshark)

say() { printf '%s\n' "$*" >&2; }

die() {
    say "${0##*/}: $*"
    exit 1
}

require_root() {
    [[ $(id --user) == 0 ]] || die "must run as root: it makes network namespaces and loads XDP" \
        "programs; try sudo $0"
}

# cargo is often only in the home directory of whoever installed it.
require_rust() {
    [[ -d ${CARGO_HOME:-$HOME/.cargo}/bin ]] && PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    local needed version
    needed=$(sed --quiet 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")
    command -v cargo >/dev/null ||
        die "no cargo in PATH: install Rust $needed or later, https://rustup.rs"
    version=$(cargo --version | cut --delimiter=' ' --fields=2)
    printf '%s\n' "$needed" "$version" | sort --version-sort --check=quiet ||
        die "cargo $version is too old: isonic needs $needed or later; run rustup update stable"
}

missing_packages() {
    local package status
    for package in "$@"; do
        status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>&1) || true
        [[ $status == installed ]] || printf '%s\n' "$package"
    done
}

# Installs what is missing of the named Debian packages; silent and fast when nothing is.
install_packages() {
    local -a missing
    mapfile -t missing < <(missing_packages "$@")
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null || die "needs Debian 12 (no apt-get here); install: ${missing[*]}"
    say "installing ${missing[*]}"
    quiet apt-get update
    DEBIAN_FRONTEND=noninteractive \
        quiet apt-get install --yes --no-install-recommends "${missing[@]}"
}

# Runs a command and shows its output only if it fails.
quiet() {
    local log status=0
    log=$(mktemp)
    "$@" >"$log" 2>&1 || status=$?
    ((status == 0)) || cat "$log" >&2
    rm --force "$log"
    return "$status"
}

# Waits until a command succeeds: wait_for SECONDS COMMAND...
wait_for() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

# Which accelerator boots our guest here: kvm, or tcg where there is no KVM or where it is broken.
# The answer holds until the machine or its image changes.
guest_accelerator() {
    local stamp=$guest_directory/accelerator key
    key=$(cat /proc/sys/kernel/random/boot_id "$guest_directory/stamp" | sha256sum |
        cut --delimiter=' ' --fields=1)
    if [[ ! -e $stamp || $(cut --delimiter=' ' --fields=2 "$stamp") != "$key" ]]; then
        if kvm_boots; then echo "kvm $key"; else echo "tcg $key"; fi >"$stamp"
    fi
    cut --delimiter=' ' --fields=1 "$stamp"
}

# /dev/kvm may exist and still not run a guest (nested or paravirtual KVM), so boot one.
kvm_boots() {
    [[ -r /dev/kvm && -w /dev/kvm ]] || return 1
    local console pid status=0
    console=$(mktemp)
    qemu-system-x86_64 -machine q35 -accel kvm -cpu host -m 256 -nodefaults -display none \
        -kernel "$guest_directory/vmlinux" -initrd "$guest_directory/initrd" \
        -no-reboot -append "console=ttyS0 quiet panic=-1" -serial "file:$console" >/dev/null 2>&1 &
    pid=$!
    wait_for 10 kvm_probe_ended "$pid" "$console" || true
    grep --quiet GUEST-UP "$console" || status=1
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
    rm --force "$console"
    return "$status"
}

kvm_probe_ended() { grep --quiet GUEST-UP "$2" || ! kill -0 "$1" 2>/dev/null; }
