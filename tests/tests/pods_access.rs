//! The way to the API server: TLS, and whence the credentials come. None of them shows in a log.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tests::agent::run_refused;
use tests::process::{run, tracer};
use tests::standin_apiserver::{StandinApiserver, TOKEN, kubeconfig_of};
use tests::standin_tls::StandinTls;
use tests::wait::ensure;
use tests::{Agent, eventually};

/// The client's pauses between tries grow from 0.8 s to 30 s.
const SOON: Duration = Duration::from_secs(40);

fn source(agent: &Agent) -> Value {
    let snapshot = agent.snapshot();
    let sources = snapshot["sources"].as_array().expect("there are sources");
    let found = sources.iter().find(|source| source["name"] == "kubernetes");
    found.expect("kubernetes is among them").clone()
}

fn await_pods(agent: &Agent, count: u64) {
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

/// The agent says all that it can, and has asked with the token.
fn assert_secret(server: &StandinApiserver, agent: &Agent) {
    let requests = server.take_requests();
    assert!(
        requests.iter().any(|head| head.contains(TOKEN)),
        "nobody asked with the token: {requests:?}"
    );
    let said = agent.stderr();
    assert!(!said.contains(TOKEN), "the token shows:\n{said}");
    for answer in [
        agent.api("GET", "/api/v1/snapshot"),
        agent.http("GET", "/metrics"),
    ] {
        assert!(!answer.body.contains(TOKEN), "the token shows");
    }
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("temporary folders can be made")
}

fn launch(wrapper: &[&str], variables: &[&str], pods: &str) -> Agent {
    let wrapper = [wrapper, &["env"], variables].concat();
    let arguments = ["--node", "lab", "--pods", pods, "--log-level", "trace"];
    let mut agent = Agent::launch(&wrapper, &arguments);
    agent.wait_ready();
    agent
}

fn with_kubeconfig(path: &Path) -> Agent {
    let variable = format!("KUBECONFIG={}", path.display());
    launch(&[], &[&variable], "kubernetes")
}

fn asks_a_program(server: &StandinApiserver, folder: &Path, script: &str) -> PathBuf {
    let user = json!({"exec": {
        "apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Never",
        "command": "sh", "args": ["-c", script],
    }});
    let cluster = json!({"server": format!("http://{}", server.address())});
    kubeconfig_of(folder, &cluster, &user)
}

#[test]
fn a_connection_that_is_cut_in_the_middle_of_a_record_is_made_anew() {
    let server = StandinApiserver::start();
    let folder = folder();
    let tls = StandinTls::start(folder.path(), server.address());
    let cluster = json!({
        "server": format!("https://{}", tls.address()),
        "certificate-authority": tls.authority(),
    });
    let config = kubeconfig_of(folder.path(), &cluster, &json!({"token": TOKEN}));
    server.apply_pod("first", "uid-1", "10.9.0.1");
    let agent = with_kubeconfig(&config);
    await_pods(&agent, 1);
    for count in 2..=3 {
        tls.cut();
        // Half of what tells of it arrives.
        server.apply_pod(&format!("pod-{count}"), &format!("uid-{count}"), "10.9.0.2");
        await_pods(&agent, count);
    }
    assert_secret(&server, &agent);
    agent.stop_cleanly();
}

#[test]
fn a_server_with_a_strange_certificate_is_not_believed() {
    let server = StandinApiserver::start();
    let folders = [folder(), folder()];
    let [tls, other] = folders
        .each_ref()
        .map(|folder| StandinTls::start(folder.path(), server.address()));
    let cluster = json!({
        "server": format!("https://{}", tls.address()),
        "certificate-authority": other.authority(),
    });
    let config = kubeconfig_of(folders[0].path(), &cluster, &json!({"token": TOKEN}));
    let variable = format!("KUBECONFIG={}", config.display());
    let arguments = ["--node", "lab", "--pods", "kubernetes"];
    let agent = Agent::launch(&["env", &variable], &arguments);
    eventually(SOON, || {
        let ready =
            tests::http::tcp(agent.listen(), "GET", "/readyz").map_err(|e| e.to_string())?;
        ensure(
            ready.status == 503 && ready.body.contains("certificate"),
            || format!("{ready:?}"),
        )
    });
    assert!(server.take_requests().is_empty(), "it has asked");
    // The file is renewed in place, as a kubelet's are.
    fs::copy(tls.authority(), other.authority()).expect("files can be copied");
    eventually(Duration::from_mins(1), || {
        let ready =
            tests::http::tcp(agent.listen(), "GET", "/readyz").map_err(|e| e.to_string())?;
        ensure(ready.status == 200, || format!("{ready:?}"))
    });
    assert!(!server.take_requests().is_empty(), "it has not asked");
    agent.stop_cleanly();
}

/// The files of a pod's service account are where they are in a pod: in a mount namespace of the
/// agent's own.
#[test]
fn in_a_cluster_the_pods_own_account_is_taken() {
    let server = StandinApiserver::start();
    let folder = folder();
    let tls = StandinTls::start(folder.path(), server.address());
    for (name, text) in [("token", TOKEN), ("namespace", "tracer")] {
        fs::write(folder.path().join(name), text).expect("files can be written");
    }
    server.apply_pod("cart", "uid-1", "10.9.0.1");
    let place = "/run/secrets/kubernetes.io";
    let script = format!(
        "mount -t tmpfs none /run && mkdir -p {place} && cp -r {} {place}/serviceaccount && \
         exec \"$@\"",
        folder.path().display()
    );
    let wrapper = ["unshare", "--mount", "sh", "-c", &script, "sh"];
    let port = format!("KUBERNETES_SERVICE_PORT={}", tls.address().port());
    let variables = ["KUBERNETES_SERVICE_HOST=127.0.0.1", &port];
    let agent = launch(&wrapper, &variables, "auto");
    await_pods(&agent, 1);
    assert_secret(&server, &agent);
    agent.stop_cleanly();
}

#[test]
fn a_program_that_gives_credentials_is_asked() {
    let server = StandinApiserver::start();
    server.apply_pod("cart", "uid-1", "10.9.0.1");
    let folder = folder();
    let credential = json!({
        "apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
        "status": {"token": TOKEN},
    });
    let script = format!("echo '{credential}'");
    let agent = with_kubeconfig(&asks_a_program(&server, folder.path(), &script));
    await_pods(&agent, 1);
    assert_secret(&server, &agent);
    agent.stop_cleanly();
}

/// The client's errors quoted all that the program had printed, and the agent's log them.
#[test]
fn what_a_credential_program_prints_when_it_fails_shows_nowhere() {
    let server = StandinApiserver::start();
    for (end, why) in [("exit 3", "exit status: 3"), ("exit 0", "ExecCredential")] {
        let folder = folder();
        let script = format!("echo {TOKEN}; echo {TOKEN} >&2; {end}");
        let config = asks_a_program(&server, folder.path(), &script);
        let variable = format!("KUBECONFIG={}", config.display());
        let arguments = [
            "--node",
            "lab",
            "--pods",
            "kubernetes",
            "--log-level",
            "trace",
        ];
        let agent = Agent::launch(&["env", &variable], &arguments);
        eventually(SOON, || {
            let ready =
                tests::http::tcp(agent.listen(), "GET", "/readyz").map_err(|e| e.to_string())?;
            ensure(ready.status == 503 && ready.body.contains(why), || {
                format!("{ready:?}")
            })
        });
        let mut doctor = tracer();
        doctor.arg("doctor").env("KUBECONFIG", &config);
        let doctor = run(&mut doctor, Duration::from_secs(10));
        assert!(doctor.stdout.contains(why), "{doctor:#?}");
        let ready = agent.http("GET", "/readyz").body;
        let snapshot = agent.api("GET", "/api/v1/snapshot").body;
        for said in [
            agent.stderr(),
            ready,
            snapshot,
            doctor.stdout,
            doctor.stderr,
        ] {
            assert!(!said.contains(TOKEN), "the token shows:\n{said}");
        }
        agent.stop_cleanly();
    }
}

/// The line with the token used to be quoted, for the mistake is in it.
#[test]
fn a_broken_kubeconfig_is_refused_in_one_line_without_its_secrets() {
    let folder = folder();
    let path = folder.path().join("kubeconfig");
    let variable = format!("KUBECONFIG={}", path.display());
    let refused = |words: &[&str]| {
        let arguments = ["--node", "lab", "--pods", "kubernetes"];
        let ended = run_refused(&["env", &variable], &arguments);
        ended.assert_refused(2, words);
        assert!(!ended.stderr.contains(TOKEN), "{ended:#?}");
    };
    refused(&["KUBECONFIG", "No such file"]);
    let text = format!("kind: Config\nusers:\n- name: lab\n  user:\n    token: [{TOKEN}]\n");
    fs::write(&path, text).expect("files can be written");
    refused(&["KUBECONFIG", "line 5"]);
    fs::write(&path, "kind: Config\n").expect("files can be written");
    refused(&["KUBECONFIG", "context"]);
}
