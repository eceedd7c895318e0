//! Packet filters and address translation in a lab's namespace, by nftables.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;

use serde_json::Value;

use crate::netns::Netns;

/// Name of the lab's table; a namespace has one at a time.
const TABLE: &str = "inet lab";

/// Loaded rules; they go on drop.
#[derive(Debug)]
pub struct Rules {
    netns: Arc<Netns>,
}

impl Rules {
    /// Loads a table with these chains, as nftables writes them. What its counter named `hit` counts,
    /// [`Rules::hits`] tells.
    pub fn load(netns: &Arc<Netns>, chains: &str) -> Self {
        let text = format!("table {TABLE} {{\n counter hit {{ }}\n{chains}\n}}\n");
        feed(netns, &text);
        Self {
            netns: Arc::clone(netns),
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
        let output = self.netns.run(|| {
            Command::new("nft")
                .args(["-j", "list", "counters"])
                .output()
                .expect("nft runs")
        });
        let listed: Value = serde_json::from_slice(&output.stdout).expect("nft prints JSON");
        let all = listed["nftables"].as_array().expect("nft lists objects");
        let hit = all.iter().find(|object| object["counter"]["name"] == "hit");
        hit.and_then(|object| object["counter"]["packets"].as_u64())
            .expect("the table has the counter")
    }
}

impl Drop for Rules {
    fn drop(&mut self) {
        let deleted = self.netns.run(|| {
            Command::new("nft")
                .args(["delete", "table"])
                .args(TABLE.split(' '))
                .status()
        });
        if !deleted.is_ok_and(|status| status.success()) {
            eprintln!("cannot delete the rules of {}", self.netns.name());
        }
    }
}

fn feed(netns: &Netns, text: &str) {
    let output = netns.run(|| {
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
        child.wait_with_output().expect("nft ends")
    });
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "nft refused this: {said}\n{text}");
}
