//! The sockets that clients and operators connect to, and how a reload changes them: what is new is bound before what is gone
//! is given up, and connections that are open live on.

use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::config::Listen;
use crate::net::listener::Bound;

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Clients in clear.
    Http,
    /// Clients over TLS.
    Https,
    /// The admin port.
    Admin,
}

/// A bound socket that nobody accepts from yet.
#[derive(Debug)]
pub struct Socket {
    /// What it is for.
    pub kind: Kind,
    /// The address as it was written.
    pub wanted: SocketAddr,
    /// The socket.
    pub bound: Bound,
}

/// A socket that the system does not give us.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {error}")]
pub struct Refused {
    /// The key that names it.
    pub key: &'static str,
    /// What to do about it.
    pub advice: &'static str,
    address: SocketAddr,
    error: io::Error,
}

/// Accepts from a socket until the token says that it was given up.
pub type Open = Box<dyn Fn(Kind, Bound, CancellationToken) -> io::Result<()> + Send + Sync>;

/// Every socket that is listened to.
pub struct Listeners {
    open: Open,
    /// TLS settings are made at the start, so that only a process that began with TLS can have more of it.
    serves_tls: bool,
    listening: Mutex<Vec<Listening>>,
}

struct Listening {
    kind: Kind,
    wanted: SocketAddr,
    retired: CancellationToken,
}

/// What a configuration changes: new sockets, and those that are given up.
#[derive(Debug, Default)]
pub struct Prepared {
    added: Vec<Socket>,
    gone: Vec<(Kind, SocketAddr)>,
}

impl Kind {
    /// The key that names such sockets.
    pub fn key(self) -> &'static str {
        match self {
            Self::Http => "listen.http",
            Self::Https => "listen.https",
            Self::Admin => "listen.admin",
        }
    }
}

/// Binds every socket of a configuration.
///
/// # Errors
///
/// The first one that the system refuses.
pub fn bind(listen: &Listen) -> Result<Vec<Socket>, Refused> {
    wanted(listen).map(|(kind, address)| Socket::bind(kind, address)).collect()
}

fn wanted(listen: &Listen) -> impl Iterator<Item = (Kind, SocketAddr)> + '_ {
    let http = listen.http.iter().map(|address| (Kind::Http, *address));
    let https = listen.https.iter().map(|address| (Kind::Https, *address));
    http.chain(https).chain([(Kind::Admin, listen.admin)])
}

impl Socket {
    fn bind(kind: Kind, wanted: SocketAddr) -> Result<Self, Refused> {
        let bound = Bound::bind(wanted).map_err(|error| {
            let advice = match error.kind() {
                io::ErrorKind::AddrInUse => "the port is in use; stop the other process or choose another port",
                io::ErrorKind::PermissionDenied => {
                    "ports below 1024 need a privilege; choose a higher one and map it in the Service"
                }
                io::ErrorKind::AddrNotAvailable => "this machine has no such address",
                _ => "the system refuses it",
            };
            Refused { key: kind.key(), advice, address: wanted, error }
        })?;
        Ok(Self { kind, wanted, bound })
    }
}

impl Listeners {
    /// Opens the sockets of the start.
    ///
    /// # Errors
    ///
    /// The system has no room for them.
    pub fn start(sockets: Vec<Socket>, open: Open) -> io::Result<Self> {
        let serves_tls = sockets.iter().any(|socket| socket.kind == Kind::Https);
        let listeners = Self { open, serves_tls, listening: Mutex::default() };
        for socket in sockets {
            listeners.open(socket)?;
        }
        Ok(listeners)
    }

