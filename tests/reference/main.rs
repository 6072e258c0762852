//! Our device beside the reference device: one script, played to both, message by message and
//! packet by packet.
//!
//! What differs is listed in [`differences`], each with its reason. A difference that is not
//! listed fails, and so does a listed one that is gone.

// Numbers here are chosen by the test and small.
#![allow(clippy::cast_possible_truncation)]

mod differences;
mod random;
mod scenes;
mod stage;

use differences::DIFFERENCES;
use scenes::SCENES;
use stage::{Stage, Who};

#[test]
fn both_devices_answer_the_same_but_for_what_is_listed() {
    let mut wrong = Vec::new();
    for (name, act) in SCENES {
        let [ours, theirs] = [Who::Ours, Who::Reference].map(|who| act(&mut Stage::new(who)));
        let listed = DIFFERENCES.iter().find(|difference| difference.scene == *name);
        match listed {
            Some(difference) if (difference.ours, difference.theirs) == (&*ours, &*theirs) => {}
            None if ours == theirs => {}
            Some(_) => wrong.push(format!("{name}: listed otherwise\n  {ours}\n  {theirs}")),
            None => wrong.push(format!("{name}: not listed\n  {ours}\n  {theirs}")),
        }
    }
    assert!(wrong.is_empty(), "ours, then the reference device's:\n{}", wrong.join("\n"));
}

#[test]
fn every_listed_difference_is_one_and_is_of_one_scene() {
    for (place, difference) in DIFFERENCES.iter().enumerate() {
        let name = difference.scene;
        assert_eq!(SCENES.iter().filter(|(scene, _)| *scene == name).count(), 1, "{name}");
        assert!(DIFFERENCES[..place].iter().all(|other| other.scene != name), "{name} twice");
        assert_ne!(difference.ours, difference.theirs, "{name}");
        assert!(!difference.reason.is_empty(), "{name}");
    }
}
