//! A token decides which of two processes continues: the one that takes it. So both never continue,
//! and neither has to guess whether the other has received a message.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{EventfdFlags, eventfd};

/// An eventfd that holds one unit.
#[derive(Debug)]
pub(super) struct Token(OwnedFd);

impl Token {
    /// A token that nobody has taken.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// The token that another process has sent.
    pub fn of(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }

    /// A descriptor of the token, for another process.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }

    /// Take the token; false if it was taken before.
    pub fn take(&self) -> bool {
        rustix::io::read(&self.0, &mut [0; 8]).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_two_takes_it_and_only_once() {
        let ours = Token::new().unwrap();
        let theirs = Token::of(ours.share().unwrap());
        assert!(theirs.take());
        assert!(!ours.take() && !theirs.take());
    }
}
