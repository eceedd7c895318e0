//! The agent from its image, as a kubelet would have a runtime run it by the manifest: its
//! capabilities and no more, its mounts, a root that nobody can write.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use tests::containerd::{Containerd, CriPod};
use tests::cri::{ContainerSpec, Mount};
use tests::daemonset;
use tests::host::HostLock;
use tests::http;
use tests::kubernetes::{only, template};
use tests::neigh::table_fulls;
use tests::process::{check, run, tracer_path};
use tests::standin_apiserver::{StandinApiserver, TOKEN};
use tests::standin_tls::StandinTls;
use tests::wait::ensure;
use tests::xtask::xtask;
use tests::{Family, Metrics, Thresholds, eventually};

const SOON: Duration = Duration::from_secs(10);
const CREATES: &str = "tracer_pod_neighbour_creates_total";
/// Words for a shell: a packet to each of 150 addresses that nobody has.
const BURST: &str = "for i in $(seq 100 249); do ping -c 1 -W 1 10.244.0.$i >/dev/null 2>&1 & \
                     done; wait; true";
/// The image or the package of the binary under test, made in a folder.
fn dist(what: &str, folder: &Path) {
    let output = folder.to_str().expect("path is text");
    let arguments = ["dist", "--only", what, "--output", output];
    // What a release has not is half of what would be packed.
    let stripped = folder.join("tracer");
    check(
        Command::new("strip")
            .arg("--strip-debug")
            .arg("-o")
            .arg(&stripped)
            .arg(tracer_path()),
    );
    check(xtask(&arguments).env("TRACER_BIN", stripped));
}

fn find(folder: &Path, extension: &str) -> PathBuf {
    let entries = fs::read_dir(folder).expect("folder can be read");
    let mut paths = entries.flatten().map(|entry| entry.path());
    paths
        .find(|path| path.extension().is_some_and(|e| e == extension))
        .unwrap_or_else(|| panic!("there is no {extension} in {}", folder.display()))
}

/// A node with the image, and an API server for the agent's account.
struct Node {
    lab: Containerd,
    folder: TempDir,
    server: StandinApiserver,
    tls: StandinTls,
    image: String,
    /// The last address that [`Node::ask_for_three`] took.
    asked: u8,
}

impl Node {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("temporary folders can be made");
        let lab = Containerd::start(10, 60);
        dist("image", folder.path());
        lab.import(&find(folder.path(), "tar"));
        let account = folder.path().join("account");
        fs::create_dir_all(&account).expect("folders can be made");
        let (server, tls) = lab.node.run(|| {
            let server = StandinApiserver::start();
            let tls = StandinTls::start(&account, server.address());
            (server, tls)
        });
        for (name, contents) in [("token", TOKEN), ("namespace", "tracer")] {
            fs::write(account.join(name), contents).expect("files can be written");
        }
        let image = format!("localhost/tracer:{}", env!("CARGO_PKG_VERSION"));
        Self {
            lab,
            folder,
            server,
            tls,
            image,
            asked: 60,
        }
    }

    /// The container of the manifest with these values of the chart, and what the kubelet adds for an
    /// account.
    fn container(&self, values: &str) -> ContainerSpec {
        let objects = template(&["--set", values]).expect("the values are right");
        let daemonset = only(&objects, "DaemonSet");
        let scratch = tempfile::tempdir_in(self.folder.path()).expect("folders can be made");
        let mut spec = daemonset::container(daemonset, "lab", &scratch.keep());
        spec.mounts.push(Mount {
            inside: "/var/run/secrets/kubernetes.io/serviceaccount".to_owned(),
            of_node: self.folder.path().join("account").display().to_string(),
            read_only: true,
            propagation: 0,
        });
        let address = self.tls.address();
        spec.variables.extend([
            (
                "KUBERNETES_SERVICE_HOST".to_owned(),
                address.ip().to_string(),
            ),
            (
                "KUBERNETES_SERVICE_PORT".to_owned(),
                address.port().to_string(),
            ),
        ]);
        spec
    }

    fn run(&mut self, name: &str, spec: &ContainerSpec) -> CriPod {
        self.lab.run_image(name, &self.image, spec)
    }

    /// Has a pod send to three addresses that nobody has and nobody was asked for.
    fn ask_for_three(&mut self, pod: &CriPod) {
        let addresses = self.asked + 1..=self.asked + 3;
        self.asked = *addresses.end();
        let pings: Vec<String> = addresses
            .map(|n| format!("ping -c 1 -W 1 10.244.0.{n} >/dev/null 2>&1 &"))
            .collect();
        self.lab.sh(pod, &pings.join(" "));
    }

    fn get(&self, target: &str) -> Result<http::Response, String> {
        self.get_at(Ipv4Addr::LOCALHOST.into(), target)
    }

    /// Of an agent with a network of its own, or the node's.
    fn get_of(&self, agent: &CriPod, target: &str) -> Result<http::Response, String> {
        self.get_at(agent.address.unwrap_or(Ipv4Addr::LOCALHOST.into()), target)
    }

    fn get_at(&self, address: IpAddr, target: &str) -> Result<http::Response, String> {
        let address = SocketAddr::new(address, 9773);
        self.lab
            .node
            .run(|| http::tcp(address, "GET", target))
            .map_err(|e| e.to_string())
    }

    fn await_ready(&self, agent: &CriPod) {
        eventually(SOON, || {
            let ready = self.get("/readyz");
            ensure(ready.as_ref().is_ok_and(|r| r.status == 200), || {
                format!("{ready:?}; it said:\n{}", self.lab.log(agent))
            })
        });
    }

    fn metrics(&self) -> Metrics {
        Metrics::parse(&self.get("/metrics").expect("it answers").body)
    }
}

