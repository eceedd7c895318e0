//! The incident *dead endpoint*: pods are replaced, and their clients, whose list of addresses is no
//! longer brought up to date, go on calling the dead; and members of the control plane that fall
//! silent.

pub mod client;
pub mod control;
pub mod street;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use self::client::Client;
use self::street::{Street, delete, port};
use super::overflow::town::Resident;
use super::pods::{Listed, Pods};
use super::{NAMED_WITHIN, Stage, Timeline};
use crate::agent::Agent;
use crate::events::{Event, Events};
use crate::netns::{Lab, Netns};
use crate::nft::Rules;
use crate::tcp::truth::last_owner;
use crate::tcp::{Manner, Server};
use crate::wait::{check_interrupt, ensure, eventually, patient};

/// Where ledgers listen.
pub const LEDGER: u16 = 8080;
/// The service of which the last endpoint goes.
pub const SERVICE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), 80);

/// All of it, for an audience.
pub fn play(timeline: &mut Timeline) {
    let lab = Lab::new();
    let node = Arc::clone(&lab.hub);
    let mut scene = DeadEndpoint::new(&node, timeline);
    scene.deploy(timeline);
    scene.name_all(timeline);
    timeline.ask(&scene.agent, &["why"]);
    scene.revive(timeline);
    timeline.linger();
    scene.agent.stop_cleanly();
}

/// One way of being dead.
#[derive(Debug)]
pub struct Way {
    /// In a few words.
    pub what: &'static str,
    /// Who calls: `bank/NAME`.
    pub pod: Resident,
    /// Whom.
    pub to: SocketAddr,
    /// What comes of it.
    pub result: &'static str,
    /// Who had the address: `NS/NAME`, empty for a service's.
    pub owner: &'static str,
    /// Whether that pod is gone.
    pub gone: bool,
    /// The calls.
    pub client: Client,
}

/// The node, clients, and ledgers that are alive.
#[derive(Debug)]
pub struct DeadEndpoint {
    /// The agent.
    pub agent: Agent,
    /// Its events.
    pub events: Events,
    /// The four ways.
    pub ways: Vec<Way>,
    /// Alive all the time, called by all.
    pub healthy: SocketAddr,
    /// Calls only who is healthy.
    pub calm: (Resident, Client),
    /// By the wall clock, when pods went.
    pub went: Option<SystemTime>,
    servers: Vec<Option<Server>>,
    ledgers: Vec<Option<Resident>>,
    rules: Option<Rules>,
    pods: Pods,
    street: Street,
}

