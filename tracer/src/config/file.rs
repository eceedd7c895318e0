//! The file of `--config`: one flat table, a key for each flag, spelt as the flag. It serves every
//! command, so each takes the keys it knows and leaves the others' alone; a key that no command
//! knows is an error.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{
    Api, Color, CriEndpoint, DnsTimeout, DropReasons, Interval, Kind, LogFormat, LogLevel,
    NodeName, OutputFormat, PodName, Pods, Range, Secret, SilentAfter, Span, StateDir, Timeout,
    UsageError, Window,
};
use crate::client::AgentAddr;
use crate::output::printable;
use crate::top::Sort;

/// What a file says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[expect(clippy::struct_field_names, reason = "keys are spelt as the flags")]
pub struct File {
    pub(super) log_format: Option<LogFormat>,
    pub(super) log_level: Option<LogLevel>,
    pub(super) listen: Option<SocketAddr>,
    #[serde(deserialize_with = "text")]
    pub(super) api: Option<Api>,
    #[serde(deserialize_with = "text")]
    pub(super) node: Option<NodeName>,
    #[serde(deserialize_with = "text")]
    pub(super) pods: Option<Pods>,
    #[serde(deserialize_with = "text")]
    pub(super) cri_endpoint: Option<CriEndpoint>,
    #[serde(deserialize_with = "one_or_more")]
    pub(super) dns_port: Vec<u16>,
    #[serde(deserialize_with = "text")]
    pub(super) dns_timeout: Option<DnsTimeout>,
    #[serde(deserialize_with = "one_or_more")]
    pub(super) silent_port: Vec<u16>,
    #[serde(deserialize_with = "text")]
    pub(super) silent_after: Option<SilentAfter>,
    #[serde(deserialize_with = "text")]
    pub(super) drop_reasons: Option<DropReasons>,
    pub(super) redact_names: Option<bool>,
    #[serde(deserialize_with = "text")]
    pub(super) window: Option<Window>,
    #[serde(deserialize_with = "text")]
    pub(super) state_dir: Option<StateDir>,
    #[serde(default)]
    pub(super) detach_all: Option<bool>,
    pub(super) event_rate: Option<u64>,
    pub(super) max_pods: Option<usize>,
    #[serde(deserialize_with = "text")]
    pub(super) agent: Option<AgentAddr>,
    pub(super) once: Option<bool>,
    pub(super) color: Option<Color>,
    #[serde(deserialize_with = "text")]
    pub(super) interval: Option<Interval>,
    #[serde(deserialize_with = "text")]
    pub(super) sort: Option<Sort>,
    pub(super) prometheus: Option<String>,
    #[serde(deserialize_with = "one_or_more_texts")]
    pub(super) header: Vec<Secret>,
    #[serde(deserialize_with = "secret")]
    pub(super) bearer_token: Option<Secret>,
    pub(super) bearer_token_file: Option<PathBuf>,
    pub(super) ca_file: Option<PathBuf>,
    #[serde(deserialize_with = "text")]
    pub(super) range: Option<Range>,
    pub(super) r#match: Option<String>,
    #[serde(deserialize_with = "text")]
    pub(super) timeout: Option<Timeout>,
    #[serde(deserialize_with = "text")]
    pub(super) since: Option<Span>,
    pub(super) output: Option<OutputFormat>,
    #[serde(deserialize_with = "text")]
    pub(super) pod: Option<PodName>,
    #[serde(deserialize_with = "text")]
    pub(super) kind: Option<Kind>,
    #[serde(deserialize_with = "text")]
    pub(super) r#for: Option<Span>,
}

impl File {
    /// Reads the file, or nothing where no file is given.
    pub fn load(path: Option<&PathBuf>) -> Result<Self, UsageError> {
        let Some(path) = path else {
            return Ok(Self::default());
        };
        let text = std::fs::read_to_string(path).map_err(|e| {
            UsageError(format!(
                "cannot read {}, the file of --config: {e}",
                path.display()
            ))
        })?;
        Self::parse(&text, path)
    }

    pub(crate) fn parse(text: &str, path: &Path) -> Result<Self, UsageError> {
        toml::from_str(text).map_err(|e| {
            let place = e.span().map(|span| place(text, span.start));
            let message = printable(e.message()).into_owned();
            UsageError(format!(
                "{}{}: {message}",
                path.display(),
                place.unwrap_or_default()
            ))
        })
    }
}

/// The line at a byte of the text: its number, and its words, for toml's message names no key.
fn place(text: &str, at: usize) -> String {
    let at = text.floor_char_boundary(at);
    let before = &text[..at];
    let number = before.matches('\n').count() + 1;
    let start = before.rfind('\n').map_or(0, |i| i + 1);
    let line = text[start..].lines().next().unwrap_or_default().trim();
    let secret = ["bearer-token", "header", "prometheus"];
    if secret.iter().any(|key| line.contains(key)) || is_in_list_of_headers(before) {
        return format!(" line {number} (not shown, for it may hold a secret)");
    }
    let cut: String = line.chars().take(60).collect();
    format!(" line {number} (`{}`)", printable(&cut))
}

