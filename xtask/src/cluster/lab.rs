//! A cluster of one node: etcd, the control plane, containerd, kubelet and kube-proxy in a network
//! namespace without a way out, so that nothing of it touches the machine's network or leaves it.

use std::{
    fmt::Write as _,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{image, objects, pki};
use crate::{disk, sh};

/// The node's name.
pub const NODE: &str = "node1";
/// Its address.
pub const ADDRESS: &str = "172.30.0.1";
/// Of the API server, on [`ADDRESS`].
pub const PORT: u16 = 6443;
/// Where services get their addresses.
pub const SERVICES: &str = "10.96.0.0/16";
const PODS: &str = "10.244.0.0/24";
const ETCD: &str = "http://127.0.0.1:2379";
/// The cgroup of all pods, in every hierarchy.
const CGROUP: &str = "tracer-cluster";
/// What containerd or a kubelet changes on a machine; they get files of ours in their place.
const SYSCTLS: &[(&str, &str)] = &[
    ("vm/overcommit_memory", "1"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
];

/// A running cluster; gone without a trace when dropped.
pub struct Cluster {
    folder: PathBuf,
    programs: PathBuf,
    kubectl: PathBuf,
    /// Holds the network namespace.
    holder: Child,
    /// By name, in the order of their start.
    children: Vec<(String, Child)>,
}

impl Cluster {
    /// Starts one and waits until the node is ready.
    pub fn start(programs: &Path, kubectl: &Path) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("tracer-cluster-{}", std::process::id()));
        disk::create_dir_all(&folder)?;
        let holder = Command::new("unshare")
            .args(["--net", "sleep", "infinity"])
            .spawn()
            .context("cannot make a network namespace")?;
        let mut cluster = Self {
            folder,
            programs: programs.to_owned(),
            kubectl: kubectl.to_owned(),
            holder,
            children: Vec::new(),
        };
        let image = image::make(cluster.folder())?;
        cluster.network()?;
        pki::make(&cluster.folder)?;
        cluster.control_plane()?;
        cluster.node(&image)?;
        Ok(cluster)
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A command in the node's network namespace.
    pub fn inside(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/proc/{}/ns/net", self.holder.id()))
            .arg(program.as_ref())
            .current_dir(&self.folder);
        command
    }

    /// kubectl as the administrator.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        sh::output(
            self.inside(&self.kubectl)
                .arg("--kubeconfig=admin.kubeconfig")
                .args(arguments),
        )
    }

    /// Applies objects.
    pub fn apply(&self, objects: &str) -> Result<()> {
        let path = self.folder.join("objects.yaml");
        disk::write(&path, objects)?;
        self.kubectl(&["apply", "-f", "objects.yaml"]).map(drop)
    }

    /// Starts or starts again the API server and waits until it serves.
    pub fn start_apiserver(&mut self) -> Result<()> {
        let mut command = self.inside(self.programs.join("kube-apiserver"));
        command.args([
            &format!("--etcd-servers={ETCD}"),
            &format!("--bind-address={ADDRESS}"),
            &format!("--advertise-address={ADDRESS}"),
            &format!("--secure-port={PORT}"),
            &format!("--service-cluster-ip-range={SERVICES}"),
            "--tls-cert-file=apiserver.crt",
            "--tls-private-key-file=apiserver.key",
            "--client-ca-file=ca.crt",
            "--cert-dir=.",
            "--authorization-mode=Node,RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-account-signing-key-file=sa.key",
            "--service-account-key-file=sa.pub",
            "--allow-privileged=true",
            "--kubelet-client-certificate=admin.crt",
            "--kubelet-client-key=admin.key",
            "--kubelet-preferred-address-types=InternalIP",
        ]);
        self.spawn("apiserver", command)?;
        until("the API server serves", || {
            self.kubectl(&["get", "--raw", "/readyz"]).map(drop)
        })
    }

    /// Kills one of its programs at once, as a crash would.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        let at = self.children.iter().position(|(of, _)| of == name);
        let (_, mut child) = self.children.remove(at.context("no such program")?);
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    fn spawn(&mut self, name: &str, mut command: Command) -> Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.join(format!("{name}.log")))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        self.children.push((name.to_owned(), child));
        Ok(())
    }

    fn network(&self) -> Result<()> {
        let namespace = |of: &str| fs::read_link(format!("/proc/{of}/ns/net"));
        until("the namespace is there", || {
            let there = namespace(&self.holder.id().to_string())? != namespace("self")?;
            ensure!(there, "it is still the machine's");
            Ok(())
        })?;
        for words in [
            "link set lo up",
            "link add eth0 type veth peer name nowhere",
            &format!("address add {ADDRESS}/24 dev eth0"),
            "link set eth0 up",
            "link set nowhere up",
            "route add default dev eth0",
        ] {
            sh::quietly(self.inside("ip").args(words.split(' ')))?;
        }
        sh::quietly(self.inside("sysctl").args(["-qw", "net.ipv4.ip_forward=1"]))
    }

    fn control_plane(&mut self) -> Result<()> {
        let mut etcd = self.inside("etcd");
        etcd.args(["--data-dir=etcd", "--unsafe-no-fsync"])
            .arg(format!("--listen-client-urls={ETCD}"))
            .arg(format!("--advertise-client-urls={ETCD}"))
            .arg("--listen-peer-urls=http://127.0.0.1:2380");
        self.spawn("etcd", etcd)?;
        self.start_apiserver()?;
        let mut controllers = self.inside(self.programs.join("kube-controller-manager"));
        controllers.args([
            "--kubeconfig=controllers.kubeconfig",
            "--bind-address=127.0.0.1",
            "--port=0",
            "--service-account-private-key-file=sa.key",
            "--root-ca-file=ca.crt",
            "--use-service-account-credentials=true",
            "--leader-elect=false",
        ]);
        self.spawn("controllers", controllers)?;
        let mut scheduler = self.inside(self.programs.join("kube-scheduler"));
        scheduler.args([
            "--kubeconfig=scheduler.kubeconfig",
            "--bind-address=127.0.0.1",
            "--port=0",
            "--leader-elect=false",
        ]);
        self.spawn("scheduler", scheduler)
    }

    fn node(&mut self, image: &Path) -> Result<()> {
        make_cgroups()?;
        let containerd = objects::containerd(&self.folder);
        disk::write(self.folder.join("containerd.toml"), containerd)?;
        disk::create_dir_all(self.folder.join("cni"))?;
        let network = objects::network(&self.folder, PODS);
        disk::write(self.folder.join("cni/10-lab.conflist"), network)?;
        let mut containerd = self.inside("containerd");
        containerd.args(["--config", "containerd.toml"]);
        self.spawn("containerd", containerd)?;
        until("containerd has the image", || {
            sh::output(
                Command::new("ctr")
                    .arg("--address")
                    .arg(self.folder.join("containerd.sock"))
                    .args(["--namespace", "k8s.io", "images", "import"])
                    .arg(image),
            )
        })?;
        self.kubelet()?;
        let mut proxy = self.inside(self.programs.join("kube-proxy"));
        proxy.args([
            "--kubeconfig=proxy.kubeconfig",
            &format!("--hostname-override={NODE}"),
            &format!("--cluster-cidr={PODS}"),
            "--proxy-mode=iptables",
            "--oom-score-adj=0",
            // The machine's limits stay as they are.
            "--conntrack-max-per-core=0",
            "--conntrack-min=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
        ]);
        self.spawn("proxy", proxy)?;
        until("the node is ready", || {
            let ready = "jsonpath={.status.conditions[?(@.type=='Ready')].status}";
            let status = self.kubectl(&["get", "node", NODE, "-o", ready])?;
            ensure!(status == "True", "the node says {status:?}");
            Ok(())
        })
    }

    fn kubelet(&mut self) -> Result<()> {
        let root = self.folder.join("kubelet");
        disk::create_dir_all(&root)?;
        // Volumes must be seen by containers that are there already.
        sh::quietly(Command::new("mount").arg("--bind").args([&root, &root]))?;
        sh::quietly(Command::new("mount").arg("--make-shared").arg(&root))?;
        disk::write(
            self.folder.join("kubelet.yaml"),
            objects::kubelet(&self.folder, CGROUP),
        )?;
        disk::write(
            self.folder.join("resolv.conf"),
            format!("nameserver {ADDRESS}\n"),
        )?;
        let mut script = String::new();
        for (number, (name, value)) in SYSCTLS.iter().enumerate() {
            let file = self.folder.join(format!("sysctl-{number}"));
            disk::write(&file, value)?;
            write!(script, "mount --bind {} /proc/sys/{name}; ", file.display())?;
        }
        script.push_str("exec \"$@\"");
        let mut kubelet = self.inside("unshare");
        kubelet
            .args([
                "--mount",
                "--propagation",
                "unchanged",
                "sh",
                "-ec",
                &script,
                "kubelet",
            ])
            .arg(self.programs.join("kubelet"))
            .args([
                "--config=kubelet.yaml",
                "--kubeconfig=node.kubeconfig",
                &format!("--hostname-override={NODE}"),
                &format!("--node-ip={ADDRESS}"),
                &format!("--root-dir={}", root.display()),
                "--cert-dir=.",
                "--container-runtime=remote",
                &format!(
                    "--container-runtime-endpoint=unix://{}/containerd.sock",
                    self.folder.display()
                ),
                &format!("--pod-infra-container-image={}", image::NAME),
                "--runtime-cgroups=/",
            ]);
        self.spawn("kubelet", kubelet)
    }

    /// What the programs last said, for a failure.
    pub fn logs(&self) -> Result<String> {
        let mut text = String::new();
        for (name, _) in &self.children {
            let log = fs::read_to_string(self.folder.join(format!("{name}.log")));
            let log = log.unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(5)..];
            writeln!(text, "--- {name}\n{}", last.join("\n"))?;
        }
        Ok(text)
    }

    /// Pods first, then what runs them, then what they left.
    fn tear_down(&mut self) -> Result<()> {
        for name in ["kubelet", "proxy"] {
            // One that did not come up needs no end.
            let _ = self.kill(name);
        }
        for cgroup in cgroups()? {
            // cgroup2 only; the same processes are in the others.
            let _ = fs::write(cgroup.join("cgroup.kill"), "1");
        }
        while let Some((_, mut child)) = self.children.pop() {
            child.kill()?;
            child.wait()?;
        }
        self.kill_shims()?;
        self.holder.kill()?;
        self.holder.wait()?;
        self.unmount()?;
        for cgroup in cgroups()? {
            remove_cgroup(&cgroup);
        }
        disk::remove_dir_all(&self.folder)?;
        Ok(())
    }

    /// containerd's shims outlive it.
    fn kill_shims(&self) -> Result<()> {
        let socket = self.folder.join("containerd.sock").display().to_string();
        for process in disk::read_dir("/proc")?.flatten() {
            let arguments = fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
            let mut words = arguments.split('\0');
            let is_shim = words.next().is_some_and(|w| w.contains("containerd-shim"));
            if is_shim
                && words.any(|word| word == socket)
                && let Some(pid) = process.file_name().to_str()
            {
                sh::quietly(Command::new("kill").args(["-KILL", pid]))?;
            }
        }
        Ok(())
    }

    fn unmount(&self) -> Result<()> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let below = self.folder.display().to_string();
        let mut points: Vec<&str> = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(1))
            .filter(|point| Path::new(point).starts_with(&below))
            .collect();
        points.reverse();
        for point in points {
            sh::quietly(Command::new("umount").args(["--lazy", point]))?;
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(why) = self.tear_down() {
            sh::step(format!("the cluster left something behind: {why:#}"));
        }
    }
}

