//! Many pods on one bridge, as on a full node: IPv4 only, and made by few processes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::dns::{A, packet};
use crate::netns::{DEVICE, Netns};

/// The hub's address on the bridge, where [`Crowd::go_about`] finds its servers.
pub const HUB: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 99, 0, 1));
/// Where the hub's TCP server is to listen.
pub const PORT: u16 = 80;

/// The pods; gone on drop.
#[derive(Debug)]
pub struct Crowd {
    pods: Vec<Netns>,
}

impl Crowd {
    /// So many, on a bridge of the hub.
    pub fn new(hub: &Netns, size: u16) -> Self {
        let mut links = vec![
            "link add crowd type bridge".to_owned(),
            "link set crowd up".to_owned(),
            format!("address add {HUB}/16 dev crowd"),
        ];
        let mut pods = Vec::new();
        for number in 0..size {
            let pod = Netns::new("crowd");
            links.extend([
                format!(
                    "link add c{number} type veth peer name {DEVICE} netns {}",
                    pod.name()
                ),
                format!("link set c{number} master crowd up"),
            ]);
            pods.push(pod);
        }
        for pod in &pods {
            for scope in ["all", "default"] {
                pod.sysctl(&format!("ipv6/conf/{scope}/disable_ipv6"), "1");
            }
        }
        hub.ip_batch(&links.join("\n"));
        let crowd = Self { pods };
        crowd.each(|number, pod| {
            let [high, low] = (number as u16 + 256).to_be_bytes();
            pod.ip_batch(&format!(
                "link set {DEVICE} up\naddress add 10.99.{high}.{low}/16 dev {DEVICE}\n"
            ));
        });
        crowd
    }

    /// The pods.
    pub fn pods(&self) -> &[Netns] {
        &self.pods
    }

    /// What a healthy pod does: each asks the hub for one name, by UDP, and connects to it.
    pub fn go_about(&self) {
        self.each(|number, pod| pod.run(|| call(number as u16)));
    }

    /// Does that for every pod, two at a time.
    fn each(&self, act: impl Fn(usize, &Netns) + Sync) {
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        let Some(pod) = self.pods.get(number) else {
                            break;
                        };
                        act(number, pod);
                    }
                });
            }
        });
    }
}

fn call(id: u16) {
    let limit = Duration::from_secs(2);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port is free");
    socket
        .set_read_timeout(Some(limit))
        .expect("timeout is set");
    let query = packet::query(id, 0, "ok.crowd.test", A);
    socket.send_to(&query, (HUB, 53)).expect("query is sent");
    let answered = socket.recv(&mut [0; 512]);
    answered.unwrap_or_else(|e| panic!("the lab failed: no answer: {e}"));
    let connected = TcpStream::connect_timeout(&SocketAddr::new(HUB, PORT), limit);
    connected.unwrap_or_else(|e| panic!("the lab failed: cannot connect: {e}"));
}
