//! The parts of a domain's XML that concern us: its vhost-user interfaces, and the profiles that
//! are stored with it.
//!
//! ```xml
//! <metadata>
//!   <isonic:domain xmlns:isonic='http://isonic.org/xmlns/libvirt/1'>
//!     <isonic:interface alias='ua-isonic-net0' profile='org.isonic.net.v3' digest='c0ff…'
//!       draft='no' uplink='blue'/>
//!   </isonic:domain>
//! </metadata>
//! ```
//!
//! libvirt keeps one element of each namespace there, whatever its contents, and sends it along
//! with a migration (formatdomain.html, "General metadata"). The alias says which interface is
//! meant: libvirt keeps users' aliases, which begin with `ua-`.

use std::path::Path;

use roxmltree::{Document, Node};

use crate::config::SOCKET_PATH_MAX;
use crate::device::mac::{MacAddress, MacAddressError};

use super::domain_xml::XmlError;
use super::element::Element;
use super::interface_element::QemuSocketMode;

/// The namespace of stored metadata. A format that this one's readers cannot read has another
/// number.
pub(super) const ISONIC: &str = "http://isonic.org/xmlns/libvirt/1";
/// The common prefix of all its versions.
const ISONIC_OF_ANY_VERSION: &str = "http://isonic.org/xmlns/libvirt/";
/// The prefix of users' aliases.
pub(super) const USER_ALIAS: &str = "ua-";
/// The attributes that a record may have.
const RECORD_ATTRIBUTES: [&str; 5] = ["alias", "profile", "digest", "draft", "uplink"];

/// Why a domain's XML is not understood.
#[derive(Debug, thiserror::Error)]
pub enum DomainError {
    /// The text is no XML, or too much of it.
    #[error(transparent)]
    Xml(#[from] XmlError),
    /// The XML is of something other than a domain.
    #[error("the XML is that of a <{0}>, not of a <domain>")]
    NoDomain(String),
    /// Something is not there without which nothing can be done.
    #[error("the domain has no <{0}>; give libvirt's XML of it (virsh dumpxml)")]
    Missing(&'static str),
    /// The stored metadata was written by a later version.
    #[error("the metadata in {0} is of a version that this isonic does not know; update isonic")]
    Version(String),
    /// The stored record is incomplete, or says more than this version knows.
    #[error("the metadata of interface \"{alias}\" {problem}; stamp the domain anew")]
    Record {
        /// The interface, if it is named.
        alias: String,
        /// The mistake.
        problem: String,
    },
    /// An interface lacks something that a vhost-user interface must have, or has it wrong.
    #[error("interface {interface} {problem}")]
    Interface {
        /// Its alias, or its place.
        interface: String,
        /// The mistake, and a way to mend it.
        problem: String,
    },
}

/// The stored record of one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Which interface.
    pub alias: String,
    /// Its profile: a name, or a list of values in its one spelling.
    pub profile: String,
    /// The profile's digest.
    pub digest: String,
    /// Whether the profile may still change.
    pub draft: bool,
    /// The uplink's name in the domain; each host knows which of its NICs that is.
    pub uplink: Option<String>,
}

impl Record {
    /// The record as it is stored.
    pub(super) fn element(&self) -> Element {
        Element::of(ISONIC, "isonic", "interface")
            .keyed("alias", self.alias.as_str())
            .with("profile", self.profile.as_str())
            .with("digest", self.digest.as_str())
            .with("draft", if self.draft { "yes" } else { "no" })
            .with_some("uplink", self.uplink.as_deref())
    }

    fn read(node: Node<'_, '_>) -> Result<Self, DomainError> {
        let alias = node.attribute("alias").unwrap_or_default();
        let wrong = |problem: String| DomainError::Record { alias: alias.to_owned(), problem };
        let strange = node.attributes().find(|present| {
            present.namespace().is_some() || !RECORD_ATTRIBUTES.contains(&present.name())
        });
        if let Some(strange) = strange {
            let name = strange.name();
            return Err(wrong(format!("has \"{name}\", which this isonic does not know")));
        }
        let text = |name: &str| match node.attribute(name) {
            Some(value) if !value.is_empty() => Ok(value.to_owned()),
            _ => Err(wrong(format!("has no \"{name}\""))),
        };
        Ok(Self {
            alias: text("alias")?,
            profile: text("profile")?,
            digest: text("digest")?,
            draft: match node.attribute("draft") {
                Some("yes") => true,
                None | Some("no") => false,
                Some(other) => {
                    return Err(wrong(format!(
                        "has draft=\"{other}\", which is neither yes nor no"
                    )));
                }
            },
            uplink: node.attribute("uplink").map(str::to_owned),
        })
    }
}

/// A vhost-user interface.
#[derive(Clone, Copy, Debug)]
pub(super) struct Interface<'d, 't> {
    pub(super) node: Node<'d, 't>,
    /// Counted from 0 among the domain's vhost-user interfaces.
    place: usize,
}

impl<'d, 't> Interface<'d, 't> {
    pub(super) fn alias(&self) -> Option<&'d str> {
        child(self.node, "alias")?.attribute("name")
    }

