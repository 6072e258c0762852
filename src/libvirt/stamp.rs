//! Stamping a domain: its vhost-user interfaces get a profile for good, with all settings by which
//! QEMU and libvirt make the guest see it.
//!
//! A stamped interface keeps its profile; replacing it must be asked for. Stamping a stamped domain
//! changes nothing. Settings that are not ours stay as they are.

use std::collections::BTreeSet;
use std::path::PathBuf;

use roxmltree::Node;

use crate::profile::qemu_device::{QemuDevice, QemuDeviceError};
use crate::profile::{Catalog, Chosen, Profile, ResolveError, digest};

use super::domain::{Domain, DomainError, ISONIC, Interface, Record, USER_ALIAS, child, read_mac};
use super::domain_xml::{self, Edits};
use super::element::Element;
use super::interface_element::{self, DeviceAttachment, QEMU, QemuSocketMode};

/// The alias of a new device, before its number.
const ALIAS: &str = "ua-isonic-net";
/// Characters of a domain's name in that of a socket. A name that is longer, or has other
/// characters, gets a digest that tells it apart.
const NAME_MAX: usize = 40;

/// The wishes of a stamp.
#[derive(Clone, Debug, Default)]
pub struct Order {
    /// The profile. None keeps the stamped one, and gives the latest to an interface without one.
    pub profile: Option<String>,
    /// Whether a stamped interface may get another profile.
    pub replace_profile: bool,
    /// Whether it may be one that can still change.
    pub allow_draft: bool,
    /// The uplink's name in the domain; None keeps the stamped one.
    pub uplink: Option<String>,
    /// The interfaces that are meant, each by alias, MAC address or socket; all if empty.
    pub only: Vec<String>,
    /// Whether to add an interface; one is added anyway where there is none.
    pub add: bool,
    /// The MAC address of an added interface; libvirt chooses one if None.
    pub mac: Option<String>,
    /// Queue pairs; None keeps the present number, or else gives one for each CPU.
    pub queue_pairs: Option<u16>,
    /// The directory of an added interface's socket.
    pub socket_directory: PathBuf,
}

/// A domain that is stamped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamped {
    /// Its XML.
    pub text: String,
    /// The stored records of the interfaces that were meant.
    pub records: Vec<Record>,
    /// Settings that the XML asks for and will not get.
    pub warnings: Vec<String>,
}

/// Why a domain cannot be stamped.
#[derive(Debug, thiserror::Error)]
pub enum StampError {
    /// The XML.
    #[error(transparent)]
    Domain(#[from] DomainError),
    /// The profile.
    #[error(transparent)]
    Profile(#[from] ResolveError),
    /// QEMU cannot show it.
    #[error(transparent)]
    Frontend(#[from] QemuDeviceError),
    /// The profile may still change, and the order does not allow drafts.
    #[error(
        "profile \"{0}\" is a draft, which may change under the guest; choose a released one, or \
         give --allow-draft"
    )]
    Draft(String),
    /// It has another one.
    #[error(
        "interface \"{alias}\" has the profile {stamped}, and {asked} is asked for: its guest \
         would find another interface at its next start; if that is meant, give --replace-profile"
    )]
    OtherProfile {
        /// The interface.
        alias: String,
        /// Its profile.
        stamped: String,
        /// The other.
        asked: String,
    },
    /// The profile is another one than when it was stamped.
    #[error(
        "interface \"{alias}\" has the profile {profile} with digest {stamped}, and here that has \
         {found}; this is another set of profiles: see --profile-dir"
    )]
    OtherDigest {
        /// The interface.
        alias: String,
        /// Its profile.
        profile: String,
        /// As stamped.
        stamped: String,
        /// As it is here.
        found: String,
    },
    /// No interface is meant.
    #[error("the domain has no vhost-user interface \"{wanted}\"; it has {}", known(present))]
    NoSuchInterface {
        /// As asked for.
        wanted: String,
        /// Those there are.
        present: Vec<String>,
    },
    /// Two ports would have one name.
    #[error(
        "two interfaces have a socket called {0}, and the port's name is the file's; name them \
         differently"
    )]
    SamePort(String),
    /// `<mtu>` is something else than the profile's.
    #[error(
        "interface {interface} has <mtu size='{found}'/>, and its profile has {}; remove it, or \
         choose a profile with that MTU ({profile},mtu={found})",
        wanted.map_or_else(|| "none".to_owned(), |mtu| mtu.to_string())
    )]
    Mtu {
        /// The interface.
        interface: String,
        /// The profile.
        profile: String,
        /// Its MTU, bytes.
        wanted: Option<u16>,
        /// In the XML.
        found: String,
    },
    /// The memory is not to be shared.
    #[error(
        "the domain says in <{0}> that its memory is private, and a vhost-user backend has to map \
         it; write mode='shared' (memAccess='shared')"
    )]
    PrivateMemory(&'static str),
    /// The memory has no file that could be mapped.
    #[error(
        "the domain says in <memoryBacking> that its memory is anonymous, and a vhost-user backend \
         has to map it; write <source type='memfd'/>"
    )]
    AnonymousMemory,
    /// Memory that is plugged in is not to be shared.
    #[error(
        "the domain has a <memory access='private'> device, and a vhost-user backend has to map \
         all memory; write access='shared', or leave it out"
    )]
    PrivateDevice,
}

