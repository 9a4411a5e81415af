//! Judges the certificates of upstreams. Where one does not hold it says what it held and which roots were asked: rustls
//! names neither. That is for logs, `/status` and trusted clients; parts of it are the peer's own words, so they are kept
//! short and printable.

use std::fmt;
use std::io;
use std::sync::Arc;

use jiff::Timestamp;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::VerifierBuilderError;
use rustls::{AlertDescription, CertificateError, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};

use super::PROVIDER;
use super::certificates::Facts;

/// As many characters of a peer's subject are told, and of the names in its certificate.
const LONGEST_SUBJECT: usize = 80;
const LONGEST_NAMES: usize = 160;

/// As many roots are told by name.
const SHOWN_ROOTS: usize = 3;

/// The roots that are in force, for messages.
#[derive(Debug)]
pub struct Roots {
    origin: String,
    subjects: Vec<String>,
}

impl Roots {
    /// None yet; `origin` is the key that names them.
    pub fn new(origin: &str) -> Self {
        Self { origin: origin.to_owned(), subjects: Vec::new() }
    }

    /// Adds the names of these.
    pub fn hold(&mut self, certificates: &[CertificateDer<'_>]) {
        self.subjects.extend(certificates.iter().filter_map(Facts::of).map(|facts| facts.subject));
    }

    /// Why they do not know this issuer.
    fn lack(&self, issuer: &str) -> String {
        if self.subjects.iter().any(|subject| subject == issuer) {
            return format!("but {} holds one of that name with another key", self.origin);
        }
        let shown: Vec<_> = self.subjects.iter().take(SHOWN_ROOTS).map(|subject| quoted(subject)).collect();
        match self.subjects.len().saturating_sub(shown.len()) {
            _ if shown.is_empty() => format!("which is not in {}", self.origin),
            0 => format!("which is not in {}: {}", self.origin, shown.join(", ")),
            more => format!("which is not in {}: {} and {more} more", self.origin, shown.join(", ")),
        }
    }
}

/// Verification by the web's rules.
#[derive(Debug)]
pub struct Verified {
    inner: Arc<WebPkiServerVerifier>,
    roots: Roots,
}

impl Verified {
    /// Trusts these roots.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn new(store: RootCertStore, roots: Roots) -> Result<Self, VerifierBuilderError> {
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(store), PROVIDER.clone()).build()?;
        Ok(Self { inner, roots })
    }

    /// What there is to say about a chain that does not hold.
    fn explain(
        &self,
        cause: &CertificateError,
        chain: &[&CertificateDer<'_>],
        name: &ServerName<'_>,
    ) -> Option<String> {
        let chain: Vec<Facts> = chain.iter().filter_map(|certificate| Facts::of(certificate)).collect();
        let leaf = chain.first()?;
        let shown = format!("the certificate {} for {}", quoted(&leaf.subject), names(leaf));
        Some(match cause {
            // A root of the issuer's name with another key fails at the signature.
            CertificateError::UnknownIssuer
            | CertificateError::BadSignature
            | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
                format!("unknown issuer: {shown} {}", self.untrusted(&chain))
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                let (subject, issuer) = (quoted(&leaf.subject), quoted(&leaf.issuer));
                let (names, name) = (names(leaf), name.to_str());
                format!("wrong name: the certificate {subject}, signed by {issuer}, is for {names}, not for {name}")
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                // It may be another one of the chain that is over.
                let over = chain.iter().min_by_key(|facts| facts.not_after)?;
                let end = date(over.not_after);
                format!("expired: the certificate {} for {} ended {end}", quoted(&over.subject), names(over))
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                let early = chain.iter().max_by_key(|facts| facts.not_before)?;
                let start = date(early.not_before);
                format!("not valid yet: the certificate {} for {} begins {start}", quoted(&early.subject), names(early))
            }
            other => format!("{}: {shown}, signed by {}", plain(other), quoted(&leaf.issuer)),
        })
    }

    /// Where a chain ends whose end nobody knows.
    fn untrusted(&self, chain: &[Facts]) -> String {
        let (leaf, mut sent) = (&chain[0], chain[1..].iter().collect::<Vec<_>>());
        if leaf.subject == leaf.issuer {
            return format!("is signed by itself, {}", self.roots.lack(&leaf.issuer));
        }
        let mut last = leaf;
        while let Some(at) = sent.iter().position(|next| next.subject == last.issuer && next.subject != last.subject) {
            last = sent.swap_remove(at);
        }
        let lack = self.roots.lack(&last.issuer);
        let issuer = quoted(&leaf.issuer);
        if std::ptr::eq(last, leaf) {
            let alone = if chain.len() == 1 { " and came without others" } else { "" };
            return format!("is signed by {issuer}, {lack}{alone}");
        }
        format!("is signed by {issuer}, whose chain ends at {}, {lack}", quoted(&last.issuer))
    }
}

