//! The part of the CRI (`runtime.v1`) that is asked for: three calls, by the official numbers of
//! <https://github.com/kubernetes/cri-api/blob/master/pkg/apis/runtime/v1/api.proto>.
//!
//! Written with prost's derives and not generated: the crate that has all of the CRI, k8s-cri, needs
//! `protoc` wherever tracer is built, makes 26 crates more instead of 14, and keeps each pod's labels
//! and annotations, which prost leaves unread where no field asks for them.

use std::{collections::HashMap, path::Path, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use prost::Message;
use tonic::{
    Status,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};

/// For one answer. The runtime is on this machine.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The kubelet's own limit: a list holds the annotations of all pods.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// `SANDBOX_READY` of `PodSandboxState`.
pub const READY: i32 = 0;
/// `NODE` of `NamespaceMode`: the host's namespace.
pub const NODE: i32 = 2;

#[derive(Clone, PartialEq, Message)]
struct VersionRequest {}

#[derive(Clone, PartialEq, Message)]
struct VersionResponse {
    #[prost(string, tag = "2")]
    runtime_name: String,
    #[prost(string, tag = "3")]
    runtime_version: String,
}

#[derive(Clone, PartialEq, Message)]
struct ListPodSandboxRequest {}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ListPodSandboxResponse {
    #[prost(message, repeated, tag = "1")]
    pub(super) items: Vec<PodSandbox>,
}

/// What a list says of a sandbox.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandbox {
    /// The runtime's own.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Names.
    #[prost(message, optional, tag = "2")]
    pub metadata: Option<PodSandboxMetadata>,
    /// [`READY`], or not any more.
    #[prost(int32, tag = "3")]
    pub state: i32,
    /// Nanoseconds since 1970.
    #[prost(int64, tag = "4")]
    pub created_at: i64,
}

/// Names.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxMetadata {
    /// The pod's.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The pod's, as in the paths of its cgroups.
    #[prost(string, tag = "2")]
    pub uid: String,
    /// The pod's.
    #[prost(string, tag = "3")]
    pub namespace: String,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxStatusRequest {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
    #[prost(bool, tag = "2")]
    verbose: bool,
}

/// Details of a sandbox.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxStatusResponse {
    /// What every runtime says.
    #[prost(message, optional, tag = "1")]
    pub status: Option<PodSandboxStatus>,
    /// What this runtime says: JSON under the key `info`.
    #[prost(map = "string, string", tag = "2")]
    pub info: HashMap<String, String>,
}

/// What every runtime says of a sandbox.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxStatus {
    /// Addresses.
    #[prost(message, optional, tag = "5")]
    pub network: Option<PodSandboxNetworkStatus>,
    /// Namespaces.
    #[prost(message, optional, tag = "6")]
    pub linux: Option<LinuxPodSandboxStatus>,
}

/// Addresses.
#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxNetworkStatus {
    /// The first; empty in the host's namespace.
    #[prost(string, tag = "1")]
    pub ip: String,
    /// The others.
    #[prost(message, repeated, tag = "2")]
    pub additional_ips: Vec<PodIp>,
}

/// An address.
#[derive(Clone, PartialEq, Message)]
pub struct PodIp {
    /// In the usual notation.
    #[prost(string, tag = "1")]
    pub ip: String,
}

/// Namespaces.
#[derive(Clone, PartialEq, Message)]
pub struct LinuxPodSandboxStatus {
    /// Namespaces.
    #[prost(message, optional, tag = "1")]
    pub namespaces: Option<Namespace>,
}

/// Namespaces.
#[derive(Clone, PartialEq, Message)]
pub struct Namespace {
    /// Whose they are.
    #[prost(message, optional, tag = "2")]
    pub options: Option<NamespaceOption>,
}

/// Whose the namespaces are.
#[derive(Clone, PartialEq, Message)]
pub struct NamespaceOption {
    /// The pod's, or [`NODE`].
    #[prost(int32, tag = "1")]
    pub network: i32,
}

/// A connection to a runtime.
#[derive(Clone)]
pub struct Runtime(Grpc<Channel>);

impl Runtime {
    /// Connects to its socket.
    pub async fn connect(socket: &Path) -> Result<Self> {
        let url = format!("unix://{}", socket.display());
        let endpoint = Endpoint::from_shared(url)
            .with_context(|| format!("{} is no socket's path", socket.display()))?
            .connect_timeout(TIMEOUT)
            .timeout(TIMEOUT);
        let channel = endpoint.connect().await.map_err(|why| {
            // Each error of the chain repeats the next one.
            let why = anyhow!(why);
            let (place, why) = (socket.display(), why.root_cause());
            anyhow!("cannot reach a container runtime at {place}: {why}")
        })?;
        let grpc = Grpc::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
        Ok(Self(grpc))
    }

    async fn call<A, B>(&mut self, method: &'static str, request: A) -> Result<B, Status>
    where
        A: Message + 'static,
        B: Message + Default + 'static,
    {
        let ready = self.0.ready().await;
        ready.map_err(|e| Status::unavailable(e.to_string()))?;
        let path = PathAndQuery::from_static(method);
        let codec = tonic_prost::ProstCodec::default();
        let answer = self.0.unary(tonic::Request::new(request), path, codec);
        Ok(answer.await?.into_inner())
    }

    /// Its name and version.
    pub async fn version(&mut self) -> Result<String, Status> {
        let method = "/runtime.v1.RuntimeService/Version";
        let answer: VersionResponse = self.call(method, VersionRequest {}).await?;
        Ok(format!(
            "{} {}",
            answer.runtime_name, answer.runtime_version
        ))
    }

    /// All sandboxes, those that have ended too.
    pub async fn sandboxes(&mut self) -> Result<Vec<PodSandbox>> {
        let method = "/runtime.v1.RuntimeService/ListPodSandbox";
        let answer: ListPodSandboxResponse = self
            .call(method, ListPodSandboxRequest {})
            .await
            .map_err(|why| sentence(&why))?;
        Ok(answer.items)
    }

    /// Everything about one.
    pub async fn details(&mut self, id: &str) -> Result<PodSandboxStatusResponse, Status> {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: true,
        };
        let method = "/runtime.v1.RuntimeService/PodSandboxStatus";
        self.call(method, request).await
    }
}

/// What a status says to people.
pub fn sentence(why: &Status) -> anyhow::Error {
    anyhow!("{} ({})", why.message(), why.code())
}