/// State of each hook.
fn hooks(metrics: &Metrics) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = metrics
        .matching("tracer_hook_state", &[])
        .filter(|(_, value)| *value > 0.0)
        .map(|(labels, _)| (labels["hook"].clone(), labels["state"].clone()))
        .collect();
    found.sort();
    found
}

/// Capabilities that a process has, by number: CapPrm, CapEff and CapBnd are the same.
fn held(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.expect("status has all fields").trim().to_owned()
    };
    let set = |name| u64::from_str_radix(&field(name), 16).expect("it is a set");
    assert_eq!(set("CapPrm:"), set("CapEff:"));
    assert_eq!(set("CapPrm:"), set("CapBnd:"));
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2", "a filter is in force");
    set("CapEff:")
}

/// The set by the names that Kubernetes has for them, by capabilities(7)'s numbers.
fn set_of(names: &[String]) -> u64 {
    names
        .iter()
        .map(|name| match name.as_str() {
            "NET_ADMIN" => 1 << 12,
            "SYS_PTRACE" => 1 << 19,
            "SYS_ADMIN" => 1 << 21,
            "SYSLOG" => 1 << 34,
            "PERFMON" => 1 << 38,
            "BPF" => 1 << 39,
            other => panic!("{other} is not known here"),
        })
        .sum()
}

/// The process that is a pod's agent.
fn pid_of(pod: &CriPod) -> u32 {
    let processes = fs::read_dir("/proc").expect("processes can be listed");
    let ids = processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut found = ids.filter(|pid: &u32| {
        let of = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        of("cgroup").contains(&pod.uid) && of("cmdline").contains("tracer\0agent")
    });
    found.next().expect("the agent runs")
}

/// Below the manifest's folder, for another agent may run on this machine.
const STATE_DIR: &str = "/sys/fs/bpf/tracer-image-test";

struct StateDir;

impl Drop for StateDir {
    fn drop(&mut self) {
        // Not there where no agent came so far.
        let _ = fs::remove_dir_all(STATE_DIR);
    }
}

#[test]
fn the_same_input_gives_the_same_image() {
    // Any program with libraries will do, and a small one is packed sooner.
    let program = Path::new("/bin/true");
    let made = ["022", "077"].map(|umask| {
        let folder = tempfile::tempdir().expect("temporary folders can be made");
        let script = format!("umask {umask}; exec \"$@\"");
        let pack = xtask(&["dist", "--only", "image", "--output"]);
        check(
            Command::new("sh")
                .args(["-c", &script, "sh"])
                .arg(pack.get_program())
                .args(pack.get_args())
                .arg(folder.path())
                .env("TRACER_BIN", program),
        );
        fs::read(find(folder.path(), "tar")).expect("the archive can be read")
    });
    assert!(made[0] == made[1], "two archives of one input differ");
}

