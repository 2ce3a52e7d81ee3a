//! Whose address counts when a request came through proxies.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The address of the client behind `hops` trusted proxies, of which `peer` is the last.
///
/// Each proxy appends the address it was called from, so what the trusted ones say stands at the
/// end; anything before it was sent by the client and means nothing. A request that did not pass
/// all of them counts for `peer`.
pub(super) fn client_address(peer: IpAddr, headers: &HeaderMap, hops: usize) -> IpAddr {
    let Some(place) = hops.checked_sub(1) else { return peer };
    let values = headers.get_all(FORWARDED_FOR);
    let values: Vec<&str> = values.iter().filter_map(|value| value.to_str().ok()).collect();
    let mut entries = values.iter().rev().flat_map(|value| value.rsplit(','));
    entries.nth(place).and_then(parse).unwrap_or(peer)
}

/// An address as proxies write it: bare, with a port, in brackets or both.
fn parse(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().or_else(|| text.parse().ok().map(|address: SocketAddr| address.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address_behind(hops: usize, values: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(FORWARDED_FOR, value.parse().expect("a header value"));
        }
        client_address("192.0.2.1".parse().expect("an address"), &headers, hops).to_string()
    }

    #[test]
    fn the_trusted_proxies_are_counted_from_the_end() {
        let values = ["198.51.100.9, 203.0.113.7", "203.0.113.8"];
        assert_eq!(address_behind(0, &values), "192.0.2.1");
        assert_eq!(address_behind(1, &values), "203.0.113.8");
        assert_eq!(address_behind(2, &values), "203.0.113.7");
        assert_eq!(address_behind(3, &values), "198.51.100.9");
    }

    #[test]
    fn a_request_past_the_proxies_counts_for_the_peer() {
        assert_eq!(address_behind(1, &[]), "192.0.2.1");
        assert_eq!(address_behind(2, &["203.0.113.8"]), "192.0.2.1");
        assert_eq!(address_behind(1, &["unknown"]), "192.0.2.1");
    }

    #[test]
    fn every_notation_of_an_address_is_read() {
        for (text, address) in [
            ("203.0.113.7:4711", "203.0.113.7"),
            ("2001:db8::7", "2001:db8::7"),
            ("[2001:db8::7]", "2001:db8::7"),
            (" [2001:db8::7]:4711 ", "2001:db8::7"),
        ] {
            assert_eq!(address_behind(1, &[text]), address, "{text}");
        }
    }
}
