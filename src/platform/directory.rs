//! Whether a directory can be written to, found without writing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access, statvfs};
use serde::Serialize;

/// A directory that is needed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Directory {
    /// Its purpose, in the configuration's words.
    pub what: &'static str,
    /// Which.
    pub path: PathBuf,
    /// Why files cannot be made in it; None if they can.
    pub problem: Option<String>,
}

impl Directory {
    /// Examine a directory that must exist.
    #[must_use]
    pub fn existing(what: &'static str, path: &Path) -> Self {
        Self { what, path: path.to_owned(), problem: obstacle(path) }
    }

    /// Examine a directory that is made if missing: then its nearest existing parent counts.
    #[must_use]
    pub fn made(what: &'static str, path: &Path) -> Self {
        let there = |path: &&Path| fs::symlink_metadata(path).is_ok();
        let nearest = path.ancestors().find(there).unwrap_or(path);
        let problem = obstacle(nearest);
        let problem = match problem {
            Some(problem) if nearest != path => Some(format!("{}: {problem}", nearest.display())),
            problem => problem,
        };
        Self { what, path: path.to_owned(), problem }
    }
}

/// Why this process cannot make a file there.
fn obstacle(path: &Path) -> Option<String> {
    let told = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => "it is not there".to_owned(),
        _ => error.to_string(),
    };
    match fs::metadata(path) {
        Err(error) => return Some(told(error)),
        Ok(metadata) if !metadata.is_dir() => return Some("it is no directory".to_owned()),
        Ok(_) => {}
    }
    if let Err(error) = access(path, Access::WRITE_OK | Access::EXEC_OK) {
        return Some(told(error.into()));
    }
    // Some file systems report neither count.
    let room = statvfs(path).ok()?;
    let full = room.f_blocks > 0 && room.f_bavail == 0 || room.f_files > 0 && room.f_favail == 0;
    full.then(|| "its file system is full".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_judged_by_where_it_would_be() {
        let home = tempfile::tempdir().unwrap();
        let (file, deep) = (home.path().join("file"), home.path().join("a/b"));
        fs::write(&file, "").unwrap();
        assert_eq!(Directory::existing("x", home.path()).problem, None);
        assert_eq!(Directory::made("x", &deep).problem, None);
        assert_eq!(Directory::existing("x", &deep).problem.as_deref(), Some("it is not there"));
        assert_eq!(Directory::made("x", &file).problem.as_deref(), Some("it is no directory"));
        let below = Directory::made("x", &file.join("b")).problem.unwrap();
        assert!(below.contains("file: ") && below.ends_with("it is no directory"), "{below}");
    }
}
