//! Bytes in a bpf file system, which has no files: the values of an array, pinned under a name. A new one
//! takes the old one's place by a rename, so that whoever reads finds the one or the other.

use std::{fs, io, path::Path};

use anyhow::{Context as _, Result, bail};
use aya::maps::{Array, Map, MapData};

use crate::kernel::sys::Block;

/// Bytes of the length, in front.
const HEAD: usize = size_of::<u64>();

/// Writes the bytes under a name.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut content = (bytes.len() as u64).to_ne_bytes().to_vec();
    content.extend_from_slice(bytes);
    let blocks: Vec<Block> = content.chunks(Block::SIZE).map(Block::of).collect();
    let mut array: Array<MapData, Block> =
        Array::create(u32::try_from(blocks.len())?, 0).context("cannot make a map")?;
    for (index, block) in (0..).zip(blocks) {
        array.set(index, block, 0).context("cannot fill a map")?;
    }
    // No dots: a bpf file system keeps names with them for itself.
    let new = path.with_file_name(format!(
        "{}_new",
        path.file_name().unwrap_or_default().to_string_lossy()
    ));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", new.display()));
        }
        _ => {}
    }
    array
        .pin(&new)
        .with_context(|| format!("cannot pin a map at {}", new.display()))?;
    fs::rename(&new, path).with_context(|| format!("cannot rename {}", new.display()))
}

/// Reads them; `None` where there is no such name.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    if !path.exists() {
        return Ok(None);
    }
    let data =
        MapData::from_pin(path).with_context(|| format!("cannot open {}", path.display()))?;
    let blocks = data.info()?.max_entries();
    let array: Array<MapData, Block> = Map::from_map_data(data)?
        .try_into()
        .with_context(|| format!("{} is another kind of map", path.display()))?;
    let mut content = Vec::new();
    for index in 0..blocks {
        content.extend_from_slice(array.get(&index, 0)?.bytes());
    }
    let Some((head, rest)) = content.split_first_chunk::<HEAD>() else {
        bail!("{} is too short", path.display());
    };
    let length = usize::try_from(u64::from_ne_bytes(*head))?;
    let bytes = rest.get(..length);
    let bytes = bytes.with_context(|| format!("{} is cut off", path.display()))?;
    Ok(Some(bytes.to_vec()))
}
