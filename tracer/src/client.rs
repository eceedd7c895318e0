//! A client of the agent's API: HTTP/1.1 GET over a socket in the file system or over TCP.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Collected, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::config::{DEFAULT_SOCKET, socket_path};
use crate::export::serve::keep_alive;
use crate::output::printable;

/// A healthy agent answers within milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// 1,000 pods make about 2 MB.
const MAX_ANSWER: usize = 256 << 20;
/// An event takes less than 2 KB.
const MAX_LINE: usize = 64 << 10;

/// Where an agent serves its API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentAddr {
    /// A socket in the file system.
    Unix(PathBuf),
    /// TCP, as in a URL: an IPv6 address stands in brackets.
    Http {
        /// Name or address.
        host: String,
        /// Port.
        port: u16,
    },
}

impl Default for AgentAddr {
    fn default() -> Self {
        Self::Unix(DEFAULT_SOCKET.into())
    }
}

impl fmt::Display for AgentAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Http { host, port } => write!(f, "http://{host}:{port}"),
        }
    }
}

impl FromStr for AgentAddr {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if let Some(path) = s.strip_prefix("unix:") {
            return socket_path(path).map(Self::Unix);
        }
        http_addr(s).ok_or_else(|| "expected unix:PATH or http://HOST:PORT".into())
    }
}

fn http_addr(s: &str) -> Option<AgentAddr> {
    let uri: Uri = s.parse().ok()?;
    let authority = uri.authority()?;
    let plain = uri.scheme_str() == Some("http")
        && uri.path() == "/"
        && uri.query().is_none()
        && !authority.as_str().contains('@');
    let host = authority.host();
    (plain && !host.is_empty()).then_some(AgentAddr::Http {
        host: host.into(),
        port: authority.port_u16()?,
    })
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Error {
    /// No connection came about.
    Connect(AgentAddr, io::Error),
    /// It did, and then went wrong.
    Answer(AgentAddr, String),
}

impl Error {
    /// Nobody listens there: tracing in-process would not double an agent's work.
    pub fn nobody_listens(&self) -> bool {
        use io::ErrorKind::{ConnectionRefused, NotFound};
        matches!(self, Self::Connect(_, e) if matches!(e.kind(), ConnectionRefused | NotFound))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use io::ErrorKind;
        match self {
            Self::Connect(addr, e) => match e.kind() {
                ErrorKind::PermissionDenied => {
                    write!(f, "may not open {addr}: permission denied; run as root")
                }
                ErrorKind::NotFound => write!(
                    f,
                    "no agent answers at {addr}: no such socket; start one with `tracer agent`"
                ),
                ErrorKind::ConnectionRefused => write!(
                    f,
                    "no agent answers at {addr}: connection refused; start one with `tracer agent`"
                ),
                _ => write!(f, "no agent answers at {addr}: {e}"),
            },
            Self::Answer(addr, what) => write!(f, "the agent at {addr} {what}"),
        }
    }
}

impl std::error::Error for Error {}

/// Asks one agent.
#[derive(Clone, Debug)]
pub struct Client {
    addr: AgentAddr,
}

impl Client {
    /// Connects with the first question.
    pub fn new(addr: AgentAddr) -> Self {
        Self { addr }
    }

    /// The whole answer, as JSON.
    pub async fn get_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let answer = async {
            let (response, _connection) = self.get(path).await?;
            let body = Limited::new(response.into_body(), MAX_ANSWER);
            match body.collect().await {
                Ok(body) => Ok(body.to_bytes()),
                Err(e) => Err(self.error(format!("broke off its answer to {path}: {e}"))),
            }
        };
        let answer = self.in_time(path, answer).await?;
        serde_json::from_slice(&answer).map_err(|e| {
            let e = e.to_string();
            let e = printable(&e);
            self.error(format!(
                "answers {path} with what this version cannot read: {e}; \
                 use the tracer of the agent's version"
            ))
        })
    }

    /// An answer without end, by lines.
    pub async fn stream_lines(&self, path: &str) -> Result<Lines, Error> {
        let (response, connection) = self.in_time(path, self.get(path)).await?;
        Ok(Lines {
            addr: self.addr.clone(),
            body: response.into_body(),
            splitter: LineSplitter::default(),
            _connection: connection,
        })
    }

    async fn in_time<T>(
        &self,
        path: &str,
        answer: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        timeout(PATIENCE, answer).await.unwrap_or_else(|_| {
            let patience = PATIENCE.as_secs();
            Err(self.error(format!("does not answer {path} within {patience} s")))
        })
    }

    async fn get(&self, path: &str) -> Result<(Response<Incoming>, JoinSet<()>), Error> {
        let lost = |e| Error::Connect(self.addr.clone(), e);
        match &self.addr {
            AgentAddr::Unix(socket) => {
                let stream = UnixStream::connect(socket).await.map_err(lost)?;
                self.exchange(stream, "localhost", path).await
            }
            AgentAddr::Http { host, port } => {
                let bare = host.trim_start_matches('[').trim_end_matches(']');
                let stream = TcpStream::connect((bare, *port)).await.map_err(lost)?;
                // A stream of events may be silent for long, and its node gone.
                keep_alive(&stream).map_err(lost)?;
                self.exchange(stream, &format!("{host}:{port}"), path).await
            }
        }
    }

    /// The head of the answer, and the task that moves the bytes: it ends when it is dropped.
    async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        host: &str,
        path: &str,
    ) -> Result<(Response<Incoming>, JoinSet<()>), Error> {
        let broken = |e: hyper::Error| self.error(format!("does not speak HTTP: {e}"));
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let mut task = JoinSet::new();
        task.spawn(async move {
            // The reader of the body gets the same error.
            let _ = connection.await;
        });
        let request = Request::get(path)
            .header(header::HOST, host)
            .body(Empty::<Bytes>::new())
            .map_err(|e| self.error(format!("cannot be asked for {path}: {e}")))?;
        let response = sender.send_request(request).await.map_err(broken)?;
        if response.status() == StatusCode::OK {
            return Ok((response, task));
        }
        let status = response.status();
        let body = Limited::new(response.into_body(), 1 << 10).collect().await;
        let body = body.map(Collected::to_bytes).unwrap_or_default();
        let body = String::from_utf8_lossy(&body);
        let line = printable(body.lines().next().unwrap_or_default());
        let colon = if line.is_empty() { "" } else { ": " };
        Err(self.error(format!("answers {path} with {status}{colon}{line}")))
    }

    fn error(&self, what: String) -> Error {
        Error::Answer(self.addr.clone(), what)
    }
}

