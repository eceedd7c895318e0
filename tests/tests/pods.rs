//! Pod sources: whose name a count gets.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tests::neigh::{FIRST_SILENT, burst};
use tests::netns::Pod;
use tests::wait::ensure;
use tests::{Agent, Family, Lab, eventually};

const CREATES: &str = "tracer_pod_neighbour_creates_total";

fn created(agent: &Agent, labels: &[(&str, &str)]) -> u64 {
    let fixed = [("family", "ipv4"), ("result", "created")];
    agent.metrics().count(CREATES, &[&fixed, labels].concat())
}

fn entry(pod: &Pod, name: &str) -> String {
    let path = pod.netns.path();
    format!(
        "[[pod]]\nnamespace = \"shop\"\nname = \"{name}\"\nnetns = \"{}\"\n",
        path.display()
    )
}

/// As an editor does it: the file is never half written.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).expect("file can be written");
    fs::rename(&new, path).expect("file can be renamed");
}

#[test]
fn a_file_names_pods_and_its_changes_are_followed() {
    let lab = Lab::new();
    let [cart, till] = [("cart", 1), ("till", 2)].map(|(label, index)| lab.pod(label, index, 1));
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let path = folder.path().join("pods.toml");
    fs::write(&path, entry(&cart, "cart-1")).expect("file can be written");
    let agent = Agent::start(&["--pods", &format!("file:{}", path.display())]);
    burst(&cart, Family::V4, FIRST_SILENT, 10);
    let cart_labels = [("namespace", "shop"), ("pod", "cart-1")];
    eventually(Duration::from_secs(5), || {
        let count = created(&agent, &cart_labels);
        ensure(count == 10, || format!("shop/cart-1 has {count}"))
    });
    assert_eq!(created(&agent, &[("pod", cart.netns.name())]), 0);

    replace(
        &path,
        &format!("{}{}", entry(&cart, "cart-1"), entry(&till, "till-1")),
    );
    eventually(Duration::from_secs(5), || {
        let snapshot = agent.snapshot();
        let sources = snapshot["sources"]
            .as_array()
            .expect("the snapshot has sources");
        let file = sources.iter().find(|source| source["name"] == "file");
        let pods = file.map(|file| &file["pods"]);
        ensure(pods == Some(&2.into()), || {
            format!("the file's pods: {pods:?}")
        })
    });
    burst(&till, Family::V4, FIRST_SILENT, 20);
    let till_labels = [("namespace", "shop"), ("pod", "till-1")];
    eventually(Duration::from_secs(5), || {
        let count = created(&agent, &till_labels);
        ensure(count == 20, || format!("shop/till-1 has {count}"))
    });
    assert_eq!(created(&agent, &cart_labels), 10);
    agent.stop_cleanly();
}

/// A file that is wrong for a moment, as editors leave it, costs no name.
#[test]
fn a_file_that_breaks_while_it_is_followed_leaves_the_last_pods() {
    let lab = Lab::new();
    let pod = lab.pod("cart", 1, 1);
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let path = folder.path().join("pods.toml");
    fs::write(&path, entry(&pod, "cart-1")).expect("file can be written");
    let agent = Agent::start(&["--pods", &format!("file:{}", path.display())]);
    let source = || {
        let snapshot = agent.snapshot();
        let sources = snapshot["sources"].as_array().cloned();
        let mut sources = sources.expect("the snapshot has sources").into_iter();
        sources
            .find(|source| source["name"] == "file")
            .expect("file is among them")
    };
    for (text, why) in [
        ("[[pod]]\nnam", "line 2"),
        ("[[pod]]\ncolour = 1\n", "colour"),
    ] {
        replace(&path, text);
        eventually(Duration::from_secs(5), || {
            let source = source();
            let reason = source["reason"].as_str().unwrap_or_default();
            ensure(reason.contains(why) && source["pods"] == 1, || {
                source.to_string()
            })
        });
    }
    fs::remove_file(&path).expect("file can be removed");
    eventually(Duration::from_secs(10), || {
        let source = source();
        let reason = source["reason"].as_str().unwrap_or_default();
        let is_old = source["age_seconds"].as_f64() > Some(2.0);
        ensure(reason.contains("No such file") && is_old, || {
            source.to_string()
        })
    });
    assert_eq!(agent.http("GET", "/readyz").status, 200);
    burst(&pod, Family::V4, FIRST_SILENT, 10);
    eventually(Duration::from_secs(5), || {
        let count = created(&agent, &[("namespace", "shop"), ("pod", "cart-1")]);
        ensure(count == 10, || format!("shop/cart-1 has {count}"))
    });
    fs::write(&path, "").expect("file can be written");
    eventually(Duration::from_secs(5), || {
        let source = source();
        ensure(source["pods"] == 0 && source["reason"] == "", || {
            source.to_string()
        })
    });
    let said = agent.stderr();
    assert!(said.contains("pod source file: pod file"), "{said}");
    agent.stop_cleanly();
}

