//! A real gossip cluster: serf (the member list of Consul) in network namespaces that stand for nodes, on one
//! segment, and three ways to make one of them sick.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::cgroup::Cgroup;
use crate::netns::{DEVICE, Lab, Netns};
use crate::nft::Rules;
use crate::process::{Collected, Reaped, collect};
use crate::unpacked;
use crate::wait::{ensure, eventually};

/// Package and program.
const SERF: &str = "serf";
/// Members on UDP and TCP, by serf's own default.
pub const PORT: u16 = 7946;

/// How a node is sick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sickness {
    /// It gets the processor for short turns only.
    Starved,
    /// It loses half of its packets, in each direction.
    Lossy,
    /// It stands still for seconds, again and again, as a machine that its host forgets.
    Paused,
}

impl Sickness {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Starved, Self::Lossy, Self::Paused];

    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starved => "starved",
            Self::Lossy => "lossy",
            Self::Paused => "paused",
        }
    }

    /// What is done to the node, in a sentence.
    pub fn text(self) -> &'static str {
        match self {
            Self::Starved => "gets the processor for 50 ms of each 3 s",
            Self::Lossy => "loses half of its packets in each direction",
            Self::Paused => "stands still for 6 s of each 10 s",
        }
    }

    /// How long it stands still, and how long it runs then.
    fn turns(self) -> Option<(Duration, Duration)> {
        let turns = |still, runs| Some((Duration::from_millis(still), Duration::from_millis(runs)));
        match self {
            Self::Starved => turns(2950, 50),
            Self::Paused => turns(6000, 4000),
            Self::Lossy => None,
        }
    }
}

/// One node: a namespace, and a cgroup with all its processes, which is serf.
#[derive(Debug)]
pub struct Member {
    /// Its name, in serf and to tracer.
    pub name: String,
    /// Its namespace.
    pub netns: Arc<Netns>,
    number: u8,
    serf: Reaped,
    said: Collected,
    // After the process, which must be gone when it goes.
    cgroup: Cgroup,
}

impl Member {
    fn start(lab: &Lab, number: u8) -> Self {
        let name = format!("n{number}");
        let netns = Arc::new(Netns::new(&name));
        let index = 100 + u32::from(number);
        netns.ip_batch(&format!(
            "link add {DEVICE} index {index} type veth peer name {name} netns {}\n\
             address add {}/24 dev {DEVICE}\nlink set {DEVICE} up",
            lab.hub.name(),
            address(number)
        ));
        lab.hub.ip_batch(&format!(
            "link set {name} master gossip\nlink set {name} up"
        ));
        let cgroup = Cgroup::make(&name);
        let mut serf = netns.run(|| {
            Command::new(unpacked::program(SERF, SERF))
                .args(["agent", "-log-level=debug", "-rpc-addr=127.0.0.1:7373"])
                .arg(format!("-node={name}"))
                .arg(format!("-bind={}:{PORT}", address(number)))
                .args(["-retry-interval=1s", &format!("-retry-join={}", address(1))])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .expect("serf runs")
        });
        let said = collect(serf.stdout.take().expect("stdout is piped"));
        let serf = Reaped(serf);
        cgroup.take_in(serf.0.id());
        Self {
            name,
            netns,
            number,
            serf,
            said,
            cgroup,
        }
    }

    /// Where the others find it.
    pub fn address(&self) -> IpAddr {
        address(self.number)
    }

    /// What its serf has logged.
    pub fn log(&self) -> String {
        self.said.text()
    }

    /// How often its serf suspected a member, as it logged it.
    pub fn suspected(&self, member: &str) -> usize {
        let line = format!("memberlist: Suspect {member} has failed");
        self.log().lines().filter(|l| l.contains(&line)).count()
    }

    /// Does its serf run?
    fn ensure_runs(&mut self) {
        let ended = self.serf.0.try_wait().expect("child can be waited for");
        assert!(ended.is_none(), "serf ended ({ended:?}): {}", self.log());
    }
}

