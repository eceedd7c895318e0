//! The first files of a guest: a shell, the modules that mount the host's files, and `/init`.

use std::{fmt::Write as _, fs, path::Path, process::Command};

use anyhow::{Context as _, Result};

use super::{
    kernel::Kernel,
    layer::{Layer, Layers},
    modules,
};
use crate::sh;

/// The bus, 9P over it, and what makes the host's read-only files writable. `CONFIG_VIRTIO_PCI` and
/// the others are modules in some of Debian's kernels and built in in others.
const MODULES: &[&str] = &["virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// Writes it.
pub fn write(path: &Path, kernel: &Kernel, layers: &Layers) -> Result<()> {
    let read = |name: &str| {
        let path = kernel.modules.join(name);
        fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))
    };
    let (dep, builtin) = (read("modules.dep")?, read("modules.builtin")?);
    let files = modules::order(MODULES, &dep, &builtin).context(
        "it cannot see the host's files; of Debian's kernels take the generic flavour, for the \
         cloud flavour has no 9P",
    )?;
    let mut archive = Archive::default();
    archive.folder("dev");
    // The kernel opens it for /init before anything is mounted.
    archive.entry("dev/console", 0o020_600, &[], (5, 1));
    for folder in ["bin", "modules", "proc", "sys"] {
        archive.folder(folder);
    }
    let busybox = layers.busybox()?;
    let failed = || format!("failed to read {}", busybox.display());
    archive.program("bin/busybox", &fs::read(&busybox).with_context(failed)?);
    archive.program("init", include_bytes!("init.sh"));
    for (number, file) in files.iter().enumerate() {
        let module = uncompressed(&kernel.modules.join(file), &layers.host)?;
        archive.program(&format!("modules/{number:02}"), &module);
    }
    let bytes = archive.finish();
    fs::write(path, bytes).with_context(|| format!("failed to write {}", path.display()))
}

/// Not every kernel unpacks modules by itself.
fn uncompressed(path: &Path, layer: &Layer) -> Result<Vec<u8>> {
    let failed = || format!("failed to read {}", path.display());
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(path).with_context(failed),
    };
    let mut command = match program {
        "gzip" => Command::new(program),
        _ => layer.command(program)?,
    };
    let output = command.arg("-dc").arg(path).output().with_context(failed)?;
    anyhow::ensure!(
        output.status.success(),
        "`{}` failed ({}): {}",
        sh::shown(&command),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(output.stdout)
}

/// A cpio archive of the kind that the kernel unpacks (Documentation/driver-api/early-userspace/
/// buffer-format.rst), without compression: unpacking it is copying.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn folder(&mut self, name: &str) {
        self.entry(name, 0o040_755, &[], (0, 0));
    }

    fn program(&mut self, name: &str, content: &[u8]) {
        self.entry(name, 0o100_755, content, (0, 0));
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8], device: (u32, u32)) {
        self.entries += 1;
        // Inode, mode, uid, gid, links, time, size, device (two), the node's device (two), length of
        // the name with its NUL, checksum.
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            content.len() as u32,
            0,
            0,
            device.0,
            device.1,
            name.len() as u32 + 1,
            0,
        ];
        let mut header = "070701".to_owned();
        for field in fields {
            // A String takes all that is written.
            let _ = write!(header, "{field:08x}");
        }
        self.bytes.extend(header.as_bytes());
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[], (0, 0));
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_what_cpio_reads() {
        let mut archive = Archive::default();
        archive.folder("bin");
        archive.program("init", b"#!/bin/sh\n");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        // Header of 110 bytes and the name with its NUL, to a multiple of four.
        assert!(text.starts_with("070701"), "{text}");
        assert_eq!(&text[110..114], "bin\0");
        let init = text.find("init\0").unwrap();
        let header = &text[init - 110..init];
        assert_eq!(&header[14..22], "000081ed", "mode of a program");
        assert_eq!(&header[54..62], "0000000a", "size");
        let content = (init + 5).next_multiple_of(4);
        assert_eq!(&text[content..content + 10], "#!/bin/sh\n");
        assert!(text.contains("TRAILER!!!\0"));
    }
}
