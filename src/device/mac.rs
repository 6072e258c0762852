//! The address of a virtio-net device on its network (virtio 1.2, 5.1.4: `mac`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// An Ethernet address, written `52:54:00:12:34:56`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

/// The text is no Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no MAC address; write six pairs of hexadecimal digits, 52:54:00:12:34:56")]
pub struct MacAddressError(String);

impl MacAddress {
    /// The address of a port without a configured one, always the same for the same host and name.
    /// It is unicast and locally administered, so that it equals no product's address.
    #[must_use]
    pub fn derived(host: &str, port: &str) -> Self {
        let digest = Sha256::digest([host.as_bytes(), b"\n", port.as_bytes()].concat());
        let [mut first, b, c, d, e, f] = std::array::from_fn(|index| digest[index]);
        first = (first | 0x02) & !0x01;
        Self([first, b, c, d, e, f])
    }

    /// Whether it can be the address of one device: not a group's, and not all zero.
    #[must_use]
    pub const fn is_unicast(self) -> bool {
        let [a, b, c, d, e, f] = self.0;
        a & 1 == 0 && (a | b | c | d | e | f) != 0
    }
}

/// An address as one number, to compare with others: the compiler compares six bytes one by one.
#[inline]
#[must_use]
pub const fn number(mac: [u8; 6]) -> u64 {
    let [a, b, c, d, e, f] = mac;
    u64::from_be_bytes([0, 0, a, b, c, d, e, f])
}

impl fmt::Display for MacAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = MacAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || MacAddressError(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(refused)?;
            // from_str_radix alone would take "+5".
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(refused());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_not_hex| refused())?;
        }
        if parts.next().is_some() { Err(refused()) } else { Ok(Self(bytes)) }
    }
}

impl TryFrom<String> for MacAddress {
    type Error = MacAddressError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_address_round_trip() {
        let mac: MacAddress = "52:54:00:aB:0c:01".parse().unwrap();
        assert_eq!(mac.0, [0x52, 0x54, 0, 0xab, 0x0c, 1]);
        assert_eq!(mac.to_string(), "52:54:00:ab:0c:01");
    }

    #[test]
    fn what_only_looks_like_an_address_is_refused() {
        for text in
            ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "52:54:00:12:34:+5", "5:4:0:1:2:3"]
        {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_derived_address_is_stable_local_and_unicast() {
        let mac = MacAddress::derived("host", "vm1");
        assert_eq!(mac, MacAddress::derived("host", "vm1"));
        assert_ne!(mac, MacAddress::derived("host", "vm2"));
        assert_ne!(mac, MacAddress::derived("other", "vm1"));
        assert_eq!(mac.0[0] & 3, 2);
        assert!(mac.is_unicast());
    }

    #[test]
    fn groups_and_zero_are_not_unicast() {
        assert!(!MacAddress([1, 0, 0x5e, 0, 0, 1]).is_unicast());
        assert!(!MacAddress([0; 6]).is_unicast());
    }
}
