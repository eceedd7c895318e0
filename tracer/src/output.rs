//! What every command that prints a stream shares: a writer that a stuck reader cannot make deaf to
//! signals, the signals, and text that is safe on a terminal.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, BufWriter, Write};
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

/// After a signal, a reader has this long to take what is written already.
const GRACE: Duration = Duration::from_secs(1);

/// Standard output, or another stream, written by a thread of its own: a reader that does not read
/// blocks that thread only, and signals still end the program.
pub struct Output {
    texts: mpsc::Sender<String>,
    done: oneshot::Receiver<io::Result<()>>,
}

impl Output {
    /// Writes to standard output.
    pub fn stdout() -> anyhow::Result<Self> {
        Self::to(io::stdout())
    }

    /// Writes to `stream`.
    pub fn to(stream: impl Write + Send + 'static) -> anyhow::Result<Self> {
        let (texts, received) = mpsc::channel(64);
        let (finished, done) = oneshot::channel();
        std::thread::Builder::new()
            .name("output".into())
            .spawn(move || {
                // Fails only where nobody waits for the end any more.
                let _ = finished.send(write_all(received, stream));
            })
            .context("cannot start the thread that writes the output")?;
        Ok(Self { texts, done })
    }

    /// Hands over a text; waits while the reader is behind. `false`: the reader is gone, and
    /// [`Self::finish`] says why.
    pub async fn write(&self, text: String) -> bool {
        self.texts.send(text).await.is_ok()
    }

    /// Waits until the reader is gone. A text that was handed over just before it went tells nobody.
    pub async fn gone(&self) {
        self.texts.closed().await;
    }

    /// Waits until all is written. A closed pipe is no error.
    pub async fn finish(self) -> anyhow::Result<()> {
        drop(self.texts);
        match self.done.await {
            Ok(Err(e)) if e.kind() != io::ErrorKind::BrokenPipe => {
                Err(e).context("cannot write the output")
            }
            _ => Ok(()),
        }
    }

    /// Waits until all is written or, where the reader is stuck, for a signal; for a moment only
    /// if the signal has come already.
    pub async fn finish_or_signal(
        self,
        signalled: bool,
        signals: &mut Signals,
    ) -> anyhow::Result<()> {
        if signalled {
            return tokio::time::timeout(GRACE, self.finish())
                .await
                .unwrap_or(Ok(()));
        }
        tokio::select! {
            result = self.finish() => result,
            () = signals.recv() => Ok(()),
        }
    }
}

fn write_all(mut texts: mpsc::Receiver<String>, stream: impl Write) -> io::Result<()> {
    let mut stream = BufWriter::new(stream);
    while let Some(text) = texts.blocking_recv() {
        stream.write_all(text.as_bytes())?;
        while let Ok(text) = texts.try_recv() {
            stream.write_all(text.as_bytes())?;
        }
        stream.flush()?;
    }
    Ok(())
}

/// SIGINT and SIGTERM.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// Only of a program that has the terminal: others may run on without it (nohup).
    hang_up: Option<Signal>,
}

impl Signals {
    /// From here on the two signals no longer end the program by themselves.
    pub fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: None,
        })
    }

    /// The same, and the terminal's end.
    pub fn of_terminal() -> anyhow::Result<Self> {
        let hang_up = signal(SignalKind::hangup()).context("cannot listen for signals")?;
        Ok(Self {
            hang_up: Some(hang_up),
            ..Self::new()?
        })
    }

    /// Waits for any of them.
    pub async fn recv(&mut self) {
        let hang_up = async {
            match &mut self.hang_up {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = hang_up => {}
        }
    }
}

/// Text as a terminal may show it: names come out of packets, from the network and from other
/// people's processes. All but printable ASCII is escaped, so that nothing moves the cursor, turns
/// the direction of writing or looks like another letter.
pub fn printable(text: &str) -> Cow<'_, str> {
    let safe = |c: char| c == ' ' || c.is_ascii_graphic();
    if text.chars().all(safe) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if safe(c) {
            out.push(c);
        } else {
            out.extend(c.escape_default());
        }
    }
    out.into()
}

/// A duration in three figures or so.
pub fn seconds(s: f64) -> String {
    let mut out = String::new();
    let result = match s {
        _ if s >= 100.0 => write!(out, "{s:.0}s"),
        _ if s >= 1.0 => write!(out, "{s:.1}s"),
        _ if s >= 0.01 => write!(out, "{:.0}ms", s * 1e3),
        _ => write!(out, "{:.2}ms", s * 1e3),
    };
    result.expect("a String takes every text");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_get_plain_text() {
        assert_eq!(printable("api.shop.svc (x)"), "api.shop.svc (x)");
        assert_eq!(
            printable("a\u{1b}]0;t\u{7}b\u{9b}c\u{202e}d\r\n\u{7f}é"),
            "a\\u{1b}]0;t\\u{7}b\\u{9b}c\\u{202e}d\\r\\n\\u{7f}\\u{e9}"
        );
    }

    #[test]
    fn durations_are_short() {
        let texts = [0.0, 0.000_5, 0.012, 1.0, 5.04, 240.0].map(seconds);
        assert_eq!(texts, ["0.00ms", "0.50ms", "12ms", "1.0s", "5.0s", "240s"]);
    }

    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_closed_pipe_is_no_error() {
        let output = Output::to(Closed).unwrap();
        while output.write("x\n".into()).await {}
        output.finish().await.unwrap();
    }

    struct Full;

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_full_disk_is_an_error() {
        let output = Output::to(Full).unwrap();
        output.write("x\n".into()).await;
        let error = format!("{:#}", output.finish().await.unwrap_err());
        assert!(error.starts_with("cannot write the output: "), "{error}");
    }
}