#[test]
fn the_package_has_all_that_it_promises() {
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    dist("package", folder.path());
    let package = find(folder.path(), "deb");
    let root = folder.path().join("installed");
    check(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&root));
    let installed = run(
        Command::new(root.join("usr/bin/tracer")).arg("--version"),
        Duration::from_secs(5),
    );
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(installed.stdout.trim(), format!("tracer {version}"));
    let unit = root.join("usr/lib/systemd/system/tracer.service");
    let unit = fs::read_to_string(unit).expect("it has a unit");
    assert!(unit.contains("ExecStart=/usr/bin/tracer agent"), "{unit}");
    for (path, word) in [
        ("bash-completion/completions/tracer", "redact-names"),
        ("zsh/vendor-completions/_tracer", "redact-names"),
        ("fish/vendor_completions.d/tracer.fish", "redact-names"),
        ("doc/tracer/copyright", "MIT"),
    ] {
        let text = fs::read_to_string(root.join("usr/share").join(path)).expect(path);
        assert!(text.contains(word), "{path}");
    }
    let page = Command::new("gzip")
        .args(["--decompress", "--stdout"])
        .arg(root.join("usr/share/man/man1/tracer.1.gz"))
        .output()
        .expect("gzip can be run");
    assert!(String::from_utf8_lossy(&page.stdout).contains("redact"));
    // The configuration that it brings is one that the agent takes.
    let mut doctor = Command::new(root.join("usr/bin/tracer"));
    doctor
        .args(["man", "--config"])
        .arg(root.join("etc/tracer/tracer.toml"));
    assert!(run(&mut doctor, Duration::from_secs(5)).status.success());
}

#[test]
fn the_manifest_gives_what_is_needed_and_no_more() {
    let mut lock = HostLock::take();
    let started = std::time::Instant::now();
    let _state = StateDir;
    let mut node = Node::start();
    let crowd = node.lab.pod("crowd");
    let address = crowd.address.expect("it has one").to_string();
    node.server.apply_pod("crowd", &crowd.uid, &address);

    let spec = node.container(&format!("stateDir={STATE_DIR}"));
    names_a_pod_that_fills_the_table(&mut node, &mut lock, &spec, &crowd);
    // Without what that agent knew: its successor would know it too.
    let spec = node.container("stateDir=none");
    each_capability_is_needed(&mut node, &spec, &crowd);
    // More rights do not stand in for the other half of what it takes.
    let privileged = node.container("privileged=true,hostPID=false,stateDir=none");
    let agent = node.run("agent", &privileged);
    node.await_ready(&agent);
    all_attached(&node, &agent);
    nothing_of_a_device_is_named(&mut node, &agent, &crowd);
    node.lab.remove(&agent);

    let mut cri = node.container("podSource=cri,stateDir=none");
    reach(&mut cri, &node.lab.socket());
    let agent = node.run("agent", &cri);
    node.await_ready(&agent);
    await_created(&mut node, &agent, &crowd);
    node.lab.remove(&agent);
    node.lab.end();
    eprintln!("it took {:?}", started.elapsed());
}

/// The lab's containerd has its socket elsewhere than a node's.
fn reach(spec: &mut ContainerSpec, socket: &Path) {
    let folder = socket.parent().expect("it is in a folder");
    let mount = spec
        .mounts
        .iter_mut()
        .find(|m| m.inside == "/run/containerd");
    mount.expect("the socket's folder is mounted").of_node = folder.display().to_string();
}

fn names_a_pod_that_fills_the_table(
    node: &mut Node,
    lock: &mut HostLock,
    spec: &ContainerSpec,
    crowd: &CriPod,
) {
    let agent = node.run("agent", spec);
    node.await_ready(&agent);
    all_attached(node, &agent);
    let wanted = spec.security.capabilities.clone().expect("they are said");
    assert_eq!(wanted.drop, ["ALL"]);
    assert_eq!(held(pid_of(&agent)), set_of(&wanted.add));

    let before = table_fulls(Family::V4);
    let limits = Thresholds::set(lock, [8, 16, 64]);
    node.lab.sh(crowd, BURST);
    drop(limits);
    let truth = table_fulls(Family::V4) - before;
    assert!(truth >= 50, "the lab failed: {truth} were refused");
    eventually(SOON, || {
        let count = creates(&node.metrics(), crowd, "table_full");
        ensure(count + 10 >= truth && count <= truth, || {
            let said = node.lab.log(&agent);
            format!("crowd has {count} of {truth}; it said:\n{said}")
        })
    });
    for command in [&["tracer", "why"][..], &["tracer", "top", "--once"]] {
        let said = node.lab.exec(&agent, command).expect("it answers");
        assert!(said.contains("crowd"), "{command:?}: {said}");
    }
    tracks_the_nodes_connections(node, &agent, crowd.address.expect("it has one"));
    let refused = node.lab.exec(&agent, &["sh", "-c", "true"]);
    assert!(refused.is_err(), "the image has a shell");
    node.lab.remove(&agent);
}

