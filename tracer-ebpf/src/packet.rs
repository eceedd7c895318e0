//! What a packet at a socket's cgroup hook says: UDP, ports, addresses.
//!
//! The hooks run for every packet of every socket on the node, so what is not DNS must leave by
//! the first exit: ports by direct packet access, in the part of the packet that is linear.

use aya_ebpf::{
    bindings::__sk_buff, helpers::generated::bpf_skb_load_bytes, programs::SkBuffContext,
};
use tracer_common::{AF_INET, AF_INET6, dns::MAX_PORTS};

use crate::layout::DNS_PORTS;

const IPPROTO_UDP: u8 = 17;
const UDP_HEADER: u32 = 8;

/// A UDP datagram.
pub struct Udp {
    /// `AF_INET` or `AF_INET6`.
    pub family: u16,
    /// Host byte order.
    pub source_port: u16,
    /// Host byte order.
    pub destination_port: u16,
    /// Offset of the UDP header.
    pub offset: u32,
}

impl Udp {
    /// Offset of the payload.
    #[inline(always)]
    pub fn payload(&self) -> u32 {
        self.offset + UDP_HEADER
    }

    /// The packet's source or destination address, network byte order; IPv4 in the first word.
    #[inline(always)]
    pub fn address(&self, ctx: &SkBuffContext, destination: bool) -> Option<[u32; 4]> {
        let skb: *mut __sk_buff = ctx.skb.skb;
        // SAFETY: the verifier knows the context's fields.
        let (start, end) = unsafe { ((*skb).data as usize, (*skb).data_end as usize) };
        // `datagram` has found the header in the linear part; the verifier wants to see it here.
        if self.family == AF_INET {
            if start + 20 > end {
                return None;
            }
            let at = start + if destination { 16 } else { 12 };
            // SAFETY: bounds checked above.
            Some([unsafe { *(at as *const u32) }, 0, 0, 0])
        } else {
            if start + 40 > end {
                return None;
            }
            let at = start + if destination { 24 } else { 8 };
            // SAFETY: as above.
            Some(unsafe { *(at as *const [u32; 4]) })
        }
    }
}

/// Bytes at a fixed place, linear or not.
#[inline(always)]
pub fn load<const N: usize>(ctx: &SkBuffContext, offset: u32) -> Option<[u8; N]> {
    let mut bytes = [0u8; N];
    // SAFETY: `bytes` has room for N bytes.
    let ret = unsafe {
        bpf_skb_load_bytes(
            ctx.skb.skb.cast(),
            offset,
            bytes.as_mut_ptr().cast(),
            N as u32,
        )
    };
    (ret == 0).then_some(bytes)
}

/// The same; quicker where they are linear, as nearly always.
#[inline(always)]
pub fn load_linear<const N: usize>(ctx: &SkBuffContext, offset: u32) -> Option<[u8; N]> {
    let skb: *mut __sk_buff = ctx.skb.skb;
    // SAFETY: the verifier knows the context's fields.
    let (start, end) = unsafe { ((*skb).data as usize, (*skb).data_end as usize) };
    // No header is longer; the verifier wants to see it, and LLVM not to know it, or it leaves it out. What goes
    // through the stack in between is without bounds for verifiers before 5.16.
    let at = start + (core::hint::black_box(offset) & 0x7f) as usize;
    if at + N > end {
        return load(ctx, offset);
    }
    // SAFETY: bounds checked above.
    Some(unsafe { *(at as *const [u8; N]) })
}

/// Is one of `--dns-port`? The ports are constants to the verifier: unused ones cost nothing.
#[inline(always)]
pub fn is_dns_port(port: u16) -> bool {
    let ports = DNS_PORTS.load();
    let mut i = 0;
    while i < MAX_PORTS as usize {
        if ports[i] != 0 && ports[i] == port {
            return true;
        }
        i += 1;
    }
    false
}

/// The datagram, if this packet is UDP.
#[inline(always)]
pub fn datagram(ctx: &SkBuffContext) -> Option<Udp> {
    let skb: *mut __sk_buff = ctx.skb.skb;
    // SAFETY: the verifier knows the context's fields; data begins with the IP header.
    let (start, end) = unsafe { ((*skb).data as usize, (*skb).data_end as usize) };
    // The shorter of the two headers. (For one byte LLVM would turn `+ 1 >` into `>=`, of which the
    // verifier learns nothing.)
    if start + 20 > end {
        return None;
    }
    // SAFETY: bounds checked above.
    let first = unsafe { *(start as *const u8) };
    let (family, header, ports) = match first >> 4 {
        4 => {
            // SAFETY: bounds checked above.
            if unsafe { *((start + 9) as *const u8) } != IPPROTO_UDP {
                return None;
            }
            // A later fragment has no UDP header. (Whole packets are seen here both ways.)
            // SAFETY: bounds checked above.
            let fragment = u16::from_be(unsafe { *((start + 6) as *const u16) });
            if fragment & 0x1fff != 0 {
                return None;
            }
            let header = ((first & 0xf) as usize) * 4;
            // With IP options, which hardly anybody sends, the slower way.
            let ports = if header == 20 {
                linear_ports(start + 20, end)
            } else {
                None
            };
            (AF_INET, header, ports)
        }
        6 => {
            if start + 40 > end {
                return None;
            }
            // Datagrams behind IPv6 extension headers are not followed.
            // SAFETY: bounds checked above.
            if unsafe { *((start + 6) as *const u8) } != IPPROTO_UDP {
                return None;
            }
            (AF_INET6, 40, linear_ports(start + 40, end))
        }
        _ => return None,
    };
    let [a, b, c, d] = match ports {
        Some(ports) => ports,
        None => load::<4>(ctx, header as u32)?,
    };
    Some(Udp {
        family,
        source_port: u16::from_be_bytes([a, b]),
        destination_port: u16::from_be_bytes([c, d]),
        offset: header as u32,
    })
}

#[inline(always)]
fn linear_ports(at: usize, end: usize) -> Option<[u8; 4]> {
    if at + 4 > end {
        return None;
    }
    // SAFETY: bounds checked above.
    Some(unsafe { *(at as *const [u8; 4]) })
}