#[test]
fn a_pod_that_no_source_knows_is_counted_as_unknown_in_the_end() {
    let lab = Lab::new();
    let pod = lab.pod("nameless", 1, 1);
    let agent = Agent::start(&["--pods", "none"]);
    burst(&pod, Family::V4, FIRST_SILENT, 10);
    // Held back for half a minute, for a name might still come.
    eventually(Duration::from_secs(3), || {
        let held = agent
            .metrics()
            .count("tracer_unattributed_pending", &[("hook", "neigh")]);
        ensure(held >= 10, || format!("{held} wait for a name"))
    });
    let unknown = [("namespace", "(unknown)"), ("pod", "(unknown)")];
    eventually(Duration::from_secs(40), || {
        let count = created(&agent, &unknown);
        ensure(count >= 10, || format!("(unknown) has {count}"))
    });
    let given_up = agent
        .metrics()
        .count("tracer_unattributed_total", &[("hook", "neigh")]);
    assert!(given_up >= 10, "{given_up} were given up");
    agent.stop_cleanly();
}

#[test]
fn past_the_limit_pods_share_a_row() {
    let lab = Lab::new();
    let pods = [1, 2, 3].map(|index| lab.pod("many", index, 1));
    let agent = Agent::start(&["--max-pods", "1"]);
    for pod in &pods {
        burst(pod, Family::V4, FIRST_SILENT, 10);
    }
    eventually(Duration::from_secs(5), || {
        let other = created(&agent, &[("namespace", "(other)"), ("pod", "(other)")]);
        let all = created(&agent, &[]);
        ensure(other >= 20 && all >= 30, || {
            format!("(other) has {other} of {all}")
        })
    });
    agent.stop_cleanly();
}

/// They used to be counted as `(unknown)`: forgotten before the counters were read.
#[test]
fn pods_that_live_for_a_moment_keep_their_counts() {
    let lab = Lab::new();
    let agent = Agent::start(&[]);
    let mut names = Vec::new();
    for index in 1..=8 {
        let pod = lab.pod("moment", index, 1);
        burst(&pod, Family::V4, FIRST_SILENT, 10);
        // That is how long it lives. A name is noticed within 50 ms of its making.
        std::thread::sleep(Duration::from_millis(150));
        names.push(pod.netns.name().to_owned());
    }
    eventually(Duration::from_secs(5), || {
        for name in &names {
            let count = created(&agent, &[("namespace", "(netns)"), ("pod", name)]);
            // The end of a namespace may take an entry more, to leave its multicast groups.
            ensure((10..=12).contains(&count), || format!("{name} has {count}"))?;
        }
        Ok::<(), String>(())
    });
    agent.stop_cleanly();
}

/// The name of the namespace used to win: it came with a cookie, the inode without.
#[test]
fn a_file_names_a_pod_by_its_inode_though_its_namespace_has_a_name() {
    let lab = Lab::new();
    let pod = lab.pod("inode", 1, 1);
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    let path = folder.path().join("pods.toml");
    let text = format!(
        "[[pod]]\nnamespace = \"shop\"\nname = \"by-inode\"\nnetns = {}\n",
        pod.netns.inode()
    );
    fs::write(&path, text).expect("file can be written");
    let agent = Agent::start(&["--pods", &format!("file:{}", path.display())]);
    burst(&pod, Family::V4, FIRST_SILENT, 10);
    eventually(Duration::from_secs(5), || {
        let count = created(&agent, &[("namespace", "shop"), ("pod", "by-inode")]);
        ensure(count == 10, || format!("shop/by-inode has {count}"))
    });
    assert_eq!(created(&agent, &[("pod", pod.netns.name())]), 0);
    agent.stop_cleanly();
}