/// Why a certificate does not hold. rustls has no place for such a text but "other".
#[derive(Debug)]
struct Rejected(String);

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Rejected {}

impl ServerCertVerifier for Verified {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.inner.verify_server_cert(leaf, intermediates, name, ocsp, now).map_err(|error| {
            let rustls::Error::InvalidCertificate(cause) = &error else { return error };
            let chain: Vec<_> = std::iter::once(leaf).chain(intermediates).collect();
            let Some(text) = self.explain(cause, &chain, name) else { return error };
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(Rejected(text)))))
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// A word of rustls without its structure.
fn plain(cause: &CertificateError) -> String {
    let CertificateError::Other(OtherError(inner)) = cause else { return format!("{cause:?}") };
    match inner.to_string().as_str() {
        "CaUsedAsEndEntity" => "an authority's own certificate, not a server's".to_owned(),
        other => other.to_owned(),
    }
}

fn date(seconds: i64) -> String {
    Timestamp::from_second(seconds).map_or_else(|_| format!("at {seconds}"), |time| time.to_string())
}

fn quoted(name: &str) -> String {
    format!("'{}'", printable(name, LONGEST_SUBJECT))
}

fn names(certificate: &Facts) -> String {
    printable(&certificate.names.to_string(), LONGEST_NAMES)
}

/// A peer's word, cut and without control characters.
fn printable(text: &str, longest: usize) -> String {
    let letters = text.chars().map(|letter| if letter.is_control() { '?' } else { letter });
    let mut shown: String = letters.clone().take(longest).collect();
    if letters.count() > longest {
        shown.push('…');
    }
    shown
}

/// What a failed handshake with an upstream says.
pub fn reason(error: &io::Error) -> String {
    match inner(error) {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(reason)))) => reason.to_string(),
        Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)) => {
            "what answers there speaks no TLS".to_owned()
        }
        Some(rustls::Error::AlertReceived(alert)) => told(*alert),
        Some(_) => error.to_string(),
        None => words_of_alert(error).map_or_else(|| error.to_string(), told),
    }
}

fn told(alert: AlertDescription) -> String {
    match demand(alert) {
        Some(demand) => format!("{demand} (alert {alert:?})"),
        None => format!("refused with the alert {alert:?}"),
    }
}

/// The peer's last word says that our certificate is missing or not good enough. Under TLS 1.3 it comes when our side of the
/// handshake is over (RFC 8446, 4.4.2.4), and nothing that was sent meanwhile has been looked at.
pub fn refuses_certificate(error: &io::Error) -> bool {
    match inner(error) {
        Some(rustls::Error::AlertReceived(alert)) => ABOUT_CERTIFICATES.contains(alert),
        Some(_) => false,
        None => words_of_alert(error).is_some(),
    }
}

