//! Prometheus' older text, which the crate `prometheus` writes
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>).

use anyhow::Result;
use prometheus::{TextEncoder, proto::MetricFamily};

/// A family with its samples.
pub fn encode(family: &MetricFamily) -> Result<String> {
    let text = TextEncoder::new().encode_to_string(std::slice::from_ref(family))?;
    // The encoder writes `inf`; the format has `+Inf`. No label ends a line.
    Ok(text.replace(" inf\n", " +Inf\n"))
}
