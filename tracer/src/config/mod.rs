//! What the user asked for, checked: arguments and environment (clap reads both) joined with the
//! file. Flag beats environment beats file beats default.

mod file;
mod prometheus;
mod values;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

pub use file::File;
pub(crate) use prometheus::read_token;
pub use prometheus::{Access, ClusterConfig, Range, Secret, Timeout};
pub(crate) use values::socket_path;
pub use values::{
    Api, Color, CriEndpoint, DEFAULT_SOCKET, DnsTimeout, DropReasons, Interval, Kind, LogFormat,
    LogLevel, NodeName, OutputFormat, PodName, Pods, SilentAfter, Span, StateDir, Window,
};

use crate::cli::{AgentArgs, DoctorArgs, EventsArgs, GlobalArgs, TopArgs, TraceArgs, WhyArgs};
use crate::client::AgentAddr;
use crate::top::Column;

/// Wrong usage or configuration, in one line: exit code 2.
#[derive(Debug)]
pub struct UsageError(pub String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// How to log.
#[derive(Clone, Copy, Debug)]
pub struct Logging {
    /// How lines look.
    pub format: LogFormat,
    /// Least severe lines shown.
    pub level: LogLevel,
}

impl Logging {
    /// Arguments, then file, then default.
    pub fn new(args: &GlobalArgs, file: &File) -> Self {
        Self {
            format: args.log_format.or(file.log_format).unwrap_or_default(),
            level: args.log_level.or(file.log_level).unwrap_or_default(),
        }
    }
}

/// What the agent needs to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where metrics and health are served.
    pub listen: SocketAddr,
    /// Where the API is served.
    pub api: Api,
    /// The node's name.
    pub node: String,
    /// Where pod names come from.
    pub pods: Pods,
    /// The container runtime's socket; `None`: the first of the usual ones.
    pub cri_endpoint: Option<CriEndpoint>,
    /// Server ports of DNS over UDP: 1 to 8, none twice.
    pub dns_ports: Vec<u16>,
    /// A lookup without an answer for this long has failed.
    pub dns_timeout: Duration,
    /// Ports over TCP where requests must be answered: 1 to 8, none twice.
    pub silent_ports: Vec<u16>,
    /// How long a request may wait there.
    pub silent_after: Duration,
    /// Changes to the drop reasons that mean failure.
    pub drop_reasons: DropReasons,
    /// Names asked for show nowhere.
    pub redact_names: bool,
    /// Span of the ratios, whole seconds.
    pub window: Duration,
    /// bpffs folder for what survives a restart; `None` where nothing does.
    pub state_dir: Option<PathBuf>,
    /// Only take out what agents have left there.
    pub detach_all: bool,
    /// Details a second for each hook.
    pub event_rate: u64,
    /// Label sets kept.
    pub max_pods: usize,
}

impl Config {
    /// For `tracer agent`.
    pub fn agent(args: &AgentArgs, file: &File) -> Result<Self, UsageError> {
        let state_dir = args.state_dir.clone().or(file.state_dir.clone());
        Ok(Self {
            listen: args.listen.or(file.listen).unwrap_or(DEFAULT_LISTEN),
            api: args.api.clone().or(file.api.clone()).unwrap_or_default(),
            state_dir: state_dir.unwrap_or_default().0,
            detach_all: args.detach_all.or(file.detach_all).unwrap_or_default(),
            event_rate: args
                .event_rate
                .or(file.event_rate)
                .unwrap_or(DEFAULT_EVENT_RATE),
            ..Self::in_process(&args.trace, file)?
        })
    }

    /// For tracing inside another command: nothing is served, no state is shared with an agent.
    fn in_process(args: &TraceArgs, file: &File) -> Result<Self, UsageError> {
        let (pods, cri_endpoint) = pods(args, file)?;
        Ok(Self {
            listen: DEFAULT_LISTEN,
            api: Api::None,
            node: node(args, file, std::env::var("NODE_NAME").ok())?,
            pods,
            cri_endpoint,
            dns_ports: ports("dns-port", [&args.dns_port, &file.dns_port], &[53])?,
            silent_ports: ports(
                "silent-port",
                [&args.silent_port, &file.silent_port],
                &DEFAULT_SILENT_PORTS,
            )?,
            silent_after: args
                .silent_after
                .or(file.silent_after)
                .map_or(DEFAULT_SILENT_AFTER, |t| t.0),
            drop_reasons: args
                .drop_reasons
                .clone()
                .or(file.drop_reasons.clone())
                .unwrap_or_default(),
            redact_names: args.redact_names.or(file.redact_names).unwrap_or_default(),
            dns_timeout: args
                .dns_timeout
                .or(file.dns_timeout)
                .map_or(DEFAULT_DNS_TIMEOUT, |t| t.0),
            window: args.window.or(file.window).map_or(DEFAULT_WINDOW, |w| w.0),
            state_dir: None,
            detach_all: false,
            event_rate: DEFAULT_EVENT_RATE,
            max_pods: max_pods(args, file)?,
        })
    }
}

