//! What a dropped packet says, read from kernel memory, and the lookup it belongs to.

use tracer_common::{
    AF_INET, AF_INET6,
    dns::{Answered, Endpoint, Lookup, LookupKey, ServedKey, Server},
};

use super::{ETH_P_IP, ETH_P_IPV6, IPPROTO_UDP, device_net_cookie};
use crate::{
    conntrack,
    dns::{self, FROM_PACKET, Refused, near::SERVING},
    layout::*,
    packet::is_dns_port,
    util::{net_cookie, read},
};

const UDP_HEADER: u32 = 8;
const DNS_HEADER: u32 = 12;
/// `mac_header` of a packet that no device has had (include/linux/skbuff.h, skb_mac_header_was_set).
const NO_MAC_HEADER: u16 = !0;
/// Bytes of a question that are compared.
const COMPARED: u64 = 16;

/// A dropped datagram, read as DNS: any other has no lookup that fits.
#[repr(C)]
#[derive(Default)]
pub struct Datagram {
    /// Addresses in kernel memory.
    network: u64,
    udp: u64,
    pub family: u16,
    pub id: u16,
    source_port: u16,
    destination_port: u16,
    pub is_answer: bool,
    /// Verifiers want all of it to have been written.
    _pad: [u8; 7],
}

impl Datagram {
    /// What the packet says; in a tunnel (VXLAN, IPIP, GRE) what the packet inside says, where it is
    /// known to be DNS.
    #[inline(always)]
    pub fn of(skb: u64) -> Option<Self> {
        let mut datagram = Self::default();
        let mut found = datagram.fill(skb, false);
        if dns::packets::is_known(skb) && (found == 0 || datagram.by_packet(skb).is_none()) {
            found = datagram.fill(skb, true);
            if found == 0 || datagram.by_packet(skb).is_none() {
                found = datagram.fill(skb, false); // its place is that of a packet before it
            }
        }
        (found != 0).then_some(datagram)
    }

    /// 0 where there is no datagram.
    #[inline(always)]
    fn fill(&mut self, skb: u64, inner: bool) -> u64 {
        drops_datagram(self, skb, inner as u32)
    }

    #[inline(always)]
    fn try_fill(&mut self, skb: u64, inner: bool) -> Option<()> {
        let header = if inner {
            OFF_SK_BUFF_INNER_NETWORK_HEADER.load()
        } else {
            OFF_SK_BUFF_NETWORK_HEADER.load()
        };
        let head = read::<u64>(skb, OFF_SK_BUFF_HEAD.load())?;
        let network = head + read::<u16>(skb, header)? as u64;
        // In a tunnel the packet's protocol may be Ethernet.
        let protocol = u16::from_be(read(skb, OFF_SK_BUFF_PROTOCOL.load())?);
        if !inner && protocol != ETH_P_IP && protocol != ETH_P_IPV6 {
            return None;
        }
        let first = read::<u8>(network, 0)?;
        let udp = match first >> 4 {
            4 => {
                if read::<u8>(network, 9)? != IPPROTO_UDP {
                    return None;
                }
                // A later fragment has no UDP header.
                if u16::from_be(read(network, 6)?) & 0x1fff != 0 {
                    return None;
                }
                self.family = AF_INET;
                network + ((first & 0xf) as u64) * 4
            }
            6 => {
                if read::<u8>(network, 6)? != IPPROTO_UDP {
                    return None;
                }
                self.family = AF_INET6;
                network + 40
            }
            _ => return None,
        };
        // What lies in page fragments is somewhere else.
        let end = head + read::<u32>(skb, OFF_SK_BUFF_TAIL.load())? as u64;
        if udp + (UDP_HEADER + DNS_HEADER) as u64 > end {
            return None;
        }
        let [source, destination] = read::<[u16; 2]>(udp, 0)?;
        let [id, flags] = read::<[u16; 2]>(udp, UDP_HEADER)?;
        self.is_answer = u16::from_be(flags) & 0x8000 != 0;
        self.id = u16::from_be(id);
        self.source_port = u16::from_be(source);
        self.destination_port = u16::from_be(destination);
        self.network = network;
        self.udp = udp;
        Some(())
    }

