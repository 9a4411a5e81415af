//! What we present and what we trust towards an upstream. Services with the same files share one [`Identity`], so a
//! thousand services cost one set of roots and one session cache; two identities never share either.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::{ClientConfig, RootCertStore};
use sha2::{Digest, Sha256};

use super::certificates::Facts;
use super::verify::{Roots, Unverified, Verified};
use super::{Error, PROVIDER, pem, versions};
use crate::config::{CertificateFiles, ClusterOptions, Environment, TlsVersion};

/// Sessions of one identity, eight for each of a thousand names. rustls would remember 32 names, and where hundreds of
/// services share an identity none of them would find its session again.
const SESSIONS: usize = 8 * 1024;

/// How the roots that we carry are named.
const BUILT_IN: &str = "the built-in roots (there is no ca_file)";

/// Trust, certificate and protocol choice of a group of upstreams.
#[derive(Debug)]
pub struct Identity {
    /// Offers HTTP/1.1 only.
    pub http1: Arc<ClientConfig>,
    /// Offers HTTP/2 first.
    pub http2: Arc<ClientConfig>,
    /// The end of our own certificate's validity, in seconds since 1970, and its file.
    pub client_not_after: Option<(PathBuf, i64)>,
    /// The earliest end among the roots of a `ca_file`, and the file.
    pub roots_not_after: Option<(PathBuf, i64)>,
    fingerprint: [u8; 32],
}

/// Equal when built from the same bytes and settings.
impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }
}

/// Builds identities, each file read once.
pub struct Identities<'a> {
    environment: &'a Environment,
    files: HashMap<PathBuf, Arc<Vec<u8>>>,
    /// By `ca_file`; without one, what the environment names.
    trusts: HashMap<Option<PathBuf>, Arc<Trust>>,
    verifiers: HashMap<[u8; 32], Arc<dyn ServerCertVerifier>>,
    built: HashMap<[u8; 32], Arc<Identity>>,
}

/// The roots that a cluster trusts, as read.
struct Trust {
    sources: Vec<Source>,
    /// The key that names them, for messages.
    origin: String,
    mark: [u8; 32],
}

/// A file of roots.
struct Source {
    file: PathBuf,
    text: Arc<Vec<u8>>,
    /// Files of a folder may be anything; those that hold no certificate are passed over.
    of_folder: bool,
}

impl Trust {
    /// When the first of the certificates of this file ends.
    fn earliest_end(&self, file: &Path) -> Option<(PathBuf, i64)> {
        let source = self.sources.iter().find(|source| source.file == file)?;
        let ends = pem::chain(file, &source.text).ok()?;
        let earliest = ends.iter().filter_map(Facts::of).map(|facts| facts.not_after).min()?;
        Some((file.to_owned(), earliest))
    }
}

/// Which key of a cluster names the file that cannot be used.
#[derive(Debug)]
pub enum Fault {
    /// `ca_file`, or the roots of the environment.
    Roots(Error),
    /// `client_cert` or `client_key`.
    Client(Error),
}

impl<'a> Identities<'a> {
    /// Identities of earlier snapshots are handed in, so that an unchanged one keeps its session cache.
    pub fn new(environment: &'a Environment, earlier: impl IntoIterator<Item = Arc<Identity>>) -> Self {
        let built = earlier.into_iter().map(|identity| (identity.fingerprint, identity)).collect();
        Self { environment, files: HashMap::new(), trusts: HashMap::new(), verifiers: HashMap::new(), built }
    }

    /// The identity for a cluster.
    ///
    /// # Errors
    ///
    /// A file that is missing, unreadable or not what it should be.
    pub fn get(&mut self, options: &ClusterOptions) -> Result<Arc<Identity>, Fault> {
        let trust = self.trust(options.ca_file.as_deref()).map_err(Fault::Roots)?;
        let root_mark = mark([&[u8::from(options.verify)], &trust.mark[..]].into_iter());
        let client = match &options.client {
            None => None,
            Some(files) => {
                let cert = self.read(&files.cert).map_err(Fault::Client)?;
                let key = self.read(&files.key).map_err(Fault::Client)?;
                Some((files, mark([&cert[..], &key[..]].into_iter())))
            }
        };
        let version = u8::from(options.min_version == TlsVersion::V1_3);
        let client_mark = client.map_or([0; 32], |(_, mark)| mark);
        let fingerprint = mark([&root_mark[..], &client_mark[..], &[version]].into_iter());
        if let Some(identity) = self.built.get(&fingerprint) {
            return Ok(identity.clone());
        }
        let verifier = match self.verifiers.get(&root_mark) {
            Some(verifier) => verifier.clone(),
            None => {
                let verifier = verifier(options.verify, &trust).map_err(Fault::Roots)?;
                self.verifiers.insert(root_mark, verifier.clone());
                verifier
            }
        };
        let built = build(&verifier, client.map(|(files, _)| files), options.min_version, fingerprint);
        let mut identity = built.map_err(Fault::Client)?;
        identity.roots_not_after = options.ca_file.as_deref().and_then(|file| trust.earliest_end(file));
        let identity = Arc::new(identity);
        self.built.insert(fingerprint, identity.clone());
        Ok(identity)
    }

