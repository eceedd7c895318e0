//! TLS in front of a stand-in server, which can be cut in the middle of a record.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, copy_bidirectional, duplex, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::broadcast;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::process::check;

/// Larger than any record, so that one comes through in one piece.
const ROOM: usize = 64 << 10;

/// The front; it ends on drop.
pub struct StandinTls {
    address: SocketAddr,
    authority: PathBuf,
    cut: broadcast::Sender<()>,
    _runtime: Runtime,
}

impl StandinTls {
    /// In front of a server that speaks plainly, with a certificate for 127.0.0.1 made in `folder`.
    pub fn start(folder: &Path, plain: SocketAddr) -> Self {
        let authority = folder.join("ca.crt");
        let acceptor = acceptor(folder, &authority);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime can be made");
        let (cut, _) = broadcast::channel(1);
        let listener = runtime
            .block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .expect("a port is free");
        let address = listener.local_addr().expect("it has an address");
        let cutting = cut.clone();
        runtime.spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let (wire, inside) = duplex(ROOM);
                let acceptor = acceptor.clone();
                // Either may end when the other hangs up.
                tokio::spawn(pass(connection, wire, cutting.subscribe()));
                tokio::spawn(async move {
                    let mut secure = acceptor.accept(inside).await?;
                    let mut plain = TcpStream::connect(plain).await?;
                    copy_bidirectional(&mut secure, &mut plain).await
                });
            }
        });
        Self {
            address,
            authority,
            cut,
            _runtime: runtime,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The file with the certificate to trust.
    pub fn authority(&self) -> &Path {
        &self.authority
    }

    /// Of the next record that goes to each client only half arrives, and then the connection is
    /// closed without a word.
    pub fn cut(&self) {
        // Nobody listens where nobody is connected.
        let _ = self.cut.send(());
    }
}

/// Passes records on as they are, until told to cut.
async fn pass(
    connection: TcpStream,
    wire: DuplexStream,
    mut cut: broadcast::Receiver<()>,
) -> io::Result<()> {
    let (mut from_client, mut to_client) = connection.into_split();
    let (mut from_server, mut to_server) = split(wire);
    let upwards =
        tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
    let mut is_cut = false;
    let mut bytes = vec![0; ROOM];
    loop {
        let read = tokio::select! {
            read = from_server.read(&mut bytes) => read?,
            _ = cut.recv(), if !is_cut => {
                is_cut = true;
                continue;
            }
        };
        let whole = if is_cut { read / 2 } else { read };
        to_client.write_all(&bytes[..whole]).await?;
        if is_cut || read == 0 {
            upwards.abort();
            return Ok(());
        }
    }
}

fn acceptor(folder: &Path, certificate: &Path) -> TlsAcceptor {
    let (config, key) = (folder.join("openssl.cnf"), folder.join("tls.key"));
    fs::write(
        &config,
        "[req]\ndistinguished_name = name\nx509_extensions = use\n[name]\n[use]\n\
         basicConstraints = critical, CA:FALSE\nsubjectAltName = IP:127.0.0.1\n",
    )
    .expect("files can be written");
    check(
        Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=stand-in",
            ])
            .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
            .arg("-config")
            .arg(&config)
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(certificate)
            .stdin(Stdio::null()),
    );
    let chain = CertificateDer::from_pem_file(certificate).expect("openssl made a certificate");
    let key = PrivateKeyDer::from_pem_file(key).expect("openssl made a key");
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_no_client_auth()
        .with_single_cert(vec![chain], key)
        .expect("key and certificate belong together");
    TlsAcceptor::from(Arc::new(config))
}
