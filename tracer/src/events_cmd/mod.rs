//! `tracer events`: the agent's stream of failures, one a line.

mod text;

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::anyhow;
use serde_json::Value;

use crate::client::{Client, Lines};
use crate::config::{EventsConfig, Kind, OutputFormat, PodName};
use crate::output::{Output, Signals, printable};

#[cfg(any(test, fuzzing))]
pub(crate) use text::line;
pub(crate) use text::sentence;

/// Why the stream ended without an error.
#[derive(PartialEq, Eq)]
enum End {
    Signal,
    Duration,
    ReaderGone,
}

/// Streams to standard output until a signal, `--for`, or a reader that has gone; an agent that
/// goes is an error.
pub async fn run(config: EventsConfig) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    stream(&config, Output::stdout()?, &mut signals).await
}

async fn stream(
    config: &EventsConfig,
    output: Output,
    signals: &mut Signals,
) -> anyhow::Result<()> {
    let end = tokio::select! {
        () = signals.recv() => Ok(End::Signal),
        () = pause(config.duration) => Ok(End::Duration),
        end = copy(config, &output) => end,
    };
    let signalled = matches!(end, Ok(End::Signal));
    let written = output.finish_or_signal(signalled, signals).await;
    end.and(written)
}

/// For ever, where no duration is given.
async fn pause(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

async fn copy(config: &EventsConfig, output: &Output) -> anyhow::Result<End> {
    let client = Client::new(config.agent.clone());
    let mut lines = client.stream_lines(&path(config.since)).await?;
    copy_lines(config, &mut lines, output).await
}

async fn copy_lines(
    config: &EventsConfig,
    lines: &mut Lines,
    output: &Output,
) -> anyhow::Result<End> {
    loop {
        let line = tokio::select! {
            line = lines.next() => line?,
            () = output.gone() => return Ok(End::ReaderGone),
        };
        let Some(line) = line else {
            break;
        };
        let Some(mut text) = render(config, line) else {
            continue;
        };
        text.push('\n');
        if !output.write(text).await {
            return Ok(End::ReaderGone);
        }
    }
    let addr = &config.agent;
    Err(anyhow!(
        "the agent at {addr} has ended the stream; is it stopping?"
    ))
}

/// Milliseconds: one unit, so that no space needs escaping.
fn path(since: Option<Duration>) -> String {
    match since {
        Some(since) => format!("/api/v1/events?since={}ms", since.as_millis()),
        None => "/api/v1/events".into(),
    }
}

/// What to print of a line of the stream, if anything.
fn render(config: &EventsConfig, line: String) -> Option<String> {
    let event = match serde_json::from_str::<Value>(&line) {
        Ok(event) if event.is_object() => event,
        // An empty line may keep an idle connection open.
        _ if line.trim().is_empty() => return None,
        _ => {
            let start: String = line.chars().take(60).collect();
            tracing::warn!("the agent sent what is no event: {}", printable(&start));
            return None;
        }
    };
    if event["kind"] == "missed" {
        tracing::warn!(
            "reading too slowly: missed {} events",
            event["count"].as_u64().unwrap_or_default()
        );
        return None;
    }
    wanted(config, &event).then(|| match config.output {
        OutputFormat::Json => plain_json(line),
        OutputFormat::Text => text::line(&event),
    })
}

/// The same JSON in printable ASCII: an agent writes nothing else, but who answers at its address may be another.
fn plain_json(line: String) -> String {
    let safe = |c: char| c == ' ' || c.is_ascii_graphic();
    if line.chars().all(safe) {
        return line;
    }
    let mut plain = String::with_capacity(line.len() + 16);
    for c in line.chars() {
        match c {
            _ if safe(c) => plain.push(c),
            // Between values; JSON takes none in a string.
            '\t' | '\r' | '\n' => plain.push(' '),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(plain, "\\u{unit:04x}"); // a String takes all
                }
            }
        }
    }
    plain
}

