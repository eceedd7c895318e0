//! The container of a DaemonSet as a kubelet asks a runtime for it, so that what is tested is what the
//! manifest says.

use std::path::Path;

use serde_json::Value;

use crate::cri::{Capabilities, ContainerSecurity, ContainerSpec, Mount, Profile, User};

/// What the kubelet hides of /proc, and what it lets nobody write
/// (pkg/securitycontext/util.go of Kubernetes).
const MASKED: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: &[&str] = &[
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Its one container, on the node `node`; what is in no folder of the node is in `scratch`.
pub fn container(daemonset: &Value, node: &str, scratch: &Path) -> ContainerSpec {
    let pod = &daemonset["spec"]["template"]["spec"];
    let [container] = list(&pod["containers"]) else {
        panic!("one container wanted: {pod:#}");
    };
    let mounts = list(&container["volumeMounts"]).iter().map(|mount| {
        let name = mount["name"].as_str().expect("mounts have names");
        let volume = list(&pod["volumes"])
            .iter()
            .find(|volume| volume["name"] == name)
            .unwrap_or_else(|| panic!("there is no volume {name}"));
        Mount {
            inside: text(&mount["mountPath"]),
            of_node: match volume["hostPath"]["path"].as_str() {
                Some(path) => path.to_owned(),
                None => empty_folder(scratch, name),
            },
            read_only: mount["readOnly"] == true,
            propagation: i32::from(mount["mountPropagation"] == "HostToContainer"),
        }
    });
    let variables = list(&container["env"]).iter().map(|variable| {
        let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
            Some("spec.nodeName") => node.to_owned(),
            Some(other) => panic!("{other} is not known here"),
            None => text(&variable["value"]),
        };
        (text(&variable["name"]), value)
    });
    ContainerSpec {
        command: Vec::new(),
        arguments: list(&container["args"]).iter().map(text).collect(),
        variables: variables.collect(),
        mounts: mounts.collect(),
        security: security(&container["securityContext"]),
        host_network: pod["hostNetwork"] == true,
        host_pid: pod["hostPID"] == true,
    }
}

fn security(context: &Value) -> ContainerSecurity {
    let privileged = context["privileged"] == true;
    let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect();
    ContainerSecurity {
        capabilities: (!privileged).then(|| Capabilities {
            add: capabilities(context, "add"),
            drop: capabilities(context, "drop"),
        }),
        privileged,
        namespaces: None,
        user: context["runAsUser"].as_i64().map(|id| User { id }),
        read_only_root: context["readOnlyRootFilesystem"] == true,
        no_new_privileges: context["allowPrivilegeEscalation"] == false,
        masked_paths: if privileged {
            Vec::new()
        } else {
            words(MASKED)
        },
        read_only_paths: if privileged {
            Vec::new()
        } else {
            words(READ_ONLY)
        },
        seccomp: Some(Profile {
            kind: i32::from(context["seccompProfile"]["type"] != "RuntimeDefault"),
        }),
    }
}

/// `add` or `drop` of a security context.
pub fn capabilities(context: &Value, which: &str) -> Vec<String> {
    list(&context["capabilities"][which])
        .iter()
        .map(text)
        .collect()
}

fn empty_folder(scratch: &Path, name: &str) -> String {
    let folder = scratch.join(name);
    std::fs::create_dir_all(&folder).expect("folders can be made");
    folder.display().to_string()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("a string wanted: {value}"))
        .to_owned()
}
