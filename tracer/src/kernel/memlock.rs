//! `RLIMIT_MEMLOCK`: kernels before 5.11 count what maps and programs take against it (later ones count it
//! against the memory cgroup). aya raises it where the process may.

use anyhow::{Error, anyhow};
use rustix::{
    io::Errno,
    process::{Resource, getrlimit},
};

use super::features::Features;

/// As getrlimit(2) has it.
pub const NAME: &str = "RLIMIT_MEMLOCK";

/// The error, and the limit where that is what the kernel refused by.
pub fn explain(error: Error, features: &Features) -> Error {
    let limit = getrlimit(Resource::Memlock).current;
    match limit.filter(|_| features.charges_memlock() && is_refusal(&error)) {
        Some(limit) => anyhow!("{}: {error:#}", advice(limit)),
        None => error,
    }
}

fn is_refusal(error: &Error) -> bool {
    error.chain().any(|cause| {
        let cause = cause.downcast_ref::<std::io::Error>();
        cause.and_then(std::io::Error::raw_os_error) == Some(Errno::PERM.raw_os_error())
    })
}

/// `limit` in bytes.
fn advice(limit: u64) -> String {
    format!(
        "{NAME} is {} KiB, which this kernel (before 5.11) counts maps against, and the process may not raise it: \
         CAP_SYS_RESOURCE, or LimitMEMLOCK=infinity in the unit of the agent or of the container runtime",
        limit / 1024
    )
}