    /// Source or destination address, network byte order; IPv4 in the first word.
    #[inline(always)]
    pub fn address(&self, destination: bool) -> Option<[u32; 4]> {
        match (self.family, destination) {
            (AF_INET, false) => Some([read(self.network, 12)?, 0, 0, 0]),
            (AF_INET, true) => Some([read(self.network, 16)?, 0, 0, 0]),
            (AF_INET6, false) => read(self.network, 8),
            (AF_INET6, true) => read(self.network, 24),
            _ => None,
        }
    }

    /// Mark of an answer; see [`dns::take_back`].
    #[inline(always)]
    pub fn mark(&self, skb: u64) -> Option<u64> {
        let server = Server {
            address: self.address(false)?,
            port: self.source_port,
            family: self.family,
        };
        Some(Answered::mark(skb, &server, self.destination_port))
    }

    /// Is it a packet of that lookup? What was remembered under its address may be of a packet before it. A translation
    /// changes ports, a server may change the letters' case; both at once are too much.
    #[inline(always)]
    pub fn is_of(&self, key: &LookupKey, lookup: &Lookup) -> bool {
        let port = if self.is_answer {
            self.destination_port
        } else {
            self.source_port
        };
        port == key.port || self.asks_as(lookup)
    }

    /// The lookup of that very packet, wherever on the node it dies and whatever was translated: a
    /// query's `sk_buff` is the one that left the client, an answer's the one that left the server.
    #[inline(always)]
    pub fn by_packet(&self, skb: u64) -> Option<LookupKey> {
        let key = dns::packets::lookup(skb, self.id, self.is_answer)?;
        // The place may be that of a packet that was there before, of another socket.
        if !self.is_answer
            && self.never_left(skb)
            && let Some(sk) = read::<u64>(skb, OFF_SK_BUFF_SK.load())
            && read(sk, OFF_SOCK_COOKIE.load()) != Some(key.socket)
        {
            return None;
        }
        Some(key)
    }

    /// The lookup that the packet's client, port and id name: of a packet that was copied on its
    /// way, and of an answer from a server elsewhere. [`Self::asks_as`] must agree.
    #[inline(always)]
    pub fn by_endpoint(&self, skb: u64) -> Option<LookupKey> {
        let address = self.address(self.is_answer)?;
        let endpoint = Endpoint {
            net_cookie: if Endpoint::is_loopback(self.family, &address) {
                device_net_cookie(skb)?
            } else {
                0
            },
            address,
            port: if self.is_answer {
                self.destination_port
            } else {
                self.source_port
            },
            id: self.id,
        };
        let key = dns::endpoints::find(endpoint.hash(), endpoint.port, self.id)?;
        (key.id == self.id).then_some(key)
    }

    /// Does its question begin as the lookup's? Two namespaces may have the same address.
    #[inline(always)]
    pub fn asks_as(&self, lookup: &Lookup) -> bool {
        let length = lookup.question_len as u64;
        let question = &raw const lookup.question as u64;
        let Some(ours) = read::<[u64; 2]>(question, 0) else {
            return false;
        };
        let Some(theirs) = read::<[u64; 2]>(self.udp, UDP_HEADER + DNS_HEADER) else {
            return false;
        };
        let length = if length < COMPARED { length } else { COMPARED };
        let (first, second) = if length > 8 {
            (8, length - 8)
        } else {
            (length, 0)
        };
        length > 0
            && (ours[0] ^ theirs[0]) & low_bytes(first) == 0
            && (ours[1] ^ theirs[1]) & low_bytes(second) == 0
    }