/// An answer without end.
pub struct Lines {
    addr: AgentAddr,
    body: Incoming,
    splitter: LineSplitter,
    _connection: JoinSet<()>,
}

impl Lines {
    /// The next line without its end; `None` once the agent has closed the stream. A last line
    /// without an end is cut off and so left out. May be cancelled without loss.
    pub async fn next(&mut self) -> Result<Option<String>, Error> {
        loop {
            if let Some(line) = self.splitter.next() {
                return Ok(Some(line));
            }
            if self.splitter.too_long() {
                let max = MAX_LINE >> 10;
                let what = format!("sent a line of more than {max} KiB: is it a tracer agent?");
                return Err(Error::Answer(self.addr.clone(), what));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.splitter.push(&data);
                    }
                }
                Some(Err(e)) => {
                    let what = format!("broke off the stream: {e}");
                    return Err(Error::Answer(self.addr.clone(), what));
                }
            }
        }
    }
}

/// Makes lines of chunks that end anywhere.
#[derive(Default)]
pub(crate) struct LineSplitter {
    buffer: BytesMut,
    /// So many bytes of the buffer are known to hold no line end.
    searched: usize,
}

impl LineSplitter {
    pub(crate) fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    pub(crate) fn next(&mut self) -> Option<String> {
        let rest = &self.buffer[self.searched..];
        let Some(end) = rest.iter().position(|b| *b == b'\n') else {
            self.searched = self.buffer.len();
            return None;
        };
        let mut line = self.buffer.split_to(self.searched + end + 1);
        self.searched = 0;
        line.truncate(line.len() - 1);
        if line.last() == Some(&b'\r') {
            line.truncate(line.len() - 1);
        }
        Some(String::from_utf8_lossy(&line).into_owned())
    }