const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9773);
const DEFAULT_DNS_TIMEOUT: Duration = Duration::from_secs(5);
/// Ports where requests over TCP must be answered: the API server's and etcd's.
pub const DEFAULT_SILENT_PORTS: [u16; 2] = [6443, 2379];
const DEFAULT_SILENT_AFTER: Duration = Duration::from_secs(10);
const DEFAULT_WINDOW: Duration = Duration::from_mins(1);
const DEFAULT_EVENT_RATE: u64 = 1_000;
const DEFAULT_MAX_PODS: usize = 1_000;
/// Twenty times what a node is built for; each costs metrics on every scrape.
const MAX_PODS: usize = 100_000;
/// The kernel half looks at so many.
const MAX_PORTS: usize = tracer_common::dns::MAX_PORTS as usize;
const _: () = assert!(MAX_PORTS == tracer_common::tcp::MAX_SILENT_PORTS);

/// The name by argument or file, else the one Kubernetes gives, else the host's.
fn node(args: &TraceArgs, file: &File, kubernetes: Option<String>) -> Result<String, UsageError> {
    if let Some(node) = args.node.as_ref().or(file.node.as_ref()) {
        return Ok(node.0.clone());
    }
    // An empty NODE_NAME is a manifest's way to leave it unset.
    let (name, origin) = match kubernetes.filter(|name| !name.is_empty()) {
        Some(name) => (name, "NODE_NAME"),
        None => (
            rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned(),
            "the host name",
        ),
    };
    match name.parse::<NodeName>() {
        Ok(node) => Ok(node.0),
        Err(e) => Err(UsageError(format!(
            "{origin} {name:?} cannot name the node: {e}; give --node"
        ))),
    }
}

fn pods(args: &TraceArgs, file: &File) -> Result<(Pods, Option<CriEndpoint>), UsageError> {
    let pods = args.pods.clone().or(file.pods.clone()).unwrap_or_default();
    let endpoint = args.cri_endpoint.clone().or(file.cri_endpoint.clone());
    if endpoint.is_some() && !matches!(pods, Pods::Auto | Pods::Cri) {
        return Err(UsageError(
            "cri-endpoint: only the pod sources auto and cri ask a container runtime; leave it out"
                .into(),
        ));
    }
    Ok((pods, endpoint))
}

/// The first that is given, else the default.
fn ports(flag: &str, given: [&Vec<u16>; 2], default: &[u16]) -> Result<Vec<u16>, UsageError> {
    let ports = given
        .into_iter()
        .find(|ports| !ports.is_empty())
        .cloned()
        .unwrap_or_else(|| default.to_vec());
    if ports.len() > MAX_PORTS {
        let given = ports.len();
        return Err(UsageError(format!(
            "{flag}: {given} ports given, at most {MAX_PORTS} are followed; leave some out"
        )));
    }
    let mut seen = BTreeSet::new();
    for port in &ports {
        if *port == 0 {
            return Err(UsageError(format!("{flag}: 0 is no port; use 1 to 65535")));
        }
        if !seen.insert(port) {
            return Err(UsageError(format!(
                "{flag}: {port} is given twice; leave one out"
            )));
        }
    }
    Ok(ports)
}

fn max_pods(args: &TraceArgs, file: &File) -> Result<usize, UsageError> {
    let pods = args.max_pods.or(file.max_pods).unwrap_or(DEFAULT_MAX_PODS);
    if (1..=MAX_PODS).contains(&pods) {
        return Ok(pods);
    }
    Err(UsageError(format!(
        "max-pods: {pods} is out of range; use 1 to {MAX_PODS}"
    )))
}

