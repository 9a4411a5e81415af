//! The certificates of the TLS listeners by server name, replaceable under open connections.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{Error, PROVIDER, pem, versions};
use crate::config::{CertificateFiles, ListenTls};
use crate::readiness::Token;

/// As many names of a certificate are told. Some have a hundred.
const SHOWN_NAMES: usize = 6;

/// One certificate with its key.
#[derive(Debug)]
pub struct Certificate {
    key: Arc<CertifiedKey>,
    /// The hosts that it covers.
    pub names: Names,
    /// The end of its validity, in seconds since 1970.
    pub not_after: i64,
    /// Where it was read.
    pub file: PathBuf,
}

/// The subject alternative names of a certificate.
#[derive(Debug, Default)]
pub struct Names {
    exact: Vec<Box<str>>,
    wildcard: Vec<Box<str>>,
    addresses: Vec<IpAddr>,
}

/// What a certificate says of itself, read for names, dates and messages.
pub struct Facts {
    /// The hosts that it covers.
    pub names: Names,
    /// The beginning of its validity, in seconds since 1970.
    pub not_before: i64,
    /// The end of its validity, in seconds since 1970.
    pub not_after: i64,
    /// Who it is for.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
}

impl Facts {
    /// Reads a certificate; `None` when it is garbage.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        Some(Self {
            names: Names::of(&parsed),
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
        })
    }
}

impl Names {
    fn of(certificate: &X509Certificate<'_>) -> Self {
        let mut names = Self::default();
        let Ok(Some(extension)) = certificate.subject_alternative_name() else { return names };
        for name in &extension.value.general_names {
            match name {
                GeneralName::DNSName(name) => match name.strip_prefix("*.") {
                    Some(suffix) => names.wildcard.push(suffix.to_ascii_lowercase().into()),
                    None => names.exact.push(name.to_ascii_lowercase().into()),
                },
                GeneralName::IPAddress(bytes) => names.addresses.extend(address(bytes)),
                _ => {}
            }
        }
        names
    }

    /// Whether a client may ask for `host` (lower case, without port) on a connection with this certificate. A wildcard
    /// stands for exactly one label (RFC 9525, 6.3).
    pub fn covers(&self, host: &str) -> bool {
        if self.exact.iter().any(|name| **name == *host) {
            return true;
        }
        if let Some((label, suffix)) = host.split_once('.')
            && !label.is_empty()
            && self.wildcard.iter().any(|name| **name == *suffix)
        {
            return true;
        }
        !self.addresses.is_empty() && host.parse().is_ok_and(|ip: IpAddr| self.addresses.contains(&ip))
    }
}

/// The first of the names as a list, for messages.
impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = self.exact.iter().map(ToString::to_string);
        let wildcard = self.wildcard.iter().map(|suffix| format!("*.{suffix}"));
        let mut all = exact.chain(wildcard).chain(self.addresses.iter().map(ToString::to_string));
        let first: Vec<_> = all.by_ref().take(SHOWN_NAMES).collect();
        match (first.is_empty(), all.count()) {
            (true, _) => f.write_str("no name"),
            (false, 0) => f.write_str(&first.join(", ")),
            (false, more) => write!(f, "{} and {more} more", first.join(", ")),
        }
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// All certificates of the listeners.
#[derive(Debug)]
pub struct Set {
    all: Vec<Arc<Certificate>>,
    exact: HashMap<Box<str>, Arc<Certificate>>,
    wildcard: HashMap<Box<str>, Arc<Certificate>>,
}

impl Set {
    /// Reads every pair: those that can be used, and what is wrong with the others by the index of the pair. That is each file
    /// that is missing, unreadable or no PEM, and each key that is not its certificate's.
    pub fn load(files: &[CertificateFiles]) -> (Self, Vec<(usize, Error)>) {
        let mut set = Self { all: Vec::new(), exact: HashMap::new(), wildcard: HashMap::new() };
        let mut errors = Vec::new();
        for (index, files) in files.iter().enumerate() {
            match Certificate::load(files) {
                Ok(certificate) => set.insert(Arc::new(certificate)),
                Err(error) => errors.push((index, error)),
            }
        }
        (set, errors)
    }

    /// Every certificate, in the order of the configuration.
    pub fn all(&self) -> &[Arc<Certificate>] {
        &self.all
    }

    fn insert(&mut self, certificate: Arc<Certificate>) {
        // The first certificate that names a host serves it, as in nginx.
        for name in &certificate.names.exact {
            self.exact.entry(name.clone()).or_insert_with(|| certificate.clone());
        }
        for suffix in &certificate.names.wildcard {
            self.wildcard.entry(suffix.clone()).or_insert_with(|| certificate.clone());
        }
        self.all.push(certificate);
    }

    /// The certificate for a server name; the first one for a name that none covers, and for clients without a name.
    fn select(&self, server_name: Option<&str>) -> Option<&Arc<Certificate>> {
        let named = server_name.and_then(|name| {
            let suffix = || name.split_once('.').and_then(|(_, suffix)| self.wildcard.get(suffix));
            self.exact.get(name).or_else(suffix)
        });
        named.or_else(|| self.all.first())
    }
}

impl Certificate {
    fn load(files: &CertificateFiles) -> Result<Self, Error> {
        let key = pem::pair(files)?;
        let facts = key.end_entity_cert().ok().and_then(Facts::of);
        let facts = facts.ok_or_else(|| Error::new(&files.cert, "holds a certificate that cannot be read"))?;
        Ok(Self { key, names: facts.names, not_after: facts.not_after, file: files.cert.clone() })
    }
}

/// The set that is being served.
#[derive(Debug)]
pub struct Certificates {
    current: ArcSwap<Set>,
    /// Held until the next set comes, where this one lacks too much.
    awaited: Mutex<Option<Token>>,
}

impl Certificates {
    /// Serves `set`.
    pub fn new(set: Set) -> Arc<Self> {
        Self::awaiting(set, None)
    }

    /// Serves `set`, which lacks what the next one will have.
    pub fn awaiting(set: Set, next: Option<Token>) -> Arc<Self> {
        Arc::new(Self { current: ArcSwap::from_pointee(set), awaited: Mutex::new(next) })
    }

    /// Serves `set` from the next handshake on; open connections keep what they have.
    pub fn replace(&self, set: Set) {
        self.current.store(Arc::new(set));
        drop(self.awaited.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// The set that is being served.
    pub fn current(&self) -> Arc<Set> {
        self.current.load_full()
    }

    /// The certificate that a client with this server name gets.
    pub fn select(&self, server_name: Option<&str>) -> Option<Arc<Certificate>> {
        self.current.load().select(server_name).cloned()
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.load().select(hello.server_name()).map(|certificate| certificate.key.clone())
    }
}

/// The settings of a TLS listener.
///
/// # Errors
///
/// `client_ca` cannot be used.
pub fn config(certificates: Arc<Certificates>, options: &ListenTls) -> Result<Arc<ServerConfig>, Error> {
    let builder = ServerConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(versions(options.min_version))
        .expect("the provider has suites for TLS 1.2 and 1.3");
    let builder = match &options.client_ca {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let roots = Arc::new(pem::roots(file, &pem::read(file)?)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, PROVIDER.clone())
                .build()
                .map_err(|error| Error::new(file, format!("cannot verify clients: {error}")))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Stateless tickets: a resumed handshake costs no memory here. One ticket, because nobody opens two at once.
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()
        .map_err(|error| Error::new("", format!("no session tickets: {error}")))?;
    config.send_tls13_tickets = 1;
    Ok(Arc::new(config))
}
