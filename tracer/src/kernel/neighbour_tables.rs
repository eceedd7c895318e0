//! The neighbour tables by netlink: limits and the kernel's own counters (RTM_GETNEIGHTBL,
//! net/core/neighbour.c). The figures are one for the whole kernel, whatever namespace asks, and
//! need no capability.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, bail};
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage,
    neighbour_table::{NeighbourTableAttribute, NeighbourTableMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// One table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NeighbourTable {
    /// gc_thresh1, 2, 3.
    pub limits: [u32; 3],
    /// Creations refused because the table was full, since boot.
    pub table_fulls: u64,
    /// Forced garbage collections since boot, those that freed nothing included.
    pub gc_forced: u64,
    /// Periodic garbage collections since boot.
    pub gc_periodic: u64,
}

/// The kernel's names of the tables, in the order of `tracer_common::family_index`.
const NAMES: [&str; 2] = ["arp_cache", "ndisc_cache"];

/// The IPv4 and the IPv6 table; `None` where the kernel has none.
pub fn read() -> Result<[Option<NeighbourTable>; 2]> {
    let mut tables = dump().context("cannot read the neighbour tables by netlink")?;
    Ok(NAMES.map(|name| tables.remove(name)))
}

fn dump() -> Result<BTreeMap<String, NeighbourTable>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    rustix::net::sockopt::set_socket_timeout(
        &socket,
        rustix::net::sockopt::Timeout::Recv,
        Some(Duration::from_secs(2)),
    )?;
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNeighbourTable(
        NeighbourTableMessage::default(),
    ));
    request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    request.finalize();
    let mut buffer = vec![0; request.header.length as usize];
    request.serialize(&mut buffer);
    socket.send(&buffer, 0)?;

    let mut tables = BTreeMap::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = &datagram[..];
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)?;
            let length = (message.header.length as usize).next_multiple_of(4);
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(tables),
                NetlinkPayload::Error(error) => bail!("the kernel says {error}"),
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbourTable(table)) => {
                    collect(&table, &mut tables);
                }
                _ => {}
            }
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

/// A dump holds one message with the figures for each table, and one for each device with
/// parameters only.
fn collect(message: &NeighbourTableMessage, tables: &mut BTreeMap<String, NeighbourTable>) {
    let mut name = None;
    let mut table = NeighbourTable::default();
    let mut has_figures = false;
    for attribute in &message.attributes {
        match attribute {
            NeighbourTableAttribute::Name(n) => name = Some(n.clone()),
            NeighbourTableAttribute::Threshold1(n) => table.limits[0] = *n,
            NeighbourTableAttribute::Threshold2(n) => table.limits[1] = *n,
            NeighbourTableAttribute::Threshold3(n) => table.limits[2] = *n,
            NeighbourTableAttribute::Stats(stats) => {
                has_figures = true;
                table.table_fulls = stats.table_fulls;
                table.gc_forced = stats.forced_gc_runs;
                table.gc_periodic = stats.periodic_gc_runs;
            }
            _ => {}
        }
    }
    if let (Some(name), true) = (name, has_figures) {
        tables.insert(name, table);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_has_an_ipv4_table() {
        let [ipv4, _] = read().unwrap();
        assert!(ipv4.unwrap().limits[2] > 0);
    }
}
