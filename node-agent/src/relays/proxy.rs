//! Which proxy the channels over TLS go through, if any: said by a flag, or by the environment as people expect.

use channel::Proxy;
use ipnet::IpNet;
use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};
use zeroize::Zeroizing;

/// The port of a proxy that names none, as other programs have it for `http://`.
const PORT: u16 = 80;

/// The address of a proxy, and perhaps what to show there. Shown without that.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUrl {
    host: String,
    port: u16,
    credentials: Option<Credentials>,
}

/// A user and a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    user: Zeroizing<String>,
    password: Zeroizing<String>,
}

impl Credentials {
    /// From `user:password`, as it stands in a file.
    ///
    /// # Errors
    /// What was expected; never what was found.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (user, password) = text.trim_end_matches(['\r', '\n']).split_once(':').ok_or("expected user:password")?;
        if user.is_empty() || text.chars().any(|c| c.is_control() && !matches!(c, '\r' | '\n')) {
            return Err("expected user:password".into());
        }
        Ok(Self { user: Zeroizing::new(user.into()), password: Zeroizing::new(password.into()) })
    }
}

impl ProxyUrl {
    /// From where others can read it.
    ///
    /// # Errors
    /// What was expected; never what was found.
    pub fn without_credentials(text: &str) -> Result<Self, String> {
        let url: Self = text.parse()?;
        if url.credentials.is_some() {
            return Err("expected no credentials in it: they go into a file, --relay-proxy-credentials".into());
        }
        Ok(url)
    }

    /// The same with these.
    #[must_use]
    pub fn with_credentials(self, credentials: Credentials) -> Self {
        Self { credentials: Some(credentials), ..self }
    }
}

impl FromStr for ProxyUrl {
    type Err = String;

    /// No error repeats the text, which may hold a password.
    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected http://HOST:PORT".to_owned();
        let rest = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some(_) => return Err("expected a proxy that is spoken to in plain HTTP, http://HOST:PORT".into()),
            None => text,
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (credentials, address) = match rest.rsplit_once('@') {
            Some((pair, address)) => {
                let (user, password) = pair.split_once(':').unwrap_or((pair, ""));
                let decoded = |text: &str| decode(text).map(Zeroizing::new).ok_or_else(expected);
                (Some(Credentials { user: decoded(user)?, password: decoded(password)? }), address)
            }
            None => (None, rest),
        };
        let (host, port) = match address.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((v6, "")) => (v6, PORT),
            Some((v6, port)) => (v6, port.strip_prefix(':').and_then(|p| p.parse().ok()).ok_or_else(expected)?),
            None => match address.split_once(':') {
                Some((host, port)) => (host, port.parse().map_err(|_| expected())?),
                None => (address, PORT),
            },
        };
        let is_v6 = host.parse::<std::net::Ipv6Addr>().is_ok();
        if host.is_empty()
            || port == 0
            || (!is_v6 && host.contains(|c: char| !c.is_ascii_alphanumeric() && !"-._".contains(c)))
        {
            return Err(expected());
        }
        Ok(Self { host: host.into(), port, credentials })
    }
}

/// Undoes percent-encoding.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |byte: u8| (byte as char).to_digit(16);
                u8::try_from(digit(rest.next()?)? * 16 + digit(rest.next()?)?).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok().filter(|text| !text.chars().any(char::is_control))
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// The proxy, and what it is not for.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    proxy: Option<Proxy>,
    except: Vec<Exception>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Exception {
    All,
    Net(IpNet, Option<u16>),
}

impl Proxies {
    /// Relays are reached through that proxy but for those whose addresses are in the list: addresses, networks, or `*`, each perhaps with a
    /// port, by commas. Names in it mean nothing, because relays have none.
    pub fn new(url: Option<&ProxyUrl>, no_proxy: &str) -> Self {
        let proxy = url.map(|url| {
            let proxy = Proxy::new(&url.host, url.port);
            match &url.credentials {
                Some(Credentials { user, password }) => proxy.with_credentials(user, password),
                None => proxy,
            }
        });
        Self { proxy, except: no_proxy.split(',').filter_map(|text| exception(text.trim())).collect() }
    }