/// Does the text end within a list of headers that was begun on a line before?
fn is_in_list_of_headers(before: &str) -> bool {
    before
        .rfind("header")
        .is_some_and(|at| before[at..].contains('[') && !before[at..].contains(']'))
}

/// A value that checks itself while it is read from its text.
fn text<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err = String>,
{
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(serde::de::Error::custom)
}

fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Secret>, D::Error> {
    String::deserialize(deserializer).map(|text| Some(Secret(text)))
}

/// `"a:b"` or `["a:b", "c:d"]`.
fn one_or_more_texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Secret>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a text or a list of texts")]
    enum Texts {
        One(String),
        More(Vec<String>),
    }

    Ok(match Texts::deserialize(deserializer)? {
        Texts::One(text) => vec![Secret(text)],
        Texts::More(texts) => texts.into_iter().map(Secret).collect(),
    })
}

/// `53` or `[53, 5353]`.
fn one_or_more<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u16>, D::Error> {
    struct Ports;

    impl<'de> Visitor<'de> for Ports {
        type Value = Vec<u16>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a port or a list of ports")
        }

        fn visit_i64<E: serde::de::Error>(self, port: i64) -> Result<Vec<u16>, E> {
            let port = u16::try_from(port).map_err(|_| E::custom("expected a port, 1 to 65535"))?;
            Ok(vec![port])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut ports: A) -> Result<Vec<u16>, A::Error> {
            let mut all = Vec::new();
            while let Some(port) = ports.next_element()? {
                all.push(port);
            }
            Ok(all)
        }
    }

    deserializer.deserialize_any(Ports)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn parse(text: &str) -> Result<File, String> {
        File::parse(text, Path::new("/etc/tracer.toml")).map_err(|e| e.to_string())
    }

    #[test]
    fn keys_are_spelt_as_the_flags() {
        let file = parse(
            "listen = \"0.0.0.0:9773\"\napi = \"none\"\nnode = \"n1\"\npods = \"file:/p\"\n\
             cri-endpoint = \"unix:///run/x\"\ndns-port = [53, 5353]\ndns-timeout = \"2s\"\n\
             window = \"30s\"\nstate-dir = \"none\"\nevent-rate = 5\nmax-pods = 7\n\
             log-format = \"json\"\nlog-level = \"debug\"\nagent = \"http://a:1\"\nonce = true\n\
             interval = \"2s\"\nsort = \"p99\"\ncolor = \"never\"\nsince = \"30m\"\noutput = \"json\"\n\
             pod = \"a/b\"\nkind = \"drop\"\nfor = \"1m\"\nprometheus = \"http://p:9090\"\n\
             header = [\"a:b\", \"c:d\"]\nbearer-token = \"t\"\nbearer-token-file = \"/t\"\n\
             ca-file = \"/c\"\nrange = \"1m\"\nmatch = 'a=\"b\"'\ntimeout = \"5s\"\n",
        )
        .unwrap();
        assert_eq!(file.header.len(), 2);
        assert_eq!(parse("header = \"a:b\"").unwrap().header.len(), 1);
        assert!(!format!("{file:?}").contains("\"t\""));
        assert_eq!(file.dns_port, [53, 5353]);
        assert_eq!(file.dns_timeout, Some(Span(Duration::from_secs(2))));
        assert_eq!(file.r#for, Some(Span(Duration::from_mins(1))));
        assert_eq!(parse("dns-port = 5353").unwrap().dns_port, [5353]);
        assert_eq!(parse("").unwrap().listen, None);
    }

    #[test]
    fn errors_show_no_secret() {
        for bad in [
            "bearer-token = \"s3cret",
            "bearer-token = [\"s3cret\"]",
            "header = [\n  \"X-Key: s3cret\",\n  \"X-Other: s3cret\n]",
            "prometheus = \"http://me:s3cret@host",
        ] {
            let error = parse(bad).unwrap_err();
            assert!(!error.contains("s3cret"), "{error}");
            assert!(error.starts_with("/etc/tracer.toml line "), "{error}");
        }
    }

    #[test]
    fn errors_are_one_line_with_file_and_place() {
        let unknown =
            parse("# head\nlisten = \"127.0.0.1:1\"\ndns_timeout = \"5s\"\n").unwrap_err();
        assert!(
            unknown.starts_with(
                "/etc/tracer.toml line 3 (`dns_timeout = \"5s\"`): unknown field `dns_timeout`"
            ),
            "{unknown}"
        );
        assert!(unknown.contains("`dns-timeout`"), "{unknown}");
        for bad in [
            "dns-timeout = \"5\"",
            "dns-timeout = 5",
            "dns-timeout = \"2h\"",
            "dns-port = 70000",
            "dns-port = [-1]",
            "dns-port = \"53\"",
            "event-rate = -1",
            "listen = \"here\"",
            "log-level = \"loud\"",
            "a = \"\u{1b}[31m\"",
            "listen",
            "[agent]\nlisten = \"127.0.0.1:1\"",
            "window = \"1s\"\nwindow = \"2s\"",
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.starts_with("/etc/tracer.toml line "), "{error}");
            assert!(!error.contains(['\n', '\u{1b}']), "{error}");
        }
    }
}
