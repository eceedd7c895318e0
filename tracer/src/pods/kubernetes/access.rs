//! Which API server, and as whom.

use std::{
    env,
    error::Error,
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::Path,
    time::Duration,
};

use anyhow::Result;
use kube::{
    client::AuthError,
    config::{Config, KubeConfigOptions, KubeconfigError},
};

use super::told;
use crate::config::UsageError;

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

    /// Reads it. Asks nobody yet. Fails with a [`UsageError`].
    pub async fn load(self) -> Result<Config> {
        let (result, whose) = match self {
            Self::ServiceAccount => (
                Config::incluster().map_err(Into::into),
                "the pod's service account",
            ),
            // Both read the variable's files, else the one at home.
            Self::Variable => (choose().await, "the files of KUBECONFIG"),
            Self::Home => (choose().await, "~/.kube/config"),
        };
        let mut config =
            result.map_err(|why| UsageError(format!("cannot use {whose}: {}", told(&why))))?;
        config.read_timeout = Some(SILENCE);
        config.reset_reader_on_write = true;
        Ok(config)
    }
}

impl Access {
    /// Is what the files say now another way than that? Where they cannot be read it is not.
    pub(super) async fn leads_elsewhere(self, way: &Way) -> bool {
        let now = self.load().await;
        now.is_ok_and(|config| Way::of(&config) != *way)
    }
}

/// Stands for the way to an API server, and for what the client reads of it once: not for tokens, which it reads again.
#[derive(PartialEq, Eq)]
pub(super) struct Way(u64);

impl Way {
    pub(super) fn of(config: &Config) -> Self {
        let mut hasher = DefaultHasher::new();
        config.cluster_url.hash(&mut hasher);
        config.root_cert.hash(&mut hasher);
        let who = &config.auth_info;
        (&config.tls_server_name, config.accept_invalid_certs).hash(&mut hasher);
        config.proxy_url.hash(&mut hasher);
        // By way of a value, which has its keys in order.
        let value = serde_json::to_value(who).unwrap_or_default();
        value.to_string().hash(&mut hasher);
        for path in [&who.client_certificate, &who.client_key]
            .into_iter()
            .flatten()
        {
            fs::read(path).unwrap_or_default().hash(&mut hasher);
        }
        Self(hasher.finish())
    }
}

/// The current context of the kubeconfig.
async fn choose() -> Result<Config> {
    Ok(Config::from_kubeconfig(&KubeConfigOptions::default()).await?)
}

/// What may be said of a failure to get credentials, where the client says more: it quotes the lines
/// of a file around a mistake, a credential program's command line and what that printed.
pub(super) fn careful(cause: &(dyn Error + 'static)) -> Option<String> {
    if let Some(KubeconfigError::Parse(mistake)) = cause.downcast_ref() {
        let place = mistake.location().map_or_else(String::new, |place| {
            format!(": see line {}, column {}", place.line(), place.column())
        });
        return Some(format!("it is no kubeconfig{place}"));
    }
    let program = "the credential program of the kubeconfig";
    match cause.downcast_ref()? {
        AuthError::AuthExecRun { out, .. } => Some(format!("{program} failed: {}", out.status)),
        AuthError::AuthExecParse(_) => Some(format!("{program} gave no ExecCredential")),
        AuthError::AuthExec(_) | AuthError::ParseTokenKey(_) => {
            Some(format!("{program} gave no credentials"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use anyhow::anyhow;
    use kube::config::Kubeconfig;

    use super::*;

    #[test]
    fn a_mistake_in_a_kubeconfig_is_told_by_its_place() {
        let text = "kind: Config\nusers:\n- name: lab\n  user:\n    token: [SECRET]\n";
        let why = anyhow!(Kubeconfig::from_yaml(text).unwrap_err());
        assert_eq!(told(&why), "it is no kubeconfig: see line 5, column 12");
    }

    #[test]
    fn what_a_credential_program_says_is_not_told() {
        let out = Command::new("sh")
            .args(["-c", "echo SECRET; echo SECRET >&2; exit 3"])
            .output()
            .unwrap();
        let error = AuthError::AuthExecRun {
            cmd: "sh SECRET".to_owned(),
            out: Box::new(out),
        };
        let why = anyhow!(kube::Error::Auth(error)).context("cannot ask");
        assert_eq!(
            told(&why),
            "the credential program of the kubeconfig failed: exit status: 3"
        );
        let why = anyhow!(kube::Error::Auth(AuthError::AuthExec("SECRET".to_owned())));
        assert!(!told(&why).contains("SECRET"));
    }
}
