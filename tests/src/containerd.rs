//! A node: containerd with pods made through its container runtime interface, in a network namespace
//! without a way out. The one image there is, busybox, is made here.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tempfile::TempDir;

use crate::cri::{Client, ContainerSpec, SandboxConfig};
use crate::netns::Netns;
use crate::process::{Collected, Reaped, check, collect};
use crate::unpacked;
use crate::wait::eventually;

const IMAGE: &str = "lab.local/busybox:1";
/// The node's address in the pods' network, and what is before a pod's number.
const PREFIX: &str = "10.244.0";
/// The pods' other network, where they have addresses of both families; the node's address ends in 1.
pub const PREFIX_V6: &str = "fd00:244:";

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A pod with one container, which does nothing by itself.
#[derive(Debug)]
pub struct CriPod {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// The runtime's name for it.
    pub sandbox: String,
    /// `None` in the node's network.
    pub address: Option<IpAddr>,
    /// When it was asked for.
    pub asked: Instant,
    /// The file that holds its network namespace; `None` in the node's.
    pub netns: Option<PathBuf>,
    container: String,
}

impl CriPod {
    /// As labels of its series: `namespace`, `pod`.
    pub fn labels(&self) -> [(&str, &str); 2] {
        [("namespace", &self.namespace), ("pod", &self.name)]
    }
}

/// containerd in a namespace, and all that it made; everything is gone after drop, also on panic.
#[derive(Debug)]
pub struct Containerd {
    /// Where the pods' bridge is, and the pods in the node's network.
    pub node: Netns,
    folder: TempDir,
    child: Option<Reaped>,
    said: Option<Collected>,
    client: Option<Client>,
    /// With the file that holds each one's network namespace.
    sandboxes: BTreeMap<String, Option<PathBuf>>,
}

impl Containerd {
    /// A node whose pods get the addresses from `first` to `last` of `10.244.0.0/24`, round robin;
    /// containerd is not started yet.
    pub fn prepare(first: u8, last: u8) -> Self {
        Self::prepare_with(first, last, false)
    }

    fn prepare_with(first: u8, last: u8, dual_stack: bool) -> Self {
        let node = Netns::new("node");
        node.sysctl("ipv4/ip_forward", "1");
        let folder = tempfile::tempdir().expect("temporary folders can be made");
        let lab = Self {
            node,
            folder,
            child: None,
            said: None,
            client: None,
            sandboxes: BTreeMap::new(),
        };
        fs::write(lab.path("config.toml"), lab.config()).expect("files can be written");
        fs::create_dir_all(lab.path("cni")).expect("folders can be made");
        let network = lab.network(first, last, dual_stack).to_string();
        fs::write(lab.path("cni/10-lab.conflist"), network).expect("files can be written");
        make_image(&lab.path("image"));
        lab
    }

    /// The same, with containerd up.
    pub fn start(first: u8, last: u8) -> Self {
        let mut lab = Self::prepare(first, last);
        lab.start_with_image();
        lab
    }

    /// The same, and its pods have addresses of both families.
    pub fn start_dual_stack() -> Self {
        let mut lab = Self::prepare_with(10, 60, true);
        lab.start_with_image();
        lab
    }

    /// Starts containerd for the first time and gives it the image.
    pub fn start_with_image(&mut self) {
        self.start_containerd();
        self.import(&self.path("image/image.tar"));
    }

    /// Its folder, and its cgroup: see [`Containerd::leftovers`].
    pub fn places(&self) -> (PathBuf, String) {
        (self.folder.path().to_owned(), self.cgroup())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The runtime's socket.
    pub fn socket(&self) -> PathBuf {
        self.path("containerd.sock")
    }

    /// As `--cri-endpoint` wants it.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Cgroup above all pods, in every hierarchy.
    fn cgroup(&self) -> String {
        let name = self.node.name();
        format!("/{name}")
    }

    fn config(&self) -> String {
        let folder = self.folder.path().display();
        // restrict_oom_score_adj: without CAP_SYS_RESOURCE runc dies where it may not lower it.
        format!(
            "version = 2\nroot = \"{folder}/root\"\nstate = \"{folder}/state\"\n\
             [grpc]\naddress = \"{folder}/containerd.sock\"\n\
             [ttrpc]\naddress = \"{folder}/ttrpc.sock\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{IMAGE}\"\n\
             disable_tcp_service = true\ndisable_apparmor = true\nrestrict_oom_score_adj = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/usr/lib/cni\"\n\
             conf_dir = \"{folder}/cni\"\n"
        )
    }

    fn network(&self, first: u8, last: u8, dual_stack: bool) -> serde_json::Value {
        let mut ranges = vec![json!([{
            "subnet": format!("{PREFIX}.0/24"),
            "rangeStart": format!("{PREFIX}.{first}"),
            "rangeEnd": format!("{PREFIX}.{last}"),
        }])];
        let mut routes = vec![json!({"dst": "0.0.0.0/0"})];
        if dual_stack {
            ranges.push(json!([{"subnet": format!("{PREFIX_V6}:/64")}]));
            routes.push(json!({"dst": "::/0"}));
        }
        json!({
            "cniVersion": "0.4.0",
            "name": "lab",
            "plugins": [{
                "type": "bridge",
                "bridge": "lab0",
                "isGateway": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": self.path("ipam"),
                    "ranges": ranges,
                    "routes": routes,
                },
            }],
        })
    }