    fn too_long(&self) -> bool {
        self.searched > MAX_LINE
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, UnixListener};

    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(AgentAddr::default().to_string(), "unix:/run/tracer.sock");
        for good in [
            "unix:/a",
            "http://node:9774",
            "http://[::1]:1",
            "http://10.0.0.1:80",
        ] {
            let addr: AgentAddr = good.parse().unwrap();
            assert_eq!(addr.to_string(), good);
        }
        assert!("http://node:1/".parse::<AgentAddr>().is_ok());
        for bad in [
            "",
            "/run/tracer.sock",
            "unix:",
            "unix:a",
            "node:9774",
            "http://node",
            "http://:9774",
            "https://node:1",
            "http://u@node:1",
            "http://node:1/api",
            "http://node:1/?a",
        ] {
            assert!(bad.parse::<AgentAddr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn lines_do_not_depend_on_chunks() {
        let text = "one\r\n\n{\"two\":\"\u{e9}\"}\nthr";
        for size in 1..=text.len() {
            let mut splitter = LineSplitter::default();
            let mut lines = Vec::new();
            for chunk in text.as_bytes().chunks(size) {
                splitter.push(chunk);
                while let Some(line) = splitter.next() {
                    lines.push(line);
                }
            }
            assert_eq!(lines, ["one", "", "{\"two\":\"\u{e9}\"}"]);
            splitter.push(b"ee\n");
            assert_eq!(splitter.next().as_deref(), Some("three"));
        }
    }

    #[test]
    fn a_line_without_end_is_noticed() {
        let mut splitter = LineSplitter::default();
        for _ in 0..=MAX_LINE / 1024 {
            splitter.push(&[b'x'; 1024]);
            assert_eq!(splitter.next(), None);
        }
        assert!(splitter.too_long());
    }

    /// Answers every connection with the same bytes.
    async fn server(answer: &'static str) -> AgentAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let n = stream.read(&mut request).await.unwrap();
                let request = String::from_utf8_lossy(&request[..n]).to_lowercase();
                assert!(request.contains("\r\nhost: 127.0.0.1:"), "{request}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        format!("http://127.0.0.1:{port}").parse().unwrap()
    }

    async fn json(answer: &'static str) -> Result<Vec<u32>, String> {
        let client = Client::new(server(answer).await);
        client.get_json("/x").await.map_err(|e| e.to_string())
    }

    #[tokio::test]
    async fn json_and_what_can_be_wrong_with_it() {
        let ok = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n[1,2]";
        assert_eq!(json(ok).await, Ok(vec![1, 2]));
        let cut = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n[1,2]";
        assert!(json(cut).await.unwrap_err().contains("broke off"));
        let other = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
        assert!(json(other).await.unwrap_err().contains("version"));
        let missing = "HTTP/1.1 404 Not Found\r\ncontent-length: 7\r\n\r\n\u{1b}[0mno\n";
        let error = json(missing).await.unwrap_err();
        assert!(
            error.ends_with("answers /x with 404 Not Found: \\u{1b}[0mno"),
            "{error}"
        );
        let smtp = json("220 mail ready\r\n").await.unwrap_err();
        assert!(smtp.contains("does not speak HTTP"), "{smtp}");
    }

    #[tokio::test]
    async fn streams_end_with_the_agent() {
        let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
                      3\r\n{}\n\r\n4\r\n[1]\n\r\n2\r\n{\"\r\n0\r\n\r\n";
        let client = Client::new(server(answer).await);
        let mut lines = client.stream_lines("/x").await.unwrap();
        assert_eq!(lines.next().await.unwrap().as_deref(), Some("{}"));
        assert_eq!(lines.next().await.unwrap().as_deref(), Some("[1]"));
        assert_eq!(lines.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn nobody_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let client = Client::new(AgentAddr::Unix(path.clone()));
        let error = client.get_json::<()>("/x").await.unwrap_err();
        assert!(error.nobody_listens());
        assert!(error.to_string().contains(": no such socket; start one"));

        drop(UnixListener::bind(&path).unwrap());
        let error = client.get_json::<()>("/x").await.unwrap_err();
        assert!(error.nobody_listens());
        assert!(error.to_string().contains(": connection refused; start"));
    }
}
