//! The lab: what the end-to-end tests need to make trouble on a real kernel and to know, without
//! tracer's help, what really happened.
//!
//! Nothing here uses tracer's own code: counts to compare with come from the kernel's statistics and
//! from the clients' own tally. All traffic stays inside network namespaces that the lab makes.
#![forbid(unsafe_code)]

pub mod agent;
pub mod alertmanager;
pub mod bench;
pub mod bpffs;
pub mod cgroup;
pub mod clock;
pub mod containerd;
pub mod cri;
pub mod crowd;
pub mod daemonset;
pub mod dns;
pub mod doctor;
pub mod entries;
pub mod events;
pub mod faults;
pub mod gossip;
pub mod host;
pub mod http;
pub mod incident;
pub mod kubernetes;
pub mod leftovers;
pub mod mechanisms;
pub mod memory;
pub mod metrics;
pub mod neigh;
pub mod netns;
pub mod nft;
pub mod overflow;
pub mod point;
pub mod process;
pub mod prometheus;
pub mod replay;
pub mod rights;
pub mod router;
pub mod snmp;
pub mod stack;
pub mod standin_apiserver;
pub mod standin_cri;
pub mod standin_tls;
pub mod storm;
pub mod tcp;
pub mod tmux;
pub mod unpacked;
pub mod unseen;
pub mod verified;
pub mod wait;
pub mod xtask;

pub use agent::Agent;
pub use metrics::Metrics;
pub use neigh::{Family, Thresholds};
pub use netns::{Lab, Netns};
pub use point::Point;
pub use process::on_one_cpu;
pub use prometheus::Prometheus;
pub use wait::eventually;
