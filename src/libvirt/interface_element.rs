//! A profile's interface in libvirt's words: the interface element, and overrides for the others.
//!
//! libvirt, formatdomain.html, "vhost-user interface"; drvqemu.html, "Overriding properties of QEMU
//! devices" (since libvirt 8.2).

use crate::profile::Profile;
use crate::profile::qemu_device::{HOST_MTU, Property, QemuDevice, QemuDeviceError, Xml};

use super::element::Element;

/// libvirt's namespace for properties that only QEMU knows.
pub(super) const QEMU: &str = "http://libvirt.org/schemas/domain/qemu/1.0";
/// The name of the only device of a fragment; `ua-` is for names that users give.
const ALIAS: &str = "ua-isonic-net0";
/// Seconds after which QEMU connects again to a backend that went away.
const RECONNECT_SECONDS: &str = "1";

/// Who listens on the socket, as libvirt says it: of QEMU's side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QemuSocketMode {
    /// QEMU connects.
    #[default]
    Client,
    /// QEMU listens.
    Server,
}

impl QemuSocketMode {
    /// The word of the XML.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// The properties of a VM's device that are not in the profile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceAttachment {
    /// The port's socket.
    pub socket: String,
    /// Who listens on it.
    pub mode: QemuSocketMode,
    /// The guest's MAC address; None leaves it to libvirt.
    pub mac: Option<String>,
    /// Queue pairs of this VM; None is the profile's limit.
    pub queue_pairs: Option<u16>,
}

/// Memory that a backend can map.
pub(super) fn shared_memory() -> Element {
    Element::new("memoryBacking")
        .child(Element::new("source").with("type", "memfd"))
        .child(Element::new("access").with("mode", "shared"))
}

/// The interface element of one device.
///
/// # Errors
/// [`QemuDeviceError`].
pub(super) fn interface(
    profile: &Profile,
    attachment: &DeviceAttachment,
    alias: &str,
) -> Result<Element, QemuDeviceError> {
    let frontend = QemuDevice::new(profile, attachment.queue_pairs)?;
    let mut source = Element::new("source")
        .with("type", "unix")
        .with("path", attachment.socket.as_str())
        .with("mode", attachment.mode.word());
    if attachment.mode == QemuSocketMode::Client {
        let again = Element::new("reconnect").with("enabled", "yes");
        source = source.child(again.with("timeout", RECONNECT_SECONDS));
    }
    let mac = attachment.mac.as_deref().map(|mac| Element::new("mac").with("address", mac));
    let model =
        if frontend.transitional { "virtio-transitional" } else { "virtio-non-transitional" };
    let mut interface = Element::new("interface").with("type", "vhostuser");
    interface.children.extend(mac);
    Ok(interface
        .child(source)
        .child(Element::new("model").with("type", model))
        .child(driver(&frontend))
        .child(Element::new("alias").with("name", alias)))
}

fn driver(frontend: &QemuDevice) -> Element {
    let size = frontend.ring_size.to_string();
    let driver = Element::new("driver")
        .with("queues", frontend.queue_pairs.to_string())
        .with("rx_queue_size", size.as_str())
        .with("tx_queue_size", size.as_str());
    let said = |element: Element, select: fn(Xml) -> Option<&'static str>| {
        frontend.properties.iter().fold(
            element,
            |element, (Property { xml, .. }, on)| match select(*xml) {
                Some(attribute) => element.with(attribute, if *on { "on" } else { "off" }),
                None => element,
            },
        )
    };
    said(driver, |xml| if let Xml::Driver(name) = xml { Some(name) } else { None })
        .child(said(Element::new("host"), |xml| {
            if let Xml::Host(name) = xml { Some(name) } else { None }
        }))
        .child(said(Element::new("guest"), |xml| {
            if let Xml::Guest(name) = xml { Some(name) } else { None }
        }))
}

