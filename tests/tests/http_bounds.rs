//! Clients that mean harm, or are broken: what they can take of the agent is bounded, and everybody else
//! is answered meanwhile.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tests::host::HostLock;
use tests::memory::{most_resident, resident_from_now, sockets};
use tests::wait::ensure;
use tests::{Agent, eventually};

/// Connections that each service keeps, as documented.
const KEPT: usize = 128;
/// How long it waits for a request's head, and for a reader.
const PATIENCE: Duration = Duration::from_secs(10);

/// Its sockets while nobody is connected: those who were just now are gone in a moment.
fn at_rest(agent: &Agent) -> usize {
    let look = |_| {
        thread::sleep(Duration::from_millis(50));
        sockets(agent.pid())
    };
    (0..10).map(look).min().expect("it was looked at")
}

/// How the agent is asked meanwhile, and answers within a second.
fn assert_usable(agent: &Agent, what: &str) {
    for _ in 0..5 {
        let begun = Instant::now();
        let metrics = agent.http("GET", "/metrics");
        let took = begun.elapsed();
        assert_eq!(metrics.status, 200, "{what}: {metrics:?}");
        assert!(
            took < Duration::from_secs(1),
            "{what}: a scrape took {took:?}"
        );
        assert_eq!(agent.api("GET", "/api/v1/snapshot").status, 200, "{what}");
    }
}

#[test]
fn a_thousand_connections_keep_nobody_out() {
    let _lock = HostLock::take();
    let agent = Agent::start(&[]);
    assert_usable(&agent, "at rest");
    let (before, idle) = (resident_from_now(agent.pid()), at_rest(&agent));

    // Nothing, half a head, a head without end, a request without a reader.
    let said = [
        "",
        "GET /metrics HTTP/1.1\r\nhost: x\r\nx-slow: ",
        "GET /metrics HTTP/1.1\r\n",
        "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n",
        "GET /api/v1/events?since=1h HTTP/1.1\r\nhost: x\r\n\r\n",
    ];
    let mut tcp: Vec<TcpStream> = Vec::new();
    let mut unix: Vec<UnixStream> = Vec::new();
    for number in 0..1000 {
        let said = said[number % said.len()].as_bytes();
        let mut stream = TcpStream::connect(agent.listen()).expect("the agent accepts");
        // It may have been closed for another's sake already.
        let _ = stream.write_all(said);
        tcp.push(stream);
        let mut stream = UnixStream::connect(agent.socket()).expect("the agent accepts");
        let _ = stream.write_all(said);
        unix.push(stream);
        if number % 100 == 0 {
            assert_usable(&agent, &format!("{number} connections"));
        }
    }
    let open = sockets(agent.pid()) - idle;
    assert!(open >= KEPT, "the lab failed: {open} connections");
    // And while more keep coming, who leave again.
    let done = AtomicBool::new(false);
    let came = thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let mut count = 0;
            while !done.load(Ordering::Relaxed) {
                let stream = TcpStream::connect(agent.listen()).expect("the agent accepts");
                let _ = (&stream).write_all(said[count % said.len()].as_bytes());
                let _ = UnixStream::connect(agent.socket()).expect("the agent accepts");
                count += 1;
            }
            count
        });
        let usable = catch_unwind(AssertUnwindSafe(|| assert_usable(&agent, "a flood")));
        done.store(true, Ordering::Relaxed);
        let came = flood.join().expect("the agent accepts");
        usable.map_or_else(|panic| resume_unwind(panic), |()| came)
    });
    eprintln!("{came} connections came meanwhile");
    let open = sockets(agent.pid()) - idle;
    assert!(open <= 2 * KEPT, "{open} connections");
    let said = agent.stderr();
    assert!(said.contains("HTTP connections at once"), "{said}");

    // Those that do not go on are hung up on. Readers of events stay.
    drop(unix);
    eventually(PATIENCE + Duration::from_secs(5), || {
        let open = sockets(agent.pid()).saturating_sub(idle);
        ensure(open == 0, || format!("{open} connections are still open"))
    });
    let grown = most_resident(agent.pid()) - before;
    eprintln!("2,000 connections: {} kB more", grown >> 10);
    assert!(grown < 24 << 20, "{grown} bytes more");
    drop(tcp);
    agent.stop_cleanly();
}

