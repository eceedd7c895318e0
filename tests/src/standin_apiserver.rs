//! A stand-in for the Kubernetes API server: lists and watches of pods and nodes over plain HTTP,
//! with the faults that a real server will not make on demand. What a real one does is tested
//! against a real one, by `cargo xtask cluster`.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// The bearer token of [`StandinApiserver::kubeconfig`], which must show nowhere.
pub const TOKEN: &str = "token-that-nobody-may-see";

/// How long a watch looks at nothing new before it looks whether it is to end.
const PATIENCE: Duration = Duration::from_millis(50);

/// What it does to a request in place of an answer.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Answers with this status.
    Status(u16),
    /// Answers with half of the body that it promised, and hangs up.
    HalfAnswer,
    /// Hangs up.
    HangUp,
}

#[derive(Default)]
struct State {
    version: u64,
    /// By kind (`pods`, `nodes`) and uid.
    objects: BTreeMap<(&'static str, String), Value>,
    /// What watches tell: version, kind, event.
    changes: VecDeque<(u64, &'static str, Value)>,
    /// Older versions cannot be watched from.
    oldest: u64,
    faults: VecDeque<Fault>,
    /// Watches of an earlier round end.
    round: u64,
    /// What a watch writes before it ends: whole lines, or not.
    last_words: Vec<u8>,
    requests: Vec<String>,
    watches: usize,
    down: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// The server; it ends with the test's process.
pub struct StandinApiserver {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl StandinApiserver {
    /// Starts one without pods.
    pub fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = listener.local_addr().expect("it has an address");
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                version: 100,
                oldest: 1,
                ..State::default()
            }),
            changed: Condvar::new(),
        });
        let serving = Arc::clone(&shared);
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let shared = Arc::clone(&serving);
                // An agent that hangs up is no concern of the server's.
                thread::spawn(move || drop(shared.serve(connection)));
            }
        });
        Self { address, shared }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Writes a kubeconfig for it.
    pub fn kubeconfig(&self, folder: &Path) -> PathBuf {
        kubeconfig(folder, self.address)
    }

    /// A running pod of node `lab`, made or changed.
    pub fn apply_pod(&self, name: &str, uid: &str, address: &str) {
        self.apply_pod_with(name, uid, &[address], json!({}));
    }

    /// The same with several addresses.
    pub fn apply_dual_pod(&self, name: &str, uid: &str, addresses: &[&str]) {
        self.apply_pod_with(name, uid, addresses, json!({}));
    }

    /// The same on the host's network, with the node's address.
    pub fn apply_host_pod(&self, name: &str, uid: &str) {
        let spec = json!({"hostNetwork": true});
        self.apply_pod_with(name, uid, &["172.30.0.11"], spec);
    }

    fn apply_pod_with(&self, name: &str, uid: &str, addresses: &[&str], mut spec: Value) {
        let all: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
        spec["nodeName"] = "lab".into();
        spec["containers"] = json!([{"name": "main", "image": "i"}]);
        let pod = json!({
            "metadata": {
                "name": name, "namespace": "shop", "uid": uid,
                "creationTimestamp": "2026-01-02T03:04:05Z",
                "annotations": {"long": "x".repeat(2000)},
                "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {"f:phase": {}}}}],
            },
            "spec": spec,
            "status": {"phase": "Running", "podIP": addresses.first(), "podIPs": all},
        });
        self.apply("pods", uid, pod);
    }

    /// A node with this address, made or changed.
    pub fn apply_node(&self, name: &str, address: &str) {
        self.apply_node_with(name, address, "10.7.0.0/24");
    }

    /// The same with a range that its pods are to be in.
    pub fn apply_node_with(&self, name: &str, address: &str, range: &str) {
        let node = json!({
            "metadata": {"name": name, "uid": name},
            "spec": {"podCIDR": range, "podCIDRs": [range]},
            "status": {"addresses": [
                {"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name},
            ]},
        });
        self.apply("nodes", name, node);
    }

    fn apply(&self, kind: &'static str, uid: &str, mut object: Value) {
        let mut state = self.shared.state();
        state.version += 1;
        let version = state.version;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let old = state.objects.insert((kind, uid.to_owned()), object.clone());
        let event = if old.is_some() { "MODIFIED" } else { "ADDED" };
        state.tell(kind, json!({"type": event, "object": object}));
        self.shared.changed.notify_all();
    }

    /// A pod less.
    pub fn delete_pod(&self, uid: &str) {
        let mut state = self.shared.state();
        state.version += 1;
        let version = state.version;
        let key = ("pods", uid.to_owned());
        let mut object = state.objects.remove(&key).expect("there is such a pod");
        object["metadata"]["resourceVersion"] = version.to_string().into();
        state.tell("pods", json!({"type": "DELETED", "object": object}));
        self.shared.changed.notify_all();
    }

    /// Tells the watches how far they have come.
    pub fn bookmark(&self) {
        let mut state = self.shared.state();
        let metadata = json!({"resourceVersion": state.version.to_string()});
        state.tell(
            "pods",
            json!({"type": "BOOKMARK", "object":
                {"kind": "Pod", "apiVersion": "v1", "metadata": metadata}}),
        );
        self.shared.changed.notify_all();
    }

    /// The next requests fail so.
    pub fn fail(&self, faults: &[Fault]) {
        self.shared.state().faults.extend(faults);
    }

    /// Ends the watches after these words, which need not be a whole line.
    pub fn end_watches(&self, last_words: &str) {
        let mut state = self.shared.state();
        state.round += 1;
        state.last_words = last_words.as_bytes().to_vec();
        self.shared.changed.notify_all();
    }

    /// Forgets what was: a watch from an older version is told 410.
    pub fn forget(&self) {
        let mut state = self.shared.state();
        state.version += 1;
        state.oldest = state.version;
        state.changes.clear();
    }

    /// Hangs up on everybody until told otherwise.
    pub fn set_down(&self, down: bool) {
        let mut state = self.shared.state();
        state.down = down;
        state.round += 1;
        state.last_words.clear();
        self.shared.changed.notify_all();
    }

    /// The requests since the last call: their lines, and their heads.
    pub fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.state().requests)
    }

    /// How many watches are open.
    pub fn watches(&self) -> usize {
        self.shared.state().watches
    }
}

