//! Source `file`: pods listed in a TOML file, which may change while the agent runs.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use super::{Known, Owner, Source, local};
use crate::{config::UsageError, kernel::cgroup};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    #[serde(default)]
    pod: Vec<Pod>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pod {
    namespace: String,
    name: String,
    uid: Option<String>,
    #[serde(default)]
    ips: Vec<std::net::IpAddr>,
    netns: Option<Netns>,
    cgroup: Option<PathBuf>,
}

/// A path, or an inode number.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Netns {
    Inode(u32),
    Path(PathBuf),
}

/// The source.
pub struct File {
    path: PathBuf,
}

impl File {
    /// Fails with a [`UsageError`] where the file cannot be read or is wrong; later changes that are
    /// wrong only warn.
    pub fn open(path: &Path) -> Result<Self> {
        parse(path).map_err(|why| UsageError(format!("{why:#}")))?;
        Ok(Self {
            path: path.to_owned(),
        })
    }
}

impl Source for File {
    fn name(&self) -> &'static str {
        "file"
    }

    fn pods(&mut self, _addresses: bool) -> Result<Vec<Known>> {
        let mount = cgroup::mount_point().ok();
        Ok(parse(&self.path)?
            .into_iter()
            .map(|pod| known(pod, mount.as_deref()))
            .collect())
    }
}

fn parse(path: &Path) -> Result<Vec<Pod>> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read the pod file {}", path.display()))?;
    parse_text(&text, path)
}

fn parse_text(text: &str, path: &Path) -> Result<Vec<Pod>> {
    let contents: Contents = toml::from_str(text)
        .map_err(|error| anyhow::anyhow!("pod file {}: {}", path.display(), one_line(&error)))?;
    for pod in &contents.pod {
        if pod.namespace.is_empty() || pod.name.is_empty() {
            bail!(
                "pod file {}: a pod needs a namespace and a name",
                path.display()
            );
        }
        // Tracer's own words have parentheses, and Kubernetes' names have none.
        let odd = |c: char| c == '(' || c == ')' || c.is_control();
        if let Some(name) = [&pod.namespace, &pod.name]
            .into_iter()
            .find(|n| n.contains(odd))
        {
            bail!("pod file {}: {name:?} is no pod's name", path.display());
        }
    }
    Ok(contents.pod)
}

/// [`crate::fuzz`]
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(text: &str) -> bool {
    match parse_text(text, Path::new("pods.toml")) {
        Ok(pods) => {
            let has_name = |pod: &Pod| !pod.namespace.is_empty() && !pod.name.is_empty();
            assert!(pods.iter().all(has_name));
            true
        }
        Err(error) => {
            assert!(!format!("{error:#}").contains('\n'), "{error:#}");
            false
        }
    }
}

fn one_line(error: &toml::de::Error) -> String {
    // The first line says where, the message what.
    let text = error.to_string();
    let place = text.lines().next().unwrap_or_default();
    format!("{place}: {}", error.message().replace('\n', " "))
}

fn known(pod: Pod, mount: Option<&Path>) -> Known {
    let (netns, net_cookie) = match &pod.netns {
        None => (None, None),
        Some(Netns::Inode(inode)) => (Some(*inode), None),
        Some(Netns::Path(path)) => (
            fs::metadata(path)
                .ok()
                .and_then(|m| u32::try_from(m.ino()).ok()),
            local::ask(path).ok().and_then(|inside| inside.cookie),
        ),
    };
    let cgroup = pod.cgroup.as_ref().map(|path| {
        let below = mount
            .and_then(|mount| path.strip_prefix(mount).ok())
            .unwrap_or(path);
        format!("/{}", below.display().to_string().trim_matches('/'))
    });
    Known {
        net_cookie,
        netns,
        cgroup,
        cgroup_uids: pod.uid.iter().cloned().collect(),
        addresses: pod.ips,
        ..Known::of(Arc::new(Owner {
            namespace: pod.namespace,
            pod: pod.name,
            uid: pod.uid,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Pod>> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pods.toml");
        fs::write(&path, text).unwrap();
        parse(&path)
    }

    #[test]
    fn a_full_entry_is_understood() {
        let pods = read(
            r#"
            [[pod]]
            namespace = "shop"
            name = "cart-7d9f"
            uid = "u"
            ips = ["10.0.0.2", "fd00::2"]
            netns = "/run/netns/cart"
            cgroup = "/sys/fs/cgroup/cart"

            [[pod]]
            namespace = "shop"
            name = "by-inode"
            netns = 4026532000
            "#,
        )
        .unwrap();
        assert_eq!(pods.len(), 2);
        let first = known(pods[0].clone(), Some(Path::new("/sys/fs/cgroup")));
        assert_eq!(first.cgroup.as_deref(), Some("/cart"));
        let second = known(pods[1].clone(), None);
        assert_eq!(second.netns, Some(4_026_532_000));
    }

    #[test]
    fn mistakes_are_named() {
        let error = read("[[pod]]\nnamespace = \"a\"\n")
            .unwrap_err()
            .to_string();
        assert!(error.contains("name"), "{error}");
        let error = read("[[pod]]\nnamespace=\"a\"\nname=\"b\"\ncolour=1\n")
            .unwrap_err()
            .to_string();
        assert!(error.contains("colour"), "{error}");
    }
}
