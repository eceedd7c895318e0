//! Keys that leave the maps.

use std::{io, os::fd::AsFd as _};

use aya::{
    Pod,
    maps::{HashMap, IterableMap as _, MapData},
};
use tracer_common::{
    dns,
    drops::{self, ReceiverKey, ReceiverValue},
    neigh, tcp,
};

use super::Maps;
use crate::kernel::sys;

/// What became of a key that was to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left<V> {
    /// It left, and this had been counted in it by then.
    With(V),
    /// It was not there.
    Before,
    /// It could not be taken out.
    Stays,
}

impl<V> Left<V> {
    /// The same of a part of the value.
    pub fn map<P>(self, part: impl FnOnce(V) -> P) -> Left<P> {
        match self {
            Self::With(value) => Left::With(part(value)),
            Self::Before => Left::Before,
            Self::Stays => Left::Stays,
        }
    }
}

/// Maps whose keys leave once nobody counts in them any more. What had been counted by then is said, not what the last
/// reading found.
pub trait Leave {
    /// Of the map `NEIGH`.
    fn neigh(&mut self, key: &neigh::Key) -> Left<neigh::Value>;
    /// Of the map `NEIGH_FORWARDED`.
    fn forwarded(&mut self, key: &neigh::ForwardedKey) -> Left<neigh::Value>;
    /// Of the map `DNS`.
    fn dns(&mut self, key: &dns::Key) -> Left<dns::Value>;
    /// Of the map `RECEIVE_PORTS`, or where the port is 0, of `RECEIVE_DROPS`.
    fn receiver(&mut self, key: &ReceiverKey) -> Left<ReceiverValue>;
    /// Of the map `DROPS`.
    fn drops(&mut self, key: &drops::Key) -> Left<drops::Value>;
    /// Of the map `TCP`.
    fn tcp(&mut self, key: &tcp::Key) -> Left<tcp::Value>;
}

impl Leave for Maps {
    fn neigh(&mut self, key: &neigh::Key) -> Left<neigh::Value> {
        leave(&mut self.neigh, "NEIGH", key)
    }

    fn forwarded(&mut self, key: &neigh::ForwardedKey) -> Left<neigh::Value> {
        leave(&mut self.forwarded, "NEIGH_FORWARDED", key)
    }

    fn dns(&mut self, key: &dns::Key) -> Left<dns::Value> {
        leave(&mut self.dns, "DNS", key)
    }

    fn receiver(&mut self, key: &ReceiverKey) -> Left<ReceiverValue> {
        if key.port == 0 {
            leave(&mut self.receive_drops, "RECEIVE_DROPS", key)
        } else {
            leave(&mut self.receive_ports, "RECEIVE_PORTS", key)
        }
    }

    fn drops(&mut self, key: &drops::Key) -> Left<drops::Value> {
        leave(&mut self.drops, "DROPS", key)
    }

    fn tcp(&mut self, key: &tcp::Key) -> Left<tcp::Value> {
        leave(&mut self.tcp, "TCP", key)
    }
}

/// A program that found the entry just before may add to it still, for some nanoseconds: that is lost.
fn leave<K: Pod, V: Pod>(map: &mut HashMap<MapData, K, V>, name: &str, key: &K) -> Left<V> {
    let taken = match sys::lookup_and_delete(map.map().fd().as_fd(), key) {
        // Of hash maps, since 5.14: before, what is counted between the two is lost.
        Err(error) if is_unsupported(&error) => look_and_delete(map, key),
        taken => taken,
    };
    match taken {
        Ok(value) => Left::With(value),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Left::Before,
        Err(error) => {
            tracing::debug!("a key of {name} cannot be removed: {error}");
            Left::Stays
        }
    }
}

/// `ENOTSUPP` (include/linux/errno.h) is none that libc knows.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(524 | libc::EOPNOTSUPP))
}

fn look_and_delete<K: Pod, V: Pod>(map: &mut HashMap<MapData, K, V>, key: &K) -> io::Result<V> {
    let gone = |_| io::Error::from(io::ErrorKind::NotFound);
    let value = map.get(key, 0).map_err(gone)?;
    map.remove(key).map_err(io::Error::other)?;
    Ok(value)
}
