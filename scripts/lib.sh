# shellcheck shell=bash
# What the scripts share: messages, packages, the guest's files, namespaces.
#
# To be sourced by a script that has set -euo pipefail. Defines functions and the variables
# `root` (the repository) and `guest_directory`; does nothing by itself.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
guest_directory=$root/cache/guest

# What `cargo build` needs, and what the tests and the demo run.
# shellcheck disable=SC2034 # used by the scripts that source this file
build_packages=(build-essential clang llvm libbpf-dev libelf-dev zlib1g-dev pkg-config)
# shellcheck disable=SC2034 # likewise
run_packages=(qemu-system-x86 ipxe-qemu seabios dpdk-dev iproute2 bpftool ethtool iperf3
    busybox-static cpio kmod iputils-ping socat python3 procps util-linux zstd lz4 xz-utils
    libvirt0 libxml2-utils tshark systemd)
# What shows isonic with libvirt runs besides. Debian starts the machine's own libvirtd with it.
# shellcheck disable=SC2034 # likewise
libvirt_packages=(libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients)

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

# Packages of a later suite, to be unpacked and never installed. apt's own configuration is neither
# read for it nor changed: all is below $work, a directory of the script's that uses this.
backports=bookworm-backports

# apt-get and apt-cache with one source and directories of their own.
# shellcheck disable=SC2154 # $work is as said above
apt_beside() {
    local command=$1
    shift
    "$command" --option "Dir::Etc::SourceList=$work/sources.list" \
        --option "Dir::Etc::SourceParts=$work/none" --option "Dir::State::Lists=$work/lists" \
        --option "Dir::Cache=$work/cache" --option APT::Sandbox::User=root \
        --option Acquire::Retries=3 --option APT::Update::Error-Mode=any "$@"
}

# Where a suite is, or where it goes when Debian archives it. Signed like everything of Debian's.
find_suite() {
    local suite=$1 mirror options
    mkdir --parents "$work"/{none,packages} "$work"/{lists,cache/archives}/partial
    for mirror in http://deb.debian.org/debian http://archive.debian.org/debian; do
        options=signed-by=/usr/share/keyrings/debian-archive-keyring.gpg
        # An archived suite is not signed anew.
        [[ $mirror == *archive* ]] && options+=" check-valid-until=no"
        echo "deb [$options] $mirror $suite main" >"$work/sources.list"
        quiet apt_beside apt-get update && return
    done
    die "no mirror has $suite"
}

# Packages of the suite that was found, into $work/packages.
download_packages() {
    (cd "$work/packages" && quiet apt_beside apt-get download "$@")
}

# Copies a program, and the libraries that it loads, into a tree.
copy_program() {
    local tree=$1 program=$2 library
    cp --dereference "$program" "$tree/bin/"
    ldd "$program" | grep --only-matching '/[^ ]*' | while read -r library; do
        mkdir --parents "$tree$(dirname "$library")"
        cp --dereference "$library" "$tree$library"
    done
}

# The files below a directory as an initrd.
pack_initrd() { (cd "$1" && find . | cpio --create --format=newc --quiet); }

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
        -no-reboot -append "console=ttyS0 quiet panic=-1" -serial "file:$console" \
        -chardev null,id=agent -device virtio-serial-pci -device virtserialport,chardev=agent \
        >/dev/null 2>&1 &
    pid=$!
    wait_for 10 kvm_probe_ended "$pid" "$console" || true
    grep --quiet GUEST-UP "$console" || status=1
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
    rm --force "$console"
    return "$status"
}

kvm_probe_ended() { grep --quiet GUEST-UP "$2" || ! kill -0 "$1" 2>/dev/null; }