impl DeadEndpoint {
    /// Everybody is there, and all calls succeed.
    pub fn new(node: &Arc<Netns>, timeline: &mut Timeline) -> Self {
        timeline.now(
            Stage::Step,
            "clients call ledgers: on their segment, by a route, by a service; all calls succeed",
        );
        let mut street = Street::new(node);
        let ledgers = vec![
            street.on_bridge("bank", "ledger-0"),
            street.on_route("bank", "ledger-1"),
            street.on_bridge("bank", "ledger-2"),
            street.on_route("bank", "ledger-3"),
            street.on_bridge("bank", "ledger-healthy"),
        ];
        let serve = |one: &Resident| {
            Some(Server::start(
                &one.netns,
                &[port(one, LEDGER)],
                Manner::Close,
            ))
        };
        let servers = ledgers.iter().map(serve).collect();
        let [behind, healthy] = [3, 4].map(|n: usize| port(&ledgers[n], LEDGER));
        // As kube-proxy has it for a service with one endpoint.
        let rules = Rules::load(
            node,
            &format!(
                " chain service {{ type nat hook prerouting priority -100; \
                 ip daddr {} tcp dport {} counter name hit dnat ip to {behind}; }}",
                SERVICE.ip(),
                SERVICE.port()
            ),
        );
        let mut pods = Pods::new();
        pods.add(ledgers.iter().map(|one| one.listed.clone()));
        pods.add([Listed::of("kube-system", "node", &node.path())]);
        let plan: [(&str, SocketAddr, &str, &str, bool); 4] = [
            (
                "on the same segment",
                port(&ledgers[0], LEDGER),
                "unreachable",
                "bank/ledger-0",
                true,
            ),
            (
                "routed into nothing",
                port(&ledgers[1], LEDGER),
                "timeout",
                "bank/ledger-1",
                true,
            ),
            (
                "a host where nobody listens",
                port(&ledgers[2], LEDGER),
                "refused",
                "bank/ledger-2",
                false,
            ),
            ("a service without endpoints", SERVICE, "refused", "", false),
        ];
        let callers: Vec<Resident> = (0..4)
            .map(|n| street.on_bridge("bank", &format!("proxy-{n}")))
            .collect();
        // It knows soon that its neighbour is gone: else for up to 45 s an entry is taken for good.
        for (key, value) in [
            ("base_reachable_time_ms", "2000"),
            ("delay_first_probe_time", "1"),
        ] {
            let device = &callers[0].device;
            callers[0]
                .netns
                .sysctl(&format!("ipv4/neigh/{device}/{key}"), value);
        }
        let calm = street.on_bridge("bank", "proxy-calm");
        pods.add(callers.iter().chain([&calm]).map(|one| one.listed.clone()));
        let agent = Agent::start(&["--window", "30s", "--pods", &pods.argument()]);
        pods.await_known(&agent);
        timeline.watch(&agent);
        let ways: Vec<Way> = plan
            .into_iter()
            .zip(callers)
            .map(|((what, to, result, owner, gone), pod)| Way {
                client: Client::start(&pod, &[to, healthy]),
                what,
                pod,
                to,
                result,
                owner,
                gone,
            })
            .collect();
        let client = Client::start(&calm, &[healthy]);
        let scene = Self {
            events: agent.events(),
            agent,
            ways,
            healthy,
            calm: (calm, client),
            went: None,
            servers,
            ledgers: ledgers.into_iter().map(Some).collect(),
            rules: Some(rules),
            pods,
            street,
        };
        for way in &scene.ways {
            eventually(Duration::from_secs(10), || {
                let ended = way.client.ended();
                let good = ended.iter().filter(|(_, one)| one.to == way.to);
                let good = good.filter(|(_, one)| one.result == "established").count();
                ensure(good >= 3, || format!("{}: {ended:?}", way.what))
            });
        }
        scene
    }

    /// The deployment: two ledgers are deleted, one loses its program, the service its endpoint. All
    /// clients go on.
    pub fn deploy(&mut self, timeline: &mut Timeline) {
        self.went = Some(SystemTime::now());
        let onset = Instant::now();
        for gone in 0..2 {
            let ledger = self.ledgers[gone].take().expect("it is there");
            self.pods.remove(&ledger.listed.name);
            self.servers[gone] = None;
            delete(ledger);
        }
        self.servers[2] = None;
        self.rules = None;
        let service = SERVICE.ip();
        // As kube-proxy has it then.
        self.rules = Some(Rules::load(
            &self.street.node,
            &format!(
                " chain service {{ type filter hook forward priority 0; \
                 ip daddr {service} tcp dport {} counter name hit \
                 reject with icmp type port-unreachable; }}",
                SERVICE.port()
            ),
        ));
        timeline.at(
            onset,
            Stage::Onset,
            "a deployment: ledger-0 and ledger-1 are deleted, ledger-2's program ends, the service has \
             no endpoint; the clients are not told",
        );
    }

