//! GET over HTTP/1.1, plainly or by TLS: whom to trust, how long to wait, where a redirection may lead.

use std::error::Error;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Request, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt as _;
use tokio::time::timeout;
use url::Url;

use crate::config::{Access, read_token};
use crate::output::printable;

/// All nodes' figures of one signal take some hundred kilobytes.
const MAX_ANSWER: usize = 64 << 20;
/// As browsers have it, or less.
const MAX_REDIRECTIONS: usize = 5;
/// What a failed answer may say in a line.
const MAX_WORDS: usize = 200;

/// Asks one server.
#[derive(Clone)]
pub(super) struct Http {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    access: Access,
}

/// An answer, whatever its status.
#[derive(Debug)]
pub(super) struct Answer {
    /// Who answered: another than was asked, after a redirection.
    pub url: Url,
    pub status: StatusCode,
    pub is_json: bool,
    pub body: Bytes,
}

impl Http {
    /// Reads the certificates; connects with the first question.
    pub fn new(access: Access) -> Result<Self> {
        let tls = tls(&access)?;
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        // A machine that does not answer must not eat the time of one with a second address.
        connector.set_connect_timeout(Some(access.timeout / 2));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { client, access })
    }

    /// The base, as it may be shown.
    pub fn base(&self) -> &str {
        self.access.url.as_str().trim_end_matches('/')
    }

    /// Asks for `path` below the base.
    pub async fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Answer> {
        let mut url = self.access.url.clone();
        url.set_path(&format!("{}{path}", url.path().trim_end_matches('/')));
        url.query_pairs_mut().extend_pairs(parameters);
        let patience = self.access.timeout;
        timeout(patience, self.follow(url))
            .await
            .unwrap_or_else(|_| {
                Err(anyhow!(
                    "{} does not answer within {}: a larger --timeout or a shorter --range may help",
                    self.base(),
                    humantime::format_duration(patience)
                ))
            })
    }

    async fn follow(&self, mut url: Url) -> Result<Answer> {
        let asked = url.clone();
        for _ in 0..=MAX_REDIRECTIONS {
            let is_own = url.origin() == asked.origin();
            let (head, body) = self.once(&url, is_own).await?;
            if !head.status.is_redirection() {
                return Ok(Answer {
                    url,
                    status: head.status,
                    is_json: media_type(&head.headers).contains("json"),
                    body,
                });
            }
            let to = head.headers.get(header::LOCATION);
            let to = to.and_then(|to| url.join(to.to_str().ok()?).ok());
            url = to.with_context(|| format!("{} redirects to nowhere", shown(&url)))?;
            if !matches!(url.scheme(), "http" | "https") {
                bail!("{} redirects to {}", self.base(), shown(&url));
            }
        }
        bail!(
            "{} redirects more than {MAX_REDIRECTIONS} times, last to {}",
            self.base(),
            shown(&url)
        )
    }

    /// What is secret goes to the server that the user named and to no other.
    async fn once(
        &self,
        url: &Url,
        with_secrets: bool,
    ) -> Result<(hyper::http::response::Parts, Bytes)> {
        let mut request = Request::get(url.as_str())
            .header(header::ACCEPT, "application/json")
            .header(
                header::USER_AGENT,
                concat!("tracer/", env!("CARGO_PKG_VERSION")),
            )
            .body(Empty::new())
            .with_context(|| format!("{} cannot be asked for", shown(url)))?;
        if with_secrets {
            request.headers_mut().extend(self.headers()?);
        }
        let response = self
            .client
            .request(request)
            .await
            .map_err(|error| unreachable(url, &error))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER)
            .collect()
            .await
            .map_err(|e| anyhow!("{} broke off its answer: {e}", shown(url)))?;
        Ok((head, body.to_bytes()))
    }

    fn headers(&self) -> Result<HeaderMap<HeaderValue>> {
        let mut headers = self.access.headers.clone();
        if let Some(path) = &self.access.token_file {
            let token = read_token(path).map_err(|e| anyhow!("bearer-token-file: {e}"))?;
            headers.insert(header::AUTHORIZATION, token);
        }
        Ok(headers)
    }
}

/// Why there is no answer, and what to do about it.
fn unreachable(url: &Url, error: &hyper_util::client::legacy::Error) -> anyhow::Error {
    let place = shown(url);
    let mut words = String::new();
    let mut advice = "is the URL right, and can it be reached from here?";
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(cause) = next {
        words = cause.to_string();
        let io = cause.downcast_ref::<io::Error>();
        if io.is_some_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) {
            advice = "nothing listens there; is the port right? Into a cluster: `kubectl \
                      port-forward service/prometheus 9090`";
        } else if let Some(error) = cause.downcast_ref::<rustls::Error>() {
            advice = tls_advice(error);
        } else if cause.downcast_ref().is_some_and(hyper::Error::is_parse) {
            advice = "does it speak HTTPS? Then the URL begins with https://";
        }
        // What an io::Error wraps is not its source, but what that one has.
        next = match io.and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => cause.source(),
        };
    }
    anyhow!(
        "no answer from {place}: {}; {advice}",
        printable(words.trim())
    )
}

fn tls_advice(error: &rustls::Error) -> &'static str {
    match error {
        rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer) => {
            "its certificate is from nobody trusted here; give its authority by --ca-file"
        }
        rustls::Error::InvalidCertificate(_) => "its certificate does not fit",
        rustls::Error::InvalidMessage(_) => {
            "does it speak plain HTTP? Then the URL begins with http://"
        }
        _ => "TLS failed",
    }
}

fn media_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE);
    value.and_then(|v| v.to_str().ok()).unwrap_or_default()
}

/// Without the query, which is long, and without what a redirection may have brought in.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Fails only for URLs that have no host.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    printable(url.as_str()).into_owned()
}

/// The first words of an answer that is not what was wanted.
pub(super) fn words(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(4 * MAX_WORDS)]);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty());
    let first: String = line.unwrap_or_default().chars().take(MAX_WORDS).collect();
    printable(&first).into_owned()
}

fn tls(access: &Access) -> Result<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .context("TLS cannot be set up")?;
    if let Some(path) = &access.ca_file {
        let roots = roots(path).with_context(|| format!("ca-file: {}", path.display()))?;
        return Ok(builder.with_root_certificates(roots).with_no_client_auth());
    }
    match builder.clone().with_platform_verifier() {
        Ok(builder) => Ok(builder.with_no_client_auth()),
        // A machine without certificates may still ask plainly.
        Err(_) if access.url.scheme() == "http" => Ok(builder
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth()),
        Err(error) => Err(error).context(
            "this machine has no certificates to trust; install ca-certificates or give --ca-file",
        ),
    }
}

fn roots(path: &Path) -> Result<RootCertStore> {
    let pem = fs::read(path).context("cannot read it")?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|e| anyhow!("it is no PEM file: {e}"))?;
        roots
            .add(certificate)
            .context("it has a certificate that cannot be used")?;
    }
    if roots.is_empty() {
        bail!("it has no certificate");
    }
    Ok(roots)
}
