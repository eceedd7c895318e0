//! The values that flags, variables and keys take. Each checks itself while it is read, so that the
//! message can name the flag, or the line of the file, that holds it.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use serde::Deserialize;
use tracing::level_filters::LevelFilter;

/// The agent's default API socket.
pub const DEFAULT_SOCKET: &str = "/run/tracer.sock";

/// `sun_path` of `struct sockaddr_un` holds 108 bytes, one of them NUL.
const MAX_SOCKET_PATH: usize = 107;

/// What may follow `unix:`.
pub(crate) fn socket_path(path: &str) -> Result<PathBuf, String> {
    if !path.starts_with('/') {
        return Err("the path of a socket must begin with /, as in unix:/run/tracer.sock".into());
    }
    if path.len() > MAX_SOCKET_PATH {
        let len = path.len();
        return Err(format!(
            "the path of a socket may have {MAX_SOCKET_PATH} bytes, this one has {len}"
        ));
    }
    Ok(path.into())
}

/// Where the agent serves its API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Api {
    /// A socket in the file system, mode 0600.
    Unix(PathBuf),
    /// TCP, given on purpose.
    Tcp(SocketAddr),
    /// Nowhere.
    None,
}

impl Default for Api {
    fn default() -> Self {
        Self::Unix(DEFAULT_SOCKET.into())
    }
}

impl FromStr for Api {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if s == "none" {
            return Ok(Self::None);
        }
        if let Some(path) = s.strip_prefix("unix:") {
            return socket_path(path).map(Self::Unix);
        }
        s.parse()
            .map(Self::Tcp)
            .map_err(|_| "expected unix:PATH, ADDR:PORT or none".into())
    }
}

/// Changes to the drop reasons that mean failure: names as in metrics, and whether they do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DropReasons(pub Vec<(String, bool)>);

impl FromStr for DropReasons {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let change = |name: &str| {
            let (name, is_failure) = match name.strip_prefix('-') {
                Some(name) => (name, false),
                None => (name, true),
            };
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            if name.is_empty() || !name.chars().all(plain) {
                return Err(format!(
                    "expected names such as tcp_close or -no_socket, with commas between, not \
                     {name:?}"
                ));
            }
            Ok((name.to_owned(), is_failure))
        };
        s.split(',').map(change).collect::<Result<_, _>>().map(Self)
    }
}

/// Where pod names come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Pods {
    /// The best source there is.
    #[default]
    Auto,
    /// The Kubernetes API server.
    Kubernetes,
    /// The container runtime.
    Cri,
    /// Named network namespaces and systemd units.
    Local,
    /// A TOML file.
    File(PathBuf),
    /// Nowhere: nothing has a name.
    None,
}

impl FromStr for Pods {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "auto" => Ok(Self::Auto),
            "kubernetes" => Ok(Self::Kubernetes),
            "cri" => Ok(Self::Cri),
            "local" => Ok(Self::Local),
            "none" => Ok(Self::None),
            _ => match s.strip_prefix("file:") {
                Some("") => Err("file: needs a path, as in file:/etc/tracer/pods.toml".into()),
                Some(path) => Ok(Self::File(path.into())),
                None => Err("expected auto, kubernetes, cri, local, file:PATH or none".into()),
            },
        }
    }
}

/// The container runtime's socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CriEndpoint(pub PathBuf);

impl FromStr for CriEndpoint {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        // As the kubelet and crictl take it: with scheme or without.
        let path = s.strip_prefix("unix:").unwrap_or(s);
        let path = path.strip_prefix("//").unwrap_or(path);
        if s.contains("://") && !s.starts_with("unix:") || !path.starts_with('/') {
            return Err(
                "expected unix:///PATH, such as unix:///run/containerd/containerd.sock".into(),
            );
        }
        socket_path(path).map(Self)
    }
}

/// Folder for what survives a restart; `None` turns that off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDir(pub Option<PathBuf>);

impl Default for StateDir {
    fn default() -> Self {
        Self(Some("/sys/fs/bpf/tracer".into()))
    }
}

impl FromStr for StateDir {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "none" => Ok(Self(None)),
            _ if s.starts_with('/') => Ok(Self(Some(s.into()))),
            _ => Err("expected an absolute path or none".into()),
        }
    }
}

/// A node's name: a label value and a heading, so it stays printable and short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeName(pub String);

impl FromStr for NodeName {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        // 253: the longest name Kubernetes gives a node.
        if s.is_empty() || s.len() > 253 || !s.chars().all(|c| c.is_ascii_graphic()) {
            return Err("expected 1 to 253 printable characters without spaces".into());
        }
        Ok(Self(s.into()))
    }
}

/// A pod as the user writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodName {
    /// Kubernetes namespace, or a word in parentheses.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
}

impl FromStr for PodName {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => Ok(Self {
                namespace: namespace.into(),
                name: name.into(),
            }),
            _ => Err("expected NS/NAME, such as shop/cart-7d9f".into()),
        }
    }
}

/// A kind of event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kind(pub String);

impl Kind {
    const ALL: [&str; 5] = [
        "neighbour_overflow",
        "neighbour_pressure",
        "dns_failure",
        "drop",
        "connect_failure",
    ];
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if Self::ALL.contains(&s) {
            return Ok(Self(s.into()));
        }
        Err(format!("expected one of {}", Self::ALL.join(", ")))
    }
}

/// A duration of at least `MIN` and at most `MAX` milliseconds, in steps of `STEP`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span<const MIN: u64 = 1, const MAX: u64 = 2_592_000_000, const STEP: u64 = 1>(
    pub Duration,
);