fn known(present: &[String]) -> String {
    if present.is_empty() { "none".to_owned() } else { present.join(", ") }
}

/// One device that is to be stamped.
struct Device<'d, 't> {
    /// None for one that is added.
    interface: Option<Interface<'d, 't>>,
    profile: Chosen,
    attachment: DeviceAttachment,
    record: Record,
}

/// Stamp the domain with this XML.
///
/// # Errors
/// [`StampError`].
pub fn stamp(text: &str, order: &Order, catalog: &Catalog) -> Result<Stamped, StampError> {
    let document = domain_xml::parse(text).map_err(DomainError::from)?;
    let domain = Domain::new(&document)?;
    let devices = devices(domain, order, catalog)?;
    check_ports(domain, &devices)?;
    let mut edits = Edits::new(&document);
    for device in &devices {
        complete(domain, device, &mut edits)?;
    }
    drop_left_over(domain, &mut edits)?;
    edits.merge(domain.root, &beside(domain, &devices)?);
    let ignored = devices.iter().filter_map(|device| device.interface);
    let mut warnings: Vec<String> =
        ignored.flat_map(|it| it.ignored().collect::<Vec<_>>()).collect();
    warnings.extend(by_hand(domain));
    let records = devices.into_iter().map(|device| device.record).collect();
    Ok(Stamped { text: edits.apply(), records, warnings })
}

/// A vhost-user device that libvirt knows nothing of cannot have a profile.
fn by_hand(domain: Domain<'_, '_>) -> Option<String> {
    let arguments = domain.root.descendants().filter(|node| node.has_tag_name((QEMU, "arg")));
    let mut values = arguments.filter_map(|argument| argument.attribute("value"));
    let is_ours =
        |value: &str| value.starts_with("vhost-user,") || value.contains("\"vhost-user\"");
    values.any(is_ours).then(|| {
        "<qemu:commandline> has a vhost-user device, which is left as it is and gets no profile; \
         write it as <interface type='vhostuser'>"
            .to_owned()
    })
}

/// Remove the stored records of interfaces that are no more.
fn drop_left_over<'d, 't>(
    domain: Domain<'d, 't>,
    edits: &mut Edits<'d, 't>,
) -> Result<(), StampError> {
    let aliases: Vec<&str> = domain.interfaces().iter().filter_map(Interface::alias).collect();
    for (node, record) in domain.records()? {
        if !aliases.contains(&record.alias.as_str()) {
            edits.remove(node);
            overridden(domain, &record.alias).for_each(|device| edits.remove(device));
        }
    }
    Ok(())
}

/// The overrides of a device.
fn overridden<'d, 't>(domain: Domain<'d, 't>, alias: &str) -> impl Iterator<Item = Node<'d, 't>> {
    let devices = domain.root.descendants().filter(|node| node.has_tag_name((QEMU, "device")));
    devices.filter(move |node| node.attribute("alias") == Some(alias))
}

