//! `cargo xtask manifests`: the manifests without helm, rendered from the chart, which is the one
//! source of them all.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    disk, dist,
    setup::{self, kubernetes::Kubernetes},
    sh,
};

/// Rendered for this version; what it holds is older, but for AppArmor's field (1.30).
pub const KUBERNETES: &str = "1.33";

/// A file below `deploy`, how it is rendered, and what is said at its top.
struct Rendered {
    path: &'static str,
    about: &'static str,
    values: &'static str,
    /// Only these.
    kinds: &'static [&'static str],
    /// Does Kubernetes itself know all its kinds?
    is_plain: bool,
}

const RENDERED: &[Rendered] = &[
    Rendered {
        path: "tracer.yaml",
        about: "Everything but monitoring: kubectl apply -f deploy/tracer.yaml (Kubernetes 1.30 or newer)",
        values: "createNamespace=true",
        kinds: &[],
        is_plain: true,
    },
    Rendered {
        path: "prometheus/operator.yaml",
        about: "For the Prometheus operator: what is scraped, and the rules",
        values: "podMonitor.enabled=true,prometheusRule.enabled=true",
        kinds: &["PodMonitor", "PrometheusRule"],
        is_plain: false,
    },
    Rendered {
        path: "prometheus/managed.yaml",
        about: "For Google's managed Prometheus: what is scraped, and the rules",
        values: "managedPrometheus.enabled=true",
        kinds: &["PodMonitoring", "ClusterRules"],
        is_plain: false,
    },
];

/// Values beside the defaults whose manifests must be valid too.
const VARIANTS: &[&str] = &[
    "privileged=true",
    "seLinuxOptions.type=spc_t,appArmorProfile=",
    "podSource=cri",
    "exactNamespaces=true,hostNetwork=false,hostPID=false,stateDir=none",
    "detachAll=true,extraCapabilities={SYS_RESOURCE}",
    "redactNames=true,resourceQuota.create=true,dashboard.enabled=true",
];

pub fn run(check: bool) -> Result<()> {
    setup::ensure_tools(setup::kubernetes::TOOLS)?;
    let tools = Kubernetes::ensure()?;
    let version = dist::version()?;
    let chart = sh::root().join("deploy/helm/tracer/Chart.yaml");
    let said = fs::read_to_string(&chart)?;
    for key in ["version", "appVersion"] {
        ensure!(
            said.contains(&format!("\n{key}: {version}\n")),
            "{}: {key} is not {version}, the workspace's",
            chart.display()
        );
    }
    let mut plain = Vec::new();
    for rendered in RENDERED {
        let path = sh::root().join("deploy").join(rendered.path);
        let wanted = format!(
            "# {}.\n# Made from deploy/helm/tracer by `cargo xtask manifests`: change that.\n{}",
            rendered.about,
            only(
                &render(&tools, &["--set", rendered.values])?,
                rendered.kinds
            )
        );
        if !check {
            fs::write(&path, &wanted)
                .with_context(|| format!("failed to write {}", path.display()))?;
            sh::step(format!("wrote {}", path.display()));
        } else if fs::read_to_string(&path).unwrap_or_default() != wanted {
            bail!(
                "{} is not what the chart makes: run `cargo xtask manifests`",
                path.display()
            );
        }
        if rendered.is_plain {
            plain.push(path);
        }
    }
    let variants = std::env::temp_dir().join(format!("tracer-manifests-{}", std::process::id()));
    disk::create_dir_all(&variants)?;
    for values in VARIANTS {
        // Its name shows in what is said against it.
        let variant = variants.join(format!("{}.yaml", values.replace('/', "_")));
        disk::write(&variant, render(&tools, &["--set", values])?)?;
        plain.push(variant);
    }
    let valid = tools.validate(KUBERNETES, &plain);
    disk::remove_dir_all(&variants)?;
    valid.context("Kubernetes does not take what the chart makes")
}

/// What helm makes of the chart as the release `tracer` in the namespace `tracer`.
pub fn render(tools: &Kubernetes, arguments: &[&str]) -> Result<String> {
    let given = |flag: &str| arguments.iter().any(|a| a.starts_with(flag));
    let mut helm = Command::new(&tools.helm);
    helm.args(["template", "tracer"])
        .arg(chart())
        .args(["--namespace", "tracer"]);
    if !given("--kube-version") {
        helm.args(["--kube-version", KUBERNETES]);
    }
    let rendered = sh::output(helm.args(arguments))?;
    // No release of helm's is managed there.
    Ok(rendered.replace("managed-by: Helm", "managed-by: kubectl") + "\n")
}

/// The objects of these kinds; all, where none is named.
fn only(text: &str, kinds: &[&str]) -> String {
    let is_wanted = |object: &&str| {
        kinds.is_empty()
            || object
                .lines()
                .filter_map(|line| line.strip_prefix("kind: "))
                .any(|kind| kinds.contains(&kind))
    };
    text.split_inclusive('\n')
        .fold(Vec::<String>::new(), |mut objects, line| {
            if line == "---\n" || objects.is_empty() {
                objects.push(String::new());
            }
            objects.last_mut().expect("there is one").push_str(line);
            objects
        })
        .iter()
        .map(String::as_str)
        .filter(is_wanted)
        .collect()
}

fn chart() -> std::path::PathBuf {
    sh::root().join(Path::new("deploy/helm/tracer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_picked() {
        let text = "---\nkind: A\n---\nkind: B\nx: |\n  kind: A\n";
        assert_eq!(only(text, &["A"]), "---\nkind: A\n");
        assert_eq!(only(text, &[]), text);
    }
}
