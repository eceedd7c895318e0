//! A GET over TCP or a unix socket: enough HTTP/1.1 to ask an agent.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::wait::patient;

const LIMIT: Duration = Duration::from_secs(5);

/// An answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Header lines, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body as text.
    pub body: String,
    /// Body as it came, in its encoding; of a chunked answer, nothing.
    pub bytes: Vec<u8>,
}

impl Response {
    /// First header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }
}

/// Asks over TCP.
pub fn tcp(address: SocketAddr, method: &str, target: &str) -> io::Result<Response> {
    tcp_with(address, method, target, &[])
}

/// Asks over TCP, with these headers.
pub fn tcp_with(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> io::Result<Response> {
    let stream = TcpStream::connect_timeout(&address, patient(LIMIT))?;
    stream.set_read_timeout(Some(patient(LIMIT)))?;
    ask(stream, method, target, headers)
}

/// Asks over a unix socket.
pub fn unix(path: &Path, method: &str, target: &str) -> io::Result<Response> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(patient(LIMIT)))?;
    ask(stream, method, target, &[])
}

fn ask(
    mut stream: impl Read + Write,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> io::Result<Response> {
    let more: Vec<_> = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let asked = format!(
        "{method} {target} HTTP/1.1\r\nhost: lab\r\nconnection: close\r\n{}\r\n",
        more.concat()
    );
    stream.write_all(asked.as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    parse(&bytes).ok_or_else(|| io::Error::other("not an HTTP answer"))
}

fn parse(bytes: &[u8]) -> Option<Response> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let raw = &bytes[end + 4..];
    let (head, body) = (
        String::from_utf8_lossy(&bytes[..end]),
        String::from_utf8_lossy(raw),
    );
    let mut lines = head.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    let chunked = headers
        .iter()
        .any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    let (body, bytes) = if chunked {
        (join_chunks(&body)?, Vec::new())
    } else {
        (body.into_owned(), raw.to_vec())
    };
    Some(Response {
        status,
        headers,
        body,
        bytes,
    })
}

fn join_chunks(mut rest: &str) -> Option<String> {
    let mut body = String::new();
    loop {
        let (length, after) = rest.split_once("\r\n")?;
        let length = usize::from_str_radix(length, 16).ok()?;
        if length == 0 {
            return Some(body);
        }
        body += after.get(..length)?;
        rest = after.get(length + 2..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_plain_and_chunked_answers() {
        let plain = b"HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\n\r\nno";
        let response = parse(plain).expect("whole");
        assert_eq!((response.status, response.body.as_str()), (404, "no"));
        assert_eq!(response.header("content-type"), Some("text/plain"));
        let chunked =
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n";
        assert_eq!(parse(chunked).expect("whole").body, "abcd");
    }
}
