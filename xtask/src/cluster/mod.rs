//! `cargo xtask cluster`: the agent in a real Kubernetes cluster of one node. Not part of `cargo
//! xtask test`, for Kubernetes must be built first: for before a release.

mod agent;
mod binaries;
mod daemonset;
pub mod dns;
mod image;
mod lab;
mod objects;
mod pki;

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use self::{agent::Agent, lab::Cluster};
use crate::{
    arch::Arch,
    build,
    setup::{self, Tool, kubernetes::Kubernetes},
    sh,
};

/// What the cluster is built and run with.
const TOOLS: &[Tool] = &[
    tool("go", "golang-go"),
    tool("jq", "jq"),
    tool("rsync", "rsync"),
    tool("dpkg-source", "dpkg-dev"),
    tool("etcd", "etcd-server"),
    tool("etcdctl", "etcd-client"),
    tool("containerd", "containerd"),
    tool("runc", "runc"),
    tool("iptables", "iptables"),
    tool("conntrack", "conntrack"),
    tool("openssl", "openssl"),
    tool("ip", "iproute2"),
    tool("/usr/lib/cni/bridge", "containernetworking-plugins"),
    tool(
        "/usr/share/gocode/src/github.com/modern-go/reflect2/reflect2.go",
        "golang-github-modern-go-reflect2-dev",
    ),
];
const fn tool(program: &'static str, package: &'static str) -> Tool {
    Tool { program, package }
}

/// Lookups of each client.
const FAILING: u64 = 40;
const SILENT: u64 = 10;
const OF_HOST: u64 = 30;
const MOMENTARY: u64 = 5;

pub fn run() -> Result<()> {
    ensure!(sh::is_root()?, "a cluster needs root");
    let toolchain = setup::ensure(TOOLS)?;
    setup::ensure_tools(setup::kubernetes::TOOLS)?;
    let tools = Kubernetes::ensure()?;
    let binary: std::path::PathBuf = if let Some(binary) = std::env::var_os("TRACER_BIN") {
        binary.into()
    } else {
        build::build(&toolchain, Arch::HOST)?;
        build::binary(Arch::HOST)
    };
    let programs = binaries::ensure_built()?;
    sh::step("starting the cluster");
    let started = Instant::now();
    let mut cluster = Cluster::start(&programs, &tools.kubectl)?;
    sh::step(format!("the node is ready after {:.0?}", started.elapsed()));
    cluster.apply(objects::ACCOUNT)?;
    let mut agent = Agent::start(&cluster, &binary)?;
    let done = scenes(&mut cluster, &mut agent);
    if done.is_err() {
        eprint!("{}--- agent\n{}", cluster.logs()?, agent.said());
    }
    agent.stop()?;
    done?;
    let done = daemonset::scene(&cluster, &tools, &binary).context("scene: the DaemonSet");
    if done.is_err() {
        eprint!("{}", cluster.logs()?);
    }
    done?;
    sh::step("cluster: all scenes passed");
    Ok(())
}

fn scenes(cluster: &mut Cluster, agent: &mut Agent) -> Result<()> {
    names(cluster, agent).context("scene: names")?;
    momentary(cluster, agent).context("scene: a pod for a moment")?;
    restart(cluster, agent).context("scene: the API server dies")?;
    reconnect(cluster, agent).context("scene: the connection is cut")?;
    Ok(())
}

/// Pods' names by their part of the labels.
fn pods_of(cluster: &Cluster, app: &str) -> Result<Vec<String>> {
    let names = "jsonpath={.items[*].metadata.name}";
    let names = cluster.kubectl(&["get", "pods", "-l", &format!("app={app}"), "-o", names])?;
    Ok(names.split(' ').map(str::to_owned).collect())
}

/// What a client says at its end: `first=… asked=… failed=… silent=…`.
fn said(cluster: &Cluster, pod: &str) -> Result<BTreeMap<String, f64>> {
    let log = cluster.kubectl(&["logs", pod])?;
    let figures: BTreeMap<String, f64> = log
        .split_whitespace()
        .filter_map(|word| {
            let (key, value) = word.split_once('=')?;
            Some((key.to_owned(), value.parse().ok()?))
        })
        .collect();
    ensure!(
        figures.contains_key("first"),
        "{pod} has not ended: {log:?}"
    );
    Ok(figures)
}

