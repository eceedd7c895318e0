//! Nodes that are not there: the exposition of a real agent, told again under other nodes' names, with
//! figures that go on growing as a test wants them. One kernel has one agent's view; a cluster of sick
//! and healthy nodes has many.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// How a series grows.
#[derive(Clone, Debug)]
pub struct Growth {
    /// Name and labels as in the exposition, without `node`: `name{a="b"}` or `name`.
    pub series: String,
    /// A second.
    pub rate: f64,
}

/// `series` grows by `rate` a second; a series that the real agent does not tell begins with 0.
pub fn grows(series: &str, rate: f64) -> Growth {
    Growth {
        series: series.to_owned(),
        rate,
    }
}

struct Node {
    path: String,
    name: String,
    growth: Vec<Growth>,
    answers: bool,
}

struct Shared {
    /// Lines: name and labels without `node`, and value; comments have no value.
    exposition: Vec<(String, Option<f64>)>,
    nodes: Mutex<Vec<Node>>,
    started: Instant,
}

/// A server of many nodes' expositions; it ends with the test's process.
pub struct Replay {
    address: SocketAddr,
    shared: Arc<Shared>,
    targets: String,
}

impl Replay {
    /// Of an exposition of the node with this name.
    pub fn start(exposition: &str, node: &str) -> Self {
        let label = format!("node=\"{node}\"");
        let lines = exposition.lines().map(|line| {
            let sample = (!line.starts_with('#')).then(|| line.rsplit_once(' '));
            match sample.flatten() {
                Some((series, value)) => (without(series, &label), value.parse().ok()),
                None => (line.to_owned(), None),
            }
        });
        let shared = Arc::new(Shared {
            exposition: lines.collect(),
            nodes: Mutex::default(),
            started: Instant::now(),
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = listener.local_addr().expect("it has an address");
        let serving = Arc::clone(&shared);
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let shared = Arc::clone(&serving);
                // A Prometheus that hangs up is no concern of the server's.
                thread::spawn(move || drop(shared.serve(connection)));
            }
        });
        Self {
            address,
            shared,
            targets: String::new(),
        }
    }

    /// A node of a cluster, with what grows on it.
    pub fn node(&mut self, cluster: &str, name: &str, growth: &[Growth]) {
        let path = format!("/{cluster}/{name}");
        writeln!(
            self.targets,
            "  - targets: ['{}']\n    labels: {{__metrics_path__: '{path}', instance: '{name}', \
             cluster: '{cluster}'}}",
            self.address
        )
        .expect("strings can be written");
        self.shared.nodes().push(Node {
            path,
            name: name.to_owned(),
            growth: growth.to_vec(),
            answers: true,
        });
    }

    /// From here on the node's agent does not answer.
    pub fn silence(&self, cluster: &str, name: &str) {
        let path = format!("/{cluster}/{name}");
        let mut nodes = self.shared.nodes();
        let node = nodes.iter_mut().find(|node| node.path == path);
        node.expect("there is such a node").answers = false;
    }

    /// The scrape job for all of them, each cluster with a label of its own.
    pub fn job(&self) -> String {
        let targets = &self.targets;
        format!("- job_name: tracer\n  honor_labels: true\n  static_configs:\n{targets}")
    }
}

impl Shared {
    fn nodes(&self) -> std::sync::MutexGuard<'_, Vec<Node>> {
        self.nodes.lock().expect("no request panics")
    }

    /// One request.
    fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let first = lines.next().transpose()?.unwrap_or_default();
        let path = first.split(' ').nth(1).unwrap_or_default();
        while lines
            .next()
            .transpose()?
            .is_some_and(|line| !line.is_empty())
        {}
        let (status, body) = match self.tell(path) {
            Some(body) => ("200 OK", body),
            None => ("503 Service Unavailable", String::new()),
        };
        write!(
            stream,
            "HTTP/1.1 {status}\r\ncontent-type: text/plain; version=0.0.4\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )
    }

    fn tell(&self, path: &str) -> Option<String> {
        let seconds = self.started.elapsed().as_secs_f64();
        let nodes = self.nodes();
        let node = nodes
            .iter()
            .find(|node| node.path == path && node.answers)?;
        let name = &node.name;
        let grown = |growth: &Growth| (growth.rate * seconds).floor();
        let mut body = String::new();
        for (series, value) in &self.exposition {
            let Some(value) = value else {
                body += series;
                body.push('\n');
                continue;
            };
            let own = node.growth.iter().filter(|g| g.series == *series);
            let value = value + own.map(grown).sum::<f64>();
            writeln!(body, "{} {value}", with_node(series, name)).expect("strings can be written");
        }
        let mut new: BTreeMap<&str, f64> = BTreeMap::new();
        for growth in &node.growth {
            let known = |(series, value): &(String, Option<f64>)| {
                value.is_some() && *series == growth.series
            };
            if !self.exposition.iter().any(known) {
                *new.entry(&growth.series).or_default() += grown(growth);
            }
        }
        for (series, value) in new {
            writeln!(body, "{} {value}", with_node(series, name)).expect("strings can be written");
        }
        Some(body)
    }
}

/// `a{x="y",node="n"}` without that label.
fn without(series: &str, label: &str) -> String {
    let bare = series
        .replace(&format!("{label},"), "")
        .replace(&format!(",{label}"), "");
    bare.replace(&format!("{{{label}}}"), "")
}

fn with_node(series: &str, node: &str) -> String {
    match series.split_once('{') {
        Some((metric, labels)) => format!("{metric}{{node=\"{node}\",{labels}"),
        None => format!("{series}{{node=\"{node}\"}}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Metrics;
    use crate::http;

    #[test]
    fn nodes_tell_what_the_agent_told_and_what_grows() {
        let text = "# TYPE a counter\na{x=\"y\",node=\"real\"} 3\nb{node=\"real\"} 1\n";
        let mut replay = Replay::start(text, "real");
        let far = 1e9;
        replay.node("c", "n1", &[grows("b", far), grows("new{z=\"0\"}", far)]);
        let ask = || http::tcp(replay.address, "GET", "/c/n1").expect("it answers");
        let metrics = Metrics::parse(&ask().body);
        assert_eq!(metrics.get("a", &[("node", "n1"), ("x", "y")]), Some(3.0));
        assert!(metrics.get("b", &[("node", "n1")]) > Some(1.0));
        assert!(metrics.get("new", &[("node", "n1"), ("z", "0")]) > Some(0.0));
        replay.silence("c", "n1");
        assert_eq!(ask().status, 503);
    }
}
