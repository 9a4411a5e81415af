//! Speaks to the admin port, one request on a connection of its own. Plain HTTP only: the port is reached from inside of
//! the pod or through `kubectl port-forward`. Everything has a limit, because what answers may be anything.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::pin;
use std::str::FromStr;
use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::output::{Exit, Failure, printable};

/// Where the admin port is unless somebody says otherwise.
pub const DEFAULT_ADMIN: &str = "http://127.0.0.1:8080";

/// Connecting, sending and reading, together.
const PATIENCE: Duration = Duration::from_secs(5);
/// The status of 10 000 services is 15 MiB.
const LARGEST_BODY: usize = 64 << 20;
/// An error text longer than this is no error text of ours.
const LONGEST_ERROR: usize = 300;

/// The address of an admin port: `http://host:port`, perhaps with a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminUrl {
    host: String,
    port: u16,
    path: String,
}

impl AdminUrl {
    /// The path behind the port, empty when there is none.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The address of a port of this machine.
    pub fn local(address: SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port(), path: String::new() }
    }

    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for AdminUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|_| format!("no URL; write it like {DEFAULT_ADMIN}"))?;
        match uri.scheme_str() {
            None | Some("http") => {}
            Some("https") => return Err("the admin port speaks plain HTTP: write http://".to_owned()),
            Some(other) => return Err(format!("{other}:// is not supported: write http://")),
        }
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
        let authority = authority.ok_or_else(|| format!("no host; write it like {DEFAULT_ADMIN}"))?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let path = uri.path().trim_end_matches('/').to_owned();
        Ok(Self { host, port: authority.port_u16().unwrap_or(80), path })
    }
}

impl fmt::Display for AdminUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority(), self.path)
    }
}

/// A complete answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The whole body.
    pub body: Bytes,
}

/// Asks one admin port.
#[derive(Debug)]
pub struct Client {
    url: AdminUrl,
    token: Option<HeaderValue>,
    patience: Duration,
}

impl Client {
    /// A client without a token.
    pub fn new(url: AdminUrl) -> Self {
        Self { url, token: None, patience: PATIENCE }
    }

    /// A client that sends the first token of a file.
    ///
    /// # Errors
    ///
    /// The file cannot be read or holds no token.
    pub fn with_token_file(url: AdminUrl, file: Option<&Path>) -> Result<Self, Failure> {
        let token = file.map(token).transpose()?;
        Ok(Self { url, token, patience: PATIENCE })
    }

