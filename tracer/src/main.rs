//! The binary: arguments in, exit code out.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use tracer::{
    agent,
    cli::{Cli, Command},
    client::{AgentAddr, Client},
    config::{
        self, Config, DoctorConfig, EventsConfig, File, LogFormat, Logging, OutputFormat,
        TopConfig, UsageError, WhyConfig,
    },
    doctor,
    engine::Engine,
    events_cmd,
    export::snapshot::Snapshot,
    held_log, man, top, usage, why,
};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

fn main() -> ExitCode {
    let cli = match usage::parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            // Not eprintln!: it panics where stderr is full or closed.
            let _ = writeln!(io::stderr(), "tracer: {error:#}");
            ExitCode::from(if error.is::<UsageError>() { 2 } else { 1 })
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    let file = File::load(cli.global.config.as_ref())?;
    let logging = Logging::new(&cli.global, &file);
    log_to_stderr(logging);
    match cli.command {
        Command::Agent(args) => {
            let config = Config::agent(&args, &file)?;
            if config.detach_all {
                print(agent::detach_all(&config)?.as_bytes())?;
                return Ok(ExitCode::SUCCESS);
            }
            runtime()?.block_on(agent::run(config, logging.format))?;
        }
        Command::Top(args) => {
            let config = TopConfig::new(&args, &file)?;
            runtime()?.block_on(top::run(config, async |config: &Config| {
                Engine::start(config, None)
            }))?;
        }
        Command::Events(args) => {
            runtime()?.block_on(events_cmd::run(EventsConfig::new(&args, &file)))?;
        }
        Command::Why(args) => {
            runtime()?.block_on(why::run(WhyConfig::new(&args, &file)))?;
        }
        Command::Doctor(args) => {
            // An agent on this node knows what was before; none answering is no fault.
            let runtime = runtime()?;
            let agent: Option<Snapshot> = runtime
                .block_on(Client::new(AgentAddr::default()).get_json("/api/v1/snapshot"))
                .ok();
            let sources = if let Some(agent) = &agent {
                doctor::sources::of_agent(agent)
            } else {
                let node = config::node_of(&file)?;
                runtime.block_on(doctor::sources::try_all(&node, config::runtime_of(&file)))
            };
            let DoctorConfig { state_dir, output } = DoctorConfig::new(&args, &file);
            let report = doctor::examine(agent.as_ref(), sources, state_dir.as_deref());
            let text = match output {
                OutputFormat::Json => serde_json::to_string_pretty(&report)? + "\n",
                OutputFormat::Text => report.to_string(),
            };
            print(text.as_bytes())?;
            return Ok(ExitCode::from(u8::from(!report.main_job_can_run)));
        }
        Command::Completions { shell } => print(&man::completions(shell))?,
        Command::Man => print(&man::page()?)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Two threads are plenty, however many CPUs the node has.
fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

/// A reader that hangs up has read enough.
fn print(bytes: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to stdout"),
    }
}

fn log_to_stderr(logging: Logging) {
    let level: LevelFilter = logging.level.into();
    // aya tells a lot at debug.
    // The clients of Kubernetes and of Prometheus tell their failures to us, and we the user.
    let filter = EnvFilter::new(format!(
        "{level},aya=warn,aya_obj=warn,hyper=warn,kube=off,kube_client=off,kube_runtime=off,\
         rustls=warn,rustls_platform_verifier=off,tower=warn"
    ));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(held_log::Stderr)
        .with_target(false);
    match logging.format {
        LogFormat::Json => builder.json().init(),
        LogFormat::Text => builder.with_ansi(false).init(),
    }
}