/// Tries until it succeeds; the last failure is the error.
pub fn until<T>(what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(why) if Instant::now() > deadline => {
                return Err(why.context(format!("waited in vain until {what}")));
            }
            Err(_) => thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// Its cgroup in every hierarchy that there is.
fn cgroups() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    Ok(mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .filter(|fields| fields.get(2).is_some_and(|kind| kind.starts_with("cgroup")))
        .filter_map(|fields| fields.get(1).map(|mount| Path::new(mount).join(CGROUP)))
        .collect())
}

fn make_cgroups() -> Result<()> {
    for cgroup in cgroups()? {
        disk::create_dir_all(&cgroup)?;
        // A cpuset of version 1 is empty until it is filled.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let above = cgroup.with_file_name(file);
            if let (Ok(all), true) = (fs::read_to_string(above), cgroup.join(file).exists()) {
                disk::write(cgroup.join(file), all)?;
            }
        }
    }
    if cgroups()?.is_empty() {
        bail!("no cgroup file system is mounted");
    }
    Ok(())
}

/// What still lives in it may take a moment to die.
fn remove_cgroup(cgroup: &Path) {
    for _ in 0..50 {
        let below = fs::read_dir(cgroup).into_iter().flatten().flatten();
        for entry in below.filter(|entry| entry.path().is_dir()) {
            remove_cgroup(&entry.path());
        }
        if fs::remove_dir(cgroup).is_ok() || !cgroup.exists() {
            return;
        }
        thread::sleep(Duration::from_millis(100));
    }
    sh::step(format!("cannot remove {}", cgroup.display()));
}