    /// Binds what a configuration wants and the process has not.
    ///
    /// # Errors
    ///
    /// The first socket that the system refuses; nothing has changed then.
    pub fn prepare(&self, listen: &Listen) -> Result<Prepared, Refused> {
        let wanted: Vec<_> = wanted(listen).filter(|(kind, _)| self.serves_tls || *kind != Kind::Https).collect();
        let mine: Vec<_> = self.lock().iter().map(|one| (one.kind, one.wanted)).collect();
        let added = wanted.iter().filter(|one| !mine.contains(one));
        let added = added.map(|(kind, address)| Socket::bind(*kind, *address)).collect::<Result<_, _>>()?;
        Ok(Prepared { added, gone: mine.into_iter().filter(|one| !wanted.contains(one)).collect() })
    }

    /// Accepts from the new sockets, then gives up the others.
    pub fn install(&self, Prepared { added, gone }: Prepared) {
        for socket in added {
            let (key, address) = (socket.kind.key(), socket.bound.address());
            match self.open(socket) {
                Ok(()) => tracing::info!(key, %address, "listening"),
                Err(error) => tracing::error!(key, %address, %error, "cannot listen"),
            }
        }
        self.lock().retain(|one| {
            let is_gone = gone.contains(&(one.kind, one.wanted));
            if is_gone {
                one.retired.cancel();
                tracing::info!(key = one.kind.key(), address = %one.wanted, "no longer listening");
            }
            !is_gone
        });
    }

    fn open(&self, Socket { kind, wanted, bound }: Socket) -> io::Result<()> {
        let retired = CancellationToken::new();
        (self.open)(kind, bound, retired.clone())?;
        self.lock().push(Listening { kind, wanted, retired });
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Listening>> {
        self.listening.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// What was opened, in order: its kind, its address and whether it was given up.
    type Opened = Arc<Mutex<Vec<(Kind, SocketAddr, CancellationToken)>>>;

    fn listeners(listen: &Listen) -> (Listeners, Opened) {
        let opened = Opened::default();
        let open: Open = {
            let opened = opened.clone();
            Box::new(move |kind, bound, retired| {
                opened.lock().unwrap().push((kind, bound.address(), retired));
                Ok(())
            })
        };
        (Listeners::start(bind(listen).unwrap(), open).unwrap(), opened)
    }

    fn listen(http: &[&str], admin: &str) -> Listen {
        let http = http.iter().map(|address| address.parse().unwrap()).collect();
        Listen { http, https: Vec::new(), admin: admin.parse().unwrap(), ..Listen::default() }
    }

    fn kinds(opened: &Opened) -> Vec<(Kind, bool)> {
        opened.lock().unwrap().iter().map(|(kind, _, retired)| (*kind, retired.is_cancelled())).collect()
    }

    #[test]
    fn a_change_opens_what_is_new_and_gives_up_what_is_gone() {
        let (listeners, opened) = listeners(&listen(&["127.0.0.1:0"], "127.0.0.2:0"));

        let same = listeners.prepare(&listen(&["127.0.0.1:0"], "127.0.0.2:0")).unwrap();
        listeners.install(same);
        assert_eq!(kinds(&opened), [(Kind::Http, false), (Kind::Admin, false)]);

        let other = listeners.prepare(&listen(&["127.0.0.3:0"], "127.0.0.2:0")).unwrap();
        assert_eq!(kinds(&opened), [(Kind::Http, false), (Kind::Admin, false)], "prepared is not installed");
        listeners.install(other);
        assert_eq!(kinds(&opened), [(Kind::Http, true), (Kind::Admin, false), (Kind::Http, false)]);
    }

    #[test]
    fn a_port_in_use_changes_nothing_and_is_named() {
        let taken = Bound::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let (listeners, opened) = listeners(&listen(&["127.0.0.1:0"], "127.0.0.2:0"));

        let taken = taken.address().to_string();
        let refused = listeners.prepare(&listen(&["127.0.0.3:0"], &taken)).unwrap_err();

        assert_eq!(refused.key, "listen.admin");
        assert!(refused.to_string().starts_with(&format!("cannot listen on {taken}: ")), "{refused}");
        assert_eq!(kinds(&opened), [(Kind::Http, false), (Kind::Admin, false)]);
    }
}
