//! Serves HTTP within bounds: who opens connections, sends half a request or does not read its answer
//! costs the agent little and keeps nobody else from theirs.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    os::fd::AsFd,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{Router, response::Response};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_io_timeout::TimeoutWriter;
use tokio_util::{either::Either, sync::CancellationToken};
use tower::ServiceExt as _;

/// Connections to one service. One more closes the one that has waited longest for its next request or
/// for its client to read; where none has waited for [`YOUNG`], one more waits.
const CONNECTIONS: usize = 128;
/// Time for a new client to say what it wants, however many come after it.
const YOUNG: Duration = Duration::from_millis(50);
/// Of these, event streams, which are never closed for others' sake. One more is refused.
const FOLLOWERS: usize = 32;
/// How long a client may take for the head of a request, or wait before the next one.
const HEAD: Duration = Duration::from_secs(10);
/// How long a client may read nothing of its answer. Not for the API, whose streams people read: a pager
/// holds the rest back as long as they like.
pub const UNREAD: Duration = Duration::from_secs(10);
/// Bytes of a request's head, and of an answer that are gathered before they are written.
const BUFFER: usize = 16 << 10;
/// Bytes of an answer that the kernel holds for a client who does not read. By itself it would take 4 MB,
/// and charge them to the agent's cgroup.
const SEND_BUFFER: usize = 256 << 10;
/// A client whose machine is gone is noticed after two minutes: after this long without a word it is asked...
pub const KEEPALIVE: Duration = Duration::from_mins(1);
/// ...so many times...
pub const PROBES: u32 = 4;
/// ...this long apart.
pub const BETWEEN_PROBES: Duration = Duration::from_secs(15);
/// Where a connection finds no room, or cannot be accepted, the next try is so much later.
const RETRY: Duration = Duration::from_millis(10);

/// Notices an other end that is gone without a word.
pub fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(stream, BETWEEN_PROBES)?;
    sockopt::set_tcp_keepcnt(stream, PROBES)?;
    Ok(())
}

/// A bound socket.
pub enum Socket {
    /// TCP.
    Tcp(TcpListener),
    /// In the file system.
    Unix(UnixListener),
}

type Stream = Pin<Box<TimeoutWriter<Either<TcpStream, UnixStream>>>>;

impl Socket {
    async fn accept(&self) -> io::Result<Either<TcpStream, UnixStream>> {
        Ok(match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                keep_alive(&stream)?;
                bound(&stream)?;
                Either::Left(stream)
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                bound(&stream)?;
                Either::Right(stream)
            }
        })
    }
}

fn bound(stream: impl AsFd) -> io::Result<()> {
    Ok(sockopt::set_socket_send_buffer_size(stream, SEND_BUFFER)?)
}