fn all_attached(node: &Node, agent: &CriPod) {
    for (hook, state) in hooks(&node.metrics()) {
        assert_eq!(state, "attached", "{hook}: {}", node.lab.log(agent));
    }
}

/// Without any one of them something is missing.
fn each_capability_is_needed(node: &mut Node, spec: &ContainerSpec, crowd: &CriPod) {
    let all = spec.security.capabilities.clone().expect("they are said");
    for missing in &all.add {
        let mut less = if missing == "SYSLOG" {
            // Without the node's network too, which has nothing to do with it.
            node.container("podSource=none,stateDir=none,hostNetwork=false")
        } else {
            spec.clone()
        };
        let left = less.security.capabilities.as_mut().expect("they are said");
        left.add.retain(|name| name != missing);
        let agent = node.run("agent", &less);
        match missing.as_str() {
            "BPF" | "PERFMON" | "NET_ADMIN" => eventually(SOON, || {
                let said = node.lab.log(&agent);
                ensure(said.contains(&format!("CAP_{missing} missing")), || {
                    said.clone()
                })
            }),
            "SYSLOG" => {
                let metrics = eventually(SOON, || {
                    let answer = node.get_of(&agent, "/metrics");
                    answer.map(|answer| Metrics::parse(&answer.body))
                });
                let gc = ("gc".to_owned(), "degraded".to_owned());
                assert!(hooks(&metrics).contains(&gc), "{:?}", hooks(&metrics));
                tracks_the_nodes_connections(node, &agent, crowd.address.expect("it has one"));
            }
            "SYS_PTRACE" => {
                node.await_ready(&agent);
                nothing_of_a_device_is_named(node, &agent, crowd);
            }
            other => panic!("who needs {other}?"),
        }
        node.lab.remove(&agent);
    }
}

/// Connection tracking belongs to a network: without the node's the agent reads what is nobody's.
fn tracks_the_nodes_connections(node: &mut Node, agent: &CriPod, to: IpAddr) {
    const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";
    const TRACK: &str = "table inet track { chain out { type filter hook output priority 0; \
                         ct state new accept; }; }";
    node.lab.node.run(|| {
        check(Command::new("nft").arg(TRACK));
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a port is free");
        for port in 1000..1005 {
            socket.send_to(b"x", (to, port)).expect("it can be sent");
        }
    });
    eventually(SOON, || {
        let body = node.get_of(agent, "/metrics")?.body;
        let seen = Metrics::parse(&body).get("tracer_node_conntrack_entries", &[]);
        let truth = node.lab.node.run(|| fs::read_to_string(COUNT));
        let truth: f64 = truth.map_or(0.0, |text| text.trim().parse().expect("a number"));
        let of_node = agent.address.is_none();
        ensure(truth >= 5.0 && (seen == Some(truth)) == of_node, || {
            format!("{seen:?} of {truth} connections; on the node's network: {of_node}")
        })
    });
    let untrack = ["delete", "table", "inet", "track"];
    node.lab
        .node
        .run(|| check(Command::new("nft").args(untrack)));
}

fn nothing_of_a_device_is_named(node: &mut Node, agent: &CriPod, crowd: &CriPod) {
    let before = waiting(&node.metrics());
    node.ask_for_three(crowd);
    eventually(SOON, || {
        let waits = waiting(&node.metrics());
        ensure(waits > before, || {
            format!("{waits} wait for a name; it said:\n{}", node.lab.log(agent))
        })
    });
    assert_eq!(creates(&node.metrics(), crowd, "created"), 0);
}

fn await_created(node: &mut Node, agent: &CriPod, crowd: &CriPod) {
    node.ask_for_three(crowd);
    eventually(SOON, || {
        let count = creates(&node.metrics(), crowd, "created");
        ensure(count > 0, || {
            format!("crowd has made nothing; it said:\n{}", node.lab.log(agent))
        })
    });
}

fn waiting(metrics: &Metrics) -> u64 {
    metrics.count("tracer_unattributed_pending", &[("hook", "neigh")])
}

fn creates(metrics: &Metrics, pod: &CriPod, result: &str) -> u64 {
    let fixed = [("family", "ipv4"), ("result", result)];
    metrics.count(CREATES, &[&fixed[..], &pod.labels()].concat())
}
