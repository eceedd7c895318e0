//! The agent as its users run it: the chart's DaemonSet, from the image, by the cluster's own kubelet.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    FAILING, agent,
    lab::{self, Cluster, NODE},
    objects, pods_of, said,
};
use crate::{disk, dist, manifests, setup::kubernetes::Kubernetes, sh};

/// For this cluster only: another agent may run on this machine.
const STATE_DIR: &str = "/sys/fs/bpf/tracer-cluster";
/// The API server's, see [`super::binaries`].
const VERSION: &str = "1.20.2";

/// Installs, lets pods fail, asks the agent in its pod, uninstalls.
pub fn scene(cluster: &Cluster, tools: &Kubernetes, binary: &Path) -> Result<()> {
    let made = installed(cluster, tools, binary).and_then(|manifest| {
        let done = names(cluster);
        if done.is_err() {
            let logs = cluster.kubectl(&["-n", "tracer", "logs", "daemonset/tracer"]);
            eprintln!("--- the DaemonSet\n{}", logs.unwrap_or_default());
        }
        cluster.kubectl(&["delete", "--wait", "-f", &manifest])?;
        done
    });
    if Path::new(STATE_DIR).exists() {
        fs::remove_dir_all(STATE_DIR).with_context(|| format!("cannot remove {STATE_DIR}"))?;
    }
    made
}

fn installed(cluster: &Cluster, tools: &Kubernetes, binary: &Path) -> Result<String> {
    let image = dist::image(binary, &cluster.folder().join("dist"))?;
    sh::quietly(
        Command::new("ctr")
            .arg("--address")
            .arg(cluster.folder().join("containerd.sock"))
            .args(["--namespace", "k8s.io", "images", "import"])
            .arg(&image.archive),
    )?;
    let values =
        format!("createNamespace=true,stateDir={STATE_DIR},extraArgs={{--dns-timeout=2s}}");
    let manifest = manifests::render(tools, &["--kube-version", VERSION, "--set", &values])?;
    let path = cluster.folder().join("tracer.yaml");
    disk::write(&path, manifest)?;
    let path = path.display().to_string();
    cluster.kubectl(&["apply", "-f", &path])?;
    let rollout = [
        "-n",
        "tracer",
        "rollout",
        "status",
        "daemonset/tracer",
        "--timeout=60s",
    ];
    if let Err(why) = cluster.kubectl(&rollout) {
        let pods = cluster.kubectl(&["-n", "tracer", "describe", "pods"])?;
        return Err(why.context(pods));
    }
    Ok(path)
}

fn names(cluster: &Cluster) -> Result<()> {
    cluster.apply(&objects::clients(
        "Deployment",
        "sick",
        "servfail.test",
        FAILING as u16,
    ))?;
    let pods = lab::until("the pods run", || {
        let pods = pods_of(cluster, "sick")?;
        ensure!(pods.len() == 2, "sick has the pods {pods:?}");
        Ok(pods)
    })?;
    let tracer = |words: &[&str]| {
        let exec = ["-n", "tracer", "exec", "daemonset/tracer", "--", "tracer"];
        cluster.kubectl(&[&exec, words].concat())
    };
    for pod in &pods {
        lab::until("a client is done", || said(cluster, pod))?;
        let name = format!("default/{pod}");
        agent::until(|| {
            let events = [
                "events", "--since", "5m", "--for", "200ms", "--output", "json",
            ];
            let events = tracer(&[&events[..], &["--pod", &name]].concat())?;
            let failed = events
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok())
                .filter(|event| event["outcome"] == "servfail" && event["node"] == NODE)
                .count();
            ensure!(failed as u64 == FAILING, "{name} has {failed} events");
            Ok(())
        })?;
        let why = tracer(&["why", &name])?;
        ensure!(why.contains(pod), "{why}");
        sh::step(format!(
            "from its image: {}",
            why.lines().next().unwrap_or_default()
        ));
    }
    let metrics = cluster.kubectl(&[
        "get",
        "--raw",
        &format!("/api/v1/nodes/{NODE}:9773/proxy/metrics"),
    ]);
    // The API server may forbid itself the node's own address.
    if let Ok(metrics) = metrics {
        ensure!(metrics.contains(&pods[0]), "{} has no metrics", pods[0]);
    }
    Ok(())
}