/// The node's name, for commands without such a flag.
pub fn node_of(file: &File) -> Result<String, UsageError> {
    node(&TraceArgs::default(), file, std::env::var("NODE_NAME").ok())
}

/// The container runtime's socket that the file names, for commands without such a flag.
pub fn runtime_of(file: &File) -> Option<&CriEndpoint> {
    file.cri_endpoint.as_ref()
}

/// What `tracer top` needs.
#[derive(Clone, Debug)]
pub struct TopConfig {
    /// The agent; `None`: at its default address, and without one in-process.
    pub agent: Option<AgentAddr>,
    /// One table, then the end.
    pub once: bool,
    /// Span of the rates.
    pub interval: Duration,
    /// Colours of the live view.
    pub color: bool,
    /// Column to sort by.
    pub sort: Column,
    /// For tracing in-process.
    pub trace: Config,
    /// The whole cluster in place of one node.
    pub cluster: Option<ClusterConfig>,
}

impl TopConfig {
    /// Arguments, then file, then default.
    pub fn new(args: &TopArgs, file: &File) -> Result<Self, UsageError> {
        let interval = args.interval.or(file.interval);
        let cluster = ClusterConfig::new(args, file)?;
        let sort = args.sort.or(file.sort).unwrap_or_default();
        let sort = match &cluster {
            Some(_) => Column::default(),
            None => sort
                .pods()
                .map_err(|error| UsageError(format!("sort: {error}")))?,
        };
        Ok(Self {
            agent: args.agent.clone().or(file.agent.clone()),
            once: args.once.or(file.once).unwrap_or_default(),
            interval: interval.map_or(Duration::from_secs(1), |i| i.0),
            color: args
                .color
                .or(file.color)
                .unwrap_or_default()
                .wanted(std::env::var_os("NO_COLOR").as_deref()),
            sort,
            cluster,
            trace: Config::in_process(&args.trace, file)?,
        })
    }
}

/// What `tracer events` needs.
#[derive(Clone, Debug)]
pub struct EventsConfig {
    /// The agent.
    pub agent: AgentAddr,
    /// Begin with the held events of this span.
    pub since: Option<Duration>,
    /// How events look.
    pub output: OutputFormat,
    /// Only this pod's.
    pub pod: Option<PodName>,
    /// Only this kind.
    pub kind: Option<Kind>,
    /// Stop after this long.
    pub duration: Option<Duration>,
}

impl EventsConfig {
    /// Arguments, then file, then default.
    pub fn new(args: &EventsArgs, file: &File) -> Self {
        let agent = args.agent.as_ref().or(file.agent.as_ref());
        Self {
            agent: agent.cloned().unwrap_or_default(),
            since: args.since.or(file.since).map(|s| s.0),
            output: args.output.or(file.output).unwrap_or_default(),
            pod: args.pod.clone().or(file.pod.clone()),
            kind: args.kind.clone().or(file.kind.clone()),
            duration: args.duration.or(file.r#for).map(|s| s.0),
        }
    }
}

/// What `tracer why` needs.
#[derive(Clone, Debug)]
pub struct WhyConfig {
    /// The agent.
    pub agent: AgentAddr,
    /// The pod; `None`: the node.
    pub pod: Option<PodName>,
    /// How the verdict looks.
    pub output: OutputFormat,
}

impl WhyConfig {
    /// Arguments, then file, then default.
    pub fn new(args: &WhyArgs, file: &File) -> Self {
        let agent = args.agent.as_ref().or(file.agent.as_ref());
        Self {
            agent: agent.cloned().unwrap_or_default(),
            pod: args.pod.clone(),
            output: args.output.or(file.output).unwrap_or_default(),
        }
    }
}

/// What `tracer doctor` needs.
#[derive(Clone, Debug)]
pub struct DoctorConfig {
    /// The state folder; `None` turns the state off.
    pub state_dir: Option<PathBuf>,
    /// How the report looks.
    pub output: OutputFormat,
}

impl DoctorConfig {
    /// Arguments, then file, then default.
    pub fn new(args: &DoctorArgs, file: &File) -> Self {
        let state_dir = args.state_dir.clone().or(file.state_dir.clone());
        Self {
            state_dir: state_dir.unwrap_or_default().0,
            output: args.output.or(file.output).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests;
