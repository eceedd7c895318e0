//! Keys, certificates and kubeconfigs of the cluster, by openssl.

use std::{path::Path, process::Command};

use anyhow::Result;

use super::lab::{ADDRESS, NODE, PORT};
use crate::{disk, sh};

/// Names of those who speak to the API server, and as whom.
const CLIENTS: &[(&str, &str)] = &[
    ("admin", "/O=system:masters/CN=admin"),
    ("controllers", "/CN=system:kube-controller-manager"),
    ("scheduler", "/CN=system:kube-scheduler"),
    ("proxy", "/CN=system:kube-proxy"),
];

/// Makes all of them in a folder.
pub fn make(folder: &Path) -> Result<()> {
    let openssl = |words: &str| {
        sh::quietly(
            Command::new("openssl")
                .current_dir(folder)
                .args(words.split(' ')),
        )
    };
    openssl("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=lab -keyout ca.key -out ca.crt")?;
    openssl("genrsa -out sa.key 2048")?;
    openssl("rsa -in sa.key -pubout -out sa.pub")?;
    disk::write(
        folder.join("names"),
        format!("subjectAltName=IP:{ADDRESS},IP:127.0.0.1,IP:10.96.0.1,DNS:localhost"),
    )?;
    let sign = |name: &str, subject: &str| {
        openssl(&format!(
            "req -newkey rsa:2048 -nodes -subj {subject} -keyout {name}.key -out {name}.csr"
        ))?;
        openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 \
             -extfile names -out {name}.crt"
        ))
    };
    sign("apiserver", "/CN=kube-apiserver")?;
    let node = format!("/O=system:nodes/CN=system:node:{NODE}");
    for (name, subject) in CLIENTS.iter().copied().chain([("node", node.as_str())]) {
        sign(name, subject)?;
        let user = format!("{{client-certificate: {name}.crt, client-key: {name}.key}}");
        disk::write(folder.join(format!("{name}.kubeconfig")), kubeconfig(&user))?;
    }
    Ok(())
}

/// A kubeconfig; `user` is what it says of its user. Its paths are as seen from its folder.
pub fn kubeconfig(user: &str) -> String {
    format!(
        "apiVersion: v1\n\
         kind: Config\n\
         current-context: lab\n\
         contexts: [{{name: lab, context: {{cluster: lab, user: lab}}}}]\n\
         clusters: [{{name: lab, cluster: {{server: \"https://{ADDRESS}:{PORT}\", \
         certificate-authority: ca.crt}}}}]\n\
         users: [{{name: lab, user: {user}}}]\n"
    )
}
