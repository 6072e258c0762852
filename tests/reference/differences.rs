//! Where our device and the reference device differ, and why.

/// What is seen of the two in one scene.
pub struct Difference {
    pub scene: &'static str,
    pub ours: &'static str,
    pub theirs: &'static str,
    pub reason: &'static str,
}

const fn differs(
    scene: &'static str,
    [ours, theirs]: [&'static str; 2],
    reason: &'static str,
) -> Difference {
    Difference { scene, ours, theirs, reason }
}

const UNKNOWN: &str = "vhost-user-backend knows neither RARP, nor MTU, nor STATUS";
const ENDS: &str =
    "any error ends their session; ours goes on, as a refused request changes nothing";
const ENDS_SILENTLY: &str = "as above; theirs refuses before it thinks of an acknowledgement";
const BROKEN: &str =
    "a chain against the rules breaks our ring; theirs reads what it can and goes on";

/// The answers that occur more than once.
const REFUSED: [&str; 2] = ["refused", "refused, session ended"];
const REFUSED_SILENTLY: [&str; 2] = ["refused", "session ended without an answer"];
const DONE_SILENTLY: [&str; 2] = ["done", "session ended without an answer"];
const UNCHECKED: [&str; 2] = ["refused", "done"];
const ALLOWED: [&str; 2] = ["done", "refused, session ended"];
const SKIPPED: [&str; 2] = ["0 on the wire, used index 0", "1 on the wire, used index 2"];

pub const DIFFERENCES: &[Difference] = &[
    // ---- what is offered ------------------------------------------------------------------------
    differs("GET_PROTOCOL_FEATURES", ["0x1a01d", "0xa009"], UNKNOWN),
    differs(
        "GET_QUEUE_NUM",
        ["0x10", "0x20"],
        "theirs counts rings; QEMU compares the number with its queue pairs",
    ),
    differs(
        "GET_MAX_MEM_SLOTS",
        ["0x40", "0x1fd"],
        "ours is the profile's, theirs the crate's 509",
    ),
    // ---- requests that only ours answers --------------------------------------------------------
    differs("GET_STATUS", ["0x0", "session ended"], UNKNOWN),
    differs("SEND_RARP", DONE_SILENTLY, UNKNOWN),
    differs("NET_SET_MTU as the profile has it", DONE_SILENTLY, UNKNOWN),
    differs("NET_SET_MTU otherwise", REFUSED_SILENTLY, UNKNOWN),
    differs("SET_STATUS", DONE_SILENTLY, UNKNOWN),
    // ---- errors that end their session and not ours ---------------------------------------------
    differs("SET_FEATURES with a bit not offered", REFUSED, ENDS),
    differs("SET_MEM_TABLE without a region", REFUSED, ENDS),
    differs("ADD_MEM_REG over another", REFUSED, ENDS),
    differs("SET_VRING_NUM above the largest", REFUSED, ENDS),
    differs("SET_VRING_NUM of nothing", REFUSED, ENDS),
    differs("SET_VRING_NUM of a ring that is not there", REFUSED, ENDS),
    differs("SET_VRING_CALL of a ring that is not there", REFUSED, ENDS),
    differs("SET_FEATURES of four bytes", REFUSED_SILENTLY, ENDS_SILENTLY),
    differs("SET_VRING_ADDR not aligned", REFUSED_SILENTLY, ENDS_SILENTLY),
    differs("SET_VRING_KICK without the descriptor it announces", REFUSED_SILENTLY, ENDS_SILENTLY),
    differs("SET_VRING_ENABLE with a two", REFUSED_SILENTLY, ENDS_SILENTLY),
    differs("GET_CONFIG, not offered", REFUSED_SILENTLY, ENDS_SILENTLY),
    differs("a request nobody knows", REFUSED_SILENTLY, ENDS_SILENTLY),
    // ---- what ours checks and theirs does not ---------------------------------------------------
    differs(
        "SET_FEATURES with others under running rings",
        UNCHECKED,
        "a worker has acted on the old ones; no front-end changes them without stopping the rings",
    ),
    differs(
        "SET_FEATURES without version_1",
        UNCHECKED,
        "no legacy layout is served; theirs would read legacy headers as modern ones",
    ),
    differs(
        "SET_PROTOCOL_FEATURES with a bit not offered",
        UNCHECKED,
        "theirs notes whatever is sent",
    ),
    differs(
        "SET_MEM_TABLE of more than its file has",
        UNCHECKED,
        "theirs maps it, and dies of SIGBUS when the guest uses it",
    ),
    differs(
        "SET_VRING_NUM of no power of two",
        UNCHECKED,
        "theirs logs it and keeps the size it had",
    ),
    differs("SET_VRING_BASE of more than an index", UNCHECKED, "theirs cuts it to 16 bits"),
    differs("SET_VRING_ADDR with a log that was not offered", UNCHECKED, "theirs ignores the flag"),
    differs(
        "SET_VRING_KICK with a file that is no eventfd",
        UNCHECKED,
        "writing to or waiting for another kind of file could block a worker",
    ),
    // ---- what ours allows and theirs does not ---------------------------------------------------
    differs(
        "SET_OWNER again",
        ALLOWED,
        "QEMU repeats it for each queue pair; theirs takes it once",
    ),
    differs("ADD_MEM_REG again", ALLOWED, "QEMU 7.2 sends each region once per queue pair"),
    differs("REM_MEM_REG of a region that is not there", REFUSED, ENDS),
    differs(
        "SET_VRING_ADDR before the memory",
        ALLOWED,
        "ours waits until all is said, in any order; theirs resolves at once",
    ),
    differs(
        "SET_VRING_ADDR outside the memory",
        ALLOWED,
        "as above: the memory may still come, and is checked when the ring starts",
    ),
    differs(
        "SET_VRING_ENABLE before SET_FEATURES",
        DONE_SILENTLY,
        "QEMU sends it so when a device comes up; the crate wants bit 30 acknowledged",
    ),
    // ---- rings ----------------------------------------------------------------------------------
    differs(
        "a chain that starts outside the table, then a packet",
        ["0 on the wire, used index 0", "1 on the wire, used index 1"],
        BROKEN,
    ),
    differs("a chain that loops, then a packet", SKIPPED, BROKEN),
    differs("a chain outside the memory, then a packet", SKIPPED, BROKEN),
    differs("a chain the device should write, then a packet", SKIPPED, BROKEN),
    differs(
        "a packet on a disabled ring",
        ["0 on the wire, used index 1", "0 on the wire, used index 0"],
        "the vhost-user protocol wants a disabled transmit ring drained; theirs lets it wait",
    ),
    differs(
        "a packet on a ring without a kick descriptor",
        ["1 on the wire, used index 1", "0 on the wire, used index 0"],
        "ours polls as asked; theirs never starts the ring",
    ),
    differs(
        "a base behind the used index",
        ["base 5, used index 5", "base 5, used index 7"],
        "ours does not do again what the used ring says is done; theirs believes the base",
    ),
    // ---- interrupts -----------------------------------------------------------------------------
    differs(
        "interrupts that the guest does not want",
        ["false", "true"],
        "virtio-queue does not read VRING_AVAIL_F_NO_INTERRUPT",
    ),
    differs(
        "an interrupt for a frame, as no event was asked for",
        ["[true, false]", "[false, false]"],
        "whether the driver was told before the ring started is not known, so ours tells it once",
    ),
];