    pub(super) fn mac(&self) -> Option<&'d str> {
        child(self.node, "mac")?.attribute("address")
    }

    /// Its MAC address; None leaves it to libvirt.
    pub(super) fn address(&self) -> Result<Option<MacAddress>, DomainError> {
        let Some(text) = self.mac() else { return Ok(None) };
        let address = read_mac(text).map_err(|error| self.wrong(&format!("has {error}")))?;
        if address.is_unicast() {
            return Ok(Some(address));
        }
        Err(self.wrong(&format!(
            "has the address {text}, which is not that of one device; clear the lowest bit of its \
             first byte"
        )))
    }

    pub(super) fn source(&self) -> Result<Node<'d, 't>, DomainError> {
        let source = child(self.node, "source").filter(|it| it.attribute("type") == Some("unix"));
        source.ok_or_else(|| self.wrong("has no <source type='unix' path='…' mode='client'/>"))
    }

    pub(super) fn socket(&self) -> Result<&'d str, DomainError> {
        let path = self.source()?.attribute("path").filter(|path| path.starts_with('/'));
        let path = path.ok_or_else(|| self.wrong("has no absolute path in its <source>"))?;
        if path.len() <= SOCKET_PATH_MAX {
            return Ok(path);
        }
        Err(self.wrong(&format!(
            "has the socket {path:?} of {} bytes, and the path of a socket has at most \
             {SOCKET_PATH_MAX}; give it a shorter one",
            path.len()
        )))
    }

    pub(super) fn mode(&self) -> Result<QemuSocketMode, DomainError> {
        match self.source()?.attribute("mode") {
            Some("client") => Ok(QemuSocketMode::Client),
            Some("server") => Ok(QemuSocketMode::Server),
            _ => Err(self.wrong("has no mode in its <source>: client (isonic listens) or server")),
        }
    }

    /// The port's name: that of its socket's file, so that it is the same on every host.
    pub(super) fn port(&self) -> Result<&'d str, DomainError> {
        let socket = self.socket()?;
        let file = Path::new(socket).file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let name = file.strip_suffix(".sock").unwrap_or(file);
        let fits = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
        let is_name = (1..=PORT_NAME_MAX).contains(&name.len())
            && name.chars().all(fits)
            && name.contains(|letter| letter != '.');
        if is_name {
            return Ok(name);
        }
        Err(self.wrong(&format!(
            "has the socket {socket:?}, whose file name is the port's name and must be 1 to \
             {PORT_NAME_MAX} letters, digits and . _ - before its .sock; rename it"
        )))
    }

    /// The names that it can be meant by: alias, MAC address, socket.
    pub(super) fn names(&self) -> [Option<&'d str>; 3] {
        [self.alias(), self.mac(), self.socket().ok()]
    }

    /// Its alias, or its place, for people.
    pub(super) fn name(&self) -> String {
        let place = || format!("{} of the domain's vhost-user interfaces", self.place + 1);
        self.alias().map_or_else(place, |alias| format!("\"{alias}\""))
    }

    /// A warning for each of its elements that nobody acts on. An element that says nothing asks
    /// for nothing.
    pub(super) fn ignored(&self) -> impl Iterator<Item = String> {
        let asked = |name: &str| {
            let element = child(self.node, name)?;
            let says = element.attributes().len() > 0 || element.has_children();
            (says && element.attribute("isolated") != Some("no")).then_some(())
        };
        IGNORED.iter().filter(move |(name, _)| asked(name).is_some()).map(|(name, not_done)| {
            format!("interface {}: <{name}> is ignored: {not_done}", self.name())
        })
    }

    pub(super) fn wrong(&self, problem: &str) -> DomainError {
        DomainError::Interface { interface: self.name(), problem: problem.to_owned() }
    }
}

/// The elements of a vhost-user interface that the backend would have to act on, and that isonic
/// ignores.
const IGNORED: [(&str, &str); 6] = [
    ("bandwidth", "isonic limits no rate"),
    ("vlan", "isonic sets and removes no VLAN tag"),
    ("filterref", "isonic filters nothing that a guest sends"),
    ("port", "ports of an uplink reach each other"),
    ("virtualport", "isonic knows no port profiles of a switch"),
    ("coalesce", "the uplink's `coalesce` is for all its ports"),
];

/// Longest name of a port, bytes.
pub(super) const PORT_NAME_MAX: usize = 63;

#[derive(Clone, Copy, Debug)]
pub(super) struct Domain<'d, 't> {
    pub(super) root: Node<'d, 't>,
}

impl<'d, 't> Domain<'d, 't> {
    pub(super) fn new(document: &'d Document<'t>) -> Result<Self, DomainError> {
        let root = document.root_element();
        if root.has_tag_name("domain") && root.tag_name().namespace().is_none() {
            return Ok(Self { root });
        }
        Err(DomainError::NoDomain(root.tag_name().name().to_owned()))
    }