    /// Starts containerd and waits until it answers.
    pub fn start_containerd(&mut self) {
        let config = self.path("config.toml");
        let mut child = self.node.run(|| {
            // Its shim is beside it, where it looks too.
            Command::new(unpacked::program("containerd", "containerd"))
                .arg("--config")
                .arg(config)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap_or_else(|e| panic!("cannot run containerd: {e}; the tests need it"))
        });
        let said = collect(child.stderr.take().expect("stderr is piped"));
        self.child = Some(Reaped(child));
        let socket = self.socket();
        let client = eventually(Duration::from_secs(15), || {
            Client::connect(&socket).map_err(|why| format!("{why}; it said:\n{}", said.text()))
        });
        self.client = Some(client);
        self.said = Some(said);
    }

    /// Kills containerd; the pods live on.
    pub fn kill_containerd(&mut self) {
        self.client = None;
        self.child = None;
    }

    fn client(&mut self) -> &mut Client {
        self.client.as_mut().expect("containerd runs")
    }

    /// A pod that does nothing, with a container to run commands in.
    pub fn pod(&mut self, name: &str) -> CriPod {
        self.run(name, false, &["sleep", "1000000"])
    }

    /// The same in the node's network.
    pub fn host_pod(&mut self, name: &str) -> CriPod {
        self.run(name, true, &["sleep", "1000000"])
    }

    /// A pod whose container runs this.
    pub fn run(&mut self, name: &str, host_network: bool, command: &[&str]) -> CriPod {
        let spec = ContainerSpec {
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            host_network,
            ..ContainerSpec::default()
        };
        self.run_image(name, IMAGE, &spec)
    }

    /// A pod of another image.
    pub fn run_image(&mut self, name: &str, image: &str, spec: &ContainerSpec) -> CriPod {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let uid = format!(
            "0a1b2c3d-0000-4000-8000-{:06}{number:06}",
            std::process::id() % 1_000_000
        );
        let parent = format!("{}/kubepods/besteffort/pod{uid}", self.cgroup());
        let logs = self.path(&format!("logs/{uid}"));
        fs::create_dir_all(&logs).expect("folders can be made");
        let config = SandboxConfig::new(["shop", name, &uid], parent, spec, &logs);
        let asked = Instant::now();
        let sandbox = self.client().run_sandbox(config.clone());
        let sandbox = self.expect(sandbox);
        self.sandboxes.insert(sandbox.clone(), None);
        let network = self.client().network(&sandbox);
        let (address, netns) = self.expect(network);
        self.sandboxes.insert(sandbox.clone(), netns.clone());
        let container = self.client().run_container(&sandbox, &config, image, spec);
        let container = self.expect(container);
        CriPod {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            uid,
            sandbox,
            address: address.parse().ok(),
            asked,
            netns,
            container,
        }
    }

    /// What a pod's container has written.
    pub fn log(&self, pod: &CriPod) -> String {
        fs::read_to_string(self.path(&format!("logs/{}/main.log", pod.uid))).unwrap_or_default()
    }

    /// Gives containerd an image.
    pub fn import(&self, archive: &Path) {
        check(
            Command::new(unpacked::program("containerd", "ctr"))
                .arg("--address")
                .arg(self.socket())
                .args(["--namespace", "k8s.io", "images", "import"])
                .arg(archive)
                .stdout(Stdio::null()),
        );
    }

    /// Runs a command in a pod to its end: what it wrote, or why not.
    pub fn exec(&mut self, pod: &CriPod, command: &[&str]) -> Result<String, String> {
        self.client().exec(&pod.container, command)
    }

    fn expect<T>(&self, result: Result<T, String>) -> T {
        let said = || self.said.as_ref().map(Collected::text);
        result
            .unwrap_or_else(|why| panic!("{why}; containerd said:\n{}", said().unwrap_or_default()))
    }

    /// Runs a shell's words in a pod to their end.
    pub fn sh(&mut self, pod: &CriPod, script: &str) -> String {
        self.exec(pod, &["sh", "-c", script])
            .unwrap_or_else(|why| panic!("in {}: {why}", pod.name))
    }

    /// Ends a pod; tried again as a kubelet does, for a shim that is ending may hang up on containerd.
    pub fn remove(&mut self, pod: &CriPod) {
        eventually(Duration::from_secs(15), || {
            let gone = self.client().remove_sandbox(&pod.sandbox);
            gone.map_err(|why| format!("{}: {why}", pod.name))
        });
        self.sandboxes.remove(&pod.sandbox);
    }