/// Writes a kubeconfig for a server at an address.
pub fn kubeconfig(folder: &Path, address: SocketAddr) -> PathBuf {
    let cluster = json!({"server": format!("http://{address}")});
    kubeconfig_of(folder, &cluster, &json!({"token": TOKEN}))
}

/// Writes a kubeconfig with this cluster and this user.
pub fn kubeconfig_of(folder: &Path, cluster: &Value, user: &Value) -> PathBuf {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "lab",
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        "clusters": [{"name": "lab", "cluster": cluster}],
        "users": [{"name": "lab", "user": user}],
    });
    let path = folder.join("kubeconfig");
    fs::write(&path, config.to_string()).expect("file can be written");
    path
}

impl State {
    fn tell(&mut self, kind: &'static str, event: Value) {
        let version = self.version;
        self.changes.push_back((version, kind, event));
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, connection: TcpStream) -> io::Result<()> {
        let mut reader = BufReader::new(connection.try_clone()?);
        let mut connection = connection;
        while let Some(head) = read_head(&mut reader)? {
            let fault = {
                let mut state = self.state();
                if state.down {
                    return Ok(());
                }
                state.requests.push(head.clone());
                state.faults.pop_front()
            };
            let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
            match (kind(&target), fault) {
                (_, Some(Fault::HangUp)) => return Ok(()),
                (_, Some(Fault::Status(code))) => answer(&mut connection, code, &status(code))?,
                (None, _) => answer(&mut connection, 404, &status(404))?,
                (Some(kind), Some(Fault::HalfAnswer)) => {
                    let body = self.list(kind).to_string();
                    write!(
                        connection,
                        "{}{}",
                        head_of(200, body.len()),
                        &body[..body.len() / 2]
                    )?;
                    return Ok(());
                }
                (Some(kind), None) if target.contains("watch=true") => {
                    return self.watch(connection, kind, &target);
                }
                (Some(kind), None) => answer(&mut connection, 200, &self.list(kind))?,
            }
        }
        Ok(())
    }

