# shellcheck shell=bash
# What the demos share: one at a time, processes that are ended whatever happens, two namespaces.
#
# To be sourced after lib.sh by a script that calls prepare_demo, and sets `logs`: the files of
# `directory` whose ends are shown if it fails. ISONIC names a binary; without it one is built.

# shellcheck disable=SC2034 # used by the scripts that source this file
isonic=${ISONIC:-$root/target/release/isonic}
directory=
processes=()

step() { printf '\n== %s\n' "$*"; }
on_wire() { ip netns exec isonic-wire "$@"; }

# One demo at a time. The lock goes with its process, so whatever exists while we hold it belongs
# to a run that died. Started processes do not get the lock and die with us (start).
claim_machine() {
    exec {lock}>/run/isonic-demo.lock
    flock --nonblock "$lock" || die "another demo is running: it holds /run/isonic-demo.lock"
    remove_namespaces
    rm --recursive --force /tmp/isonic-demo.*
}

remove_namespaces() {
    local name
    for name in isonic-host isonic-wire; do
        [[ ! -e /run/netns/$name ]] || ip netns delete "$name"
    done
}

clean_up() {
    local status=$? process
    trap - EXIT
    set +o errexit
    # Above 128 a signal ended us: nobody asks why.
    if ((status > 0 && status < 128)) && [[ -n $directory ]]; then show_logs; fi
    for process in "${processes[@]}"; do kill -TERM "$process" 2>/dev/null; done
    for process in "${processes[@]}"; do
        wait_for 5 ended "$process" || kill -KILL "$process" 2>/dev/null
        wait "$process" 2>/dev/null
    done
    ! declare -F end_guests >/dev/null || end_guests
    remove_namespaces
    [[ -z $directory ]] || rm --recursive --force "$directory"
    ((status == 0)) || say "demo: failed with status $status; all is cleaned up"
    exit "$status"
}

show_logs() {
    local log
    # shellcheck disable=SC2154 # the demo's
    for log in "${logs[@]}"; do
        [[ -s $directory/$log ]] || continue
        say "--- the end of $log"
        tail --lines=20 "$directory/$log" >&2
    done
}

# Gone, or a zombie that waits for us.
ended() { ! kill -0 "$1" 2>/dev/null || [[ $(ps --no-headers --format state "$1") == Z* ]]; }

# start LOG COMMAND...: in the background; its process id goes to `processes`.
start() {
    local log=$directory/$1
    shift
    setpriv --pdeathsig KILL "$@" </dev/null >"$log" 2>&1 {lock}>&- &
    processes+=($!)
}

# prepare_demo [libvirt]: everything that a demo needs before its first step, and `directory`.
prepare_demo() {
    "$root/scripts/setup" "$@"
    require_rust
    claim_machine
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    step "building (a few minutes the first time)"
    "$root/scripts/guest-image"
    [[ -n ${ISONIC:-} ]] || (cd "$root" && cargo build --release --quiet {lock}>&-)
    directory=$(mktemp --directory /tmp/isonic-demo.XXXXXX)
}

# make_veth NUMBER: a veth pair, isonic-nicN in the namespace isonic-host, isonic-peerN in
# isonic-wire.
make_veth() {
    ip -netns isonic-host link add "isonic-nic$1" numtxqueues 2 numrxqueues 2 type veth \
        peer name "isonic-peer$1" netns isonic-wire numtxqueues 2 numrxqueues 2
    ip -netns isonic-wire link set "isonic-peer$1" up
    ip -netns isonic-host link set "isonic-nic$1" up
    # A veth end that leaves checksums to the receiver's NIC hands AF_XDP frames whose checksum
    # nobody fills in: ping would work and TCP hang.
    on_wire ethtool --offload "isonic-peer$1" tx off >/dev/null
}

make_namespaces() {
    local name
    for name in isonic-host isonic-wire; do
        ip netns add "$name"
        ip netns exec "$name" sysctl --quiet --write net.ipv6.conf.{all,default}.disable_ipv6=1
        ip -netns "$name" link set lo up
    done
}