    /// What the tests must not leave: processes, mounts, namespaces and cgroups of this node.
    pub fn leftovers(folder: &Path, cgroup: &str) -> Vec<String> {
        let mut left: Vec<String> = processes_of(folder, cgroup)
            .iter()
            .map(|pid| format!("process {}", pid.as_raw_nonzero()))
            .collect();
        left.extend(
            mounts_below(folder)
                .into_iter()
                .map(|m| format!("mount {m}")),
        );
        left.extend(
            cgroups(cgroup)
                .iter()
                .map(|path| path.display().to_string()),
        );
        left
    }

    /// Ends everything and says what is left nevertheless.
    pub fn end(self) {
        let (folder, cgroup) = self.places();
        drop(self);
        let left = Self::leftovers(&folder, &cgroup);
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Everything is tried, and nothing panics: there may be a panic under way.
        for sandbox in self.sandboxes.keys() {
            if let Some(client) = &mut self.client
                && let Err(why) = client.remove_sandbox(sandbox)
            {
                eprintln!("cannot remove a pod: {why}");
            }
        }
        self.kill_containerd();
        let (folder, cgroup) = self.places();
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            let processes = processes_of(&folder, &cgroup);
            if processes.is_empty() || Instant::now() >= end {
                break;
            }
            for pid in processes {
                // It may have ended by itself.
                let _ = kill_process(pid, Signal::KILL);
            }
            sleep(Duration::from_millis(20));
        }
        for mount in mounts_below(&folder) {
            // Lazily: a process of another test's namespace may still hold it.
            let _ = Command::new("umount").args(["--lazy", &mount]).status();
        }
        // Without containerd they are there still.
        for path in self.sandboxes.values().flatten().filter(|p| p.exists()) {
            let unmounted = Command::new("umount").arg("--lazy").arg(path).status();
            if unmounted.is_ok_and(|status| status.success()) {
                // What cannot be removed is told by the test for leftovers.
                let _ = fs::remove_file(path);
            }
        }
        for path in cgroups(&cgroup) {
            // The kernel takes a moment to see that it is empty.
            for _ in 0..50 {
                if fs::remove_dir(&path).is_ok() || !path.exists() {
                    break;
                }
                sleep(Duration::from_millis(10));
            }
        }
    }
}

/// Shims know the node's socket from their arguments; a pod's processes are in the node's cgroup.
fn processes_of(folder: &Path, cgroup: &str) -> Vec<Pid> {
    let folder = folder.as_os_str().as_encoded_bytes();
    let below = format!(":{cgroup}/");
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| {
            let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let is_shim = arguments.starts_with(b"/usr/bin/containerd-shim")
                && arguments.windows(folder.len()).any(|part| part == folder);
            is_shim
                || fs::read_to_string(entry.path().join("cgroup"))
                    .is_ok_and(|text| text.contains(&below))
        })
        .filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
        .collect()
}

/// The innermost first.
fn mounts_below(folder: &Path) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let folder = folder.display().to_string();
    let mut found: Vec<String> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|path| path.starts_with(&folder))
        .map(str::to_owned)
        .collect();
    found.reverse();
    found
}

/// The node's cgroups in all hierarchies, the innermost first.
fn cgroups(cgroup: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let tops = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .filter(|fields| fields.get(2).is_some_and(|kind| kind.starts_with("cgroup")))
        .map(|fields| PathBuf::from(format!("{}{cgroup}", fields[1])))
        .filter(|path| path.is_dir());
    let mut found: Vec<PathBuf> = tops.collect();
    let mut at = 0;
    while at < found.len() {
        let entries = fs::read_dir(&found[at]);
        let below = entries.into_iter().flatten().flatten();
        let below: Vec<PathBuf> = below
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect();
        found.extend(below);
        at += 1;
    }
    found.reverse();
    found
}

/// An image in the form of `docker save`: busybox with its applets, which sleeps unless told else.
fn make_image(folder: &Path) {
    let bin = folder.join("root/bin");
    fs::create_dir_all(&bin).expect("folders can be made");
    let busybox = unpacked::busybox();
    fs::copy(&busybox, bin.join("busybox"))
        .unwrap_or_else(|e| panic!("cannot copy {}: {e}", busybox.display()));
    for applet in ["sh", "sleep", "ping", "nslookup", "seq"] {
        std::os::unix::fs::symlink("busybox", bin.join(applet)).expect("links can be made");
    }
    let tar = |into: &str, of: &str, names: &[&str]| {
        check(
            Command::new("tar")
                .arg("-cf")
                .arg(folder.join(into))
                .arg("-C")
                .arg(folder.join(of))
                .args(names),
        );
    };
    tar("layer.tar", "root", &["."]);
    let digest = sha256(&folder.join("layer.tar"));
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/bin/sleep", "1000000"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    fs::write(folder.join("config.json"), config.to_string()).expect("files can be written");
    let manifest = json!([{
        "Config": "config.json",
        "RepoTags": [IMAGE],
        "Layers": ["layer.tar"],
    }]);
    fs::write(folder.join("manifest.json"), manifest.to_string()).expect("files can be written");
    tar(
        "image.tar",
        "",
        &["config.json", "layer.tar", "manifest.json"],
    );
}

fn sha256(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output();
    let output = output.unwrap_or_else(|e| panic!("cannot run sha256sum: {e}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split(' ').next().unwrap_or_default().to_owned()
}