    /// The proxy for those of a relay's sockets that are reached through it.
    pub fn through(&self, sockets: &[SocketAddr]) -> Option<(Proxy, Vec<SocketAddr>)> {
        let proxy = self.proxy.clone()?;
        let proxied = sockets.iter().filter(|socket| !self.excepts(**socket)).copied().collect();
        Some((proxy, proxied))
    }

    fn excepts(&self, socket: SocketAddr) -> bool {
        let ip = socket.ip().to_canonical();
        ip.is_loopback()
            || self.except.iter().any(|exception| match exception {
                Exception::All => true,
                Exception::Net(net, port) => net.contains(&ip) && port.is_none_or(|port| port == socket.port()),
            })
    }
}

fn exception(text: &str) -> Option<Exception> {
    if text == "*" {
        return Some(Exception::All);
    }
    let net = |text: &str| text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    if let Some(net) = net(text) {
        return Some(Exception::Net(net, None));
    }
    if let Ok(socket) = text.parse::<SocketAddr>() {
        return Some(Exception::Net(socket.ip().into(), Some(socket.port())));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Result<ProxyUrl, String> {
        text.parse()
    }

    #[test]
    fn a_proxy_is_written_as_people_write_it() {
        for (text, host, port) in [
            ("http://proxy.example:3128", "proxy.example", 3128),
            ("HTTP://proxy.example/", "proxy.example", 80),
            ("192.0.2.1:8080", "192.0.2.1", 8080),
            ("http://[2001:db8::1]:3128/", "2001:db8::1", 3128),
            ("http://[2001:db8::1]", "2001:db8::1", 80),
        ] {
            let read = url(text).unwrap();
            assert_eq!((&*read.host, read.port, read.credentials.is_some()), (host, port, false), "{text}");
        }
        let read = url("http://user:p%40ss%3a@proxy.example:3128").unwrap();
        let credentials = read.credentials.clone().unwrap();
        assert_eq!((&**credentials.user, &**credentials.password), ("user", "p@ss:"));
        assert_eq!(format!("{read:?}"), "proxy.example:3128");
        let refused = ProxyUrl::without_credentials("http://user:secret@proxy.example:3128").unwrap_err();
        assert!(refused.contains("--relay-proxy-credentials") && !refused.contains("secret"), "{refused}");
        assert!(ProxyUrl::without_credentials("http://proxy.example:3128").is_ok());
    }

    #[test]
    fn what_is_no_proxy_is_refused_without_repeating_a_password() {
        for text in [
            "https://user:secret@proxy.example:3128",
            "socks5://user:secret@proxy.example",
            "http://user:secret@",
            "http://user:secret@proxy.example:port",
            "http://user:secret@proxy.example:0",
            "http://user:sec%0aret@proxy.example",
            "http://user:secret@proxy example",
            "http://user:secret@proxy.example/path",
            "http://user:secret@[::1",
            "",
        ] {
            let error = url(text).unwrap_err();
            assert!(error.starts_with("expected") && !error.contains("sec"), "{text}: {error}");
        }
        for text in ["secret", ":secret", "us\u{7}er:secret"] {
            assert_eq!(Credentials::parse(text).err().as_deref(), Some("expected user:password"));
        }
        assert!(Credentials::parse("user:with:colons\n").is_ok_and(|read| &**read.password == "with:colons"));
    }

    #[test]
    fn what_the_proxy_is_not_for_is_reached_directly() {
        let sockets: Vec<SocketAddr> =
            ["192.0.2.7:443", "192.0.2.7:8443", "198.51.100.9:443", "[2001:db8::7]:443", "127.0.0.1:8443"]
                .map(|text| text.parse().unwrap())
                .to_vec();
        let through = |no_proxy: &str| {
            let proxies = Proxies::new(url("http://proxy.example:3128").ok().as_ref(), no_proxy);
            let (_, proxied) = proxies.through(&sockets).unwrap();
            proxied.iter().map(|socket| sockets.iter().position(|known| known == socket).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(through(""), [0, 1, 2, 3]);
        assert_eq!(through("localhost,.example, 192.0.2.0/24"), [2, 3]);
        assert_eq!(through("192.0.2.7:8443,2001:db8::7"), [0, 2]);
        assert_eq!(through("*"), [0; 0]);
        assert!(Proxies::new(None, "").through(&sockets).is_none());
    }
}
