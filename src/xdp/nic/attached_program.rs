//! The XDP program that is on a NIC, of any owner.

use std::fmt;

use rtnetlink::packet_route::link::{LinkXdp, XdpAttached};
use serde::Serialize;

use super::holder::{self, Holder};
use crate::xdp::program;

/// An XDP program on a NIC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AttachedProgram {
    /// Its identifiers: one, or one for each hook that has one.
    pub ids: Vec<u32>,
    /// Its name, if we may ask.
    pub name: Option<String>,
    /// At the kernel's generic hook.
    pub generic: bool,
    /// The process that holds it, if that is known.
    pub holder: Option<Holder>,
}

impl fmt::Display for AttachedProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<String> = self.ids.iter().map(u32::to_string).collect();
        write!(f, "program {}", ids.join(" and "))?;
        self.name.iter().try_for_each(|name| write!(f, " \"{name}\""))
    }
}

impl AttachedProgram {
    /// Whether it is isonic's, by its name.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.name.as_deref() == Some(program::NAME)
    }

    /// The program that a link reports; None if there is none.
    pub(super) fn of(attributes: &[LinkXdp]) -> Option<Self> {
        let mut program = Self::default();
        for attribute in attributes {
            match attribute {
                LinkXdp::Attached(mode) => program.generic = *mode == XdpAttached::SocketBuffer,
                LinkXdp::ProgId(id)
                | LinkXdp::DrvProgId(id)
                | LinkXdp::SkbProgId(id)
                | LinkXdp::HwProgId(id) => program.ids.push(*id),
                _ => {}
            }
        }
        program.ids.retain(|&id| id > 0);
        program.ids.sort_unstable();
        program.ids.dedup();
        if program.ids.is_empty() {
            return None;
        }
        program.name = program.ids.iter().find_map(|&id| program::name_of(id));
        program.holder = holder::find(&program.ids);
        Some(program)
    }
}