/// The properties of one device that have no XML form, as overrides. `<mtu>` is among them: libvirt
/// 9.0 also sets it on a host interface. A vhost-user device has no host interface, so libvirt then
/// does not start the VM.
///
/// # Errors
/// [`QemuDeviceError`].
pub(super) fn overrides(
    profile: &Profile,
    attachment: &DeviceAttachment,
    alias: &str,
) -> Result<Element, QemuDeviceError> {
    let frontend = QemuDevice::new(profile, attachment.queue_pairs)?;
    let property = |name: &str, kind: &str, value: String| {
        of_qemu("property").keyed("name", name).with("type", kind).with("value", value)
    };
    let mut properties = of_qemu("frontend");
    let mtu = frontend.host_mtu.map(|mtu| property(HOST_MTU, "unsigned", mtu.to_string()));
    properties.children.extend(mtu);
    let without = frontend.properties.iter().filter(|(property, _)| property.xml == Xml::Override);
    properties
        .children
        .extend(without.map(|(Property { qemu, .. }, on)| property(qemu, "bool", on.to_string())));
    let device = of_qemu("device").keyed("alias", alias).child(properties);
    Ok(of_qemu("override").child(device))
}

fn of_qemu(name: &'static str) -> Element {
    Element::of(QEMU, "qemu", name)
}

/// A domain's parts for one such device: shared memory, the interface and the overrides, as a
/// fragment of its XML.
///
/// # Errors
/// [`QemuDeviceError`].
pub fn fragment(
    profile: &Profile,
    attachment: &DeviceAttachment,
) -> Result<String, QemuDeviceError> {
    let domain = Element::new("domain")
        .with("type", "kvm")
        .child(shared_memory())
        .child(Element::new("devices").child(interface(profile, attachment, ALIAS)?))
        .child(overrides(profile, attachment, ALIAS)?);
    Ok(format!(
        "<!-- {}, digest {}: merge into the VM's <domain>. -->\n{}\n",
        comment(&profile.name),
        profile.digest(),
        domain.text("", &|_uri| None)
    ))
}

/// The interface element alone, as `virsh attach-device` wants it. It has no alias for overrides to
/// refer to, because libvirt applies none to a plugged device.
///
/// # Errors
/// [`QemuDeviceError`].
pub fn device(profile: &Profile, attachment: &DeviceAttachment) -> Result<String, QemuDeviceError> {
    let mut interface = interface(profile, attachment, ALIAS)?;
    interface.children.retain(|child| child.name() != "alias");
    Ok(interface.text("", &|_uri| None) + "\n")
}

/// XML 1.0, 2.5: a comment holds no two hyphens in a row.
fn comment(value: &str) -> String {
    value.replace("--", "- -")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Catalog;

    #[test]
    fn nothing_given_by_a_user_breaks_out_of_its_place() {
        let v1 = Catalog::embedded().get("org.isonic.net.v1").unwrap().as_ref().clone();
        let named = Profile { name: "a-->".into(), ..v1 };
        let socket = "/run/a'b<&\".sock".to_owned();
        let attachment = DeviceAttachment { socket: socket.clone(), ..DeviceAttachment::default() };
        let xml = fragment(&named, &attachment).unwrap();
        let document = roxmltree::Document::parse(&xml).unwrap();
        let source = document
            .descendants()
            .find(|node| node.has_tag_name("source") && node.has_attribute("path"))
            .unwrap();
        assert_eq!(source.attribute("path"), Some(socket.as_str()));
    }

    #[test]
    fn a_transitional_profile_has_a_transitional_model() {
        for (name, model) in [
            ("org.dpdk.v22.11", "<model type='virtio-transitional'/>"),
            ("org.isonic.net.v1", "<model type='virtio-non-transitional'/>"),
        ] {
            let profile = Catalog::embedded().get(name).unwrap().clone();
            let xml = device(&profile, &DeviceAttachment::default()).unwrap();
            assert!(xml.contains(model), "{xml}");
        }
    }
}
