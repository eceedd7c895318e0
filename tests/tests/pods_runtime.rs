//! Source `cri`, against a stand-in for the container runtime: what a real one does is tested in
//! `pods_cri.rs`.

use std::os::unix::fs::symlink;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::standin_cri::{Fault, StandinCri};
use tests::wait::ensure;
use tests::{Agent, eventually};

const SOON: Duration = Duration::from_secs(10);

fn source(agent: &Agent) -> Value {
    let snapshot = agent.snapshot();
    let sources = snapshot["sources"].as_array().expect("there are sources");
    let found = sources.iter().find(|source| source["name"] == "cri");
    found.expect("cri is among them").clone()
}

fn await_pods(agent: &Agent, count: usize) {
    eventually(SOON, || {
        let source = source(agent);
        ensure(source["pods"] == count && source["reason"] == "", || {
            format!(
                "{count} pods wanted: {source}; it said:\n{}",
                agent.stderr()
            )
        })
    });
}

fn watched() -> (tempfile::TempDir, StandinCri, Agent) {
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let runtime = StandinCri::start(folder.path());
    let agent = Agent::start(&["--pods", "cri", "--cri-endpoint", &runtime.endpoint()]);
    (folder, runtime, agent)
}

#[test]
fn a_runtime_that_fails_is_asked_again_and_its_pods_stay() {
    let (_folder, runtime, agent) = watched();
    runtime.add("first", "uid-1", &["10.9.0.1"]);
    await_pods(&agent, 1);
    for (number, fault) in [Fault::Unavailable, Fault::HalfAnswer, Fault::Nonsense]
        .into_iter()
        .enumerate()
    {
        // Some may befall the details of one pod, which is no fault of the runtime.
        runtime.fail(&[fault; 5]);
        eventually(SOON, || {
            let source = source(&agent);
            ensure(
                source["reason"] != "" && source["pods"] == number + 1,
                || format!("{fault:?}: {source}"),
            )
        });
        eventually(SOON, || {
            let left = runtime.faults();
            ensure(left == 0, || format!("{left} faults are left"))
        });
        runtime.add(&format!("pod-{number}"), &format!("uid-of-{number}"), &[]);
        await_pods(&agent, number + 2);
    }
    let said = agent.stderr();
    assert!(
        !said.contains('\u{1b}'),
        "text of others unescaped:\n{said}"
    );
    agent.stop_cleanly();
}

#[test]
fn a_pod_with_addresses_of_both_families_is_told_by_each_when_it_is_gone() {
    let (_folder, runtime, agent) = watched();
    let addresses = ["10.9.0.1", "fd00:9::1", "10.9.0.2"];
    runtime.add("dual", "uid-1", &addresses);
    await_pods(&agent, 1);
    runtime.remove("uid-1");
    eventually(SOON, || {
        let metrics = agent.metrics();
        for address in addresses {
            let labels = [("namespace", "shop"), ("pod", "dual"), ("address", address)];
            let told = metrics.get("tracer_gone_pod_address_info", &labels);
            ensure(told == Some(1.0), || format!("{address} is not told"))?;
        }
        Ok::<(), String>(())
    });
    agent.stop_cleanly();
}

#[test]
fn a_pod_whose_details_the_runtime_cannot_tell_hides_no_other() {
    let (_folder, runtime, agent) = watched();
    runtime.withhold("uid-2");
    for (name, uid) in [("first", "uid-1"), ("second", "uid-2"), ("third", "uid-3")] {
        runtime.add(name, uid, &[&format!("10.9.0.{}", &uid[4..])]);
    }
    await_pods(&agent, 3);
    // Of those that it told the addresses are known.
    runtime.remove("uid-1");
    runtime.remove("uid-3");
    eventually(SOON, || {
        let metrics = agent.metrics();
        for (pod, address) in [("first", "10.9.0.1"), ("third", "10.9.0.3")] {
            let labels = [("namespace", "shop"), ("pod", pod), ("address", address)];
            let told = metrics.get("tracer_gone_pod_address_info", &labels);
            ensure(told == Some(1.0), || format!("{address} is not told"))?;
        }
        Ok::<(), String>(())
    });
    let said = agent.stderr();
    let told = "pod shop/second: no details of its sandbox uid-2-sandbox";
    assert_eq!(said.matches(told).count(), 1, "{said}");
    agent.stop_cleanly();
}