/// A Deployment, a hostNetwork DaemonSet and the DNS behind a Service: whose lookups fail, and how
/// many, as the clients themselves say.
fn names(cluster: &Cluster, agent: &Agent) -> Result<()> {
    cluster.apply(&objects::dns_service())?;
    cluster.kubectl(&["rollout", "status", "deployment/dns", "--timeout=60s"])?;
    // kube-proxy writes the service's rules.
    lab::until("the service has its rules", || {
        let rules = sh::output(cluster.inside("iptables-save").args(["-t", "nat"]))?;
        ensure!(rules.contains("default/dns"), "no rule for default/dns");
        Ok(())
    })?;
    for (kind, app, name, count) in [
        ("Deployment", "failing", "servfail.test", FAILING),
        ("Deployment", "silent", "silent.test", SILENT),
        ("DaemonSet", "host", "servfail.test", OF_HOST),
    ] {
        cluster.apply(&objects::clients(kind, app, name, count as u16))?;
    }
    let mut served = 0;
    for (app, outcome, pods, count) in [
        ("failing", "servfail", 2, FAILING),
        ("silent", "timeout", 2, SILENT),
        ("host", "servfail", 1, OF_HOST),
    ] {
        let names = lab::until("the pods run", || {
            let names = pods_of(cluster, app)?;
            ensure!(names.len() == pods, "{app} has the pods {names:?}");
            Ok(names)
        })?;
        for pod in names {
            let truth = lab::until("a client is done", || said(cluster, &pod))?;
            let failed = if outcome == "timeout" {
                "silent"
            } else {
                "failed"
            };
            ensure!(
                truth.get(failed) == Some(&(count as f64)),
                "{pod} says {truth:?}, {count} {failed} wanted"
            );
            let counted = agent::until(|| {
                let counted = agent.lookups("default", &pod, outcome)?;
                ensure!(
                    counted == count,
                    "{pod} has {counted} {outcome}, not {count}"
                );
                Ok(counted)
            })?;
            let delay = agent.first_named(&pod)? - truth["first"];
            sh::step(format!(
                "{pod}: {counted} {outcome}; the first named {delay:.2} s after the pod's first \
                 lookup"
            ));
            served += if outcome == "servfail" { count } else { 0 };
        }
    }
    let of_service = pods_of(cluster, "dns")?.concat();
    agent::until(|| {
        let counted = agent.served("default", &of_service, "servfail")?;
        ensure!(
            counted == served,
            "{of_service} has served {counted}, not {served}"
        );
        Ok(())
    })?;
    sh::step(format!("{of_service}: answered {served} with servfail"));
    agent.nobody_is_unknown()
}

fn momentary(cluster: &Cluster, agent: &Agent) -> Result<()> {
    for n in 0..3 {
        let pod = format!("moment-{n}");
        cluster.apply(&objects::momentary(&pod, MOMENTARY as u16))?;
        lab::until("the pod is over", || said(cluster, &pod))?;
        agent::until(|| {
            let counted = agent.lookups("default", &pod, "servfail")?;
            ensure!(counted == MOMENTARY, "{pod} has {counted}, not {MOMENTARY}");
            Ok(())
        })?;
    }
    sh::step(format!(
        "three pods that asked {MOMENTARY} times and ended: all named"
    ));
    agent.nobody_is_unknown()
}

/// While the API server is away the pods stay; when it is back, what has happened meanwhile (its
/// cache begins anew, so the watch is told 410) is caught up with.
fn restart(cluster: &mut Cluster, agent: &Agent) -> Result<()> {
    let before = agent.source()?;
    cluster.kill("apiserver")?;
    let away = agent::until(|| {
        let source = agent.source()?;
        ensure!(source["reason"] != "", "it has not noticed: {source}");
        Ok(source)
    })?;
    ensure!(
        away["pods"] == before["pods"],
        "{before} before, {away} while the API server is away"
    );
    // Older versions are gone when it comes back.
    let mut etcdctl = cluster.inside("etcdctl");
    etcdctl.env("ETCDCTL_API", "3");
    sh::quietly(etcdctl.args(["put", "/tracer", "moved on"]))?;
    thread::sleep(Duration::from_secs(5));
    cluster.start_apiserver()?;
    let back = Instant::now();
    cluster.kubectl(&["scale", "deployment/failing", "--replicas=3"])?;
    all_counted(cluster, agent, 3)?;
    let young = back.elapsed();
    let source = agent.source()?;
    ensure!(source["reason"] == "", "the agent is not over it: {source}");
    sh::step(format!(
        "the API server was away: {}; a new pod's failures were named {young:.1?} after its return",
        away["reason"]
    ));
    Ok(())
}

/// Waits until the Deployment has so many pods and all failures of each are counted as its own.
fn all_counted(cluster: &Cluster, agent: &Agent, pods: usize) -> Result<()> {
    lab::until("the new pod is counted", || {
        let names = pods_of(cluster, "failing")?;
        ensure!(names.len() == pods, "{names:?} are there, not {pods}");
        for pod in names {
            let counted = agent.lookups("default", &pod, "servfail")?;
            ensure!(counted == FAILING, "{pod} has {counted}, not {FAILING}");
        }
        Ok(())
    })
}

/// A watch that is cut goes on where it was.
fn reconnect(cluster: &Cluster, agent: &Agent) -> Result<()> {
    let port = lab::PORT.to_string();
    let mut cut = cluster.inside("ss");
    cut.args(["--kill", "--tcp", "--no-header", "dport", "=", &port]);
    let killed = sh::output(&mut cut).unwrap_or_default();
    if killed.is_empty() {
        sh::step("connections cannot be cut by ss on this kernel (INET_DIAG_DESTROY): left out");
        return Ok(());
    }
    cluster.kubectl(&["scale", "deployment/failing", "--replicas=4"])?;
    all_counted(cluster, agent, 4)?;
    sh::step("connections were cut: the watch went on");
    Ok(())
}
