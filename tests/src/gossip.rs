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
/// Each node is in two clusters, as Consul's servers are: one of the site, one of all sites. Their ports on UDP and
/// TCP, and those of the command line.
const POOLS: [(u16, u16); 2] = [(7946, 7373), (7947, 7374)];

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

/// One node: a namespace, and a cgroup with all its processes, which are serfs.
#[derive(Debug)]
pub struct Member {
    /// Its name, in serf and to tracer.
    pub name: String,
    /// Its namespace.
    pub netns: Arc<Netns>,
    number: u8,
    serfs: [(Reaped, Collected); POOLS.len()],
    // After the processes, which must be gone when it goes.
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
        let serfs = POOLS.map(|(port, command_port)| {
            let mut serf = netns.run(|| {
                Command::new(unpacked::program(SERF, SERF))
                    .args(["agent", "-log-level=debug", "-retry-interval=1s"])
                    .arg(format!("-rpc-addr=127.0.0.1:{command_port}"))
                    .arg(format!("-node={name}"))
                    .arg(format!("-bind={}:{port}", address(number)))
                    .arg(format!("-retry-join={}:{port}", address(1)))
                    .stdin(Stdio::null())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::null())
                    .spawn()
                    .expect("serf runs")
            });
            let said = collect(serf.stdout.take().expect("stdout is piped"));
            cgroup.take_in(serf.id());
            (Reaped(serf), said)
        });
        Self {
            name,
            netns,
            number,
            serfs,
            cgroup,
        }
    }

    /// Where the others find it.
    pub fn address(&self) -> IpAddr {
        address(self.number)
    }

    /// What its serfs have logged, one behind the other.
    pub fn log(&self) -> String {
        self.serfs.iter().map(|(_, said)| said.text()).collect()
    }

    /// How often its serfs suspected a member, as they logged it.
    pub fn suspected(&self, member: &str) -> usize {
        let line = format!("memberlist: Suspect {member} has failed");
        self.log().lines().filter(|l| l.contains(&line)).count()
    }

    /// Do its serfs run, and has each seen so many members?
    fn check(&mut self, nodes: usize) -> Result<(), String> {
        for (serf, said) in &mut self.serfs {
            let ended = serf.0.try_wait().expect("child can be waited for");
            assert!(ended.is_none(), "serf ended ({ended:?}): {}", said.text());
            let joined = said.text().matches("EventMemberJoin: ").count();
            ensure(joined >= nodes, || {
                format!("{} knows {joined} of {nodes}: {}", self.name, said.text())
            })?;
        }
        Ok(())
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
        // What gossip has lost comes with the next exchange of everything, each 30 s.
        eventually(Duration::from_secs(75), || {
            let mut members = gossip.members.iter_mut();
            members.try_for_each(|member| member.check(nodes.into()))
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
        let to = format!("->{}:", self.member(name).address());
        let words = ["read tcp", &to, "i/o timeout"];
        let waited = |line: &&str| words.iter().all(|word| line.contains(word));
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