    /// The roots of a cluster, read and marked once for all clusters that share them.
    fn trust(&mut self, ca_file: Option<&Path>) -> Result<Arc<Trust>, Error> {
        let key = ca_file.map(Path::to_owned);
        if let Some(trust) = self.trusts.get(&key) {
            return Ok(trust.clone());
        }
        let mut sources = Vec::new();
        for (file, of_folder) in self.root_files(ca_file) {
            match self.read(&file) {
                Ok(text) => sources.push(Source { file, text, of_folder }),
                Err(error) if !of_folder => return Err(error),
                Err(_) => {}
            }
        }
        let origin = if sources.is_empty() { BUILT_IN.to_owned() } else { self.origin(ca_file) };
        // With their names: what is said of a certificate that they do not sign names the file.
        let parts = sources.iter().flat_map(|source| [source.file.as_os_str().as_encoded_bytes(), &source.text[..]]);
        let mark = mark(parts);
        let trust = Arc::new(Trust { sources, origin, mark });
        self.trusts.insert(key, trust.clone());
        Ok(trust)
    }

    /// `ca_file` alone when set, else what the environment names, else none: then the roots that we carry count.
    fn root_files(&self, ca_file: Option<&Path>) -> Vec<(PathBuf, bool)> {
        if let Some(file) = ca_file {
            return vec![(file.to_owned(), false)];
        }
        let variable = |name| self.environment.get(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let file = variable("SSL_CERT_FILE").map(|file| (file, false));
        let folder = variable("SSL_CERT_DIR").map(|folder| certificates_in(&folder)).unwrap_or_default();
        file.into_iter().chain(folder.into_iter().map(|file| (file, true))).collect()
    }

    /// What names the roots that are in force.
    fn origin(&self, ca_file: Option<&Path>) -> String {
        if let Some(file) = ca_file {
            return format!("ca_file {}", file.display());
        }
        let named = ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().filter_map(|name| {
            let value = self.environment.get(name).filter(|value| !value.is_empty())?;
            Some(format!("{name} {value}"))
        });
        named.collect::<Vec<_>>().join(" and ")
    }

    fn read(&mut self, file: &Path) -> Result<Arc<Vec<u8>>, Error> {
        if let Some(text) = self.files.get(file) {
            return Ok(text.clone());
        }
        let text = Arc::new(pem::read(file)?);
        self.files.insert(file.to_owned(), text.clone());
        Ok(text)
    }
}

fn certificates_in(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let is_pem = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "pem" || extension == "crt");
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(is_pem).collect();
    files.sort();
    files
}

fn mark<'b>(parts: impl Iterator<Item = &'b [u8]>) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

fn verifier(verify: bool, trust: &Trust) -> Result<Arc<dyn ServerCertVerifier>, Error> {
    if !verify {
        return Ok(Arc::new(Unverified));
    }
    let mut store = RootCertStore::empty();
    let mut roots = Roots::new(&trust.origin);
    for Source { file, text, of_folder } in &trust.sources {
        match pem::roots(file, text) {
            Ok(found) => {
                store.roots.extend(found.roots);
                roots.hold(&pem::chain(file, text)?);
            }
            Err(error) if !of_folder => return Err(error),
            Err(_) => {}
        }
    }
    if trust.sources.is_empty() {
        store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    let file = trust.sources.first().map(|source| source.file.clone()).unwrap_or_default();
    let verified = Verified::new(store, roots);
    Ok(Arc::new(verified.map_err(|error| Error::new(file, format!("cannot verify servers: {error}")))?))
}

fn build(
    verifier: &Arc<dyn ServerCertVerifier>,
    client: Option<&CertificateFiles>,
    minimum: TlsVersion,
    fingerprint: [u8; 32],
) -> Result<Identity, Error> {
    let pair = client.map(|files| pem::pair(files).map(|pair| (files, pair))).transpose()?;
    let config = |alpn: &[&[u8]]| {
        let builder = ClientConfig::builder_with_provider(PROVIDER.clone())
            .with_protocol_versions(versions(minimum))
            .expect("the provider has suites for TLS 1.2 and 1.3")
            .dangerous()
            .with_custom_certificate_verifier(verifier.clone());
        let mut config = match &pair {
            None => builder.with_no_client_auth(),
            Some((_, pair)) => {
                builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(pair.clone())))
            }
        };
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        Arc::new(config)
    };
    let client_not_after = pair.as_ref().and_then(|(files, pair)| {
        let facts = pair.end_entity_cert().ok().and_then(Facts::of)?;
        Some((files.cert.clone(), facts.not_after))
    });
    Ok(Identity {
        http1: config(&[b"http/1.1"]),
        http2: config(&[b"h2", b"http/1.1"]),
        client_not_after,
        roots_not_after: None,
        fingerprint,
    })
}