    /// Waits until each dead endpoint has a name: an event tells client, destination and who it was,
    /// and the metric shows it as dead. Gives for each way how long that took from the onset.
    pub fn name_all(&mut self, timeline: &mut Timeline) -> Vec<Duration> {
        let onset = timeline.reached(Stage::Onset).expect("it has begun");
        let mut named = vec![None; self.ways.len()];
        let (mut failed, mut dead) = (false, vec![None; self.ways.len()]);
        while named.iter().chain(&dead).any(Option::is_none) {
            check_interrupt();
            self.events.listen(Duration::from_millis(100));
            let first = self.ways.iter().filter_map(|way| {
                let failed = way.client.failed(way.to);
                failed.first().map(|(at, one)| (*at, one.result, way))
            });
            if !failed && let Some((at, result, way)) = first.min_by_key(|(at, ..)| *at) {
                failed = true;
                let text = format!("{}: {} gets `{result}`", way.pod.name(), way.what);
                timeline.at(at, Stage::Failure, text);
            }
            for (way, named) in self.ways.iter().zip(&mut named) {
                if named.is_none()
                    && let Some(event) = self.events.seen.iter().find(|event| way.is_told(event))
                {
                    *named = Some(event.at);
                    let text = format!(
                        "event `connect_failure`: {} -> {} {}{}",
                        way.pod.name(),
                        way.to,
                        event.text("result"),
                        way.told_owner()
                    );
                    timeline.at(event.at, Stage::Named, text);
                }
            }
            let metrics = self.agent.metrics();
            for (way, dead) in self.ways.iter().zip(&mut dead) {
                let shown = last_owner(&metrics, &way.to.to_string());
                if dead.is_none() && shown.as_deref() == Some(way.owner) {
                    *dead = Some(Instant::now());
                    let text = format!("metric `tracer_dead_endpoint_info`: {}", way.to);
                    timeline.now(Stage::Step, text);
                }
            }
            assert!(
                onset.elapsed() < patient(NAMED_WITHIN),
                "not named: {named:?} {dead:?}\n{timeline:?}{:?}",
                self.events
                    .seen
                    .iter()
                    .map(|event| event.json.to_string())
                    .collect::<Vec<_>>()
            );
        }
        let both = named.into_iter().zip(dead);
        both.map(|(event, metric)| event.max(metric).expect("all are") - onset)
            .collect()
    }

    /// Waits until each way fails as it does for good, and an event tells so.
    pub fn await_results(&mut self) {
        for way in &self.ways {
            self.events
                .wait(Duration::from_secs(30), |event| way.is_told_for_good(event));
        }
    }

    /// Another pod gets the first address, and the program of ledger-2 is started again.
    pub fn revive(&mut self, timeline: &mut Timeline) {
        let to = self.ways[0].to;
        let new = self.street.in_place_of(to.ip(), "bank", "ledger-new");
        self.pods.add([new.listed.clone()]);
        self.servers[0] = Some(Server::start(&new.netns, &[to], Manner::Close));
        self.ledgers[0] = Some(new);
        let ledger = self.ledgers[2].as_ref().expect("it is there");
        self.servers[2] = Some(Server::start(
            &ledger.netns,
            &[self.ways[2].to],
            Manner::Close,
        ));
        timeline.now(
            Stage::Step,
            "bank/ledger-new gets the address of ledger-0; ledger-2's program is back",
        );
        eventually(Duration::from_secs(20), || {
            let metrics = self.agent.metrics();
            for way in [&self.ways[0], &self.ways[2]] {
                let shown = last_owner(&metrics, &way.to.to_string());
                ensure(shown.is_none(), || format!("{} is still dead", way.to))?;
            }
            Ok::<(), String>(())
        });
        timeline.now(Stage::Over, "these two are dead endpoints no more");
    }
}

impl Way {
    /// Does an event tell of it: client, destination, and who it was, and since when?
    pub fn is_told(&self, event: &Event) -> bool {
        let gone = event.text("owner_gone_since");
        event.is("connect_failure", &self.pod.listed.name)
            && event.text("destination") == self.to.to_string()
            && event.text("last_owner") == self.owner
            && gone.is_empty() != self.gone
    }

    /// And with the result that this way of being dead has for good? Until the entry of a neighbour has
    /// aged, calls of it run out of time.
    fn is_told_for_good(&self, event: &Event) -> bool {
        self.is_told(event) && event.text("result") == self.result
    }

    fn told_owner(&self) -> String {
        match (self.owner, self.gone) {
            ("", _) => String::new(),
            (owner, true) => format!(", last owned by {owner}, which is gone"),
            (owner, false) => format!(", owned by {owner}"),
        }
    }
}
