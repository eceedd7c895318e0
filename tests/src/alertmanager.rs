//! The real Alertmanager, with storage of its own; spoken to by its `amtool`.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::agent::free_address;
use crate::http;
use crate::metrics::Labels;
use crate::process::{Reaped, run};
use crate::unpacked;
use crate::wait::{ensure, eventually};

const PACKAGE: &str = "prometheus-alertmanager";
const LIMIT: Duration = Duration::from_secs(15);

/// A running Alertmanager on the loopback device; killed on drop.
#[derive(Debug)]
pub struct Alertmanager {
    _child: Reaped,
    address: SocketAddr,
    _folder: TempDir,
}

impl Alertmanager {
    /// Starts one with this configuration and waits until it answers.
    pub fn start(config: &Path) -> Self {
        let folder = tempfile::tempdir().expect("temporary folders can be made");
        let address = free_address();
        let program = unpacked::program(PACKAGE, PACKAGE);
        let mut command = with_its_files(&program);
        command
            .arg(&program)
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.path={}", folder.path().display()))
            .arg(format!("--web.listen-address={address}"))
            .args(["--cluster.listen-address=", "--log.level=error"])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let child = command
            .spawn()
            .unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
        eventually(LIMIT, || match http::tcp(address, "GET", "/-/ready") {
            Ok(response) if response.status == 200 => Ok(()),
            other => Err(format!("Alertmanager is not ready: {other:?}")),
        });
        Self {
            _child: Reaped(child),
            address,
            _folder: folder,
        }
    }

    /// An alert that begins now, by its labels.
    pub fn fire(&self, labels: &[(&str, &str)]) {
        let mut command = self.amtool(&["alert", "add"]);
        for (name, value) in labels {
            command.arg(format!("{name}={value}"));
        }
        let ended = run(&mut command, LIMIT);
        assert!(ended.status.success(), "{command:?}: {ended:?}");
    }

    /// Labels of the alerts that it notifies of, once it has judged so many.
    pub fn not_inhibited(&self, fired: usize) -> Vec<Labels> {
        eventually(LIMIT, || {
            let all = self.query(&["--inhibited", "--active", "--unprocessed"]);
            ensure(
                all.len() >= fired && self.query(&["--unprocessed"]).is_empty(),
                || format!("{} of {fired} alerts", all.len()),
            )
        });
        self.query(&["--active"])
    }

    fn query(&self, which: &[&str]) -> Vec<Labels> {
        let mut command = self.amtool(&["alert", "query", "--output=json"]);
        let ended = run(command.args(which), LIMIT);
        assert!(ended.status.success(), "{command:?}: {ended:?}");
        let alerts: Vec<Value> = serde_json::from_str(&ended.stdout)
            .unwrap_or_else(|e| panic!("{command:?}: {e}: {}", ended.stdout));
        alerts
            .into_iter()
            .map(|mut alert| {
                serde_json::from_value(alert["labels"].take()).expect("labels are text")
            })
            .collect()
    }

    fn amtool(&self, arguments: &[&str]) -> Command {
        let mut command = amtool();
        let mut url = String::from("--alertmanager.url=http://");
        write!(url, "{}", self.address).expect("strings can be written");
        command.args(arguments).arg(url);
        command
    }
}

/// Runs a program of an unpacked package where its files are in `/usr/share`, as Debian built it to
/// expect: in a mount namespace of its own, with that folder laid over the host's. To be given the
/// program and its arguments.
fn with_its_files(program: &Path) -> Command {
    let usr = program.ancestors().nth(2).expect("it is in usr/bin");
    let script = "mount -t overlay overlay -o \"lowerdir=$0:/usr/share\" /usr/share && exec \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "sh", "-c", script])
        .arg(usr.join("share"));
    command
}

/// `amtool`, to be given arguments.
pub fn amtool() -> Command {
    Command::new(unpacked::program(PACKAGE, "amtool"))
}
