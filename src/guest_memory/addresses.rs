//! The two address spaces in which a guest's memory is named to us.

/// An address as the guest's driver writes it into descriptors ("guest physical").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestAddress(pub u64);

/// An address in the front-end's own address space, such as the ring addresses of SET_VRING_ADDR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendAddress(pub u64);