    fn list(&self, kind: &str) -> Value {
        let state = self.state();
        let items: Vec<&Value> = state
            .objects
            .iter()
            .filter(|((of, _), _)| *of == kind)
            .map(|(_, object)| object)
            .collect();
        let list = if kind == "pods" {
            "PodList"
        } else {
            "NodeList"
        };
        json!({
            "kind": list, "apiVersion": "v1",
            "metadata": {"resourceVersion": state.version.to_string()},
            "items": items,
        })
    }

    fn watch(&self, mut connection: TcpStream, kind: &str, target: &str) -> io::Result<()> {
        let mut from: u64 = target
            .split(['?', '&'])
            .find_map(|pair| pair.strip_prefix("resourceVersion="))
            .and_then(|version| version.parse().ok())
            .unwrap_or_default();
        connection.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
        )?;
        let mut state = self.state();
        if from < state.oldest {
            drop(state);
            let gone = json!({"type": "ERROR", "object": status(410)});
            chunk(&mut connection, format!("{gone}\n").as_bytes())?;
            return chunk(&mut connection, b"");
        }
        let round = state.round;
        state.watches += 1;
        let mut told = Ok(());
        while told.is_ok() && state.round == round {
            let mut new = Vec::new();
            for (version, of, event) in &state.changes {
                if *of == kind && (*version > from || event["type"] == "BOOKMARK") {
                    writeln!(new, "{event}")?;
                }
            }
            from = state.version;
            state
                .changes
                .retain(|(_, _, event)| event["type"] != "BOOKMARK");
            if !new.is_empty() {
                told = chunk(&mut connection, &new);
            }
            state = self
                .changed
                .wait_timeout(state, PATIENCE)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        state.watches -= 1;
        if !state.last_words.is_empty() {
            chunk(&mut connection, &state.last_words)?;
        }
        told
    }
}

fn kind(target: &str) -> Option<&'static str> {
    match target.split('?').next()? {
        "/api/v1/pods" => Some("pods"),
        "/api/v1/nodes" => Some("nodes"),
        _ => None,
    }
}

fn read_head(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut head = String::new();
    loop {
        let before = head.len();
        if reader.read_line(&mut head)? == 0 {
            return Ok(None);
        }
        if head[before..].trim().is_empty() {
            return Ok(Some(head));
        }
    }
}

fn status(code: u16) -> Value {
    let (reason, message) = match code {
        403 => (
            "Forbidden",
            "pods is forbidden: User \"lab\" cannot list resource \"pods\"",
        ),
        410 => ("Expired", "too old resource version"),
        _ => ("InternalError", "an error\u{1b}[31m that\nis not plain"),
    };
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
           "code": code, "reason": reason, "message": message})
}

fn head_of(code: u16, len: usize) -> String {
    format!(
        "HTTP/1.1 {code} Whatever\r\nContent-Type: application/json\r\nContent-Length: {len}\r\n\r\n"
    )
}

fn answer(connection: &mut TcpStream, code: u16, body: &Value) -> io::Result<()> {
    let body = body.to_string();
    write!(connection, "{}{body}", head_of(code, body.len()))
}

fn chunk(connection: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    write!(connection, "{:x}\r\n", bytes.len())?;
    connection.write_all(bytes)?;
    connection.write_all(b"\r\n")
}