/// containerd's socket is there for Docker's sake, and the kubelet asks another.
#[test]
fn a_socket_whose_owner_speaks_no_cri_is_passed_by() {
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("temporary folders can be made"));
    let [docker, runtime] = [&folders[0], &folders[1]].map(|f| StandinCri::start(f.path()));
    docker.switch_off();
    runtime.add("first", "uid-1", &["10.9.0.1"]);
    // What this machine has under /run is none of theirs.
    let script = format!(
        "mount -t tmpfs none /run && mkdir /run/containerd && \
         ln -s {} /run/containerd/containerd.sock && ln -s {} /run/cri-dockerd.sock && exec \"$@\"",
        docker.socket().display(),
        runtime.socket().display()
    );
    let wrapper = ["unshare", "--mount", "sh", "-c", &script, "sh"];
    let mut agent = Agent::launch(&wrapper, &["--pods", "cri"]);
    agent.wait_ready();
    await_pods(&agent, 1);
    agent.stop_cleanly();
}

/// A host of Docker: the only socket is containerd's, whose CRI is switched off.
#[test]
fn nobody_waits_for_sockets_where_nobody_speaks_cri() {
    let folders = [(); 3].map(|()| tempfile::tempdir().expect("temporary folders can be made"));
    let [docker, runtime] = [&folders[0], &folders[1]].map(|f| StandinCri::start(f.path()));
    docker.switch_off();
    runtime.add("first", "uid-1", &["10.9.0.1"]);
    let run = folders[2].path();
    let containerd = run.join("containerd");
    std::fs::create_dir(&containerd).expect("folders can be made");
    let link = |runtime: &StandinCri, path| symlink(runtime.socket(), path).expect("links too");
    link(&docker, containerd.join("containerd.sock"));
    let script = format!("mount --bind {} /run && exec \"$@\"", run.display());
    let wrapper = ["unshare", "--mount", "sh", "-c", &script, "sh"];
    let mut agent = Agent::launch(&wrapper, &["--pods", "auto"]);
    agent.wait_ready();
    let said = source(&agent);
    assert_eq!((&said["idle"], &said["pods"]), (&true.into(), &0.into()));
    let reason = said["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("containerd.sock"), "{said}");
    // It is not asked again and again, and waits for nobody.
    let asked = docker.requests();
    sleep(Duration::from_secs(2));
    assert_eq!(docker.requests(), asked);
    assert_eq!(agent.http("GET", "/readyz").status, 200);
    // But a runtime that comes is found at once.
    link(&runtime, run.join("cri-dockerd.sock"));
    await_pods(&agent, 1);
    assert_eq!(source(&agent)["idle"], false);
    agent.stop_cleanly();
}

#[test]
fn many_pods_and_much_churn_take_little_memory() {
    const PODS: usize = 250;
    const CHURN: usize = 100;
    let address = |n: usize| format!("10.8.{}.{}", n / 250, n % 250 + 1);
    let uid = |n: usize| format!("3f2b4c1d-0000-4000-8000-{n:012}");
    let (_folder, runtime, agent) = watched();
    let add = |n: usize| {
        // Every other one on the host's network.
        let (name, address) = (format!("pod-{n}"), address(n));
        let addresses: &[&str] = if n.is_multiple_of(2) {
            &[&address]
        } else {
            &[]
        };
        runtime.add(&name, &uid(n), addresses);
    };
    let resident = || {
        agent
            .metrics()
            .get("process_resident_memory_bytes", &[])
            .expect("the agent tells its size")
    };
    let empty = resident();
    (0..PODS).for_each(add);
    await_pods(&agent, PODS);
    let full = resident();
    // Twenty a second come and go.
    let churn = || {
        for n in PODS..PODS + CHURN {
            let next = Instant::now() + Duration::from_millis(50);
            add(n);
            sleep(next.saturating_duration_since(Instant::now()));
            runtime.remove(&uid(n));
        }
        await_pods(&agent, PODS);
        resident()
    };
    let once = churn();
    let twice = churn();
    eprintln!(
        "resident: {empty} bytes without pods, {full} with {PODS}, {once} and {twice} after churn"
    );
    assert!(
        full - empty < 6e6,
        "{PODS} pods take {} bytes",
        full - empty
    );
    // Both rounds have the same pods: what is remembered of them is there once.
    assert!(twice - once < 2e6, "churn takes {} bytes", twice - once);
    agent.stop_cleanly();
}
