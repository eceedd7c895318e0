//! Hook `tcp`: connections that the client gives up because nobody answers, told from all that look like it.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tests::netns::Netns;
use tests::router::Wiring;
use tests::tcp::Scene;
use tests::tcp::server::reset;
use tests::tcp::truth::{PEERS, RESETS};
use tests::wait::ensure;
use tests::{Family, eventually};

const SOON: Duration = Duration::from_secs(5);
const UNANSWERED: &str = "tracer_pod_unanswered_connections_total";
/// What the hook takes for waiting (`GIVEN_UP_NS`) is less by far.
const WAIT: Duration = Duration::from_millis(400);
/// What it takes for sending only.
const AT_ONCE: Duration = Duration::from_millis(100);
const EACH: usize = 3;

/// Both ends of a connection.
fn open(listener: &TcpListener, client: &Netns) -> (TcpStream, TcpStream) {
    let to = listener.local_addr().expect("it has an address");
    let own = client.run(|| TcpStream::connect(to).expect("the kernel accepts"));
    let (far, _) = listener.accept().expect("a connection waits");
    (own, far)
}

fn say(stream: &mut TcpStream) {
    stream.write_all(b"ping").expect("it is open");
}

/// The other end has it.
fn hear(stream: &mut TcpStream) {
    stream.read_exact(&mut [0; 4]).expect("it comes");
}

#[test]
fn who_waits_in_vain_is_counted_and_nobody_else() {
    let (mut scene, [client]) = Scene::new(Wiring::Routed, ["client"]);
    let far = scene.node.far.clone();
    for family in Family::ALL {
        let to = scene.port(family, 7946);
        let listener = far
            .netns
            .run(|| TcpListener::bind(to).expect("the port is free"));
        let connected = || open(&listener, &client.netns);

        // Who asks, waits and closes; or aborts, which is no different.
        let mut source = None;
        for n in 0..2 * EACH {
            // The server's program has not even taken it.
            let mut own = client
                .netns
                .run(|| TcpStream::connect(to).expect("the kernel accepts"));
            say(&mut own);
            sleep(WAIT); // this is the wait that counts
            source = own.local_addr().ok();
            if n % 2 == 0 {
                drop(own);
            } else {
                reset(own);
            }
            drop(listener.accept().expect("it waits in the queue"));
        }

        // Who is answered, however late after.
        for _ in 0..EACH {
            let (mut own, mut end) = connected();
            say(&mut own);
            say(&mut end);
            hear(&mut own);
            say(&mut own);
            sleep(WAIT);
        }
        // Who asks nothing, of a server that says nothing.
        for _ in 0..EACH {
            let both = connected();
            sleep(WAIT);
            drop(both);
        }
        // A server that speaks first and gives up its client.
        for _ in 0..EACH {
            let (own, mut end) = connected();
            say(&mut end);
            sleep(WAIT);
            drop(end);
            drop(own);
        }
        // Who only sends. On a busy machine that may take its time: then it is done again.
        let mut sent = 0;
        eventually(SOON, || {
            let (mut own, mut end) = connected();
            let began = Instant::now();
            say(&mut own);
            own.shutdown(Shutdown::Write).expect("it is open");
            let took = began.elapsed();
            hear(&mut end);
            assert!(took < WAIT, "the lab is too slow: {took:?}");
            sent += usize::from(took < AT_ONCE);
            ensure(sent == EACH, || format!("{sent} sent"))
        });
        // Who has said all, waits, and gets its answer.
        for _ in 0..EACH {
            let (mut own, mut end) = connected();
            say(&mut own);
            sleep(WAIT);
            own.shutdown(Shutdown::Write).expect("it is open");
            say(&mut end);
            hear(&mut own);
        }
        // A server that hangs up without an answer.
        for _ in 0..EACH {
            let (mut own, end) = connected();
            say(&mut own);
            sleep(WAIT);
            drop(end);
            eventually(SOON, || match own.read(&mut [0; 9]) {
                // Unread data was thrown away there.
                Err(why) if why.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
                other => Err(format!("{other:?}")),
            });
        }

        let source = source.expect("it had an address").to_string();
        check(&mut scene, family, to, &source, client.labels());
    }
    let metrics = scene.agent.metrics();
    // What the server's program had not read when it closed is its client's loss, not unanswered twice.
    assert!(metrics.count(RESETS, &client.labels()) >= 2 * EACH as u64);
    scene.agent.stop_cleanly();
}

fn check(
    scene: &mut Scene,
    family: Family,
    to: SocketAddr,
    source: &str,
    client: [(&str, &str); 2],
) {
    let families = if family == Family::V4 { 1 } else { 2 };
    let peer = to.ip().to_string();
    let expected = [2 * EACH as u64 * families, 2 * EACH as u64, 0];
    eventually(SOON, || {
        let metrics = scene.agent.metrics();
        let far = scene.node.far.labels();
        let shown = [
            metrics.count(UNANSWERED, &client),
            metrics.count(PEERS, &[("peer", &peer), ("kind", "unanswered")]),
            metrics.count(UNANSWERED, &far),
        ];
        ensure(shown == expected, || format!("{shown:?}, not {expected:?}"))
    });
    let event = scene.events.find(SOON, |event| {
        event.text("kind") == "connect_failure"
            && event.text("result") == "unanswered"
            && event.text("source") == source
            && event.text("destination") == to.to_string()
    });
    let event = event.unwrap_or_else(|| panic!("no event of {source} to {to}"));
    let waited = event.json["waited_seconds"].as_f64().unwrap_or_default();
    let least = WAIT.as_secs_f64() - 0.05;
    assert!(waited > least && waited < 5.0, "{}", event.json);
}
