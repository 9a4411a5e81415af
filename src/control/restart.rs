//! Settings that a running process cannot change: they hold as they were at the start until it is started again.

use std::path::PathBuf;

use crate::config::{Config, State, TlsVersion};
use crate::tls::pem;

/// The settings as they were at the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fixed {
    workers: Option<usize>,
    has_https: bool,
    tls: Option<Tls>,
    max_connections: Option<usize>,
    state_dir: PathBuf,
    state: State,
}

/// What the TLS listeners were made with, beside the certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Tls {
    min_version: TlsVersion,
    /// The file and its content: other trust is another listener.
    client_ca: Option<(PathBuf, Option<Vec<u8>>)>,
}

impl Fixed {
    /// Those of a configuration.
    pub fn of(config: &Config) -> Self {
        let listen = &config.listen;
        let tls = || Tls {
            min_version: listen.tls.min_version,
            client_ca: listen.tls.client_ca.clone().map(|file| {
                let content = pem::read(&file).ok();
                (file, content)
            }),
        };
        Self {
            workers: config.workers,
            has_https: !listen.https.is_empty(),
            tls: (!listen.https.is_empty()).then(tls),
            max_connections: config.limits.max_connections,
            state_dir: config.reload.state_dir.clone(),
            state: config.state.clone(),
        }
    }

    /// The keys that a configuration wants otherwise.
    pub fn changed(&self, config: &Config) -> Vec<String> {
        let wanted = Self::of(config);
        let tls = |differs: fn(&Tls, &Tls) -> bool| match (&self.tls, &wanted.tls) {
            (Some(mine), Some(wanted)) => differs(mine, wanted),
            // The listeners are named already, or gone.
            _ => false,
        };
        let keys = [
            ("workers", self.workers != wanted.workers),
            // Sockets come and go at run time, but not what makes the first TLS listener.
            ("listen.https", !self.has_https && wanted.has_https),
            ("listen.tls.min_version", tls(|mine, wanted| mine.min_version != wanted.min_version)),
            ("listen.tls.client_ca", tls(|mine, wanted| mine.client_ca != wanted.client_ca)),
            ("limits.max_connections", self.max_connections != wanted.max_connections),
            ("reload.state_dir", self.state_dir != wanted.state_dir),
            ("state", self.state != wanted.state),
        ];
        keys.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key.to_owned()).collect()
    }
}