/// The devices that are meant, each with its profile.
fn devices<'d, 't>(
    domain: Domain<'d, 't>,
    order: &Order,
    catalog: &Catalog,
) -> Result<Vec<Device<'d, 't>>, StampError> {
    let records: Vec<Record> = domain.records()?.into_iter().map(|(_, record)| record).collect();
    let interfaces = domain.interfaces();
    let mut aliases = aliases(domain);
    let mut devices = Vec::new();
    for interface in chosen(&interfaces, &order.only)? {
        let stamped = records.iter().find(|record| Some(&*record.alias) == interface.alias());
        let alias = match interface.alias() {
            Some(alias) if alias.starts_with(USER_ALIAS) => alias.to_owned(),
            _ => new_alias(&mut aliases).1,
        };
        let profile = profile(&alias, stamped, order, catalog)?;
        let attachment = DeviceAttachment {
            socket: interface.socket()?.to_owned(),
            mode: interface.mode()?,
            mac: interface.address()?.and(interface.mac()).map(str::to_owned),
            queue_pairs: Some(queue_pairs(domain, Some(interface), &profile.profile, order)),
        };
        let record = record(alias, &profile, stamped, order);
        devices.push(Device { interface: Some(interface), profile, attachment, record });
    }
    if order.add || interfaces.is_empty() {
        let (number, alias) = new_alias(&mut aliases);
        let profile = profile(&alias, None, order, catalog)?;
        let file = format!("{}-net{number}.sock", file_name(domain.text("name")?));
        let attachment = DeviceAttachment {
            socket: order.socket_directory.join(file).display().to_string(),
            mode: QemuSocketMode::Client,
            mac: order.mac.clone(),
            queue_pairs: Some(queue_pairs(domain, None, &profile.profile, order)),
        };
        let record = record(alias, &profile, None, order);
        devices.push(Device { interface: None, profile, attachment, record });
    }
    Ok(devices)
}

/// The interfaces that are meant.
fn chosen<'d, 't>(
    interfaces: &[Interface<'d, 't>],
    only: &[String],
) -> Result<Vec<Interface<'d, 't>>, StampError> {
    let is_it = |it: &Interface<'_, '_>, wanted: &str| {
        let by_address = || it.address().ok()?.zip(read_mac(wanted).ok());
        it.names().contains(&Some(wanted))
            || by_address().is_some_and(|(own, wanted)| own == wanted)
    };
    for wanted in only {
        if !interfaces.iter().any(|it| is_it(it, wanted)) {
            let present =
                interfaces.iter().flat_map(Interface::names).flatten().map(str::to_owned).collect();
            return Err(StampError::NoSuchInterface { wanted: wanted.clone(), present });
        }
    }
    let is_meant = |interface: &&Interface<'_, '_>| {
        only.is_empty() || only.iter().any(|wanted| is_it(interface, wanted))
    };
    Ok(interfaces.iter().filter(is_meant).copied().collect())
}

/// The profile of an interface: the stamped one, or the one that is asked for.
fn profile(
    alias: &str,
    stamped: Option<&Record>,
    order: &Order,
    catalog: &Catalog,
) -> Result<Chosen, StampError> {
    let asked = order.profile.as_deref();
    let text = asked.or(stamped.map(|record| record.profile.as_str())).unwrap_or("latest");
    let chosen = catalog.resolve(text)?;
    let Profile { name, .. } = &*chosen.profile;
    let was_allowed = stamped.is_some_and(|record| record.draft && record.profile == *name);
    if chosen.draft && !order.allow_draft && !was_allowed {
        return Err(StampError::Draft(name.clone()));
    }
    let Some(stamped) = stamped.filter(|_| !order.replace_profile) else { return Ok(chosen) };
    if stamped.profile != *name {
        return Err(StampError::OtherProfile {
            alias: alias.to_owned(),
            stamped: stamped.profile.clone(),
            asked: name.clone(),
        });
    }
    let found = chosen.profile.digest();
    if stamped.digest != found {
        return Err(StampError::OtherDigest {
            alias: alias.to_owned(),
            profile: name.clone(),
            stamped: stamped.digest.clone(),
            found,
        });
    }
    Ok(chosen)
}

fn record(alias: String, chosen: &Chosen, stamped: Option<&Record>, order: &Order) -> Record {
    let kept = || stamped.and_then(|record| record.uplink.clone());
    Record {
        alias,
        profile: chosen.profile.name.clone(),
        digest: chosen.profile.digest(),
        draft: chosen.draft,
        uplink: order.uplink.clone().or_else(kept),
    }
}

