//! The real Prometheus, with storage of its own.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::agent::free_address;
use crate::http::{self, Response};
use crate::metrics::Labels;
use crate::process::{Collected, Reaped, collect};
use crate::unpacked;
use crate::wait::eventually;

/// Package and program.
const NAME: &str = "prometheus";
/// How often it scrapes and evaluates, unless the given configuration says otherwise.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// A running Prometheus on the loopback device; killed on drop, and its storage removed.
#[derive(Debug)]
pub struct Prometheus {
    child: Reaped,
    address: SocketAddr,
    prefix: String,
    folder: TempDir,
    stderr: Collected,
}

/// One series of an instant query's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Labels, without the name.
    pub labels: Labels,
    /// Value.
    pub value: f64,
}

/// One series of a range query's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Labels, without the name.
    pub labels: Labels,
    /// Time as seconds since 1970, and value.
    pub values: Vec<(f64, f64)>,
}

impl Prometheus {
    /// Starts one with the text of `scrape_configs:` (a YAML list) and rule files, and waits until
    /// it answers.
    pub fn start(scrape_configs: &str, rules: &[&Path]) -> Self {
        Self::start_with(scrape_configs, rules, &[])
    }

    /// The same with flags of its own, such as `--web.route-prefix=/prometheus`.
    pub fn start_with(scrape_configs: &str, rules: &[&Path], flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("temporary folders can be made");
        let config = folder.path().join("prometheus.yml");
        fs::write(&config, configuration(scrape_configs, rules)).expect("files can be written");
        let address = free_address();
        let mut command = Command::new(unpacked::program(NAME, NAME));
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .args(["--web.enable-lifecycle", "--log.level=warn"])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
        let stderr = collect(child.stderr.take().expect("stderr is piped"));
        let prefix = flags
            .iter()
            .find_map(|flag| flag.strip_prefix("--web.route-prefix="))
            .unwrap_or_default();
        let mut prometheus = Self {
            child: Reaped(child),
            address,
            prefix: prefix.to_owned(),
            folder,
            stderr,
        };
        prometheus.wait_ready();
        prometheus
    }

    /// Starts one that scrapes these targets, each with its node's name as `instance`, as the
    /// manifests have it: job `tracer`, `honor_labels`.
    pub fn of_agents(agents: &[(&str, SocketAddr)], rules: &[&Path]) -> Self {
        Self::start(&agents_job(agents), rules)
    }

    fn wait_ready(&mut self) {
        eventually(Duration::from_secs(15), || {
            let ended = self.child.0.try_wait().expect("child can be waited for");
            let stderr = self.stderr();
            assert!(
                ended.is_none(),
                "Prometheus ended ({ended:?}); it said:\n{stderr}"
            );
            match http::tcp(self.address, "GET", &format!("{}/-/ready", self.prefix)) {
                Ok(response) if response.status == 200 => Ok(()),
                other => Err(format!("Prometheus is not ready: {other:?}\n{stderr}")),
            }
        });
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its base URL, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}{}", self.address, self.prefix)
    }

    /// What it said on stderr so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Gives it another scrape configuration and other rules, and waits until they are in force.
    pub fn reconfigure(&self, scrape_configs: &str, rules: &[&Path]) {
        let config = self.folder.path().join("prometheus.yml");
        fs::write(&config, configuration(scrape_configs, rules)).expect("files can be written");
        let response = self.http("POST", "/-/reload");
        assert_eq!(response.status, 200, "{}", response.body);
    }

    /// Asks for a path below its URL.
    pub fn http(&self, method: &str, target: &str) -> Response {
        http::tcp(self.address, method, &format!("{}{target}", self.prefix))
            .unwrap_or_else(|e| panic!("{method} {target}: {e}; it said:\n{}", self.stderr()))
    }

    /// `data` of an answer of its API; panics with the error it gave.
    pub fn api(&self, target: &str) -> Value {
        let response = self.http("GET", target);
        let mut body: Value = serde_json::from_str(&response.body)
            .unwrap_or_else(|e| panic!("{target}: {e}: {}", response.body));
        assert_eq!(body["status"], "success", "{target}: {body}");
        body["data"].take()
    }

    /// An instant query; panics with the error where the expression is none. A scalar is one series
    /// without labels.
    pub fn query(&self, expression: &str) -> Vec<Sample> {
        let data = self.api(&format!("/api/v1/query?query={}", encoded(expression)));
        if data["resultType"] == "scalar" {
            let value = point(&data["result"]).1;
            return vec![Sample {
                labels: Labels::new(),
                value,
            }];
        }
        let result = data["result"].as_array().expect("a vector");
        result
            .iter()
            .map(|series| Sample {
                labels: labels(&series["metric"]),
                value: point(&series["value"]).1,
            })
            .collect()
    }

    /// A query over the last `span`, to now.
    pub fn query_range(&self, expression: &str, span: Duration, step: Duration) -> Vec<Series> {
        let end = SystemTime::UNIX_EPOCH.elapsed().expect("it is after 1970");
        let start = end.saturating_sub(span);
        let data = self.api(&format!(
            "/api/v1/query_range?query={}&start={}&end={}&step={}",
            encoded(expression),
            start.as_secs_f64(),
            end.as_secs_f64(),
            step.as_secs_f64()
        ));
        let result = data["result"].as_array().expect("a matrix");
        result
            .iter()
            .map(|series| Series {
                labels: labels(&series["metric"]),
                values: series["values"]
                    .as_array()
                    .expect("points")
                    .iter()
                    .map(point)
                    .collect(),
            })
            .collect()
    }

    /// Waits until a query answers what `holds`; panics with its last answer.
    pub fn await_query(
        &self,
        limit: Duration,
        expression: &str,
        holds: impl Fn(&[Sample]) -> bool,
    ) -> Vec<Sample> {
        eventually(limit, || {
            let samples = self.query(expression);
            if holds(&samples) {
                Ok(samples)
            } else {
                Err(format!("{expression} is {samples:?}"))
            }
        })
    }

    /// Waits until so many targets of a job are up. The first scrape of a target comes some five
    /// seconds after Prometheus learned of it (its service discovery hands on every 5 s), so do
    /// something useful meanwhile.
    pub fn await_up(&self, job: &str, targets: usize) {
        let expression = format!("up{{job=\"{job}\"}} == 1");
        self.await_query(Duration::from_secs(15), &expression, |up| {
            up.len() == targets
        });
    }

    /// Stops it in the middle of whatever it does, so that it does not answer, until the guard goes.
    pub fn pause(&self) -> Paused<'_> {
        self.child.signal(Signal::STOP);
        Paused(self)
    }
}