    /// The text of one of its elements.
    pub(super) fn text(&self, name: &'static str) -> Result<&'d str, DomainError> {
        let text = child(self.root, name).and_then(|node| node.text()).map(str::trim);
        text.filter(|text| !text.is_empty()).ok_or(DomainError::Missing(name))
    }

    /// Whether all memory of its guest is shared with other processes. It is private unless the
    /// domain says otherwise.
    pub(super) fn shares_memory(&self) -> bool {
        let backing = child(self.root, "memoryBacking");
        let access = backing.and_then(|backing| child(backing, "access"));
        let by_backing = access.and_then(|access| access.attribute("mode")) == Some("shared");
        let mut cells = self.cells().map(|cell| cell.attribute("memAccess")).peekable();
        let by_default = |access: Option<&str>| access.is_none() && by_backing;
        let shared = match cells.peek() {
            None => by_backing,
            Some(_) => cells.all(|access| access == Some("shared") || by_default(access)),
        };
        shared && !self.has_private_device()
    }

    /// Its NUMA cells.
    pub(super) fn cells(&self) -> impl Iterator<Item = Node<'d, 't>> + use<'d, 't> {
        self.root.descendants().filter(|node| node.has_tag_name("cell"))
    }

    /// Whether it has a DIMM, an NVDIMM or virtio-mem that is not shared.
    pub(super) fn has_private_device(&self) -> bool {
        let devices = child(self.root, "devices").into_iter().flat_map(|node| node.children());
        let mut memory = devices.filter(|node| named(*node, "memory"));
        memory.any(|memory| memory.attribute("access") == Some("private"))
    }

    /// Its vhost-user interfaces, but those that libvirt serves by another backend.
    pub(super) fn interfaces(&self) -> Vec<Interface<'d, 't>> {
        let devices = self.root.children().filter(|node| named(*node, "devices"));
        devices
            .flat_map(|devices| devices.children())
            .filter(|node| named(*node, "interface"))
            .filter(|node| node.attribute("type") == Some("vhostuser"))
            .enumerate()
            .map(|(place, node)| Interface { node, place })
            .filter(|interface| !has_other_backend(interface.node))
            .collect()
    }

    /// The elements that hold records, and the record in each.
    pub(super) fn records(&self) -> Result<Vec<(Node<'d, 't>, Record)>, DomainError> {
        let Some(metadata) = child(self.root, "metadata") else { return Ok(Vec::new()) };
        let mut records = Vec::<(_, Record)>::new();
        for ours in metadata.children().filter(Node::is_element) {
            let namespace = ours.tag_name().namespace().unwrap_or_default();
            if !namespace.starts_with(ISONIC_OF_ANY_VERSION) {
                continue;
            }
            if namespace != ISONIC || ours.tag_name().name() != "domain" {
                return Err(DomainError::Version(namespace.to_owned()));
            }
            for node in ours.children().filter(Node::is_element) {
                if node.tag_name().namespace() != Some(ISONIC)
                    || node.tag_name().name() != "interface"
                {
                    return Err(DomainError::Version(node.tag_name().name().to_owned()));
                }
                let record = Record::read(node)?;
                if records.iter().any(|(_, other)| other.alias == record.alias) {
                    let problem = "is there twice".to_owned();
                    return Err(DomainError::Record { alias: record.alias, problem });
                }
                records.push((node, record));
            }
        }
        Ok(records)
    }

    /// Its interfaces that have a record, each with it.
    pub(super) fn stamped(&self) -> Result<Vec<(Interface<'d, 't>, Record)>, DomainError> {
        let records = self.records()?;
        let with_record = |interface: Interface<'d, 't>| {
            let of_it =
                |(_, record): &&(_, Record)| Some(record.alias.as_str()) == interface.alias();
            records.iter().find(of_it).map(|(_, record)| (interface, record.clone()))
        };
        Ok(self.interfaces().into_iter().filter_map(with_record).collect())
    }
}

/// Whether a text can be the XML of a domain that has something stored by us, of whatever version.
#[must_use]
pub fn may_be_ours(text: &str) -> bool {
    text.contains(ISONIC_OF_ANY_VERSION)
}

/// Whether libvirt starts the backend itself: passt (formatdomain.html, "vhost-user connection with
/// passt backend").
fn has_other_backend(interface: Node<'_, '_>) -> bool {
    let backend = child(interface, "backend").and_then(|backend| backend.attribute("type"));
    backend.is_some_and(|kind| kind != "default")
}

/// As libvirt reads an address: a byte may have one digit.
pub(super) fn read_mac(text: &str) -> Result<MacAddress, MacAddressError> {
    let byte = |byte: &str| if byte.len() == 1 { format!("0{byte}") } else { byte.to_owned() };
    let padded = text.split(':').map(byte).collect::<Vec<_>>().join(":");
    // If the address is wrong, the message quotes it as it was written.
    padded.parse().or_else(|_wrong| text.parse())
}

fn named(node: Node<'_, '_>, name: &str) -> bool {
    node.is_element() && node.tag_name().name() == name && node.tag_name().namespace().is_none()
}

/// The first child of this name, in no namespace.
pub(super) fn child<'d, 't>(node: Node<'d, 't>, name: &str) -> Option<Node<'d, 't>> {
    node.children().find(|node| named(*node, name))
}