    /// The same for questions that take longer to answer.
    #[must_use]
    pub fn patient_for(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// What is asked.
    pub fn url(&self) -> &AdminUrl {
        &self.url
    }

    /// The answer to a GET; `target` begins with a slash.
    ///
    /// # Errors
    ///
    /// Nothing came back in time.
    pub fn get(&self, target: &str) -> Result<Answer, Failure> {
        self.send(Method::GET, target, None)
    }

    /// The answer to a request with this JSON.
    ///
    /// # Errors
    ///
    /// Nothing came back in time.
    pub fn send(&self, method: Method, target: &str, body: Option<&serde_json::Value>) -> Result<Answer, Failure> {
        let content = body.map(|body| ("application/json", body.to_string()));
        self.send_content(method, target, content)
    }

    /// The answer to a file.
    ///
    /// # Errors
    ///
    /// Nothing came back in time.
    pub fn send_file(&self, target: &str, text: String) -> Result<Answer, Failure> {
        self.send_content(Method::POST, target, Some(("application/yaml", text)))
    }

    fn send_content(
        &self,
        method: Method,
        target: &str,
        content: Option<(&'static str, String)>,
    ) -> Result<Answer, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::new(Exit::Failed, format!("cannot start: {error}")))?;
        let asked = async { tokio::time::timeout(self.patience, self.ask(method, target, content)).await };
        let answer = runtime.block_on(asked);
        // A name that does not resolve would keep us waiting for a thread that nobody needs any more.
        runtime.shutdown_background();
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.unreachable(&error)),
            Err(_) => Err(self.unreachable(&format!("no answer within {} s", self.patience.as_secs()))),
        }
    }

    /// The JSON that a GET answers.
    ///
    /// # Errors
    ///
    /// Nothing came back, or something else than that JSON.
    pub fn json<T: DeserializeOwned>(&self, target: &str) -> Result<T, Failure> {
        let answer = self.get(target)?;
        if answer.status != StatusCode::OK {
            return Err(self.refused(target, &answer));
        }
        serde_json::from_slice(&answer.body).map_err(|error| {
            let what = format!("{}{target} answers something else ({error})", self.url);
            Failure::new(Exit::Failed, format!("{what}: is this the admin port of a migration-proxy?"))
        })
    }

    /// What an answer other than 200 means.
    pub fn refused(&self, target: &str, answer: &Answer) -> Failure {
        let Self { url, .. } = self;
        let (status, text) = (answer.status.as_u16(), error_text(&answer.body));
        let message = match own_error(&answer.body) {
            // It is about what was asked for, not about how.
            Some(own) if own.starts_with("no service ") => text,
            Some(_) => format!("{url}{target} answers {status}: {text}"),
            None => {
                let colon = if text.is_empty() { "" } else { ": " };
                format!(
                    "{url}{target} answers {status}{colon}{text}\n  \
                     this is not the admin port of a migration-proxy: that is listen.admin, 8080 unless the file says otherwise"
                )
            }
        };
        Failure::new(Exit::Failed, message)
    }

    async fn ask(
        &self,
        method: Method,
        target: &str,
        content: Option<(&'static str, String)>,
    ) -> Result<Answer, String> {
        let stream = TcpStream::connect((self.url.host.as_str(), self.url.port)).await.map_err(|e| connect_text(&e))?;
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{target}", self.url.path))
            .header(HOST, self.url.authority())
            .header(ACCEPT, "application/json");
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token);
        }
        if let Some((media_type, _)) = &content {
            request = request.header(CONTENT_TYPE, *media_type).header("x-claimed-by", whoami());
        }
        let body = content.map(|(_, text)| Bytes::from(text)).unwrap_or_default();
        let request = request.body(Full::new(body)).map_err(|error| error.to_string())?;
        exchange(stream, request).await
    }

    /// Asks for a change, and tells what became of it.
    ///
    /// # Errors
    ///
    /// It was not made; the exit code says why.
    pub fn change(&self, method: Method, target: &str, body: &serde_json::Value) -> Result<serde_json::Value, Failure> {
        self.change_or(method, target, body, |_| None)
    }

    /// The same where some statuses have exit codes of their own.
    ///
    /// # Errors
    ///
    /// It was not made; the exit code says why.
    pub fn change_or(
        &self,
        method: Method,
        target: &str,
        body: &serde_json::Value,
        exit: impl Fn(StatusCode) -> Option<Exit>,
    ) -> Result<serde_json::Value, Failure> {
        let answer = self.send(method, target, Some(body))?;
        let usual = match answer.status {
            StatusCode::OK => {
                return serde_json::from_slice(&answer.body).map_err(|error| {
                    Failure::new(Exit::Failed, format!("{}{target} answers something else: {error}", self.url))
                });
            }
            StatusCode::CONFLICT => Exit::Refused,
            StatusCode::UNPROCESSABLE_ENTITY => Exit::Usage,
            _ => Exit::Failed,
        };
        if own_error(&answer.body).is_none() {
            return Err(self.refused(target, &answer));
        }
        Err(Failure::new(exit(answer.status).unwrap_or(usual), error_text(&answer.body)))
    }

    fn unreachable(&self, why: &str) -> Failure {
        let message = format!(
            "cannot reach the admin port at {}: {why}\n  \
             elsewhere?      name it with --admin http://HOST:PORT or MIGRATION_PROXY_ADMIN\n  \
             in Kubernetes?  kubectl port-forward deployment/migration-proxy {port}:8080   and try again",
            self.url,
            port = self.url.port
        );
        Failure::new(Exit::Unreachable, message)
    }
}

/// Sends one request over a connection and reads the whole answer. Nothing is spawned: when this is dropped, the
/// connection is closed.
///
/// # Errors
///
/// The connection broke, or the answer is no HTTP or too large.
pub async fn exchange<S>(stream: S, mut request: Request<Full<Bytes>>) -> Result<Answer, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    request.headers_mut().entry(header::CONNECTION).or_insert(HeaderValue::from_static("close"));
    let text = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
    let answer = async move {
        let response = sender.send_request(request).await.map_err(text)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST_BODY).collect().await.map_err(|e| e.to_string())?;
        Ok(Answer { status, body: body.to_bytes() })
    };
    let mut answer = pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        // The connection may end before the last of the body is taken over; its error comes out there too.
        _ = connection => answer.await,
    }
}

fn connect_text(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        _ => error.to_string(),
    }
}

/// The text of `{"error": text}`, as an admin port answers.
fn own_error(body: &[u8]) -> Option<String> {
    let json: serde_json::Value = serde_json::from_slice(body).ok()?;
    Some(json.get("error")?.as_str()?.to_owned())
}

/// `{"error": text}`, or the beginning of whatever it is.
fn error_text(body: &[u8]) -> String {
    let text = own_error(body).unwrap_or_else(|| String::from_utf8_lossy(body).trim().to_owned());
    let end = text.char_indices().nth(LONGEST_ERROR).map_or(text.len(), |(end, _)| end);
    printable(&text[..end])
}

