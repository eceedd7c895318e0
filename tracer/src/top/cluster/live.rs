//! stub
use super::Source;
use crate::config::ClusterConfig;
use crate::output::Signals;
use anyhow::Result;
pub(super) async fn run(
    _c: &ClusterConfig,
    _color: bool,
    _s: &Source,
    _sig: &mut Signals,
) -> Result<()> {
    Ok(())
}