/// The queue pairs of a device.
fn queue_pairs(
    domain: Domain<'_, '_>,
    interface: Option<Interface<'_, '_>>,
    profile: &Profile,
    order: &Order,
) -> u16 {
    let present = || {
        let driver = child(interface?.node, "driver")?;
        driver.attribute("queues")?.parse().ok()
    };
    let cpus = || domain.text("vcpu").ok()?.parse::<u16>().ok();
    let one_each = || cpus().unwrap_or(1).clamp(1, profile.queue_pairs_max.max(1));
    order.queue_pairs.or_else(present).unwrap_or_else(one_each)
}

/// Every alias that is in use, in records and overrides too.
fn aliases(domain: Domain<'_, '_>) -> BTreeSet<String> {
    let named = |node: Node<'_, '_>| match node.has_tag_name("alias") {
        true => node.attribute("name").map(str::to_owned),
        false => node.attribute("alias").map(str::to_owned),
    };
    domain.root.descendants().filter_map(named).collect()
}

/// The first alias that is free, and its number.
fn new_alias(aliases: &mut BTreeSet<String>) -> (usize, String) {
    // There are no more than there are elements, so one is free.
    let mut number = 0;
    while aliases.contains(&format!("{ALIAS}{number}")) {
        number += 1;
    }
    let alias = format!("{ALIAS}{number}");
    aliases.insert(alias.clone());
    (number, alias)
}

/// A domain's name as part of a file's.
fn file_name(domain: &str) -> String {
    let fits = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    let plain = |letter: char| if fits(letter) { letter } else { '-' };
    let name: String = domain.chars().map(plain).take(NAME_MAX).collect();
    // Two names that differ only in the characters dropped here must not become one.
    if name == domain { name } else { format!("{name}-{}", &digest(domain)[..8]) }
}

/// No two ports of the domain with one name.
fn check_ports(domain: Domain<'_, '_>, devices: &[Device<'_, '_>]) -> Result<(), StampError> {
    let mut ports = BTreeSet::new();
    let meant = devices.iter().filter_map(|device| device.interface);
    let meant: Vec<_> = meant.map(|interface| interface.node.id()).collect();
    let ours = domain.stamped()?.into_iter().map(|(interface, _)| interface);
    let others = ours.filter(|interface| !meant.contains(&interface.node.id()));
    for interface in devices.iter().filter_map(|device| device.interface).chain(others) {
        let port = interface.port()?;
        if !ports.insert(port.to_owned()) {
            return Err(StampError::SamePort(port.to_owned()));
        }
    }
    Ok(())
}

/// Have one interface be as its profile wants it.
fn complete<'d, 't>(
    domain: Domain<'d, 't>,
    device: &Device<'d, 't>,
    edits: &mut Edits<'d, 't>,
) -> Result<(), StampError> {
    let Device { attachment, record, profile, .. } = device;
    let mut wanted = interface_element::interface(&profile.profile, attachment, &record.alias)?;
    let Some(Interface { node, .. }) = device.interface else {
        let devices = child(domain.root, "devices").ok_or(DomainError::Missing("devices"))?;
        edits.append(devices, wanted);
        return Ok(());
    };
    if let Some(mtu) = child(node, "mtu") {
        check_mtu(device, mtu.attribute("size").unwrap_or_default())?;
        edits.remove(mtu);
    }
    // The administrator decides how often QEMU reconnects. The model `virtio` may also stay: it is
    // transitional in a slot for such devices.
    let may_stay = |wanted: &Element, found: &str| match wanted.name() {
        "model" => profile.profile.is_transitional() && found == "virtio",
        _ => false,
    };
    let model = child(node, "model").and_then(|model| model.attribute("type"));
    wanted.children.retain(|child| !may_stay(child, model.unwrap_or_default()));
    let again = child(node, "source").and_then(|source| child(source, "reconnect"));
    for source in wanted.children.iter_mut().filter(|_| again.is_some()) {
        source.children.retain(|child| child.name() != "reconnect");
    }
    edits.merge(node, &wanted);
    drop_overrides(domain, device, edits)
}