/// An alert about certificates of which only the words are left: h2 keeps no more of it.
fn words_of_alert(error: &io::Error) -> Option<AlertDescription> {
    let words = error.get_ref()?.to_string();
    ABOUT_CERTIFICATES.into_iter().find(|alert| rustls::Error::AlertReceived(*alert).to_string() == words)
}

fn inner(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}

const ABOUT_CERTIFICATES: [AlertDescription; 9] = [
    AlertDescription::NoCertificate,
    AlertDescription::BadCertificate,
    AlertDescription::UnsupportedCertificate,
    AlertDescription::CertificateRevoked,
    AlertDescription::CertificateExpired,
    AlertDescription::CertificateUnknown,
    AlertDescription::UnknownCA,
    AlertDescription::AccessDenied,
    AlertDescription::CertificateRequired,
];

/// What an alert asks for, where that is plain.
fn demand(alert: AlertDescription) -> Option<&'static str> {
    match alert {
        AlertDescription::CertificateRequired | AlertDescription::NoCertificate => {
            Some("a client certificate is demanded: set client_cert and client_key")
        }
        alert if ABOUT_CERTIFICATES.contains(&alert) => Some("our client certificate is refused"),
        AlertDescription::UnrecognisedName => Some("the server name is not known there"),
        AlertDescription::ProtocolVersion => Some("no TLS version in common: see min_version"),
        AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => {
            Some("nothing in common, or a client certificate is demanded")
        }
        _ => None,
    }
}

