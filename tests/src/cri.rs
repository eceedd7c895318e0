//! A client of the container runtime interface, as far as the lab makes pods with it; by the numbers
//! of `runtime.v1` (<https://github.com/kubernetes/cri-api>).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use prost::Message;
use serde_json::Value;
use tokio::runtime::Runtime;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};

/// `NODE` of `NamespaceMode`.
const NODE: i32 = 2;
/// `CONTAINER` of `NamespaceMode`.
const CONTAINER: i32 = 1;

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, Message)]
struct Namespaces {
    #[prost(int32, tag = "1")]
    network: i32,
    #[prost(int32, tag = "2")]
    pid: i32,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxSecurity {
    #[prost(message, optional, tag = "1")]
    namespaces: Option<Namespaces>,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxLinux {
    #[prost(string, tag = "1")]
    cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    security: Option<SandboxSecurity>,
}

/// What a sandbox is made of.
#[derive(Clone, PartialEq, Message)]
pub struct SandboxConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Metadata>,
    #[prost(string, tag = "2")]
    hostname: String,
    #[prost(string, tag = "3")]
    log_directory: String,
    #[prost(message, optional, tag = "8")]
    linux: Option<SandboxLinux>,
}

impl SandboxConfig {
    /// A pod `namespace/name`, its cgroups below `cgroup_parent`, with a network of its own or the
    /// node's.
    pub fn new(
        [namespace, name, uid]: [&str; 3],
        cgroup_parent: String,
        host_network: bool,
        logs: &Path,
    ) -> Self {
        let namespaces = Namespaces {
            network: if host_network { NODE } else { 0 },
            pid: CONTAINER,
        };
        Self {
            metadata: Some(Metadata {
                name: name.to_owned(),
                uid: uid.to_owned(),
                namespace: namespace.to_owned(),
            }),
            hostname: if host_network { "" } else { name }.to_owned(),
            log_directory: logs.display().to_string(),
            linux: Some(SandboxLinux {
                cgroup_parent,
                security: Some(SandboxSecurity {
                    namespaces: Some(namespaces),
                }),
            }),
        }
    }
}

#[derive(Clone, PartialEq, Message)]
struct RunPodSandbox {
    #[prost(message, optional, tag = "1")]
    config: Option<SandboxConfig>,
}

/// A request that names one thing, and an answer that does.
#[derive(Clone, PartialEq, Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct Image {
    #[prost(string, tag = "1")]
    image: String,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerSecurity {
    #[prost(message, optional, tag = "3")]
    namespaces: Option<Namespaces>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerLinux {
    #[prost(message, optional, tag = "2")]
    security: Option<ContainerSecurity>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    image: Option<Image>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
    #[prost(string, tag = "11")]
    log_path: String,
    #[prost(message, optional, tag = "15")]
    linux: Option<ContainerLinux>,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainer {
    #[prost(string, tag = "1")]
    sandbox: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<SandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct ExecSync {
    #[prost(string, tag = "1")]
    container: String,
    #[prost(string, repeated, tag = "2")]
    command: Vec<String>,
    #[prost(int64, tag = "3")]
    timeout_seconds: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Executed {
    #[prost(bytes = "vec", tag = "1")]
    stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    stderr: Vec<u8>,
    #[prost(int32, tag = "3")]
    exit_code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Network {
    #[prost(string, tag = "1")]
    ip: String,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(message, optional, tag = "5")]
    network: Option<Network>,
}

#[derive(Clone, PartialEq, Message)]
struct StatusAnswer {
    #[prost(message, optional, tag = "1")]
    status: Option<Status>,
    #[prost(map = "string, string", tag = "2")]
    info: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
struct StatusRequest {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(bool, tag = "2")]
    verbose: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

/// A connection, and the runtime it lives on.
#[derive(Debug)]
pub struct Client {
    grpc: Grpc<Channel>,
    runtime: Runtime,
}

impl Client {
    /// Connects to a socket.
    pub fn connect(socket: &Path) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(|e| e.to_string())?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))
            .map_err(|e| e.to_string())?
            .timeout(Duration::from_secs(20));
        let channel = runtime
            .block_on(endpoint.connect())
            .map_err(|e| format!("cannot reach {}: {e:?}", socket.display()))?;
        let mut client = Self {
            grpc: Grpc::new(channel),
            runtime,
        };
        // The socket is there before the service is.
        client.call::<_, Nothing>("Version", Nothing {})?;
        Ok(client)
    }

    fn call<A, B>(&mut self, method: &str, request: A) -> Result<B, String>
    where
        A: Message + 'static,
        B: Message + Default + 'static,
    {
        let path: PathAndQuery = format!("/runtime.v1.RuntimeService/{method}")
            .parse()
            .expect("methods have plain names");
        let Self { grpc, runtime } = self;
        runtime.block_on(async {
            grpc.ready().await.map_err(|e| format!("{method}: {e}"))?;
            let codec = tonic_prost::ProstCodec::default();
            let answer = grpc.unary(tonic::Request::new(request), path, codec).await;
            answer
                .map(tonic::Response::into_inner)
                .map_err(|e| format!("{method}: {}", e.message()))
        })
    }

    /// Makes and starts a sandbox: its id.
    pub fn run_sandbox(&mut self, config: SandboxConfig) -> Result<String, String> {
        let config = Some(config);
        let answer: Id = self.call("RunPodSandbox", RunPodSandbox { config })?;
        Ok(answer.id)
    }

    /// A sandbox's first address and the file that holds its namespace; empty and none in the node's
    /// network.
    pub fn network(&mut self, sandbox: &str) -> Result<(String, Option<PathBuf>), String> {
        let request = StatusRequest {
            id: sandbox.to_owned(),
            verbose: true,
        };
        let answer: StatusAnswer = self.call("PodSandboxStatus", request)?;
        let network = answer.status.and_then(|status| status.network);
        let info = answer.info.get("info").ok_or("no details of the sandbox")?;
        let info: Value = serde_json::from_str(info).map_err(|e| e.to_string())?;
        let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array();
        let netns = namespaces
            .into_iter()
            .flatten()
            .find(|namespace| namespace["type"] == "network")
            .and_then(|namespace| namespace["path"].as_str());
        Ok((network.unwrap_or_default().ip, netns.map(PathBuf::from)))
    }

    /// Makes and starts a container: its id.
    pub fn run_container(
        &mut self,
        sandbox: &str,
        config: &SandboxConfig,
        image: &str,
        command: &[&str],
    ) -> Result<String, String> {
        let linux = config.linux.clone().unwrap_or_default();
        let security = ContainerSecurity {
            namespaces: linux.security.and_then(|security| security.namespaces),
        };
        let created: Id = self.call(
            "CreateContainer",
            CreateContainer {
                sandbox: sandbox.to_owned(),
                config: Some(ContainerConfig {
                    metadata: Some(ContainerMetadata {
                        name: "main".to_owned(),
                    }),
                    image: Some(Image {
                        image: image.to_owned(),
                    }),
                    command: command.iter().map(|word| (*word).to_owned()).collect(),
                    log_path: "main.log".to_owned(),
                    linux: Some(ContainerLinux {
                        security: Some(security),
                    }),
                }),
                sandbox_config: Some(config.clone()),
            },
        )?;
        let id = created.id.clone();
        self.call::<_, Nothing>("StartContainer", Id { id })?;
        Ok(created.id)
    }

    /// Runs a command in a container to its end: what it wrote.
    pub fn exec(&mut self, container: &str, command: &[&str]) -> Result<String, String> {
        let answer: Executed = self.call(
            "ExecSync",
            ExecSync {
                container: container.to_owned(),
                command: command.iter().map(|word| (*word).to_owned()).collect(),
                timeout_seconds: 15,
            },
        )?;
        let said = String::from_utf8_lossy(&answer.stdout).into_owned();
        if answer.exit_code == 0 {
            return Ok(said);
        }
        let stderr = String::from_utf8_lossy(&answer.stderr);
        Err(format!(
            "{command:?} ended with {}: {said}{stderr}",
            answer.exit_code
        ))
    }

    /// Ends a sandbox and removes it.
    pub fn remove_sandbox(&mut self, sandbox: &str) -> Result<(), String> {
        for method in ["StopPodSandbox", "RemovePodSandbox"] {
            let id = sandbox.to_owned();
            self.call::<_, Nothing>(method, Id { id })?;
        }
        Ok(())
    }
}