/// `<mtu>` goes: libvirt would set it on a host interface that there is not. It must say the same.
fn check_mtu(device: &Device<'_, '_>, found: &str) -> Result<(), StampError> {
    let profile = &device.profile.profile;
    let wanted = QemuDevice::new(profile, device.attachment.queue_pairs)?.host_mtu;
    if wanted.is_some_and(|mtu| mtu.to_string() == found) {
        return Ok(());
    }
    Err(StampError::Mtu {
        interface: format!("\"{}\"", device.record.alias),
        profile: profile.name.clone(),
        wanted,
        found: found.to_owned(),
    })
}

/// Take away overrides that another profile needed.
fn drop_overrides<'d, 't>(
    domain: Domain<'d, 't>,
    device: &Device<'d, 't>,
    edits: &mut Edits<'d, 't>,
) -> Result<(), StampError> {
    let Device { attachment, record, profile, .. } = device;
    let wanted = interface_element::overrides(&profile.profile, attachment, &record.alias)?;
    for node in overridden(domain, &record.alias) {
        let properties = node.descendants().filter(|node| node.has_tag_name((QEMU, "property")));
        for property in properties {
            let name = property.attribute("name").unwrap_or_default();
            let is_ours = QemuDevice::property_names().any(|ours| ours == name);
            if is_ours && !wanted.contains(property) {
                edits.remove(property);
            }
        }
    }
    Ok(())
}

/// The parts of the domain beside the interfaces: metadata, shared memory and overrides.
fn beside(domain: Domain<'_, '_>, devices: &[Device<'_, '_>]) -> Result<Element, StampError> {
    let mut overrides = Element::of(QEMU, "qemu", "override");
    let mut records = Element::of(ISONIC, "isonic", "domain");
    for Device { profile, attachment, record, .. } in devices {
        let more = interface_element::overrides(&profile.profile, attachment, &record.alias)?;
        overrides.children.extend(more.children);
        records.children.push(record.element());
    }
    let metadata = Element::new("metadata").child(records);
    Ok(Element::new("domain").child(metadata).child(memory(domain)?).child(overrides))
}

