//! Who watches the node meanwhile.

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde::Serialize;
use tests::process::{Collected, Reaped, collect};
use tests::wait;
use tests::{Agent, Lab, eventually};

/// What `bpftrace` is given: the same two things as tracer counts, lookups and neighbours, by network
/// namespace; with tracepoints, which every kernel has.
const SCRIPT: &str = r"
tracepoint:net:net_dev_queue {
  $skb = (struct sk_buff *)args->skbaddr;
  if ($skb->protocol != 0x8 && $skb->protocol != 0xdd86) { return; }
  $udp = (struct udphdr *)($skb->head + $skb->transport_header);
  if ($udp->dest == 0x3500) { @queries[$skb->dev->nd_net.net->ns.inum] = count(); }
  if ($udp->source == 0x3500) { @answers[$skb->dev->nd_net.net->ns.inum] = count(); }
}
tracepoint:neigh:neigh_create { @creates[str(args->dev)] = count(); }
";

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Watcher {
    /// The measure of the others.
    Nobody,
    Tracer,
    Tcpdump,
    Tshark,
    Bpftrace,
}

/// It is killed on drop.
pub enum Running {
    Nobody,
    Agent(Agent),
    Program(Reaped),
}

impl Watcher {
    pub const ALL: [Self; 5] = [
        Self::Nobody,
        Self::Tracer,
        Self::Tcpdump,
        Self::Tshark,
        Self::Bpftrace,
    ];

    /// For people: what is run.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Tracer => "tracer agent",
            Self::Tcpdump => "tcpdump -ni any udp port 53",
            Self::Tshark => "tshark -ni any -f 'udp port 53'",
            Self::Bpftrace => "bpftrace: queries, neighbours",
        }
    }

    /// Can it be run on this machine?
    pub fn is_here(self) -> bool {
        self.command().is_none_or(|(mut command, _)| {
            command
                .arg("--version")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok()
        })
    }

    /// What runs it, and what it says on stderr once it watches.
    fn command(self) -> Option<(Command, &'static str)> {
        let (program, arguments, word): (_, &[&str], _) = match self {
            Self::Nobody | Self::Tracer => return None,
            Self::Tcpdump => ("tcpdump", &["-ni", "any", "udp", "port", "53"], "listening"),
            Self::Tshark => ("tshark", &["-ni", "any", "-f", "udp port 53"], "Capturing"),
            Self::Bpftrace => ("bpftrace", &["-e", SCRIPT], ""),
        };
        let mut command = Command::new(program);
        command.args(arguments);
        Some((command, word))
    }

    /// Starts it where all lookups pass: in the hub's namespace, as on a node.
    pub fn start(self, lab: &Lab) -> Result<Running> {
        let Some((mut command, word)) = self.command() else {
            return Ok(match self {
                Self::Tracer => Running::Agent(Agent::start(&[])),
                _ => Running::Nobody,
            });
        };
        let null = File::options().write(true).open("/dev/null")?;
        // What bpftrace has to say comes on stdout.
        let words_on_stdout = word.is_empty();
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        if words_on_stdout {
            command.stdout(Stdio::piped());
        } else {
            command.stdout(null);
        }
        let child = lab.hub.run(|| command.spawn());
        let mut child = Reaped(child.with_context(|| format!("cannot run {}", self.name()))?);
        let said: Collected = if words_on_stdout {
            collect(child.0.stdout.take().context("stdout is piped")?)
        } else {
            collect(child.0.stderr.take().context("stderr is piped")?)
        };
        let word = if words_on_stdout { "Attaching" } else { word };
        eventually(Duration::from_secs(20), || {
            let said = said.text();
            wait::ensure(said.contains(word), || format!("{}: {said}", self.name()))
        });
        // The last bit of its start is silent.
        std::thread::sleep(Duration::from_millis(500));
        Ok(Running::Program(child))
    }
}

impl Running {
    /// Ends it; what was measured beside one that had ended before is worth nothing.
    pub fn stop(mut self) -> Result<()> {
        match &mut self {
            Self::Nobody => Ok(()),
            Self::Agent(agent) => {
                let (status, _) = agent.stop(Signal::TERM);
                ensure!(
                    status.success(),
                    "it ended badly ({status}):\n{}",
                    agent.stderr()
                );
                Ok(())
            }
            Self::Program(child) => {
                let ended = child.0.try_wait()?;
                ensure!(
                    ended.is_none(),
                    "it had ended before it was stopped ({ended:?})"
                );
                child.signal(Signal::TERM);
                child.wait(Duration::from_secs(10));
                Ok(())
            }
        }
    }
}
