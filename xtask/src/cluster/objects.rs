//! Configuration of the node's programs, and the objects that are put into the cluster.

use std::path::Path;

use super::image::{NAME as IMAGE, PROGRAM};

/// Address of the DNS service, of [`super::lab::SERVICES`].
pub const DNS: &str = "10.96.0.53";

/// The agent's account, which may do what the manual asks for and no more.
pub const ACCOUNT: &str = r#"
apiVersion: v1
kind: ServiceAccount
metadata: {name: tracer, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: tracer}
rules:
- {apiGroups: [""], resources: [nodes, pods], verbs: [get, list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: tracer}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: tracer}
subjects: [{kind: ServiceAccount, name: tracer, namespace: kube-system}]
"#;

/// containerd's configuration.
pub fn containerd(folder: &Path) -> String {
    let folder = folder.display();
    let unused = ["btrfs", "zfs", "devmapper", "aufs"]
        .map(|name| format!("\"io.containerd.snapshotter.v1.{name}\""));
    format!(
        r#"version = 2
root = "{folder}/containerd/root"
state = "{folder}/containerd/state"
disabled_plugins = [{unused}, "io.containerd.internal.v1.opt"]
[grpc]
address = "{folder}/containerd.sock"
[ttrpc]
address = "{folder}/containerd.sock.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{IMAGE}"
disable_tcp_service = true
stream_server_address = "127.0.0.1"
stream_server_port = "0"
disable_apparmor = true
# Where CAP_SYS_RESOURCE is missing, runc dies of it.
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{folder}/cni"
"#,
        unused = unused.join(", ")
    )
}

/// The pods' network.
pub fn network(folder: &Path, subnet: &str) -> String {
    let folder = folder.display();
    format!(
        r#"{{"cniVersion": "0.4.0", "name": "lab", "plugins": [{{
  "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
  "ipam": {{"type": "host-local", "dataDir": "{folder}/ipam",
           "ranges": [[{{"subnet": "{subnet}"}}]], "routes": [{{"dst": "0.0.0.0/0"}}]}}}}]}}
"#
    )
}

/// The kubelet's configuration.
pub fn kubelet(folder: &Path, cgroup: &str) -> String {
    let folder = folder.display();
    format!(
        r#"apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
readOnlyPort: 0
cgroupDriver: cgroupfs
cgroupRoot: /{cgroup}
enforceNodeAllocatable: [pods]
failSwapOn: false
oomScoreAdj: 0
authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: false}}, x509: {{clientCAFile: {folder}/ca.crt}}}}
authorization: {{mode: AlwaysAllow}}
clusterDNS: [{DNS}]
clusterDomain: cluster.local
resolvConf: {folder}/resolv.conf
evictionHard: {{memory.available: "0%", nodefs.available: "0%", imagefs.available: "0%"}}
nodeStatusUpdateFrequency: 5s
"#
    )
}

/// The template of a pod that runs xtask; `more` goes into its spec.
fn template(app: &str, arguments: &str, more: &str) -> String {
    format!(
        r#"
  selector: {{matchLabels: {{app: {app}}}}}
  template:
    metadata: {{labels: {{app: {app}}}}}
    spec:
      terminationGracePeriodSeconds: 0
      {more}
      containers:
      - {{name: main, image: "{IMAGE}", imagePullPolicy: Never, command: [{PROGRAM}, cluster-dns, {arguments}]}}
"#
    )
}

/// A DNS server behind a service.
pub fn dns_service() -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: dns}}
spec:{}---
apiVersion: v1
kind: Service
metadata: {{name: dns}}
spec: {{clusterIP: {DNS}, selector: {{app: dns}}, ports: [{{port: 53, protocol: UDP}}]}}
",
        template("dns", "serve", "")
    )
}

/// Clients of the service: so many of this kind, each with so many lookups of a name.
pub fn clients(kind: &str, app: &str, name: &str, count: u16) -> String {
    let more = match kind {
        "DaemonSet" => "hostNetwork: true",
        _ => "",
    };
    let replicas = match kind {
        "DaemonSet" => "",
        _ => "\n  replicas: 2",
    };
    format!(
        "apiVersion: apps/v1\nkind: {kind}\nmetadata: {{name: {app}}}\nspec:{replicas}{}",
        template(
            app,
            &format!("ask, {DNS}, {name}, \"{count}\", --stay"),
            more
        )
    )
}

/// A pod that is over when it has asked.
pub fn momentary(pod: &str, count: u16) -> String {
    format!(
        r#"apiVersion: v1
kind: Pod
metadata: {{name: {pod}}}
spec:
  restartPolicy: Never
  containers:
  - {{name: main, image: "{IMAGE}", imagePullPolicy: Never, command: [{PROGRAM}, cluster-dns, ask, {DNS}, servfail.test, "{count}"]}}
"#
    )
}