/// Shared memory, in whatever way it is backed.
fn memory(domain: Domain<'_, '_>) -> Result<Element, StampError> {
    if domain.cells().any(|cell| cell.attribute("memAccess") == Some("private")) {
        return Err(StampError::PrivateMemory("cell"));
    }
    let present = child(domain.root, "memoryBacking");
    let inside = |name| present.and_then(|backing| child(backing, name));
    if inside("access").is_some_and(|access| access.attribute("mode") == Some("private")) {
        return Err(StampError::PrivateMemory("memoryBacking"));
    }
    let is_anonymous = inside("source").and_then(|it| it.attribute("type")) == Some("anonymous");
    if is_anonymous && inside("hugepages").is_none() {
        return Err(StampError::AnonymousMemory);
    }
    if domain.has_private_device() {
        return Err(StampError::PrivateDevice);
    }
    let mut memory = interface_element::shared_memory();
    if inside("source").is_some() || inside("hugepages").is_some() {
        memory.children.retain(|child| child.name() != "source");
    }
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BARE: &str = "<!-- mine -->
<domain type='kvm'>
  <name>vm 1</name>
  <metadata>
    <other:a xmlns:other='urn:other'><other:b c='&lt;'/></other:a>
  </metadata>
  <memory unit='MiB'>256</memory>
  <vcpu placement='static'>2</vcpu>
  <devices>
    <disk type='file'/>
  </devices>
</domain>
";

    const TWO: &str = "<domain type='kvm'>
  <name>vm1</name>
  <memoryBacking>
    <hugepages/>
  </memoryBacking>
  <vcpu>64</vcpu>
  <devices>
    <interface type='network'><source network='default'/></interface>
    <interface type='vhostuser'>
      <mac address='52:54:00:00:00:01'/>
      <source type='unix' path='/run/a.sock' mode='client'>
        <reconnect enabled='yes' timeout='7'/>
      </source>
      <mtu size='1500'/>
      <!-- kept -->
      <target dev='x'/>
      <model type='virtio'/>
      <driver queues='4'/>
      <alias name='net1'/>
    </interface>
    <interface type='vhostuser'>
      <source type='unix' path='/run/b.sock' mode='server'/>
      <model type='virtio'/>
    </interface>
  </devices>
</domain>
";

    fn order(profile: &str) -> Order {
        Order {
            profile: Some(profile.to_owned()),
            socket_directory: "/run/isonic".into(),
            ..Order::default()
        }
    }

    fn stamped(text: &str, order: &Order) -> String {
        let catalog = Catalog::embedded();
        let Stamped { text, .. } = stamp(text, order, &catalog).unwrap();
        // Once is enough, with the same order and with none.
        assert_eq!(stamp(&text, order, &catalog).unwrap().text, text);
        let none = Order { only: order.only.clone(), ..Order::default() };
        assert_eq!(stamp(&text, &none, &catalog).unwrap().text, text);
        text
    }

    fn refused(text: &str, order: &Order) -> String {
        stamp(text, order, &Catalog::embedded()).unwrap_err().to_string()
    }

    #[test]
    fn a_domain_without_a_vhost_user_interface_gets_one() {
        let text = stamped(BARE, &Order { uplink: Some("blue".into()), ..order("latest") });
        let document = roxmltree::Document::parse(&text).unwrap();
        let domain = Domain::new(&document).unwrap();
        let (interface, record) = domain.stamped().unwrap().remove(0);
        let v3 = Catalog::embedded().get("org.isonic.net.v3").unwrap().clone();
        assert_eq!(record.profile, "org.isonic.net.v3");
        assert_eq!((record.digest, record.draft), (v3.digest(), false));
        assert_eq!((&*record.alias, record.uplink.as_deref()), ("ua-isonic-net0", Some("blue")));
        assert!(interface.socket().unwrap().starts_with("/run/isonic/vm-1-"));
        assert_eq!(child(interface.node, "driver").unwrap().attribute("queues"), Some("2"));
        assert_eq!(interface.mode().unwrap(), QemuSocketMode::Client);
        // The earlier lines are still there, in order and to the letter.
        let mut rest = text.as_str();
        for line in BARE.lines() {
            let (_, after) = rest.split_once(line).unwrap_or_else(|| panic!("{line} in\n{text}"));
            rest = after;
        }
        assert!(text.contains("<source type='memfd'/>") && text.contains("mode='shared'"));
        assert!(text.contains("<qemu:property name='host_mtu' type='unsigned' value='1500'/>"));
    }

    #[test]
    fn interfaces_are_completed_and_keep_what_is_not_the_profiles() {
        let text = stamped(TWO, &order("org.isonic.net.v1"));
        assert!(!text.contains("<mtu"), "{text}");
        assert!(!text.contains("memfd"), "huge pages are shared as they are: {text}");
        for kept in [
            "timeout='7'",
            "<!-- kept -->",
            "<target dev='x'/>",
            "queues='4'",
            "mode='server'/>",
            "address='52:54:00:00:00:01'",
            "<source network='default'/>",
            "queues='16'",
        ] {
            assert_eq!(text.matches(kept).count(), 1, "{kept} in\n{text}");
        }
        for number in 0..2 {
            let alias = format!("<alias name='ua-isonic-net{number}'/>");
            assert!(text.contains(&alias), "{text}");
            let device = format!("<qemu:device alias='ua-isonic-net{number}'>");
            assert!(text.contains(&device), "{text}");
        }
        assert_eq!(text.matches("<qemu:override ").count(), 1, "{text}");
    }

    #[test]
    fn an_interface_alone_can_be_meant() {
        let one = Order { only: vec!["/run/b.sock".into()], ..order("org.isonic.net.v1") };
        let text = stamped(TWO, &one);
        assert!(text.contains("<alias name='net1'/>") && text.contains("<mtu"), "{text}");
        let none = Order { only: vec!["02:00:00:00:00:09".into()], ..one };
        let told = refused(TWO, &none);
        assert!(
            told.contains("it has net1, 52:54:00:00:00:01, /run/a.sock, /run/b.sock"),
            "{told}"
        );
    }

    #[test]
    fn a_stamped_profile_is_changed_only_if_that_is_said() {
        let text = stamped(BARE, &order("org.isonic.net.v3,mrg_rxbuf=off,in_order=on"));
        assert!(text.contains("name='in_order'"), "{text}");
        let told = refused(&text, &order("org.isonic.net.v1"));
        assert!(told.contains("--replace-profile"), "{told}");
        let replace = Order { replace_profile: true, ..order("org.isonic.net.v1") };
        let text = stamp(&text, &replace, &Catalog::embedded()).unwrap().text;
        assert!(!text.contains("in_order"), "{text}");
        assert_eq!(text, stamped(&text, &order("org.isonic.net.v1")));
        assert_eq!(text.matches("<isonic:interface ").count(), 1);
    }

    #[test]
    fn another_profile_under_the_stamped_name_is_refused() {
        let text = stamped(BARE, &order("org.isonic.net.v1"));
        let digest = Catalog::embedded().get("org.isonic.net.v1").unwrap().digest();
        let told = refused(&text.replace(&digest, "beef"), &Order::default());
        assert!(told.contains("with digest beef, and here that has"), "{told}");
    }

    #[test]
    fn a_draft_is_stamped_only_if_that_is_said() {
        assert!(refused(BARE, &order("org.isonic.net.v4")).contains("--allow-draft"));
        let allowed = Order { allow_draft: true, ..order("org.isonic.net.v4") };
        assert!(stamped(BARE, &allowed).contains("draft='yes'"));
    }

    #[test]
    fn what_contradicts_the_profile_is_told_and_not_overruled() {
        let mtu = TWO.replace("1500", "9000");
        let told = refused(&mtu, &order("org.isonic.net.v1"));
        assert!(told.contains("<mtu size='9000'/>") && told.contains("v1,mtu=9000"), "{told}");
        let one = vec!["52:54:00:00:00:01".to_owned()];
        stamped(&mtu, &Order { only: one, ..order("org.isonic.net.v1,mtu=9000") });
        let private = TWO.replace("<hugepages/>", "<access mode='private'/>");
        assert!(refused(&private, &order("latest")).contains("<memoryBacking>"));
        let cell =
            TWO.replace("<vcpu>", "<cpu><numa><cell memAccess='private'/></numa></cpu><vcpu>");
        assert!(refused(&cell, &order("latest")).contains("memAccess='shared'"));
        let dimm = "<devices><memory model='dimm' access='private'><target/></memory>";
        let told = refused(&TWO.replace("<devices>", dimm), &order("latest"));
        assert!(told.contains("<memory access='private'>"), "{told}");
        let shared = dimm.replace("private", "shared");
        stamped(&TWO.replace("<devices>", &shared), &order("org.isonic.net.v1"));
        let same = TWO.replace("/run/b.sock", "/tmp/a.sock");
        assert!(refused(&same, &order("latest")).contains("called a"));
        let odd = TWO.replace("/run/b.sock", "/run/b c");
        assert!(refused(&odd, &order("latest")).contains("/run/b c"));
        let queues = TWO.replace("queues='4'", "queues='17'");
        assert!(refused(&queues, &order("org.isonic.net.v1")).contains("at most 16"));
    }

    #[test]
    fn what_is_stored_is_read_with_suspicion() {
        let text = stamped(BARE, &order("org.isonic.net.v1"));
        for (from, to, told) in [
            ("draft='no'", "draft='no' vlan='7'", "\"vlan\", which this isonic does not know"),
            ("draft='no'", "draft='perhaps'", "neither yes nor no"),
            ("profile='org.isonic.net.v1' ", "", "has no \"profile\""),
            ("/libvirt/1'", "/libvirt/2'", "update isonic"),
            ("<domain type", "<network type", ""),
        ] {
            let changed = text.replace(from, to);
            assert_ne!(changed, text);
            assert!(refused(&changed, &Order::default()).contains(told), "{to}");
        }
    }

    #[test]
    fn what_is_stored_of_an_interface_that_is_gone_goes_too() {
        let text = stamped(TWO, &order("org.isonic.net.v1"));
        let gone = text.replacen("<alias name='ua-isonic-net0'/>", "", 1);
        let again = stamped(&gone, &order("org.isonic.net.v1"));
        for prefix in ["<isonic:interface alias", "<qemu:device alias", "<alias name"] {
            assert_eq!(again.matches(prefix).count(), 2, "{prefix} in {again}");
            assert!(!again.contains(&format!("{prefix}='ua-isonic-net0'")), "{again}");
        }
    }
}
