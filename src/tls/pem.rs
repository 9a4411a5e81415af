//! Reads PEM files and says which file and which part of it is wrong.

use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::{Error, PROVIDER};
use crate::config::CertificateFiles;

/// A certificate file is never larger than this.
const LIMIT: u64 = 4 << 20;

/// The text of a file.
pub fn read(file: &Path) -> Result<Vec<u8>, Error> {
    let bounded = std::fs::metadata(file).and_then(|metadata| {
        // A pipe would be waited for, a device never ends.
        if !metadata.is_file() {
            return Err(std::io::Error::other("not a regular file"));
        }
        if metadata.len() > LIMIT { Err(std::io::ErrorKind::FileTooLarge.into()) } else { std::fs::read(file) }
    });
    bounded.map_err(|error| {
        let problem = Error::new(file, format!("cannot be read: {error}"));
        match error.kind() {
            std::io::ErrorKind::NotFound => problem.with_help("mount the Secret there, or correct the path"),
            std::io::ErrorKind::PermissionDenied => {
                problem.with_help("make it readable for the user of the process (fsGroup in the Deployment)")
            }
            _ => problem,
        }
    })
}

/// The certificates of a PEM text, leaf first; at least one.
pub fn chain(file: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let certificates = CertificateDer::pem_slice_iter(text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Error::new(file, format!("is no valid PEM: {error}")))?;
    if certificates.is_empty() {
        return Err(Error::new(file, "holds no certificate").with_help("expected -----BEGIN CERTIFICATE-----"));
    }
    Ok(certificates)
}

/// The private key of a PEM text.
pub fn key(file: &Path, text: &[u8]) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_slice(text).map_err(|error| {
        if text.windows(9).any(|word| word == b"ENCRYPTED") {
            Error::new(file, "is an encrypted private key").with_help("store it without a pass phrase")
        } else {
            Error::new(file, format!("holds no private key: {error}")).with_help("expected -----BEGIN PRIVATE KEY-----")
        }
    })
}

/// A chain and the key that belongs to it.
pub fn pair(files: &CertificateFiles) -> Result<Arc<CertifiedKey>, Error> {
    let chain = chain(&files.cert, &read(&files.cert)?)?;
    let key = key(&files.key, &read(&files.key)?)?;
    CertifiedKey::from_der(chain, key, &PROVIDER).map(Arc::new).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => Error::new(&files.key, "is not the key of the certificate")
            .with_help(format!("it must belong to {}", files.cert.display())),
        other => Error::new(&files.key, format!("cannot be used: {other}")),
    })
}

/// Trust anchors of a PEM text.
pub fn roots(file: &Path, text: &[u8]) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in chain(file, text)? {
        roots.add(certificate).map_err(|error| Error::new(file, format!("holds an unusable certificate: {error}")))?;
    }
    Ok(roots)
}