fn address(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 88, 0, number).into()
}

/// The cluster.
#[derive(Debug)]
pub struct Gossip {
    /// Its nodes.
    pub members: Vec<Member>,
    // Last: the segment and the host's lock.
    _lab: Lab,
}

impl Gossip {
    /// So many nodes, of which every one knows every other as alive.
    pub fn start(nodes: u8) -> Self {
        let lab = Lab::new();
        lab.hub
            .ip_batch("link add gossip type bridge\nlink set gossip up");
        let members = (1..=nodes).map(|n| Member::start(&lab, n)).collect();
        let mut gossip = Self { members, _lab: lab };
        eventually(Duration::from_secs(30), || {
            for member in &mut gossip.members {
                member.ensure_runs();
                let joined = member.log().matches("EventMemberJoin: ").count();
                ensure(joined >= usize::from(nodes), || {
                    format!(
                        "{} knows {joined} of {nodes}: {}",
                        member.name,
                        member.log()
                    )
                })?;
            }
            Ok::<(), String>(())
        });
        gossip
    }

    /// A member by its name.
    pub fn member(&self, name: &str) -> &Member {
        let found = self.members.iter().find(|member| member.name == name);
        found.unwrap_or_else(|| panic!("there is no {name}"))
    }

    /// Ground truth: how often each member was suspected by the others.
    pub fn suspicions(&self) -> Vec<(&str, usize)> {
        let of = |name: &str| -> usize {
            let others = self.members.iter().filter(|member| member.name != name);
            others.map(|member| member.suspected(name)).sum()
        };
        let members = self.members.iter().map(|member| member.name.as_str());
        members.map(|name| (name, of(name))).collect()
    }

    /// Ground truth: connections to a member on which the others' serf waited in vain for an answer, as it logged
    /// them.
    pub fn unanswered(&self, name: &str) -> usize {
        let from = format!("->{}:{PORT}: i/o timeout", self.member(name).address());
        let waited = |line: &&str| line.contains("read tcp") && line.ends_with(&from);
        let others = self.members.iter().filter(|member| member.name != name);
        others
            .map(|member| member.log().lines().filter(waited).count())
            .sum()
    }

    /// Makes a member sick until the guard goes.
    pub fn sicken(&self, name: &str, sickness: Sickness) -> Sick {
        let member = self.member(name);
        let Some((still, runs)) = sickness.turns() else {
            let lose = |hook: &str, device: &str| {
                format!(
                    " chain {hook} {{ type filter hook {hook} priority 0; {device} \"{DEVICE}\" \
                     numgen random mod 100 < 50 counter name hit drop\n }}\n"
                )
            };
            let chains = lose("input", "iifname") + &lose("output", "oifname");
            let rules = Rules::load(&member.netns, &chains);
            return Sick {
                _rules: Some(rules),
                turns: None,
            };
        };
        let well = Arc::new(AtomicBool::new(false));
        let file = member.cgroup.path().join("cgroup.freeze");
        let ends = Arc::clone(&well);
        let turns = thread::spawn(move || {
            // Its last word is always that it may run. Without the file the member is gone.
            while !ends.load(Ordering::Relaxed) {
                for (word, time) in [("1", still), ("0", runs)] {
                    if fs::write(&file, word).is_err() {
                        return;
                    }
                    thread::park_timeout(time);
                }
            }
        });
        Sick {
            _rules: None,
            turns: Some((well, turns)),
        }
    }
}

/// A sick member; it is well again when this is dropped.
#[derive(Debug)]
pub struct Sick {
    _rules: Option<Rules>,
    turns: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
}

impl Drop for Sick {
    fn drop(&mut self) {
        if let Some((well, turns)) = self.turns.take() {
            well.store(true, Ordering::Relaxed);
            turns.thread().unpark();
            // It cannot panic.
            let _ = turns.join();
        }
    }
}
