//! A throw-away certificate authority, and everything that can be wrong with a certificate.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use tempfile::TempDir;

/// A certificate authority with a directory for its files.
pub struct Authority {
    directory: TempDir,
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate with its key. The files go with the authority; what is kept in memory serves for as long as it lives.
#[derive(Clone)]
pub struct Identity {
    /// PEM chain.
    pub cert: PathBuf,
    /// PEM private key.
    pub key: PathBuf,
    chain: Vec<CertificateDer<'static>>,
    private_key: Arc<PrivateKeyDer<'static>>,
}

impl Authority {
    /// A new authority; `name` becomes its subject.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let directory = TempDir::new().unwrap();
        fs::write(directory.path().join("ca.crt"), &pem).unwrap();
        Self { directory, issuer: Issuer::new(params, key), pem }
    }

    /// The authority's certificate as a PEM file.
    pub fn file(&self) -> PathBuf {
        self.directory.path().join("ca.crt")
    }

    /// A server certificate for these names (addresses allowed).
    pub fn server(&self, names: &[&str]) -> Identity {
        self.issue(names, |_| {})
    }

    /// A server certificate as public authorities sign them: good for ninety days.
    pub fn server_for_ninety_days(&self, names: &[&str]) -> Identity {
        const HOUR: Duration = Duration::from_secs(3600);
        let now = SystemTime::now();
        self.issue(names, |params| {
            params.not_before = (now - HOUR).into();
            params.not_after = (now + 90 * 24 * HOUR).into();
        })
    }

    /// A server certificate whose time is over.
    pub fn expired(&self, names: &[&str]) -> Identity {
        self.issue(names, |params| {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2020, 2, 1);
        })
    }

    /// A server certificate whose time has not begun.
    pub fn not_yet_valid(&self, names: &[&str]) -> Identity {
        self.issue(names, |params| params.not_before = rcgen::date_time_ymd(2090, 1, 1))
    }

    /// A client certificate.
    pub fn client(&self, name: &str) -> Identity {
        self.issue(&[name], |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth])
    }

    fn issue(&self, names: &[&str], adjust: impl FnOnce(&mut CertificateParams)) -> Identity {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names.clone()).unwrap();
        params.distinguished_name.push(DnType::CommonName, names[0].as_str());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        adjust(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let folder = tempfile::tempdir_in(self.directory.path()).unwrap().keep();
        let identity = Identity {
            cert: folder.join("tls.crt"),
            key: folder.join("tls.key"),
            chain: vec![certificate.der().clone()],
            private_key: Arc::new(PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap()),
        };
        fs::write(&identity.cert, certificate.pem()).unwrap();
        fs::write(&identity.key, key.serialize_pem()).unwrap();
        identity
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        Arc::new(roots)
    }

    /// A client that trusts this authority alone.
    pub fn trusting(&self, alpn: &[&str]) -> Arc<ClientConfig> {
        self.client_config(alpn, None, rustls::ALL_VERSIONS)
    }

    /// The same with a certificate of its own, or other protocol versions.
    pub fn client_config(
        &self,
        alpn: &[&str],
        identity: Option<&Identity>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(self.roots());
        let mut config = match identity {
            Some(identity) => builder.with_client_auth_cert(identity.chain.clone(), identity.private_key()).unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

impl Identity {
    fn private_key(&self) -> PrivateKeyDer<'static> {
        self.private_key.clone_key()
    }

    /// The leaf as DER, for comparison with what a peer showed.
    pub fn leaf(&self) -> &CertificateDer<'static> {
        &self.chain[0]
    }

    /// A server that shows this certificate, and asks for one of `client_authority` when given.
    pub fn server_config(&self, alpn: &[&str], client_authority: Option<&Authority>) -> Arc<ServerConfig> {
        self.server_config_of(alpn, client_authority, rustls::ALL_VERSIONS)
    }

    /// The same with other protocol versions.
    pub fn server_config_of(
        &self,
        alpn: &[&str],
        client_authority: Option<&Authority>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Arc<ServerConfig> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions).unwrap();
        let builder = match client_authority {
            Some(authority) => builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(authority.roots(), provider).build().unwrap(),
            ),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(self.chain.clone(), self.private_key()).unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}