/// A Prometheus that is stopped; it goes on when this is dropped.
#[derive(Debug)]
pub struct Paused<'a>(&'a Prometheus);

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.0.child.signal(Signal::CONT);
    }
}

/// The scrape job of agents, with their nodes' names.
pub fn agents_job(agents: &[(&str, SocketAddr)]) -> String {
    let mut job = "- job_name: tracer\n  honor_labels: true\n  static_configs:\n".to_owned();
    for (node, address) in agents {
        writeln!(
            job,
            "  - targets: ['{address}']\n    labels: {{instance: '{node}'}}"
        )
        .expect("strings can be written");
    }
    job
}

/// `promtool`, to be given arguments.
pub fn promtool() -> Command {
    Command::new(unpacked::program(NAME, "promtool"))
}

fn configuration(scrape_configs: &str, rules: &[&Path]) -> String {
    let interval = INTERVAL.as_secs();
    let mut text = format!(
        "global:\n  scrape_interval: {interval}s\n  scrape_timeout: {interval}s\n  \
         evaluation_interval: {interval}s\n"
    );
    if !rules.is_empty() {
        text += "rule_files:\n";
        for rule in rules {
            let rule = rule
                .canonicalize()
                .unwrap_or_else(|e| panic!("{}: {e}", rule.display()));
            writeln!(text, "- '{}'", rule.display()).expect("strings can be written");
        }
    }
    text += "scrape_configs:\n";
    for line in scrape_configs.lines() {
        writeln!(text, "  {line}").expect("strings can be written");
    }
    text
}

fn labels(metric: &Value) -> Labels {
    let mut labels: BTreeMap<String, String> =
        serde_json::from_value(metric.clone()).expect("labels are text");
    labels.remove("__name__");
    labels
}

/// `[time, "value"]`.
fn point(pair: &Value) -> (f64, f64) {
    let value = pair[1].as_str().expect("values are text");
    (
        pair[0].as_f64().expect("times are numbers"),
        value.parse().expect("a number, NaN, +Inf or -Inf"),
    )
}

/// Percent-encoding of everything but letters and digits.
fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("strings can be written");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_scrapes_itself_and_answers() {
        let prometheus = Prometheus::start("[]", &[]);
        let own = format!(
            "- job_name: own\n  static_configs:\n  - targets: ['{}']\n",
            prometheus.address()
        );
        prometheus.reconfigure(&own, &[]);
        prometheus.await_up("own", 1);
        let up = prometheus.query("up");
        assert_eq!(up[0].labels["job"], "own");
        let minute = Duration::from_mins(1);
        let series = prometheus.query_range("up", minute, INTERVAL);
        assert_eq!(series[0].labels["job"], "own");
        assert_eq!(prometheus.query("1 + 1")[0].value.to_string(), "2");
    }
}
