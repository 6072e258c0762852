//! What `packaging/` installs: its parts fit each other. What systemd says of them:
//! `tests/machine/packaging.rs`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn packaged(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Lines that are no comments.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// The values of a setting of the unit.
fn values(unit: &str, setting: &str) -> Vec<String> {
    let value = |line: &str| Some(line.strip_prefix(setting)?.strip_prefix('=')?.to_owned());
    let values: Vec<String> = lines(unit).filter_map(value).collect();
    values.iter().flat_map(|value| value.split(' ')).map(str::to_owned).collect()
}

#[test]
fn whom_the_unit_runs_as_is_whom_the_users_file_makes() {
    let (unit, users) = (packaged("isonic.service"), packaged("isonic.sysusers"));
    let made: BTreeSet<String> = lines(&users)
        .filter(|line| line.starts_with("u ") || line.starts_with("g "))
        .filter_map(|line| line.split(' ').nth(1).map(str::to_owned))
        .collect();
    let wanted = ["User", "Group", "SupplementaryGroups"].map(|setting| values(&unit, setting));
    for name in wanted.iter().flatten() {
        assert!(made.contains(name), "{name} is made by nobody: {made:?}");
    }
    for group in &wanted[2] {
        let line = format!("m isonic {group}");
        assert!(lines(&users).any(|present| present == line), "{line}");
    }
    // The directories of the defaults are those that can be written.
    for (setting, directory) in [("RuntimeDirectory", "isonic"), ("StateDirectory", "isonic")] {
        assert_eq!(values(&unit, setting), [directory]);
    }
    assert!(packaged("isonic.tmpfiles").contains("\nd /run/isonic 0755 isonic isonic -\n"));
}
