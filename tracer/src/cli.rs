//! The command line, as the user types it. [`crate::config`] joins it with the file of `--config`
//! and checks it; nothing else reads these structs.

use std::collections::HashSet;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::parser::ValueSource;
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::client::AgentAddr;
use crate::config::{
    Api, Color, CriEndpoint, DnsTimeout, DropReasons, Interval, Kind, LogFormat, LogLevel,
    NodeName, OutputFormat, PodName, Pods, Range, Secret, SilentAfter, Span, StateDir, Timeout,
    Window,
};
use crate::top::Sort;

/// Finds network failures inside the kernel of a Kubernetes node: which pod, which node, why.
#[derive(Debug, Parser)]
#[command(
    name = "tracer",
    version,
    arg_required_else_help = true,
    after_long_help = "Every flag has an environment variable and a key of the same name in the \
                       file of --config; flag beats environment beats file.\n\
                       Exit codes: 0 fine, 1 failed at run time, 2 wrong usage or configuration."
)]
pub struct Cli {
    /// Flags of every command.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Reads a command line, the program's name first.
    pub fn read<T: Into<OsString> + Clone>(
        line: impl IntoIterator<Item = T>,
    ) -> Result<Self, clap::Error> {
        let matches = Self::command().try_get_matches_from(line)?;
        let mut cli =
            Self::from_arg_matches(&matches).map_err(|e| e.format(&mut Self::command()))?;
        if let (Command::Top(top), Some((_, given))) = (&mut cli.command, matches.subcommand()) {
            let ids = given.ids().map(clap::Id::as_str);
            let flags = ids.filter(|id| given.value_source(id) == Some(ValueSource::CommandLine));
            top.flags = flags.map(str::to_owned).collect();
        }
        Ok(cli)
    }
}

/// Flags of every command.
#[derive(Clone, Debug, Default, Args)]
pub struct GlobalArgs {
    /// TOML file with a key for each flag, such as `dns-timeout = "5s"`
    #[arg(
        long,
        global = true,
        display_order = 100,
        value_name = "FILE",
        env = "TRACER_CONFIG"
    )]
    pub config: Option<PathBuf>,
    /// How log lines on stderr look [default: text]
    #[arg(
        long,
        global = true,
        display_order = 101,
        value_enum,
        value_name = "FORMAT",
        env = "TRACER_LOG_FORMAT"
    )]
    pub log_format: Option<LogFormat>,
    /// Least severe log lines shown [default: info]
    #[arg(
        long,
        global = true,
        display_order = 102,
        value_enum,
        value_name = "LEVEL",
        env = "TRACER_LOG_LEVEL"
    )]
    pub log_level: Option<LogLevel>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Trace this node: load the eBPF programs, serve metrics and API
    Agent(Box<AgentArgs>),
    /// Show what fails now, a row for each pod
    Top(Box<TopArgs>),
    /// Stream failures, one a line
    Events(Box<EventsArgs>),
    /// Say what this node supports and what it lacks
    Doctor(DoctorArgs),
    /// Say in sentences what is wrong on this node or with a pod, why, and since when
    Why(WhyArgs),
    /// Print a shell's completion script
    #[command(hide = true)]
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    #[command(hide = true)]
    Man,
}