/// Serves until cancelled. A client that reads nothing for the time `unread` is hung up on.
pub async fn serve(
    socket: &Socket,
    router: Router,
    unread: Option<Duration>,
    stop: CancellationToken,
) {
    let clients = Arc::new(Clients::default());
    let mut tasks = JoinSet::new();
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            stream = socket.accept() => stream,
            Some(_) = tasks.join_next() => continue,
        };
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!("cannot accept a connection: {error}");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        let (client, closed) = loop {
            if let Some(place) = clients.enter(Instant::now()) {
                break place;
            }
            if timeout(RETRY, stop.cancelled()).await.is_ok() {
                return;
            }
        };
        let mut stream = Box::pin(TimeoutWriter::new(stream));
        stream.as_mut().set_timeout_pinned(unread);
        let exchange = exchange(stream, router.clone(), client, stop.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = closed.cancelled() => {}
                () = exchange => {}
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

/// Answers on one connection until it ends.
async fn exchange(stream: Stream, router: Router, client: Arc<Client>, stop: CancellationToken) {
    let service = service_fn(|mut request: Request<Incoming>| {
        let (router, client) = (router.clone(), Arc::clone(&client));
        async move {
            client.note(true);
            request.extensions_mut().insert(Arc::clone(&client));
            let answer: Result<Response, Infallible> = router.oneshot(request).await;
            client.note(false);
            answer
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!("a connection ended: {error}");
    }
}

/// Who is connected.
#[derive(Default)]
struct Clients {
    next: AtomicU64,
    displaced: AtomicU64,
    places: Mutex<BTreeMap<u64, Place>>,
}

struct Place {
    state: State,
    /// When it became so.
    since: Instant,
    close: CancellationToken,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Its request or its reading is waited for: it goes when there is no room.
    Waiting,
    /// Its answer is being made, which takes no longer than the agent likes.
    Busy,
    /// It reads an event stream.
    Following,
}

impl Clients {
    fn places(&self) -> MutexGuard<'_, BTreeMap<u64, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a new one, and the word to leave it; `None` where there is no room yet.
    fn enter(self: &Arc<Self>, now: Instant) -> Option<(Arc<Client>, CancellationToken)> {
        let mut places = self.places();
        if places.len() >= CONNECTIONS {
            let longest = places
                .iter()
                .filter(|(_, place)| place.state == State::Waiting && now >= place.since + YOUNG)
                .min_by_key(|(_, place)| place.since)
                .map(|(number, _)| *number)?;
            if let Some(place) = places.remove(&longest) {
                place.close.cancel();
            }
            // The first, the second, the fourth of them is told.
            let count = self.displaced.fetch_add(1, Ordering::Relaxed) + 1;
            if count.is_power_of_two() {
                tracing::warn!(
                    "more than {CONNECTIONS} HTTP connections at once: the longest idle one is closed for each new one ({count} so far)"
                );
            }
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let close = CancellationToken::new();
        let place = Place {
            state: State::Waiting,
            since: now,
            close: close.clone(),
        };
        places.insert(number, place);
        let client = Client {
            clients: Arc::clone(self),
            number,
        };
        Some((Arc::new(client), close))
    }
}

/// One who is connected; handlers find it among a request's extensions. Its place is free when it is
/// dropped.
pub struct Client {
    clients: Arc<Clients>,
    number: u64,
}

impl Client {
    fn note(&self, busy: bool) {
        if let Some(place) = self.clients.places().get_mut(&self.number)
            && place.state != State::Following
        {
            place.state = if busy { State::Busy } else { State::Waiting };
            place.since = Instant::now();
        }
    }

    /// From here to the end of its connection it reads a stream. `Err` with the number of those who do,
    /// where these are as many as may.
    pub fn follow(&self) -> Result<(), usize> {
        let mut places = self.clients.places();
        let following = |place: &&Place| place.state == State::Following;
        let count = places.values().filter(following).count();
        match places.get_mut(&self.number) {
            Some(place) if count < FOLLOWERS => place.state = State::Following,
            Some(_) => return Err(count),
            None => {} // closed already
        }
        Ok(())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.clients.places().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_idle_makes_room_and_readers_of_streams_stay() {
        let clients = Arc::new(Clients::default());
        let start = Instant::now();
        let mut all = Vec::new();
        for n in 0..CONNECTIONS as u64 {
            let place = clients.enter(start + Duration::from_nanos(n));
            all.push(place.expect("there is room"));
        }
        for (client, _) in &all[..FOLLOWERS] {
            assert_eq!(client.follow(), Ok(()));
        }
        assert_eq!(all[FOLLOWERS].0.follow(), Err(FOLLOWERS));
        assert!(clients.enter(start).is_none(), "nobody has had time to ask");
        // The oldest after them is making an answer.
        all[FOLLOWERS].0.note(true);
        let later = start + YOUNG * 2;
        let mut more = vec![clients.enter(later).expect("one is idle")];
        let closed = |n: usize| all[n].1.is_cancelled();
        assert!(closed(FOLLOWERS + 1), "the longest idle one stays");
        assert_eq!((0..CONNECTIONS).filter(|n| closed(*n)).count(), 1);
        for _ in FOLLOWERS + 2..CONNECTIONS {
            more.push(clients.enter(later).expect("one is idle"));
        }
        assert!((0..=FOLLOWERS).all(|n| !closed(n)), "busy ones go");
        assert!(clients.enter(later).is_none(), "the new ones have no time");
        // Who has gone leaves its place to one more, who was displaced does not.
        drop(all);
        assert_eq!(clients.places().len(), more.len());
    }
}