    /// Is it in the namespace of the socket that sent it? Refused there, it never reached the hook on
    /// the way out, which is behind netfilter.
    #[inline(always)]
    pub fn never_left(&self, skb: u64) -> bool {
        let Some(sk) = read::<u64>(skb, OFF_SK_BUFF_SK.load()) else {
            return false;
        };
        if sk == 0 {
            return false;
        }
        // On the way in a packet may have the receiver's already (udp_v4_early_demux).
        let own = read::<u16>(sk, OFF_SOCK_NUM.load());
        if own == Some(self.destination_port) && own != Some(self.source_port) {
            return false;
        }
        // No namespace's cookie is 0. (Two `Option`s LLVM compares with what is in them even where nothing is, and
        // verifiers before 6.3 read nothing that was not written.)
        let own = read::<u64>(sk, OFF_SOCK_NET.load()).and_then(net_cookie);
        let own = own.unwrap_or_default();
        // In OUTPUT the packet may have no device yet.
        match device_net_cookie(skb).unwrap_or_default() {
            0 => own != 0,
            device => own == device,
        }
    }

    /// Has no device had it yet? Where netfilter refuses such a packet it was not at the hook on the way out, which is
    /// behind POSTROUTING; what is known of its address is of a packet before it, perhaps of the same query.
    #[inline(always)]
    pub fn is_before_device(skb: u64) -> bool {
        read(skb, OFF_SK_BUFF_MAC_HEADER.load()) == Some(NO_MAC_HEADER)
    }

    /// The lookup of an answer that never left its server; `Some(None)` where its query's was not known.
    #[inline(always)]
    pub fn by_server(&self, skb: u64) -> Option<Option<LookupKey>> {
        let sk = read::<u64>(skb, OFF_SK_BUFF_SK.load())?;
        let net = read::<u64>(sk, OFF_SOCK_NET.load())?;
        let key = ServedKey {
            net_cookie: net_cookie(net)?,
            client: self.address(true)?,
            server: Server {
                address: self.address(false)?,
                port: self.source_port,
                family: self.family,
            },
            client_port: self.destination_port,
            id: self.id,
        };
        // SAFETY: a map's value.
        let lookup = unsafe { (*SERVING.find(&key)?).lookup };
        Some((lookup.socket != 0).then_some(lookup))
    }

    /// Counts a query that never left, if it is one to a DNS port; gives its lookup.
    #[inline(always)]
    pub fn refused(&self, skb: u64) -> Option<LookupKey> {
        let mut server = Server::default();
        let redirected = conntrack::asked(skb, self.family, &mut server);
        let to_server =
            is_dns_port(self.destination_port) || (redirected && is_dns_port(server.port));
        if !to_server {
            return None;
        }
        if !redirected {
            server.address = self.address(true)?;
            server.port = self.destination_port;
            server.family = self.family;
        }
        let length = u16::from_be(read(self.udp, 4)?) as u32;
        let [flags, questions] = read::<[u16; 2]>(self.udp, UDP_HEADER + 2)?;
        // Opcode QUERY only.
        if length < UDP_HEADER + DNS_HEADER || u16::from_be(flags) & 0x7800 != 0 {
            return None;
        }
        dns::refused::<FROM_PACKET>(&Refused {
            sk: read(skb, OFF_SK_BUFF_SK.load())?,
            id: self.id,
            server,
            has_question: questions != 0,
            start: self.udp + (UDP_HEADER + DNS_HEADER) as u64,
            len: length - UDP_HEADER - DNS_HEADER,
        })
    }
}

/// Reads a datagram; 0 where there is none. Global: see [`crate::util`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn drops_datagram(datagram: *mut Datagram, skb: u64, inner: u32) -> u64 {
    // SAFETY: a caller's.
    let Some(datagram) = (unsafe { datagram.as_mut() }) else {
        return 0;
    };
    datagram.try_fill(skb, inner != 0).map_or(0, |()| 1)
}

/// A mask of the first `n` bytes in memory, at most 8.
#[inline(always)]
fn low_bytes(n: u64) -> u64 {
    if n >= 8 { !0 } else { (1 << (8 * n)) - 1 }
}