fn wanted(config: &EventsConfig, event: &Value) -> bool {
    let kind = |Kind(kind): &Kind| event["kind"] == kind.as_str();
    let pod = |pod: &PodName| {
        event["pod"]["namespace"] == pod.namespace.as_str()
            && event["pod"]["name"] == pod.name.as_str()
    };
    config.kind.as_ref().is_none_or(kind) && config.pod.as_ref().is_none_or(pod)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;
    use crate::cli::{Cli, Command};
    use crate::config::File;

    fn config(args: &[&str]) -> EventsConfig {
        let cli = Cli::read(["tracer", "events"].iter().chain(args)).unwrap();
        let Command::Events(args) = cli.command else {
            panic!("not events");
        };
        EventsConfig::new(&args, &File::default())
    }

    const DROP: &str = r#"{"kind":"drop","pod":{"namespace":"shop","name":"cart"},"x":1}"#;

    #[test]
    fn filters_are_exact() {
        let prints = |args: &[&str]| render(&config(args), DROP.into()).is_some();
        assert!(prints(&[]));
        assert!(prints(&["--pod", "shop/cart"]));
        assert!(!prints(&["--pod", "shop/car"]));
        assert!(!prints(&["--pod", "sho/cart"]));
        assert!(prints(&["--kind", "drop", "--pod", "shop/cart"]));
        assert!(!prints(&["--kind", "dns_failure"]));
    }

    #[test]
    fn json_passes_through() {
        let json = config(&["--output", "json"]);
        assert_eq!(render(&json, DROP.into()).as_deref(), Some(DROP));
        for nothing in ["", "[]", "{", r#"{"kind":"missed","count":3}"#] {
            assert_eq!(render(&json, nothing.into()), None);
        }
    }

    #[test]
    fn json_moves_no_cursor() {
        let json = config(&["--output", "json"]);
        let hostile = "{\"kind\":\t\"a\u{9b}2J\u{202e}\u{7f}é\u{1f600}\"\r}";
        let shown = render(&json, hostile.into()).unwrap();
        assert!(shown.bytes().all(|b| (b' '..=b'~').contains(&b)), "{shown}");
        let meant = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(meant(&shown), meant(hostile));
    }

    #[test]
    fn since_becomes_one_unit() {
        assert_eq!(path(None), "/api/v1/events");
        assert_eq!(
            path(config(&["--since", "1h 30m"]).since),
            "/api/v1/events?since=5400000ms"
        );
    }

    /// An agent that sends one event and then lives on, or not.
    fn agent(stays: bool) -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().unwrap();
        let addr = format!("unix:{}", dir.path().join("a.sock").display());
        let listener = UnixListener::bind(dir.path().join("a.sock")).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await.unwrap();
            let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
            let len = DROP.len() + 1;
            let text = format!("{head}{len:x}\r\n{DROP}\n\r\n");
            stream.write_all(text.as_bytes()).await.unwrap();
            if stays {
                std::future::pending::<()>().await;
            }
        });
        (dir, addr)
    }

    async fn run_against(addr: &str, more: &[&str]) -> (anyhow::Result<()>, String) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let args = [&["--agent", addr, "--output", "json"], more].concat();
        let output = Output::to(file.reopen().unwrap()).unwrap();
        let mut signals = Signals::new().unwrap();
        let result = stream(&config(&args), output, &mut signals).await;
        (result, std::fs::read_to_string(file.path()).unwrap())
    }

    #[tokio::test]
    async fn an_agent_that_goes_is_an_error_after_its_events() {
        let (_dir, addr) = agent(false);
        let (result, text) = run_against(&addr, &[]).await;
        assert_eq!(text, format!("{DROP}\n"));
        let error = result.unwrap_err().to_string();
        assert!(error.contains("broke off the stream"), "{error}");
    }

    #[tokio::test]
    async fn a_duration_ends_well() {
        let (_dir, addr) = agent(true);
        let (result, text) = run_against(&addr, &["--for", "300ms"]).await;
        assert_eq!(text, format!("{DROP}\n"));
        result.unwrap();
    }
}