/// `verify: off`: whoever answers is believed. The signature is still checked, because rustls needs a decision and the
/// check costs nothing.
#[derive(Debug)]
pub struct Unverified;

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, leaf, signature, &PROVIDER.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, leaf, signature, &PROVIDER.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    use super::*;

    struct Authority {
        certificate: CertificateDer<'static>,
        issuer: Issuer<'static, KeyPair>,
    }

    fn params(subject: &str, names: &[&str]) -> CertificateParams {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, subject);
        params
    }

    fn ca(subject: &str) -> CertificateParams {
        let mut params = params(subject, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    }

    fn root(subject: &str) -> Authority {
        let key = KeyPair::generate().unwrap();
        let certificate = ca(subject).self_signed(&key).unwrap().der().clone();
        Authority { certificate, issuer: Issuer::new(ca(subject), key) }
    }

    impl Authority {
        fn sign(&self, params: &CertificateParams) -> CertificateDer<'static> {
            params.signed_by(&KeyPair::generate().unwrap(), &self.issuer).unwrap().der().clone()
        }

        fn below(&self, subject: &str) -> Self {
            let key = KeyPair::generate().unwrap();
            let certificate = ca(subject).signed_by(&key, &self.issuer).unwrap().der().clone();
            Self { certificate, issuer: Issuer::new(ca(subject), key) }
        }
    }

    /// What is said of a chain for `api.test` by somebody who trusts `trusted` out of `ca_file /ca.crt`.
    fn said(trusted: &[&Authority], chain: &[&CertificateDer<'static>]) -> String {
        let mut store = RootCertStore::empty();
        let mut roots = Roots::new("ca_file /ca.crt");
        for authority in trusted {
            store.add(authority.certificate.clone()).unwrap();
            roots.hold(std::slice::from_ref(&authority.certificate));
        }
        let verified = Verified::new(store, roots).unwrap();
        let others: Vec<CertificateDer<'static>> = chain[1..].iter().map(|one| (*one).clone()).collect();
        let name = ServerName::try_from("api.test").unwrap();
        match verified.verify_server_cert(chain[0], &others, &name, &[], UnixTime::now()) {
            Ok(_) => "good".to_owned(),
            Err(error) => reason(&io::Error::new(io::ErrorKind::InvalidData, error)),
        }
    }

    #[test]
    fn what_does_not_hold_is_named_with_what_it_held() {
        let (ours, theirs, namesake) = (root("our root"), root("their root"), root("our root"));
        let middle = theirs.below("their middle");
        let leaf = params("leaf", &["api.test", "*.api.test"]);
        let mut over = leaf.clone();
        (over.not_before, over.not_after) = (rcgen::date_time_ymd(2020, 1, 1), rcgen::date_time_ymd(2020, 2, 1));
        let mut early = leaf.clone();
        early.not_before = rcgen::date_time_ymd(2090, 1, 1);
        let own_key = KeyPair::generate().unwrap();
        let alone = leaf.self_signed(&own_key).unwrap().der().clone();

        for (chain, expected) in [
            (vec![ours.sign(&leaf)], "good"),
            (
                vec![theirs.sign(&leaf)],
                "unknown issuer: the certificate 'CN=leaf' for api.test, *.api.test is signed by 'CN=their root', \
                 which is not in ca_file /ca.crt: 'CN=our root' and came without others",
            ),
            (
                vec![middle.sign(&leaf), middle.certificate.clone()],
                "unknown issuer: the certificate 'CN=leaf' for api.test, *.api.test is signed by 'CN=their middle', \
                 whose chain ends at 'CN=their root', which is not in ca_file /ca.crt: 'CN=our root'",
            ),
            (
                vec![namesake.sign(&leaf), theirs.certificate.clone()],
                "unknown issuer: the certificate 'CN=leaf' for api.test, *.api.test is signed by 'CN=our root', \
                 but ca_file /ca.crt holds one of that name with another key",
            ),
            (
                vec![alone],
                "unknown issuer: the certificate 'CN=leaf' for api.test, *.api.test is signed by itself, which is not in \
                 ca_file /ca.crt: 'CN=our root'",
            ),
            (
                vec![theirs.certificate.clone()],
                "an authority's own certificate, not a server's: the certificate 'CN=their root' for no name, signed by \
                 'CN=their root'",
            ),
            (
                vec![ours.sign(&params("other", &["other.test", "192.0.2.1"]))],
                "wrong name: the certificate 'CN=other', signed by 'CN=our root', is for other.test, 192.0.2.1, not for \
                 api.test",
            ),
            (
                vec![ours.sign(&over)],
                "expired: the certificate 'CN=leaf' for api.test, *.api.test ended 2020-02-01T00:00:00Z",
            ),
            (
                vec![ours.sign(&early)],
                "not valid yet: the certificate 'CN=leaf' for api.test, *.api.test begins 2090-01-01T00:00:00Z",
            ),
        ] {
            assert_eq!(said(&[&ours], &chain.iter().collect::<Vec<_>>()), expected);
        }
    }

    #[test]
    fn long_and_hostile_names_are_cut_and_made_printable() {
        let ours = root("our root");
        let names: Vec<String> = (0..30).map(|number| format!("host-{number}.test")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();

        let text = said(&[&ours], &[&ours.sign(&params(&format!("a\r\nb{}", "x".repeat(200)), &names))]);

        assert!(text.contains("host-5.test and 24 more"), "{text}");
        assert!(text.len() < 400 && !text.contains(char::is_control), "{text}");
    }

    #[test]
    fn alerts_are_told_in_words() {
        let told = |alert| {
            let error = io::Error::new(io::ErrorKind::InvalidData, rustls::Error::AlertReceived(alert));
            (reason(&error), refuses_certificate(&error))
        };

        let (text, is_refusal) = told(AlertDescription::CertificateRequired);
        assert_eq!(
            text,
            "a client certificate is demanded: set client_cert and client_key (alert CertificateRequired)"
        );
        assert!(is_refusal);
        assert_eq!(
            told(AlertDescription::UnknownCA),
            ("our client certificate is refused (alert UnknownCA)".to_owned(), true)
        );
        assert_eq!(told(AlertDescription::DecodeError), ("refused with the alert DecodeError".to_owned(), false));
        assert!(!refuses_certificate(&io::ErrorKind::ConnectionReset.into()));
    }
}
