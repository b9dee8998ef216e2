//! NBD URIs, as in the NBD project's doc/uri.md: `nbd://host[:port][/export]` and
//! `nbd+unix:///[export]?socket=PATH`. Must refuse what it cannot do (TLS, vsock) by name.

use std::path::PathBuf;
use std::str::FromStr;

/// IANA's port for NBD.
const PORT: u16 = 10809;

/// NBD's bound on strings (doc/proto.md).
pub(super) const EXPORT_BYTES_MAX: usize = 4096;

/// Where an NBD server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

/// An export of an NBD server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdUri {
    pub(super) address: Address,
    pub(super) export: String,
    /// As it was given, for messages.
    text: String,
}

/// A URI that names no export that can be read here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}: {why}")]
pub struct NbdUriError {
    text: String,
    why: &'static str,
}

impl NbdUri {
    /// Whether `text` is meant as a URI at all, and not as a path.
    pub fn is_uri(text: &str) -> bool {
        let scheme = |(scheme, _): (&str, &str)| {
            scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        };
        text.split_once("://").is_some_and(scheme)
    }

    /// The default export of a server on a unix socket.
    pub fn of_socket(socket: PathBuf) -> Self {
        Self {
            text: format!("nbd+unix:///?socket={}", socket.display()),
            address: Address::Unix(socket),
            export: String::new(),
        }
    }
}

impl FromStr for NbdUri {
    type Err = NbdUriError;

    fn from_str(text: &str) -> Result<Self, NbdUriError> {
        let parsed = parse(text).map_err(|why| NbdUriError {
            text: text.to_owned(),
            why,
        })?;
        let (address, export) = parsed;
        Ok(Self {
            address,
            export,
            text: text.to_owned(),
        })
    }
}

impl std::fmt::Display for NbdUri {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

fn parse(text: &str) -> Result<(Address, String), &'static str> {
    let (scheme, rest) = text.split_once("://").ok_or("expected nbd://host/export")?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let export = decode(path)?;
    if export.len() > EXPORT_BYTES_MAX {
        return Err("the export's name is longer than 4096 bytes");
    }
    let address = match scheme {
        "nbd" => {
            if !query.is_empty() {
                return Err("nbd:// takes no ?query; a unix socket is nbd+unix:///?socket=PATH");
            }
            tcp(authority)?
        }
        "nbd+unix" => {
            if !authority.is_empty() {
                return Err("nbd+unix has no host: three slashes, nbd+unix:///?socket=PATH");
            }
            let socket = query
                .split('&')
                .find_map(|item| item.strip_prefix("socket="));
            let socket = decode(socket.unwrap_or_default())?;
            if socket.is_empty() || socket.contains('\0') {
                return Err("no socket: nbd+unix:///export?socket=PATH");
            }
            Address::Unix(socket.into())
        }
        "nbds" | "nbds+unix" => {
            return Err(
                "TLS to NBD servers is not supported: use a unix socket or a private network",
            );
        }
        _ => return Err("not supported: give nbd://host/export or nbd+unix:///export?socket=PATH"),
    };
    Ok((address, export))
}

fn tcp(authority: &str) -> Result<Address, &'static str> {
    if authority.contains('@') {
        return Err("NBD has no user names");
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or("an IPv6 address ends with ]")?;
            let port = rest.strip_prefix(':');
            if port.is_none() && !rest.is_empty() {
                return Err("only :port may follow the IPv6 address");
            }
            (host, port)
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    if host.is_empty() {
        return Err("no host: nbd://host/export");
    }
    let port = match port {
        Some(port) => port
            .parse()
            .map_err(|_| "the port is no number below 65536")?,
        None => PORT,
    };
    Ok(Address::Tcp {
        host: host.to_owned(),
        port,
    })
}

/// Undoes percent-encoding.
fn decode(text: &str) -> Result<String, &'static str> {
    const BAD: &str = "% is followed by two hexadecimal digits";
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || {
            let digit = char::from(rest.next().ok_or(BAD)?).to_digit(16);
            digit.ok_or(BAD)
        };
        let value = digit()? << 4 | digit()?;
        bytes.push(value as u8);
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(text: &str) -> Result<(Address, String), &'static str> {
        parse(text)
    }

    fn host(host: &str, port: u16, export: &str) -> Result<(Address, String), &'static str> {
        let host = host.to_owned();
        Ok((Address::Tcp { host, port }, export.to_owned()))
    }

    #[test]
    fn every_form_is_read() {
        assert_eq!(of("nbd://san"), host("san", 10809, ""));
        assert_eq!(of("nbd://san/"), host("san", 10809, ""));
        assert_eq!(of("nbd://san:7/a%20b/c"), host("san", 7, "a b/c"));
        assert_eq!(of("nbd://[::1]:9/x"), host("::1", 9, "x"));
        assert_eq!(of("nbd://[fe80::2]"), host("fe80::2", 10809, ""));
        let unix = |path: &str, export: &str| Ok((Address::Unix(path.into()), export.to_owned()));
        assert_eq!(of("nbd+unix:///?socket=/run/a%2Cb"), unix("/run/a,b", ""));
        assert_eq!(of("nbd+unix:///vm?x=1&socket=/s"), unix("/s", "vm"));
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        for (text, said) in [
            ("nbds://san/x", "TLS"),
            ("nbd+unix:///x", "no socket"),
            ("nbd+unix://host/x?socket=/s", "three slashes"),
            ("nbd:///x", "no host"),
            ("nbd://u@h/x", "user names"),
            ("nbd://h:70000/x", "port"),
            ("nbd://h/%zz", "hexadecimal"),
            ("nbd://h/%ff", "UTF-8"),
            ("rbd://pool/x", "not supported"),
        ] {
            let error = text.parse::<NbdUri>().unwrap_err().to_string();
            assert!(error.contains(said) && error.contains(text), "{error}");
        }
    }

    #[test]
    fn paths_are_no_uris() {
        assert!(NbdUri::is_uri("nbd+unix:///?socket=/s"));
        assert!(NbdUri::is_uri("https://host/x"));
        for path in ["/dev/vg/vm", "./nbd:/x", "disk.raw", "/a://b"] {
            assert!(!NbdUri::is_uri(path), "{path}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "(nbd|nbd\\+unix)://[\\[\\]a-z:%0-9/?=&@]{0,40}") {
            let _ = text.parse::<NbdUri>();
        }
    }
}
