//! The least HTTP/1.1 client that can prove and sample: one request at a time on one connection, bodies with a length.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::ground::OLD_HOST;

const PATIENCE: Duration = Duration::from_secs(10);

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// One connection.
pub struct Client {
    stream: BufReader<Box<dyn Stream>>,
}

/// What came back.
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Who answered: `old` or `new`, as the backend says.
    pub cluster: String,
    /// The body.
    pub body: String,
}

impl Client {
    /// Connects in clear, or by TLS to this name with this trust.
    pub fn connect(port: u16, tls: Option<(&Arc<ClientConfig>, &'static str)>) -> io::Result<Self> {
        let socket = TcpStream::connect(("127.0.0.1", port))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let stream: Box<dyn Stream> = match tls {
            None => Box::new(socket),
            Some((config, name)) => {
                let name = ServerName::try_from(name).map_err(io::Error::other)?;
                let session = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
                let mut stream = StreamOwned::new(session, socket);
                while stream.conn.is_handshaking() {
                    stream.conn.complete_io(&mut stream.sock)?;
                }
                Box::new(stream)
            }
        };
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Asks the old host for a path; `pin` is what a header rule looks at.
    pub fn get(&mut self, path: &str, pin: Option<&str>) -> io::Result<Answer> {
        let pin = pin.map(|target| format!("X-Migration-Target: {target}\r\n")).unwrap_or_default();
        let head = format!("GET {path} HTTP/1.1\r\nHost: {OLD_HOST}\r\nX-Forwarded-For: 192.0.2.7\r\n{pin}\r\n");
        self.stream.get_mut().write_all(head.as_bytes())?;
        self.stream.get_mut().flush()?;

        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("no status in {line:?}")))?;
        let (mut cluster, mut length) = (String::new(), 0);
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            match name.to_ascii_lowercase().as_str() {
                "x-cluster" => value.trim().clone_into(&mut cluster),
                "content-length" => length = value.trim().parse().map_err(io::Error::other)?,
                _ => {}
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(Answer { status, cluster, body: String::from_utf8_lossy(&body).into_owned() })
    }
}
