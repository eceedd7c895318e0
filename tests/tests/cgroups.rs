//! Hook `cgroups`: what lives in its cgroup for a moment only is named nevertheless.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tests::cgroup::Cgroup;
use tests::process::check;
use tests::standin_apiserver::StandinApiserver;
use tests::wait::ensure;
use tests::{Agent, Netns, eventually};

const SOON: Duration = Duration::from_secs(10);
const FAILURES: &str = "tracer_pod_dns_failures_total";

/// A query for the name `x`, type A, with recursion; no byte of it ends a line, which would part it.
const QUERY: &str = r"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01x\x00\x00\x01\x00\x01";

/// A container on the host's network from begin to end: one query, no wait for the answer. How long
/// its cgroup was there.
fn live(netns: &Netns, cgroup: &str) -> Duration {
    let begun = Instant::now();
    let cgroup = Cgroup::make(cgroup);
    let script = format!(
        "echo $$ > {}/cgroup.procs && printf '{QUERY}' > /dev/udp/127.0.0.1/53",
        cgroup.path().display()
    );
    netns.run(|| check(Command::new("bash").args(["-c", &script])));
    drop(cgroup);
    begun.elapsed()
}

/// As the two drivers of the kubelet and containerd name it, and in a node that is a container itself.
fn cgroup_of(uid: &str, number: usize) -> String {
    let id = format!("{number:064x}");
    match number % 3 {
        0 => format!("kubepods/besteffort/pod{uid}/{id}"),
        1 => format!("docker/{id}/{}/kubepods/pod{uid}/{id}", "long".repeat(60)),
        _ => {
            let uid = uid.replace('-', "_");
            format!(
                "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{uid}.slice/\
                 cri-containerd-{id}.scope"
            )
        }
    }
}

/// They used to be `(unknown)`: no walk through the cgroups is as quick.
#[test]
fn pods_on_the_hosts_network_whose_cgroups_live_for_a_moment_are_named() {
    const PODS: usize = 40;
    const CROWD: usize = 1000;
    // All on one network: only their cgroups tell them apart.
    let network = Netns::new("network");
    let _silent = network
        .run(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, 53)))
        .expect("port 53 is free");
    let server = StandinApiserver::start();
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let config = server.kubeconfig(folder.path());
    let uid = |n: usize| format!("3f2b4c1d-0000-4000-8000-{n:012}");
    for n in 0..PODS {
        server.apply_host_pod(&format!("moment-{n}"), &uid(n));
    }
    let variable = format!("KUBECONFIG={}", config.display());
    let arguments = [
        "--node",
        "lab",
        "--pods",
        "kubernetes",
        "--dns-timeout",
        "500ms",
    ];
    let mut agent = Agent::launch(&["env", &variable], &arguments);
    agent.wait_ready();

    // While others make a thousand cgroups.
    let lives: Vec<Duration> = thread::scope(|scope| {
        scope.spawn(|| {
            let begun = Instant::now();
            let above = Cgroup::make("crowd");
            for n in 0..CROWD {
                let one = above.path().join(format!("{n}"));
                fs::create_dir(&one).expect("cgroups can be made");
                fs::remove_dir(&one).expect("cgroups can be removed");
            }
            eprintln!("{CROWD} cgroups made in {:?}", begun.elapsed());
        });
        (0..PODS)
            .map(|n| live(&network, &cgroup_of(&uid(n), n)))
            .collect()
    });
    eprintln!(
        "the pods' cgroups lived {:?} to {:?}",
        lives.iter().min().expect("there are pods"),
        lives.iter().max().expect("there are pods")
    );
    eventually(SOON, || {
        let metrics = agent.metrics();
        for n in 0..PODS {
            let pod = format!("moment-{n}");
            let count = metrics.count(FAILURES, &[("namespace", "shop"), ("pod", &pod)]);
            ensure(count == 1, || format!("{pod} has {count} failures, not 1"))?;
        }
        Ok::<(), String>(())
    });
    let metrics = agent.metrics();
    let of_pods = metrics.count(FAILURES, &[("namespace", "shop")]);
    assert_eq!(of_pods, PODS as u64);
    let hook = [("hook", "cgroups")];
    assert_eq!(metrics.count("tracer_events_lost_total", &hook), 0);
    let told = metrics.count("tracer_events_total", &hook);
    assert!(told >= (CROWD + 4 * PODS) as u64, "{told} names told");
    agent.stop_cleanly();
}