/// What tracing itself needs: the agent's, and `top`'s where it traces in-process.
#[derive(Clone, Debug, Default, Args)]
pub struct TraceArgs {
    /// This node's name [default: NODE_NAME, else the host name]
    #[arg(long, value_name = "NAME", env = "TRACER_NODE")]
    pub node: Option<NodeName>,
    /// Where pod names come from: auto, kubernetes, cri, local, file:PATH or none; auto takes
    /// kubernetes in a cluster, else cri [default: auto]
    #[arg(long, value_name = "SOURCE", env = "TRACER_PODS")]
    pub pods: Option<Pods>,
    /// The container runtime's socket, such as unix:///run/containerd/containerd.sock [default: the
    /// first that is there of containerd's, CRI-O's and those of k3s, RKE2, MicroK8s, k0s and
    /// cri-dockerd]
    #[arg(long, value_name = "URL", env = "TRACER_CRI_ENDPOINT")]
    pub cri_endpoint: Option<CriEndpoint>,
    /// Server port of DNS over UDP; may be repeated, up to 8 times [default: 53]
    #[arg(
        long,
        value_name = "PORT",
        env = "TRACER_DNS_PORT",
        value_delimiter = ','
    )]
    pub dns_port: Vec<u16>,
    /// A lookup without an answer for this long has failed, 1ms to 60s [default: 5s]
    #[arg(long, value_name = "DURATION", env = "TRACER_DNS_TIMEOUT")]
    pub dns_timeout: Option<DnsTimeout>,
    /// Port over TCP where a request must be answered, or the server is told of as silent; may be
    /// repeated, up to 8 times [default: 6443, 2379]
    #[arg(
        long,
        value_name = "PORT",
        env = "TRACER_SILENT_PORT",
        value_delimiter = ','
    )]
    pub silent_port: Vec<u16>,
    /// How long a request may wait there, 1s to 1h [default: 10s]
    #[arg(long, value_name = "DURATION", env = "TRACER_SILENT_AFTER")]
    pub silent_after: Option<SilentAfter>,
    /// Drop reasons that mean failure, beside the usual ones: NAME or -NAME for one that does not, such
    /// as tcp_close,-no_socket; names as in tracer_node_drops_total
    #[arg(
        long,
        value_name = "NAMES",
        env = "TRACER_DROP_REASONS",
        allow_hyphen_values = true
    )]
    pub drop_reasons: Option<DropReasons>,
    /// Span of the failure ratios, whole seconds up to 1h [default: 60s]
    #[arg(long, value_name = "DURATION", env = "TRACER_WINDOW")]
    pub window: Option<Window>,
    /// Replace the names that pods ask for by `(redacted)`, wherever they would show
    #[arg(
        long,
        value_name = "BOOL",
        env = "TRACER_REDACT_NAMES",
        value_parser = BoolishValueParser::new(),
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        hide_possible_values = true
    )]
    pub redact_names: Option<bool>,
    /// Pods told apart, at most; the rest share one row [default: 1000]
    #[arg(long, value_name = "N", env = "TRACER_MAX_PODS")]
    pub max_pods: Option<usize>,
}

/// Flags of `tracer agent`.
#[derive(Clone, Debug, Default, Args)]
pub struct AgentArgs {
    /// Where metrics and health are served [default: 127.0.0.1:9773]
    #[arg(long, value_name = "ADDR:PORT", env = "TRACER_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// Where the API is served: unix:PATH (mode 0600), ADDR:PORT or none; it shows names asked for
    /// and so is private [default: unix:/run/tracer.sock]
    #[arg(long, value_name = "ADDR", env = "TRACER_API")]
    pub api: Option<Api>,
    /// Folder on a bpffs for the counters that survive a restart, or none
    /// [default: /sys/fs/bpf/tracer]
    #[arg(long, value_name = "DIR", env = "TRACER_STATE_DIR")]
    pub state_dir: Option<StateDir>,
    /// Take out of the kernel all that agents with this state folder have left there, which goes on
    /// counting after their end, and exit
    #[arg(
        long,
        value_name = "BOOL",
        env = "TRACER_DETACH_ALL",
        value_parser = BoolishValueParser::new(),
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        hide_possible_values = true
    )]
    pub detach_all: Option<bool>,
    /// Details streamed a second for each hook; counts never depend on it [default: 1000]
    #[arg(long, value_name = "N", env = "TRACER_EVENT_RATE")]
    pub event_rate: Option<u64>,
    /// What tracing itself needs.
    #[command(flatten)]
    pub trace: TraceArgs,
}

/// Flags of `tracer top`.
#[derive(Clone, Debug, Default, Args)]
pub struct TopArgs {
    /// The agent: unix:PATH or http://HOST:PORT [default: unix:/run/tracer.sock; where none
    /// answers there, root traces in-process]
    #[arg(long, value_name = "ADDR", env = "TRACER_AGENT")]
    pub agent: Option<AgentAddr>,
    /// Print one table after one interval and exit
    #[arg(
        long,
        value_name = "BOOL",
        env = "TRACER_ONCE",
        value_parser = BoolishValueParser::new(),
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        hide_possible_values = true
    )]
    pub once: Option<bool>,
    /// Span of the rates and time between tables, 100ms to 1h [default: 1s; with --prometheus 15s]
    #[arg(long, value_name = "DURATION", env = "TRACER_INTERVAL")]
    pub interval: Option<Interval>,
    /// Colours of the live view; auto: unless NO_COLOR is set [default: auto]
    #[arg(long, value_enum, value_name = "WHEN", env = "TRACER_COLOR")]
    pub color: Option<Color>,
    /// Column to sort by, as in the head of the table [default: worst first]
    #[arg(long, value_name = "COLUMN", env = "TRACER_SORT")]
    pub sort: Option<Sort>,
    /// The whole cluster.
    #[command(flatten, next_help_heading = "The whole cluster")]
    pub prometheus: PrometheusArgs,
    /// Used where no agent answers.
    #[command(
        flatten,
        next_help_heading = "In-process tracing, where no agent answers"
    )]
    pub trace: TraceArgs,
    /// Which of these flags are on the command line: what an environment variable says is meant for other commands
    /// too, and gives way.
    #[arg(skip)]
    pub flags: HashSet<String>,
}

