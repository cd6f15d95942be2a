//! Which addresses a webhook may lead to: those of the public internet, and what the pipeline allows besides.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// Addresses that share their first bits, as in `10.0.0.0/8`, or a single one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    first: IpAddr,
    bits: u32,
}

/// A text that is no range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a range of addresses such as 10.0.0.0/8 or fd00::/8, found {0:?}")]
pub struct Malformed(String);

impl FromStr for Range {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let read = || {
            let (first, bits) = text.split_once('/').map_or((text, None), |(first, bits)| (first, Some(bits)));
            let first: IpAddr = first.parse().ok()?;
            let most = if first.is_ipv4() { 32 } else { 128 };
            let bits = bits.map_or(Some(most), |bits| bits.parse().ok())?;
            (bits <= most).then_some(Self { first, bits })
        };
        read().ok_or_else(|| Malformed(text.chars().take(80).collect()))
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.bits)
    }
}

impl Range {
    fn contains(&self, address: IpAddr) -> bool {
        match (self.first, address) {
            (IpAddr::V4(first), IpAddr::V4(address)) => {
                (first.to_bits() ^ address.to_bits()).checked_shr(32 - self.bits).unwrap_or(0) == 0
            }
            (IpAddr::V6(first), IpAddr::V6(address)) => {
                (first.to_bits() ^ address.to_bits()).checked_shr(128 - self.bits).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// Whether an address may be called.
pub(super) fn may_call(address: IpAddr, allow: &[Range]) -> bool {
    // `::ffff:127.0.0.1` is 127.0.0.1.
    let address = address.to_canonical();
    allow.iter().any(|range| range.contains(address))
        || match address {
            IpAddr::V4(address) => is_public_v4(address),
            IpAddr::V6(address) => is_public_v6(address),
        }
}

/// By IANA's registry of special addresses.
fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(a == 0
        || a == 10
        || a == 127
        || (a == 100 && (64..128).contains(&b))
        || (a == 169 && b == 254)
        || (a == 172 && (16..32).contains(&b))
        || (a == 192 && b == 168)
        || (a == 192 && b == 0 && (c == 0 || c == 2))
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (b == 18 || b == 19))
        || (a == 198 && b == 51 && c == 100)
        || (a == 203 && b == 0 && c == 113)
        || a >= 224)
}

/// Only what is given out as global unicast, without the parts of it that lead into IPv4, or nowhere.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, ..] = address.segments();
    let global = a & 0xe000 == 0x2000;
    let teredo_or_special = a == 0x2001 && b < 0x200;
    let documentation = (a == 0x2001 && b == 0xdb8) || (a == 0x3fff && b < 0x1000);
    global && !teredo_or_special && !documentation && a != 0x2002
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may(address: &str, allow: &[&str]) -> bool {
        let allow: Vec<Range> = allow.iter().map(|range| range.parse().unwrap()).collect();
        may_call(address.parse().unwrap(), &allow)
    }

    #[test]
    fn internal_addresses_are_refused_in_every_spelling() {
        let internal = [
            "127.0.0.1",
            "127.255.0.3",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "100.127.255.255",
            "0.0.0.0",
            "255.255.255.255",
            "224.0.0.1",
            "198.18.0.1",
            "240.0.0.1",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "fd12:3456::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::a00:1",
            "2002:7f00:1::",
            "2001::1",
            "2001:db8::1",
            "fec0::1",
        ];
        for address in internal {
            assert!(!may(address, &[]), "{address}");
        }
        for address in
            ["1.1.1.1", "100.63.0.1", "100.128.0.1", "172.32.0.1", "169.253.0.1", "2606:4700::1111", "2a00::1"]
        {
            assert!(may(address, &[]), "{address}");
        }
    }

    #[test]
    fn what_the_pipeline_allows_may_be_called_and_no_more() {
        assert!(may("127.0.0.1", &["127.0.0.1/32"]) && may("::ffff:127.0.0.1", &["127.0.0.1/32"]));
        assert!(!may("127.0.0.2", &["127.0.0.1/32"]) && may("10.255.0.1", &["10.0.0.0/8"]));
        assert!(may("fd00::7", &["fd00::/8"]) && !may("fc00::7", &["fd00::/8"]) && may("10.0.0.1", &["0.0.0.0/0"]));
        assert!(!may("::1", &["0.0.0.0/0"]) && may("::1", &["::/0"]) && may("::1", &["::1/128"]));
        assert!(may("10.0.0.1", &["10.0.0.1"]) && !may("10.0.0.2", &["10.0.0.1"]));
        for bad in ["", "10.0.0.0/", "10.0.0.0/33", "::/129", "10.0.0/8", "a/8", "10.0.0.0/-1"] {
            assert!(bad.parse::<Range>().is_err(), "{bad}");
        }
    }
}
