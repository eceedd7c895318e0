//! What of tracer cannot be measured on a kernel, for the agent runs without it.

use serde_json::Value;

/// A line for each part of tracer that is not attached, from the agent's snapshot. Its cost is in no
/// figure, and is there on kernels that have it.
pub fn missing(snapshot: &Value) -> Vec<String> {
    let hooks = snapshot["hooks"].as_array();
    let text = |hook: &Value, field: &str| hook[field].as_str().unwrap_or_default().to_owned();
    let mut missing = Vec::new();
    for hook in hooks.into_iter().flatten() {
        let [name, state, reason] = ["name", "state", "reason"].map(|field| text(hook, field));
        if state != "attached" {
            missing.push(format!("the hook {name} is {state}: {reason}"));
        }
        if name == "dns" && !text(hook, "mechanism").contains("fexit") {
            missing.push(
                "udp_sent and udpv6_sent (fexit, at each UDP send) are not attached; `tracer doctor` \
                 says why"
                    .to_owned(),
            );
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::missing;
    use serde_json::{Value, json};

    fn dns(mechanism: &str) -> Value {
        json!({ "name": "dns", "state": "attached", "mechanism": mechanism, "reason": "" })
    }

    #[test]
    fn nothing_is_missing_where_all_is_attached() {
        let dns = dns("cgroup_skb ingress and egress, fexit udp_sendmsg, udpv6_sendmsg");
        let tcp = json!({ "name": "tcp", "state": "attached", "mechanism": "", "reason": "" });
        assert_eq!(missing(&json!({ "hooks": [dns, tcp] })), [""; 0]);
    }

    #[test]
    fn what_is_not_attached_is_told() {
        let drops = json!({
            "name": "drops", "state": "degraded", "mechanism": "", "reason": "no reasons",
        });
        assert_eq!(
            missing(&json!({ "hooks": [dns("cgroup_skb ingress and egress"), drops] })),
            [
                "udp_sent and udpv6_sent (fexit, at each UDP send) are not attached; `tracer doctor` \
                 says why",
                "the hook drops is degraded: no reasons",
            ]
        );
    }
}
