//! A client of the container runtime interface, as far as the lab makes pods with it; by the numbers
//! of `runtime.v1` (<https://github.com/kubernetes/cri-api>).

#[expect(missing_docs, reason = "the interface itself tells of them")]
mod messages;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::messages::{Capabilities, ContainerSecurity, Mount, Profile, SandboxConfig, User};
use self::messages::{
    ContainerConfig, ContainerLinux, ContainerMetadata, CreateContainer, ExecSync, Executed, Id,
    Image, Metadata, Namespaces, Nothing, RunPodSandbox, SandboxLinux, SandboxSecurity,
    StatusAnswer, StatusRequest, Variable,
};
use prost::Message;
use serde_json::Value;
use tokio::runtime::Runtime;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};

/// `POD` of `NamespaceMode`.
const POD: i32 = 0;
/// `NODE` of `NamespaceMode`.
const NODE: i32 = 2;
/// `CONTAINER` of `NamespaceMode`.
const CONTAINER: i32 = 1;

/// What a container is made of; by default what the image says, with no more and no less than a
/// runtime gives.
#[derive(Clone, Debug, Default)]
pub struct ContainerSpec {
    /// Instead of the image's.
    pub command: Vec<String>,
    /// After the command.
    pub arguments: Vec<String>,
    /// Of the environment.
    pub variables: Vec<(String, String)>,
    /// Folders of the node.
    pub mounts: Vec<Mount>,
    /// What it may do.
    pub security: ContainerSecurity,
    /// Is the node's network its own?
    pub host_network: bool,
    /// Are the node's process ids its own?
    pub host_pid: bool,
}

impl SandboxConfig {
    /// A pod `namespace/name`, its cgroups below `cgroup_parent`, with a network of its own or the
    /// node's.
    pub fn new(
        [namespace, name, uid]: [&str; 3],
        cgroup_parent: String,
        spec: &ContainerSpec,
        logs: &Path,
    ) -> Self {
        let node = |shared| if shared { NODE } else { POD };
        let namespaces = Namespaces {
            network: node(spec.host_network),
            pid: if spec.host_pid { NODE } else { CONTAINER },
        };
        Self {
            metadata: Some(Metadata {
                name: name.to_owned(),
                uid: uid.to_owned(),
                namespace: namespace.to_owned(),
            }),
            hostname: if spec.host_network { "" } else { name }.to_owned(),
            log_directory: logs.display().to_string(),
            linux: Some(SandboxLinux {
                cgroup_parent,
                security: Some(SandboxSecurity {
                    namespaces: Some(namespaces),
                    privileged: spec.security.privileged,
                }),
            }),
        }
    }
}

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
        spec: &ContainerSpec,
    ) -> Result<String, String> {
        let linux = config.linux.clone().unwrap_or_default();
        let security = ContainerSecurity {
            namespaces: linux.security.and_then(|security| security.namespaces),
            ..spec.security.clone()
        };
        let variables = spec.variables.iter().cloned();
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
                    command: spec.command.clone(),
                    arguments: spec.arguments.clone(),
                    variables: variables
                        .map(|(key, value)| Variable { key, value })
                        .collect(),
                    mounts: spec.mounts.clone(),
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
