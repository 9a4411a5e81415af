//! A small DNS server that says what the test wants, over UDP and TCP, and counts who was asked for. It writes the
//! `resolv.conf` and the hosts file that point a proxy at it.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use hickory_resolver::proto::op::{Message, MessageType, ResponseCode};
use hickory_resolver::proto::rr::rdata::CNAME;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use migration_proxy::upstream::dns::Sources;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;

/// What fits into a datagram.
const DATAGRAM: usize = 512;

/// What is said of a name.
#[derive(Clone, Debug)]
pub enum Reply {
    /// These addresses, each in the records of its family, for so many seconds.
    Addresses(Vec<IpAddr>, u32),
    /// It is another name.
    Alias(&'static str),
    /// NXDOMAIN.
    NoSuchName,
    /// SERVFAIL.
    Failure,
    /// Nothing at all.
    Silence,
}

/// One address for one second.
pub fn at(address: IpAddr) -> Reply {
    Reply::Addresses(vec![address], 1)
}

/// A name server on loopback. Names that it was not told of do not exist.
pub struct Dns {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
    directory: TempDir,
    cancel: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Script {
    names: HashMap<String, Reply>,
    /// Instead of everything else.
    always: Option<Reply>,
    asked: HashMap<(String, RecordType), usize>,
    over_tcp: usize,
}

impl Dns {
    /// A server on a port of the system.
    pub fn new() -> Self {
        (0..100).find_map(|_| Self::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))).expect("a port for both")
    }

    /// A server on the port that everybody asks, where no other can be: in a network of the test's own.
    pub fn on_its_own_port() -> Self {
        Self::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 53))).expect("nobody else is there")
    }

    /// Another server on the same port of another address.
    pub fn beside(&self, ip: [u8; 4]) -> Self {
        Self::bind(SocketAddr::from((ip, self.address.port()))).expect("the port is free on that address too")
    }

    fn bind(address: SocketAddr) -> Option<Self> {
        let datagrams = std::net::UdpSocket::bind(address).ok()?;
        let address = datagrams.local_addr().ok()?;
        let streams = std::net::TcpListener::bind(address).ok()?;
        datagrams.set_nonblocking(true).unwrap();
        streams.set_nonblocking(true).unwrap();
        let (script, cancel) = (Arc::<Mutex<Script>>::default(), CancellationToken::new());
        let (shared, stop) = (script.clone(), cancel.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let datagrams = UdpSocket::from_std(datagrams).unwrap();
                let streams = TcpListener::from_std(streams).unwrap();
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = serve_datagrams(&datagrams, &shared) => {}
                    () = serve_streams(&streams, &shared) => {}
                }
            });
        });
        let directory = TempDir::new().unwrap();
        let dns = Self { address, script, directory, cancel, thread: Some(thread) };
        dns.resolv_conf(&format!("nameserver {}\noptions ndots:5\n", address.ip()));
        dns.hosts("127.0.0.1 localhost\n");
        Some(dns)
    }

    /// The address without its port.
    pub fn ip(&self) -> IpAddr {
        self.address.ip()
    }

    /// What a proxy needs to ask this server.
    pub fn sources(&self) -> Sources {
        let file = |name| self.directory.path().join(name);
        Sources { resolv_conf: file("resolv.conf"), hosts: file("hosts"), port: self.address.port() }
    }

    /// Another `resolv.conf`.
    pub fn resolv_conf(&self, text: &str) {
        fs::write(self.sources().resolv_conf, text).unwrap();
    }

    /// Another hosts file.
    pub fn hosts(&self, text: &str) {
        fs::write(self.sources().hosts, text).unwrap();
    }

    /// What is said of a name from now on.
    pub fn on(&self, name: &str, reply: Reply) -> &Self {
        self.script().names.insert(name.to_owned(), reply);
        self
    }

    /// What is said of every name, until `None`.
    pub fn always(&self, reply: Option<Reply>) {
        self.script().always = reply;
    }

    /// How often a name was asked for, by the family of IPv4.
    pub fn asked(&self, name: &str) -> usize {
        self.script().asked.get(&(name.to_owned(), RecordType::A)).copied().unwrap_or(0)
    }

    /// Every name that was asked for.
    pub fn names_asked(&self) -> Vec<String> {
        let mut names: Vec<_> = self.script().asked.keys().map(|(name, _)| name.clone()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Questions that came over TCP.
    pub fn over_tcp(&self) -> usize {
        self.script().over_tcp
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.cancel.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

async fn serve_datagrams(socket: &UdpSocket, script: &Arc<Mutex<Script>>) {
    let mut buffer = [0; 4096];
    loop {
        // An error is the ICMP message of a client that has gone.
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else { continue };
        let Some(mut answer) = answer(&buffer[..length], script) else { continue };
        let mut bytes = answer.to_vec().unwrap();
        if bytes.len() > DATAGRAM {
            answer.answers.clear();
            answer.metadata.truncation = true;
            bytes = answer.to_vec().unwrap();
        }
        let _ = socket.send_to(&bytes, peer).await;
    }
}

async fn serve_streams(listener: &TcpListener, script: &Arc<Mutex<Script>>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let script = script.clone();
        tokio::spawn(async move { serve_stream(stream, &script).await });
    }
}

async fn serve_stream(mut stream: TcpStream, script: &Arc<Mutex<Script>>) -> Option<()> {
    loop {
        let length = stream.read_u16().await.ok()?;
        let mut question = vec![0; length.into()];
        stream.read_exact(&mut question).await.ok()?;
        script.lock().unwrap().over_tcp += 1;
        let Some(answer) = answer(&question, script) else { continue };
        let bytes = answer.to_vec().unwrap();
        stream.write_u16(u16::try_from(bytes.len()).unwrap()).await.ok()?;
        stream.write_all(&bytes).await.ok()?;
    }
}

/// `None`: silence.
fn answer(question: &[u8], script: &Mutex<Script>) -> Option<Message> {
    let mut message = Message::from_vec(question).ok()?;
    let query = message.queries.first()?.clone();
    let (name, family) = (query.name().clone(), query.query_type());
    let text = name.to_ascii().trim_end_matches('.').to_ascii_lowercase();
    let mut script = script.lock().unwrap();
    *script.asked.entry((text.clone(), family)).or_default() += 1;
    let reply = script.always.as_ref().or_else(|| script.names.get(&text)).cloned().unwrap_or(Reply::NoSuchName);
    drop(script);

    message.metadata.message_type = MessageType::Response;
    message.metadata.recursion_available = true;
    match reply {
        Reply::Addresses(addresses, ttl) => {
            let wanted = addresses.into_iter().filter(|address| address.is_ipv4() == (family == RecordType::A));
            message.answers.extend(wanted.map(|address| Record::from_rdata(name.clone(), ttl, RData::from(address))));
        }
        Reply::Alias(other) => {
            let other = CNAME(Name::from_ascii(format!("{other}.")).unwrap());
            message.answers.push(Record::from_rdata(name, 1, RData::CNAME(other)));
        }
        Reply::NoSuchName => message.metadata.response_code = ResponseCode::NXDomain,
        Reply::Failure => message.metadata.response_code = ResponseCode::ServFail,
        Reply::Silence => return None,
    }
    Some(message)
}
