//! Reads the header of the PROXY protocol, versions 1 and 2, from the start of a connection.
//!
//! A load balancer that forwards TCP puts it before the first byte of the client to tell where the
//! client is. The format is fixed in haproxy's `doc/proxy-protocol.txt`.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::limits::MAX_PROXY_HEADER_BYTES;

/// How a header of version 2 begins; one of version 1 begins with text of no other meaning.
const SIGNATURE_V2: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const PREFIX_V1: &[u8] = b"PROXY ";
/// Longest header of version 1, with its line end.
const MAX_V1_BYTES: usize = 107;

/// Reads exactly the header; `None` where it names no client: a health check of the proxy itself,
/// or a protocol that has no addresses.
///
/// # Errors
/// If the connection ends, or does not begin with a header.
pub(super) async fn read<S: AsyncRead + Unpin>(socket: &mut S) -> io::Result<Option<IpAddr>> {
    let mut start = [0; SIGNATURE_V2.len()];
    socket.read_exact(&mut start).await?;
    if start == SIGNATURE_V2 {
        read_v2(socket).await
    } else if start.starts_with(PREFIX_V1) {
        read_v1(socket, &start).await
    } else {
        Err(malformed("no header of the PROXY protocol"))
    }
}

/// The rest of a line. What follows it is the client's, so not a byte too many may be read.
async fn read_v1<S: AsyncRead + Unpin>(socket: &mut S, start: &[u8]) -> io::Result<Option<IpAddr>> {
    let mut line = Vec::with_capacity(MAX_V1_BYTES);
    line.extend_from_slice(start);
    while !line.ends_with(b"\r\n") {
        if line.len() == MAX_V1_BYTES {
            return Err(malformed("a header line without end"));
        }
        line.push(socket.read_u8().await?);
    }
    parse_v1(&line).ok_or_else(|| malformed("a malformed header line"))
}

fn parse_v1(line: &[u8]) -> Option<Option<IpAddr>> {
    let text = str::from_utf8(line).ok()?.strip_prefix("PROXY ")?.strip_suffix("\r\n")?;
    let words: Vec<&str> = text.split(' ').collect();
    match words[..] {
        ["UNKNOWN", ..] => Some(None),
        ["TCP4", source, target, source_port, target_port] => {
            let source: Ipv4Addr = source.parse().ok()?;
            target.parse::<Ipv4Addr>().ok()?;
            ports(source_port, target_port)?;
            Some(Some(IpAddr::V4(source)))
        }
        ["TCP6", source, target, source_port, target_port] => {
            let source: Ipv6Addr = source.parse().ok()?;
            target.parse::<Ipv6Addr>().ok()?;
            ports(source_port, target_port)?;
            Some(Some(IpAddr::V6(source)))
        }
        _ => None,
    }
}

fn ports(source: &str, target: &str) -> Option<(u16, u16)> {
    Some((source.parse().ok()?, target.parse().ok()?))
}

/// Version, command, family and length; then addresses and extensions of that length.
async fn read_v2<S: AsyncRead + Unpin>(socket: &mut S) -> io::Result<Option<IpAddr>> {
    const VERSION_2: u8 = 0x20;
    const LOCAL: u8 = 0;
    const PROXY: u8 = 1;
    const INET: u8 = 1;
    const INET6: u8 = 2;

    let command = socket.read_u8().await?;
    let family = socket.read_u8().await?;
    let length = usize::from(socket.read_u16().await?);
    if command & 0xf0 != VERSION_2 || length > MAX_PROXY_HEADER_BYTES {
        return Err(malformed("an unknown version or too long a header"));
    }
    let mut rest = vec![0; length];
    socket.read_exact(&mut rest).await?;
    match (command & 0x0f, family >> 4) {
        (LOCAL, _) => Ok(None),
        (PROXY, INET) => match rest.first_chunk::<4>() {
            Some(source) if rest.len() >= 12 => Ok(Some(IpAddr::from(*source))),
            _ => Err(malformed("too short for its addresses")),
        },
        (PROXY, INET6) => match rest.first_chunk::<16>() {
            Some(source) if rest.len() >= 36 => Ok(Some(IpAddr::from(*source))),
            _ => Err(malformed("too short for its addresses")),
        },
        (PROXY, _) => Ok(None),
        _ => Err(malformed("an unknown command")),
    }
}

fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read from `bytes`, and what is left of them.
    async fn parsed(bytes: &[u8]) -> (Result<Option<String>, io::ErrorKind>, Vec<u8>) {
        let mut rest = bytes;
        let address = read(&mut rest).await;
        let address = address.map(|address| address.map(|address| address.to_string()));
        (address.map_err(|error| error.kind()), rest.to_vec())
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).expect("short").to_be_bytes();
        [&SIGNATURE_V2[..], &[command, family], &length, rest, b"next"].concat()
    }

    #[tokio::test]
    async fn version_1_names_the_client_and_nothing_after_the_line_is_taken() {
        for (line, address) in [
            ("PROXY TCP4 203.0.113.7 192.0.2.1 4711 8080\r\n", Some("203.0.113.7")),
            ("PROXY TCP6 2001:db8::7 2001:db8::1 4711 8080\r\n", Some("2001:db8::7")),
            ("PROXY UNKNOWN\r\n", None),
            ("PROXY UNKNOWN ff:: ff:: 1 1\r\n", None),
        ] {
            let bytes = [line.as_bytes(), b"next"].concat();
            let expected = (Ok(address.map(str::to_owned)), b"next".to_vec());
            assert_eq!(parsed(&bytes).await, expected, "{line}");
        }
    }

    #[tokio::test]
    async fn version_2_names_the_client_and_extensions_are_skipped() {
        let v4 = [203, 0, 113, 7, 192, 0, 2, 1, 0x12, 0x67, 0x1f, 0x90];
        let next = b"next".to_vec();
        let named = |address: &str| (Ok(Some(address.to_owned())), next.clone());
        assert_eq!(parsed(&v2(0x21, 0x11, &v4)).await, named("203.0.113.7"));
        let extended = [&v4[..], &[0x04, 0, 1, 0]].concat();
        assert_eq!(parsed(&v2(0x21, 0x11, &extended)).await, named("203.0.113.7"));
        let mut v6 = [0; 36];
        v6[..16].copy_from_slice(&"2001:db8::7".parse::<Ipv6Addr>().expect("an address").octets());
        assert_eq!(parsed(&v2(0x21, 0x21, &v6)).await, named("2001:db8::7"));
        assert_eq!(parsed(&v2(0x20, 0, &[])).await, (Ok(None), next.clone()));
        assert_eq!(parsed(&v2(0x21, 0x31, &[0; 216])).await, (Ok(None), next));
    }

    #[tokio::test]
    async fn anything_else_is_refused() {
        let long = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 200]].concat();
        let malformed: [&[u8]; 9] = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"PROXY TCP4 203.0.113.7 192.0.2.1 4711\r\n",
            b"PROXY TCP4 2001:db8::7 2001:db8::1 4711 8080\r\n",
            b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 80800\r\n",
            b"PROXY UDP4 203.0.113.7 192.0.2.1 4711 8080\r\n",
            &long,
            &v2(0x11, 0x11, &[0; 12]),
            &v2(0x22, 0x11, &[0; 12]),
            &v2(0x21, 0x11, &[0; 11]),
        ];
        for bytes in malformed {
            let (read, _) = parsed(bytes).await;
            assert_eq!(read, Err(io::ErrorKind::InvalidData), "{:?}", bytes.escape_ascii());
        }
        let too_long = v2(0x21, 0x11, &vec![0; MAX_PROXY_HEADER_BYTES + 1]);
        assert_eq!(parsed(&too_long).await.0, Err(io::ErrorKind::InvalidData));
        assert_eq!(parsed(b"PROXY TCP4").await.0, Err(io::ErrorKind::UnexpectedEof));
    }
}