/// `--dns-timeout`: at most 60 s, for every lookup that waits takes room in the kernel.
pub type DnsTimeout = Span<1, 60_000>;
/// `--silent-after`.
pub type SilentAfter = Span<1_000, 3_600_000>;
/// `--window`: the ratios' buckets are of 1 s.
pub type Window = Span<1_000, 3_600_000, 1_000>;
/// `--interval`.
pub type Interval = Span<100, 3_600_000>;

impl<const MIN: u64, const MAX: u64, const STEP: u64> FromStr for Span<MIN, MAX, STEP> {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let duration = humantime::parse_duration(s).map_err(|e| e.to_string())?;
        let [min, max, step] = [MIN, MAX, STEP].map(Duration::from_millis);
        if duration < min || duration > max {
            let [min, max] = [min, max].map(humantime::format_duration);
            return Err(format!("expected {min} to {max}"));
        }
        if !duration.as_nanos().is_multiple_of(step.as_nanos()) {
            let step = humantime::format_duration(step);
            return Err(format!("expected a multiple of {step}"));
        }
        Ok(Self(duration))
    }
}

/// How a command's output looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputFormat {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Least severe log lines shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// None at all.
    Off,
    /// What ends tracer or a part of it.
    Error,
    /// What the user should look at.
    Warn,
    /// What happens rarely and matters.
    #[default]
    Info,
    /// What helps to find a fault.
    Debug,
    /// Everything.
    Trace,
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Off => Self::OFF,
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        LevelFilter::from(*self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error<T: FromStr<Err = String> + fmt::Debug>(s: &str) -> String {
        s.parse::<T>().unwrap_err()
    }

    #[test]
    fn api_takes_three_forms() {
        assert_eq!(
            "unix:/run/a.sock".parse(),
            Ok(Api::Unix("/run/a.sock".into()))
        );
        assert_eq!("none".parse(), Ok(Api::None));
        let tcp: Api = "[::1]:9774".parse().unwrap();
        assert_eq!(tcp, Api::Tcp("[::1]:9774".parse().unwrap()));
        for bad in ["", "unix", "localhost", "127.0.0.1", "127.0.0.1:70000"] {
            assert_eq!(error::<Api>(bad), "expected unix:PATH, ADDR:PORT or none");
        }
        assert!(error::<Api>("unix:").contains("must begin with /"));
        assert!(error::<Api>("unix:run/a").contains("must begin with /"));
        let long = format!("unix:/{}", "a".repeat(107));
        assert!(error::<Api>(&long).ends_with("this one has 108"));
    }

    #[test]
    fn pods_name_their_sources() {
        assert_eq!("file:/a b".parse(), Ok(Pods::File("/a b".into())));
        assert_eq!("auto".parse(), Ok(Pods::Auto));
        assert!(error::<Pods>("file:").contains("needs a path"));
        assert!(error::<Pods>("k8s").starts_with("expected auto"));
    }

    #[test]
    fn runtimes_are_reached_by_a_socket() {
        let expected = CriEndpoint("/run/crio/crio.sock".into());
        for good in [
            "unix:///run/crio/crio.sock",
            "unix:/run/crio/crio.sock",
            "/run/crio/crio.sock",
        ] {
            assert_eq!(good.parse(), Ok(expected.clone()));
        }
        for bad in [
            "",
            "unix:",
            "run/crio.sock",
            "tcp://127.0.0.1:1",
            "npipe:////./pipe/x",
        ] {
            assert!(
                error::<CriEndpoint>(bad).starts_with("expected unix:///PATH"),
                "{bad}"
            );
        }
        let long = format!("unix:///{}", "a".repeat(107));
        assert!(error::<CriEndpoint>(&long).ends_with("this one has 108"));
    }

    #[test]
    fn spans_have_bounds_and_steps() {
        assert_eq!("5s".parse(), Ok(Span::<1>(Duration::from_secs(5))));
        assert!(error::<DnsTimeout>("5").contains("unit"));
        assert_eq!(error::<DnsTimeout>("0s"), "expected 1ms to 1m");
        assert_eq!(error::<DnsTimeout>("61s"), "expected 1ms to 1m");
        assert_eq!(error::<Window>("1500ms"), "expected a multiple of 1s");
        assert_eq!(error::<Window>("999ms"), "expected 1s to 1h");
        assert!("1h".parse::<Window>().is_ok());
        assert!(error::<Span>("99999999999999999999y").contains("large"));
    }

    #[test]
    fn drop_reasons_are_names() {
        let DropReasons(changes) = "tcp_close,-no_socket".parse().unwrap();
        let expected = [("tcp_close", true), ("no_socket", false)];
        assert!(
            changes
                .iter()
                .map(|(name, on)| (name.as_str(), *on))
                .eq(expected)
        );
        for bad in ["", ",", "a,", "A", "a b", "--a", "-"] {
            assert!(error::<DropReasons>(bad).contains("-no_socket"), "{bad}");
        }
    }

    #[test]
    fn names_are_checked() {
        assert!("worker-1".parse::<NodeName>().is_ok());
        for bad in ["", "a b", "a\nb", "\u{1b}[31m"] {
            assert!(bad.parse::<NodeName>().is_err());
        }
        let pod: PodName = "(netns)/a/b".parse().unwrap();
        assert_eq!(
            (pod.namespace.as_str(), pod.name.as_str()),
            ("(netns)", "a/b")
        );
        for bad in ["", "a", "/a", "a/"] {
            assert!(bad.parse::<PodName>().is_err());
        }
        assert!(error::<Kind>("dns").contains("dns_failure"));
        assert_eq!("none".parse(), Ok(StateDir(None)));
        assert!(error::<StateDir>("bpf").contains("absolute"));
    }
}
