//! The process that has an XDP program on a NIC: the holder of its link, from /proc for those who
//! may look (proc_pid_fdinfo(5)).

use std::fmt;
use std::fs;
use std::path::Path;

use serde::Serialize;

/// Most processes that are looked at.
const PROCESSES_MAX: usize = 1 << 16;

/// A process that holds the link of a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// Its id.
    pub process: u32,
    /// Its name, as `ps` has it.
    pub name: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}, {}", self.process, self.name)
    }
}

/// The first process, except our own, that holds the link of one of these programs. None if there
/// is none (a program may be attached without a link), or if we may not look.
pub(super) fn find(programs: &[u32]) -> Option<Holder> {
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut others = ids.filter(|&id: &u32| id != std::process::id()).take(PROCESSES_MAX);
    let process = others.find(|id| holds(&Path::new("/proc").join(id.to_string()), programs))?;
    let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
    // A process names itself, with any bytes.
    let name = name.trim().chars().filter(|letter| !letter.is_control()).collect();
    Some(Holder { process, name })
}

fn holds(process: &Path, programs: &[u32]) -> bool {
    let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    descriptors.into_iter().any(|descriptor| {
        // "anon_inode:bpf_link", with a dash in older kernels and "[..]" in newer ones.
        let is_link = fs::read_link(descriptor.path())
            .is_ok_and(|target| target.to_string_lossy().starts_with("anon_inode:"));
        is_link && {
            let about = process.join("fdinfo").join(descriptor.file_name());
            fs::read_to_string(about).is_ok_and(|text| is_link_of(&text, programs))
        }
    })
}

/// Whether a descriptor is an XDP link with one of these programs.
fn is_link_of(text: &str, programs: &[u32]) -> bool {
    let field = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
    };
    let program = field("prog_id").and_then(|id| id.parse().ok());
    field("link_type") == Some("xdp") && program.is_some_and(|id| programs.contains(&id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_known_by_its_kind_and_its_program() {
        // As Linux 6.18 writes it.
        let text = "pos:\t0\nflags:\t02000002\nmnt_id:\t16\nino:\t71\nlink_type:\txdp\n\
                    link_id:\t11\nprog_tag:\tdeadbeefdeadbeef\nprog_id:\t42\nifindex:\t5\n";
        assert!(is_link_of(text, &[7, 42]) && !is_link_of(text, &[4]));
        assert!(!is_link_of(&text.replace("\txdp", "\ttcx"), &[42]));
        assert!(!is_link_of("pos:\t0\n", &[42]));
        assert_eq!(find(&[u32::MAX]), None);
    }
}