/// The first line of a token file, `NAME:TOKEN` or the token alone; the name stays here.
fn token(file: &Path) -> Result<HeaderValue, Failure> {
    let fail = |what: &str| Failure::new(Exit::Failed, format!("--token-file {}: {what}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| fail(&error.to_string()))?;
    let line = text.lines().next().unwrap_or_default().trim();
    let token = line.split_once(':').map_or(line, |(_, token)| token).trim();
    if token.is_empty() {
        return Err(fail("its first line holds no token"));
    }
    let mut value =
        HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| fail("the token is no visible ASCII"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Who runs this command, as far as the environment tells: `user@host`.
fn whoami() -> String {
    let variable = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
    let user = variable("USER").or_else(|| variable("LOGNAME")).unwrap_or_else(|| "unknown".to_owned());
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{user}@{host}").chars().filter(char::is_ascii_graphic).take(100).collect()
}

/// Percent-encodes a value of a query or a part of a path.
pub fn encoded(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn admin_urls_are_plain_http_with_host_and_port() {
        for (text, expected) in [
            ("http://127.0.0.1:8080", Ok("http://127.0.0.1:8080")),
            ("http://127.0.0.1:8080/", Ok("http://127.0.0.1:8080")),
            ("http://proxy.ns", Ok("http://proxy.ns:80")),
            ("proxy.ns:8080", Ok("http://proxy.ns:8080")),
            ("http://[::1]:8080/ready", Ok("http://[::1]:8080/ready")),
            ("https://proxy:8080", Err(())),
            ("ftp://proxy", Err(())),
            ("http://me:secret@proxy", Err(())),
            ("/path", Err(())),
            ("", Err(())),
        ] {
            let parsed = text.parse::<AdminUrl>().map(|url| url.to_string()).map_err(|_| ());
            assert_eq!(parsed, expected.map(str::to_owned), "{text}");
        }
    }

    #[test]
    fn only_the_token_is_sent_and_never_the_name() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        for (content, expected) in [
            ("anna:s3cret\nbob:x\n", Some("Bearer s3cret")),
            ("s3cret", Some("Bearer s3cret")),
            ("\n", None),
            ("a:", None),
        ] {
            fs::write(&file, content).unwrap();
            let value = token(&file).ok();
            assert_eq!(value.as_ref().map(|value| value.to_str().unwrap()), expected, "{content:?}");
        }
        assert!(token(Path::new("/nonexistent/token")).is_err());
    }

    #[test]
    fn query_values_are_encoded() {
        assert_eq!(encoded("X-User: a&b=ü"), "X-User%3A%20a%26b%3D%C3%BC");
    }

    #[test]
    fn nobody_there_is_exit_7_with_what_to_try() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();

        let failure = Client::new(AdminUrl::local(free)).get("/status").unwrap_err();

        assert_eq!(failure.exit, Exit::Unreachable);
        for part in [&format!("http://{free}"), "connection refused", "--admin", "kubectl port-forward"] {
            assert!(failure.message.contains(part), "{part} in {}", failure.message);
        }
    }

    /// Answers one connection with these bytes and closes it.
    fn answering(bytes: &'static [u8]) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serve = move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).unwrap();
            stream.write_all(bytes).unwrap();
        };
        std::thread::Builder::new().spawn(serve).unwrap();
        Client::new(AdminUrl::local(address))
    }

    #[test]
    fn answers_are_read_to_their_end_and_errors_quoted() {
        let client = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n[1,2,3]");
        assert_eq!(client.json::<Vec<u8>>("/").unwrap(), [1, 2, 3]);

        let client = answering(b"HTTP/1.1 200 OK\r\n\r\n[1,2]");
        assert_eq!(client.json::<Vec<u8>>("/").unwrap(), [1, 2]);

        let client = answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 18\r\n\r\n{\"error\": \"gone\" }");
        let failure = client.json::<Vec<u8>>("/x").unwrap_err();
        assert_eq!(failure.exit, Exit::Failed);
        assert!(failure.message.ends_with("/x answers 404: gone"), "{}", failure.message);

        let client = answering(b"HTTP/1.1 404 Not Found\r\n\r\n{\"error\": \"no service is called \\\"shp\\\"\"}");
        assert_eq!(client.json::<Vec<u8>>("/x").unwrap_err().message, "no service is called \"shp\"");

        let client = answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 16\r\n\r\n404 unknown host");
        let message = client.json::<Vec<u8>>("/x").unwrap_err().message;
        assert!(message.contains("answers 404: 404 unknown host\n  this is not the admin port"), "{message}");

        let client = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
        assert!(client.json::<Vec<u8>>("/").unwrap_err().message.contains("admin port of a migration-proxy?"));

        let client = answering(b"SSH-2.0-OpenSSH\r\n");
        assert_eq!(client.get("/").unwrap_err().exit, Exit::Unreachable);
    }
}
