//! Which API server, and as whom.

use std::{env, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use kube::config::{Config, KubeConfigOptions};

/// Where Kubernetes puts a pod's account.
const SERVICE_ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// An API server that says nothing for so long is away: it sends a bookmark every minute.
const SILENCE: Duration = Duration::from_secs(100);

/// Where the way to the API server is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The files that `KUBECONFIG` names.
    Variable,
    /// The account of the pod that the agent runs in.
    ServiceAccount,
    /// `~/.kube/config`, as kubectl uses it.
    Home,
}

impl Access {
    /// Where somebody arranged it for the agent: what `--pods auto` goes by.
    pub fn arranged() -> Option<Self> {
        if env::var_os("KUBECONFIG").is_some_and(|paths| !paths.is_empty()) {
            return Some(Self::Variable);
        }
        let in_pod = env::var_os("KUBERNETES_SERVICE_HOST").is_some_and(|host| !host.is_empty());
        (in_pod && Path::new(SERVICE_ACCOUNT_TOKEN).exists()).then_some(Self::ServiceAccount)
    }

    /// Wherever there is one: what `--pods kubernetes` goes by.
    pub fn any() -> Option<Self> {
        Self::arranged().or_else(|| {
            let home = env::home_dir()?.join(".kube/config");
            home.exists().then_some(Self::Home)
        })
    }

    /// Reads it. Asks nobody yet.
    pub async fn load(self) -> Result<Config> {
        let mut config = match self {
            Self::ServiceAccount => {
                Config::incluster().context("cannot use the pod's service account")?
            }
            // Both read the variable's files, else the one at home.
            Self::Variable => choose()
                .await
                .context("cannot use the files of KUBECONFIG")?,
            Self::Home => choose().await.context("cannot use ~/.kube/config")?,
        };
        config.read_timeout = Some(SILENCE);
        config.reset_reader_on_write = true;
        Ok(config)
    }
}

/// The current context of the kubeconfig.
async fn choose() -> Result<Config> {
    Ok(Config::from_kubeconfig(&KubeConfigOptions::default()).await?)
}
