//! The binary from outside, as far as it needs neither a daemon nor root.

mod capture;
mod cli;
mod export;
mod libvirt_xml;
mod packaging;
