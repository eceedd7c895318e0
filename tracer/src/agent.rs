//! `tracer agent`: the engine behind its services, until a signal ends it.

use std::{io::Write as _, sync::Arc, time::Duration};

use anyhow::{Result, anyhow};
use tokio::{task::JoinSet, time::timeout};

use crate::{
    config::{Api, Config, LogFormat, UsageError},
    engine::Engine,
    export::http,
    kernel::{
        capabilities,
        load::State,
        state::{Contents, StateDir},
    },
    output::Signals,
};

/// How long readers may take to hang up after a signal.
const GRACE: Duration = Duration::from_secs(2);

/// Takes out of the kernel what agents with that state folder have left there, and says what it was.
pub fn detach_all(config: &Config) -> Result<String> {
    let Some(path) = &config.state_dir else {
        return Err(UsageError(
            "detach-all: there is no state folder with --state-dir none".to_owned(),
        )
        .into());
    };
    Ok(match StateDir::detach_all(path)? {
        Some(Contents { links, maps, .. }) => format!(
            "{links} attachments and {maps} maps are taken out of the kernel, and {} with them\n",
            path.display()
        ),
        None => format!("nothing to take out: there is no {}\n", path.display()),
    })
}

/// Runs the agent. Everything that can be refused is asked for before anything is attached.
pub async fn run(config: Config, log_format: LogFormat) -> Result<()> {
    // First of all: without it most of what follows fails for a reason that misleads.
    capabilities::check()?;
    let mut signals = Signals::new()?;
    let state = match &config.state_dir {
        Some(path) => StateDir::open(path)?,
        None => None,
    };
    let metrics = http::bind_metrics(config.listen).await?;
    let listen = metrics.local_addr().unwrap_or(config.listen);
    let api = http::bind_api(&config.api).await?;
    let engine = Engine::start(&config, state)?;

    let mut services = JoinSet::new();
    services.spawn(http::serve_metrics(metrics, Arc::clone(&engine)));
    if let Some(api) = api {
        services.spawn(http::serve_api(api, Arc::clone(&engine)));
    }
    say_ready(&config, listen, &engine, log_format);

    let mut result = Ok(());
    tokio::select! {
        () = signals.recv() => tracing::info!("ending"),
        Some(ended) = services.join_next() => {
            // A service ends by itself only if it panicked.
            result = ended.map_err(Into::into);
        }
        () = engine.broken() => {
            // Figures that stand still are worse than none: whoever runs the agent starts it again.
            result = Err(anyhow!("the agent's collector has ended by a fault of its own; please report what it logged"));
        }
    }
    engine.stopping().cancel();
    if timeout(GRACE, async {
        while services.join_next().await.is_some() {}
    })
    .await
    .is_err()
    {
        services.shutdown().await;
    }
    engine.stop().await;
    result
}

/// One line on stderr, whatever the log level: scripts wait for it.
fn say_ready(config: &Config, listen: std::net::SocketAddr, engine: &Engine, format: LogFormat) {
    let hooks: Vec<String> = engine
        .hooks()
        .iter()
        .map(|status| match status.state {
            State::Attached => status.hook.name().to_owned(),
            state => format!("{} ({})", status.hook.name(), state.name()),
        })
        .collect();
    let api = match &config.api {
        Api::Unix(path) => format!("unix:{}", path.display()),
        Api::Tcp(address) => format!("http://{address}"),
        Api::None => "none".to_owned(),
    };
    let line = format!(
        "ready on node {}: hooks {}; metrics http://{listen}/metrics; API {api}",
        config.node,
        hooks.join(", ")
    );
    let line = match format {
        LogFormat::Json => serde_json::json!({"level": "INFO", "message": line}).to_string(),
        LogFormat::Text => format!("tracer: {line}"),
    };
    // A closed stderr is no reason to stop tracing.
    let _ = writeln!(std::io::stderr(), "{line}");
}
