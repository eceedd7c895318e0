//! Packet filters and address translation in a lab's namespace, by nftables.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;

use serde_json::Value;

use crate::host::HostLock;
use crate::netns::Netns;

/// Loaded rules; they go on drop.
#[derive(Debug)]
pub struct Rules {
    netns: Option<Arc<Netns>>,
    /// `inet`, or `netdev`.
    family: &'static str,
    table: &'static str,
}

impl Rules {
    /// Loads a table with these chains, as nftables writes them. What its counter named `hit` counts,
    /// [`Rules::hits`] tells.
    pub fn load(netns: &Arc<Netns>, chains: &str) -> Self {
        Self::named(netns, "lab", chains)
    }

    /// The same under a name of its own: a namespace has one table of a name at a time.
    pub fn named(netns: &Arc<Netns>, table: &'static str, chains: &str) -> Self {
        Self::start(Some(Arc::clone(netns)), "inet", table, chains)
    }

    /// Counts and drops what matches as it leaves by a device, behind all that routing does.
    pub fn drop_at(netns: &Arc<Netns>, device: &str, matches: &[&str]) -> Self {
        let rules = matches
            .iter()
            .map(|one| format!("  {one} counter name hit drop\n"));
        let chain = format!(
            " chain refuse {{ type filter hook egress device \"{device}\" priority 0;\n{} }}",
            rules.collect::<String>()
        );
        Self::start(Some(Arc::clone(netns)), "netdev", "lab", &chain)
    }

    /// Rules in the host's own namespace, for who has its lock.
    pub fn host(_lock: &HostLock, chains: &str) -> Self {
        Self::start(None, "inet", "tracer_lab", chains)
    }

    fn start(
        netns: Option<Arc<Netns>>,
        family: &'static str,
        table: &'static str,
        chains: &str,
    ) -> Self {
        let rules = Self {
            netns,
            family,
            table,
        };
        let text = format!("table {family} {table} {{\n counter hit {{ }}\n{chains}\n}}\n");
        rules.inside(|| feed(&text));
        rules
    }

    fn inside<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        match &self.netns {
            Some(netns) => netns.run(f),
            None => f(),
        }
    }

    /// Counts and drops what matches in one of netfilter's hooks: `input`, `output`, `forward`,
    /// `prerouting`, `postrouting`; the last two before and behind all address translation.
    pub fn drop(netns: &Arc<Netns>, hook: &str, matches: &str) -> Self {
        let priority = match hook {
            "prerouting" => -300,
            "postrouting" => 300,
            _ => 0,
        };
        Self::load(
            netns,
            &format!(
                " chain refuse {{ type filter hook {hook} priority {priority}; {matches} counter name \
                 hit drop; }}"
            ),
        )
    }

    /// Ground truth: packets that the counter `hit` counted.
    pub fn hits(&self) -> u64 {
        let output = self.inside(|| {
            Command::new("nft")
                .args(["-j", "list", "counters"])
                .output()
                .expect("nft runs")
        });
        let listed: Value = serde_json::from_slice(&output.stdout).expect("nft prints JSON");
        let all = listed["nftables"].as_array().expect("nft lists objects");
        let hit = all.iter().find(|object| {
            let counter = &object["counter"];
            counter["name"] == "hit"
                && counter["family"] == self.family
                && counter["table"] == self.table
        });
        hit.and_then(|object| object["counter"]["packets"].as_u64())
            .expect("the table has the counter")
    }
}

impl Drop for Rules {
    fn drop(&mut self) {
        let deleted = self.inside(|| {
            Command::new("nft")
                .args(["delete", "table", self.family, self.table])
                .status()
        });
        if !deleted.is_ok_and(|status| status.success()) {
            eprintln!("cannot delete table {} of {:?}", self.table, self.netns);
        }
    }
}

fn feed(text: &str) {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot run nft: {e}; the tests need nftables"));
    let mut stdin = child.stdin.take().expect("stdin is piped");
    stdin
        .write_all(text.as_bytes())
        .expect("nft reads its commands");
    drop(stdin);
    let output = child.wait_with_output().expect("nft ends");
    let said = String::from_utf8_lossy(&output.stderr);
    let shown: String = text.chars().take(1000).collect();
    assert!(output.status.success(), "nft refused this: {said}\n{shown}");
}