#[test]
fn who_does_not_read_the_answer_is_hung_up_on() {
    let _lock = HostLock::take();
    let agent = Agent::start(&[]);
    assert_usable(&agent, "at rest");
    let (before, idle) = (resident_from_now(agent.pid()), at_rest(&agent));
    // Thousands of answers, none of them read: some 60 kB each.
    let request = "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".repeat(4000);
    let streams: Vec<TcpStream> = (0..20)
        .map(|_| {
            let stream = TcpStream::connect(agent.listen()).expect("the agent accepts");
            stream.set_nonblocking(true).expect("sockets can be set");
            // As much as it takes.
            let _ = (&stream).write(request.as_bytes());
            stream
        })
        .collect();
    let stuck =
        |streams: &[TcpStream]| sockets(agent.pid()).saturating_sub(idle).min(streams.len());
    eventually(PATIENCE / 2, || {
        let open = stuck(&streams);
        ensure(open == 20, || format!("the lab failed: {open} connected"))
    });
    let begun = Instant::now();
    eventually(PATIENCE * 2 + Duration::from_secs(5), || {
        assert_usable(&agent, "readers that do not read");
        let open = stuck(&streams);
        ensure(open == 0, || format!("{open} of them are still served"))
    });
    assert!(
        begun.elapsed() > PATIENCE / 2,
        "the lab failed: nobody was stuck"
    );
    let grown = most_resident(agent.pid()) - before;
    eprintln!("20 readers that do not read: {} kB more", grown >> 10);
    assert!(grown < 24 << 20, "{grown} bytes more");
    agent.stop_cleanly();
}

/// All that comes back for these bytes, until the agent hangs up.
fn answer(to: SocketAddr, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.set_write_timeout(Some(Duration::from_secs(2)))?;
    let mut got = Vec::new();
    // It may hang up before it has read all.
    let _ = stream.write_all(bytes);
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            // The end, a reset, or it waits for more.
            Ok(0) | Err(_) => return Ok(got),
            Ok(length) => got.extend(&buffer[..length]),
        }
    }
}

#[test]
fn what_is_no_request_is_refused_and_nothing_is_smuggled() {
    let _lock = HostLock::take();
    let agent = Agent::start(&[]);
    let before = resident_from_now(agent.pid());
    let long = "x".repeat(1 << 20);
    let many = "x: y\r\n".repeat(20_000);
    let good = "GET /healthz HTTP/1.1\r\nhost: x\r\n";
    let inner = "GET /healthz HTTP/1.1\r\nhost: smuggled\r\n\r\n";
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("a long header", format!("{good}x: {long}\r\n\r\n").into()),
        ("a long target", format!("GET /{long} HTTP/1.1\r\n\r\n").into()),
        ("a long method", format!("{long} / HTTP/1.1\r\n\r\n").into()),
        ("many headers", format!("{good}{many}\r\n").into()),
        ("two lengths", format!("POST /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\ncontent-length: 44\r\n\r\n{inner}").into()),
        ("length and chunks", format!("POST /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{inner}").into()),
        ("chunks twice", format!("POST /healthz HTTP/1.1\r\nhost: x\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n{inner}").into()),
        ("a length with a sign", format!("POST /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: +0\r\n\r\n{inner}").into()),
        ("a NUL in a header", b"GET /healthz HTTP/1.1\r\nhost: x\0y\r\n\r\n".to_vec()),
        ("a space before the colon", b"GET /healthz HTTP/1.1\r\nhost : x\r\n\r\n".to_vec()),
        ("a folded line", b"GET /healthz HTTP/1.1\r\nhost: x\r\n y\r\n\r\n".to_vec()),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("TLS", vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, b'\r', b'\n', b'\r', b'\n']),
        ("no HTTP", vec![0xff; 100_000]),
        ("an old version", b"GET /healthz\r\n\r\n".to_vec()),
    ];
    for (what, bytes) in &cases {
        let got = answer(agent.listen(), bytes).unwrap_or_else(|e| panic!("{what}: {e}"));
        let text = String::from_utf8_lossy(&got);
        let statuses: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("HTTP/1.1 "))
            .collect();
        let refused = |status: &&str| status.starts_with('4');
        assert!(
            statuses.len() <= 1 && statuses.iter().all(refused),
            "{what}: {text}"
        );
        assert_eq!(agent.http("GET", "/healthz").status, 200, "{what}");
    }
    // What asks for another file, or with a body, is just another request.
    for target in [
        "/%2e%2e/etc/passwd",
        "//metrics",
        "/metrics%00",
        "/healthz?\u{1b}[31m",
    ] {
        let got = answer(
            agent.listen(),
            format!("GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes(),
        );
        let text = String::from_utf8_lossy(&got.expect("the agent answers")).into_owned();
        assert!(
            !text.contains("root:") && !text.contains('\u{1b}'),
            "{target}: {text}"
        );
    }
    let grown = most_resident(agent.pid()) - before;
    eprintln!("{grown} bytes more");
    assert!(grown < 16 << 20, "{grown} bytes more");
    let said = agent.stderr();
    assert!(
        said.lines().count() < 10,
        "as much log as a client likes: {said}"
    );
    agent.stop_cleanly();
}