impl TopArgs {
    /// Is this flag, named as its field, on the command line?
    pub fn is_flag(&self, name: &str) -> bool {
        self.flags.contains(name)
    }
}

/// Flags of `tracer top --prometheus`.
#[derive(Clone, Debug, Default, Args)]
pub struct PrometheusArgs {
    /// Show all nodes, the oddest first, from what this Prometheus, Thanos or Mimir has scraped;
    /// --node NAME shows the pods of one
    #[arg(
        long,
        value_name = "URL",
        env = "TRACER_PROMETHEUS",
        hide_env_values = true
    )]
    pub prometheus: Option<String>,
    /// Header for its requests, such as X-Scope-OrgID:tenant; may be repeated
    #[arg(
        long,
        value_name = "NAME:VALUE",
        env = "TRACER_HEADER",
        hide_env_values = true
    )]
    pub header: Vec<Secret>,
    /// Bearer token; on the command line others can read it, so better by the variable or by
    /// --bearer-token-file
    #[arg(
        long,
        value_name = "TOKEN",
        env = "TRACER_BEARER_TOKEN",
        hide_env_values = true
    )]
    pub bearer_token: Option<Secret>,
    /// File with the bearer token, read before each request
    #[arg(long, value_name = "FILE", env = "TRACER_BEARER_TOKEN_FILE")]
    pub bearer_token_file: Option<PathBuf>,
    /// PEM file with the certificates to trust [default: the system's]
    #[arg(long, value_name = "FILE", env = "TRACER_CA_FILE")]
    pub ca_file: Option<PathBuf>,
    /// What the figures are of, 1s to 1d; four scrapes at least [default: 5m]
    #[arg(long, value_name = "DURATION", env = "TRACER_RANGE")]
    pub range: Option<Range>,
    /// Only series with these labels, where one server has several clusters, such as cluster="eu"
    #[arg(long, value_name = "MATCHERS", env = "TRACER_MATCH")]
    pub r#match: Option<String>,
    /// How long an answer may take, 100ms to 10m [default: 20s]
    #[arg(long, value_name = "DURATION", env = "TRACER_TIMEOUT")]
    pub timeout: Option<Timeout>,
    /// A table or one JSON object [default: text]
    #[arg(long, value_enum, value_name = "FORMAT", env = "TRACER_OUTPUT")]
    pub output: Option<OutputFormat>,
}

/// Flags of `tracer events`.
#[derive(Clone, Debug, Default, Args)]
pub struct EventsArgs {
    /// The agent: unix:PATH or http://HOST:PORT [default: unix:/run/tracer.sock]
    #[arg(long, value_name = "ADDR", env = "TRACER_AGENT")]
    pub agent: Option<AgentAddr>,
    /// Begin with what the agent still holds of this span, such as 30m [default: new events only]
    #[arg(long, value_name = "DURATION", env = "TRACER_SINCE")]
    pub since: Option<Span>,
    /// A readable line or a JSON object for each event [default: text]
    #[arg(long, value_enum, value_name = "FORMAT", env = "TRACER_OUTPUT")]
    pub output: Option<OutputFormat>,
    /// Only this pod's events
    #[arg(long, value_name = "NS/NAME", env = "TRACER_POD")]
    pub pod: Option<PodName>,
    /// Only events of this kind, such as dns_failure
    #[arg(long, value_name = "KIND", env = "TRACER_KIND")]
    pub kind: Option<Kind>,
    /// Stop after this long, such as 10s [default: never]
    #[arg(long = "for", value_name = "DURATION", env = "TRACER_FOR")]
    pub duration: Option<Span>,
}

/// Flags of `tracer why`.
#[derive(Clone, Debug, Default, Args)]
pub struct WhyArgs {
    /// The pod [default: the whole node]
    #[arg(value_name = "NS/POD")]
    pub pod: Option<PodName>,
    /// The agent: unix:PATH or http://HOST:PORT [default: unix:/run/tracer.sock]
    #[arg(long, value_name = "ADDR", env = "TRACER_AGENT")]
    pub agent: Option<AgentAddr>,
    /// Sentences or one JSON object [default: text]
    #[arg(long, value_enum, value_name = "FORMAT", env = "TRACER_OUTPUT")]
    pub output: Option<OutputFormat>,
}

/// Flags of `tracer doctor`.
#[derive(Clone, Debug, Default, Args)]
pub struct DoctorArgs {
    /// The agent's folder on a bpffs, or none [default: /sys/fs/bpf/tracer]
    #[arg(long, value_name = "DIR", env = "TRACER_STATE_DIR")]
    pub state_dir: Option<StateDir>,
    /// Readable text or one JSON object [default: text]
    #[arg(long, value_enum, value_name = "FORMAT", env = "TRACER_OUTPUT")]
    pub output: Option<OutputFormat>,
}
