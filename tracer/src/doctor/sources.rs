//! Where pods are learned from: what the agent says of its sources, else what they would find.

use serde::Serialize;

use crate::{
    config::CriEndpoint,
    export::snapshot::{self, Snapshot},
    pods::{
        cri,
        kubernetes::{self, Access},
        local,
    },
};

/// Where pods are learned from.
#[derive(Debug, Serialize)]
pub struct SourceReport {
    /// Its name.
    pub name: String,
    /// Does it answer? `None`: there is nothing to ask on this node.
    pub ok: Option<bool>,
    /// What it knows and how old that is, or why it does not answer.
    pub detail: String,
}

/// The sources of the agent on this node.
pub fn of_agent(agent: &Snapshot) -> Vec<SourceReport> {
    let report = |source: &snapshot::Source| {
        let knows = match source.age_seconds {
            Some(age) if source.pods == 0 && source.name == "kubernetes" => {
                let hint = kubernetes::is_named_so(&agent.node);
                format!("no pods, {age:.1} s ago: {hint}")
            }
            Some(age) => format!("{} pods, {age:.1} s ago", source.pods),
            None => "has not answered yet".to_owned(),
        };
        let (ok, detail) = match (source.idle, source.reason.as_str()) {
            (true, why) => (None, why.to_owned()),
            (false, "") => (Some(true), knows),
            (false, why) => (Some(false), format!("{knows}; {why}")),
        };
        SourceReport {
            name: source.name.clone(),
            ok,
            detail,
        }
    };
    agent.sources.iter().map(report).collect()
}

/// Without an agent: what its sources would find. `runtime` is the container runtime's socket, if
/// one is named.
pub async fn try_all(node: &str, runtime: Option<&CriEndpoint>) -> Vec<SourceReport> {
    let (ok, detail) = match Access::any() {
        None => (None, "no API server is known here".to_owned()),
        Some(access) => match kubernetes::examine(access, node).await {
            Ok(found) => (Some(true), found),
            Err(why) => (Some(false), format!("{why:#}")),
        },
    };
    let name = "kubernetes".to_owned();
    let kubernetes = SourceReport { name, ok, detail };
    let (ok, detail) = match cri::examine(runtime).await {
        Ok(found) => (Some(true), found),
        Err(why) if cri::is_fault(&why, runtime) => (Some(false), format!("{why:#}")),
        Err(why) => (None, format!("{why:#}")),
    };
    let name = "cri".to_owned();
    vec![
        kubernetes,
        SourceReport { name, ok, detail },
        SourceReport {
            name: "local".to_owned(),
            ok: Some(true),
            detail: local::examine(),
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_pods_may_have_another_name() {
        let detail = |name: &str, pods| {
            let source = snapshot::Source {
                name: name.to_owned(),
                pods,
                age_seconds: Some(0.5),
                ..snapshot::Source::default()
            };
            let agent = Snapshot {
                node: "ip-10-0-0-1".to_owned(),
                sources: vec![source],
                ..Snapshot::default()
            };
            let report = of_agent(&agent).remove(0);
            assert_eq!(report.ok, Some(true));
            report.detail
        };
        let none = detail("kubernetes", 0);
        assert!(
            none.starts_with("no pods, 0.5 s ago: is ip-10-0-0-1 the name"),
            "{none}"
        );
        assert_eq!(detail("kubernetes", 7), "7 pods, 0.5 s ago");
        assert_eq!(detail("cri", 0), "0 pods, 0.5 s ago");
    }
}
