//! What `tracer top --prometheus` needs: where the Prometheus is, and what it wants to be shown
//! before it answers. What is secret is never shown, not even in an error.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use url::Url;

use super::{File, Interval, OutputFormat, Span, UsageError};
use crate::cli::TopArgs;
use crate::top::NodeColumn;

/// `--range`: less than a few scrapes has no increase, and a day of all nodes is much to compute.
pub type Range = Span<1_000, 86_400_000>;
/// `--timeout`.
pub type Timeout = Span<100, 600_000>;

const DEFAULT_RANGE: Duration = Duration::from_mins(5);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(20);
/// As often as most are scraped; a question costs the server more than an agent.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(15);

/// A text that is shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// What `tracer top --prometheus` needs.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// How to reach it.
    pub access: Access,
    /// Figures are of this long.
    pub range: Duration,
    /// Label matchers for every query, such as `cluster="eu"`; or nothing.
    pub matchers: String,
    /// Only this node's pods.
    pub node: Option<String>,
    /// Column to sort by.
    pub sort: NodeColumn,
    /// How tables look.
    pub output: OutputFormat,
    /// Time between tables.
    pub interval: Duration,
}

/// How to reach a server.
#[derive(Clone, Debug)]
pub struct Access {
    /// Its base, to which `/api/v1/…` is added; no slash at the end, no user.
    pub url: Url,
    /// Sent with every request.
    pub headers: HeaderMap,
    /// Read before every request, for tokens are renewed.
    pub token_file: Option<PathBuf>,
    /// PEM file with the certificates to trust in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// For each answer.
    pub timeout: Duration,
}

impl ClusterConfig {
    /// Arguments, then file, then default; `None` without `--prometheus`.
    pub fn new(args: &TopArgs, file: &File) -> Result<Option<Self>, UsageError> {
        let given = &args.prometheus;
        // Flag beats environment beats file, whichever of the two it asks for.
        let rank = |name, is_given: bool| u8::from(is_given) + u8::from(args.is_flag(name));
        let agent = rank("agent", args.agent.is_some());
        let prometheus = rank("prometheus", given.prometheus.is_some());
        let url = given.prometheus.as_ref().or(file.prometheus.as_ref());
        let Some(url) = url.filter(|_| agent <= prometheus) else {
            return refuse_alone(args).map(|()| None);
        };
        if agent > 0 && agent == prometheus {
            return Err(UsageError(
                "prometheus: an agent is given too; leave one of them out".into(),
            ));
        }
        let matchers = given.r#match.as_ref().or(file.r#match.as_ref());
        let interval = args.interval.or(file.interval);
        let range = given.range.or(file.range);
        Ok(Some(Self {
            access: access(url, args, file)?,
            range: range.map_or(DEFAULT_RANGE, |r| r.0),
            matchers: matchers.map_or_else(|| Ok(String::new()), |m| checked_matchers(m))?,
            // The file's `node`, and the environment's, names the node that its agent runs on.
            node: (args.trace.node.as_ref())
                .filter(|_| args.is_flag("node"))
                .map(|node| node.0.clone()),
            sort: sort(args, file)?,
            output: given.output.or(file.output).unwrap_or_default(),
            interval: interval.map_or(DEFAULT_INTERVAL, |Span(interval): Interval| interval),
        }))
    }
}

/// What says something only to a Prometheus; the environment may say it to `tracer events`.
fn refuse_alone(args: &TopArgs) -> Result<(), UsageError> {
    if args.prometheus.output == Some(OutputFormat::Json) && args.is_flag("output") {
        return Err(UsageError(
            "output: json needs --prometheus; one node's figures as JSON are at /api/v1/snapshot of \
             its agent"
                .into(),
        ));
    }
    Ok(())
}

fn sort(args: &TopArgs, file: &File) -> Result<NodeColumn, UsageError> {
    let sort = args.sort.or(file.sort).unwrap_or_default();
    sort.nodes()
        .map_err(|error| UsageError(format!("sort: {error}")))
}

fn access(url: &str, args: &TopArgs, file: &File) -> Result<Access, UsageError> {
    let given = &args.prometheus;
    let (url, user) = checked_url(url).map_err(|e| UsageError(format!("prometheus: {e}")))?;
    let mut headers = HeaderMap::new();
    if let Some(user) = user {
        headers.insert(AUTHORIZATION, user);
    }
    let lists = [&given.header, &file.header];
    let list = lists.into_iter().find(|list| !list.is_empty());
    for Secret(header) in list.into_iter().flatten() {
        let (name, value) =
            checked_header(header).map_err(|e| UsageError(format!("header: {e}")))?;
        headers.append(name, value);
    }
    // A flag beats the environment beats the file, whichever of the two ways it takes.
    let is_flag = ["bearer_token", "bearer_token_file"].map(|name| args.is_flag(name));
    let (token, token_file) = match (&given.bearer_token, &given.bearer_token_file) {
        (None, None) => (&file.bearer_token, &file.bearer_token_file),
        (token @ Some(_), Some(_)) if is_flag == [true, false] => (token, &None),
        (Some(_), file @ Some(_)) if is_flag == [false, true] => (&None, file),
        own => own,
    };
    if token.is_some() && token_file.is_some() {
        return Err(UsageError(
            "bearer-token: bearer-token-file is given too; leave one of them out".into(),
        ));
    }
    if (token.is_some() || token_file.is_some()) && headers.contains_key(AUTHORIZATION) {
        return Err(UsageError(
            "bearer-token: the URL has a user, or a header says Authorization already; leave one of \
             them out"
                .into(),
        ));
    }
    if let Some(Secret(token)) = token {
        let value = bearer(token).map_err(|e| UsageError(format!("bearer-token: {e}")))?;
        headers.insert(AUTHORIZATION, value);
    }
    if let Some(path) = token_file {
        read_token(path).map_err(|e| UsageError(format!("bearer-token-file: {e}")))?;
    }
    let timeout = given.timeout.or(file.timeout);
    Ok(Access {
        url,
        headers,
        token_file: token_file.clone(),
        ca_file: given.ca_file.clone().or(file.ca_file.clone()),
        timeout: timeout.map_or(DEFAULT_TIMEOUT, |t| t.0),
    })
}

/// The base, and the user in it as a header.
fn checked_url(text: &str) -> Result<(Url, Option<HeaderValue>), String> {
    let example = "expected http://HOST:PORT or https://HOST, with a path where it has one";
    let mut url = Url::parse(text).map_err(|e| format!("{example}: {e}"))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(example.into());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!("{example}, and nothing behind it"));
    }
    let user = (!url.username().is_empty() || url.password().is_some()).then(|| {
        let decoded = |text: &str| percent_encoding::percent_decode_str(text).collect::<Vec<u8>>();
        let mut pair = decoded(url.username());
        pair.push(b':');
        pair.extend(decoded(url.password().unwrap_or_default()));
        secret(&format!("Basic {}", BASE64_STANDARD.encode(&pair)))
    });
    let user = user.transpose()?;
    // Neither fails with a host that is one.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    // As people copy it from their data source or their browser.
    let path = url.path().trim_end_matches('/');
    let path = path.strip_suffix("/api/v1").unwrap_or(path).to_owned();
    url.set_path(&path);
    Ok((url, user))
}

fn checked_header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let example = "expected NAME:VALUE, such as X-Scope-OrgID:tenant";
    let (name, value) = text.split_once(':').ok_or(example)?;
    let name: HeaderName = name.trim().parse().map_err(|_| example)?;
    Ok((name, secret(value.trim())?))
}

fn bearer(token: &str) -> Result<HeaderValue, String> {
    if token.trim().is_empty() {
        return Err("the token is empty".into());
    }
    secret(&format!("Bearer {}", token.trim()))
}

fn secret(text: &str) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| "the value has characters that no header may hold")?;
    value.set_sensitive(true);
    Ok(value)
}

/// The token that a file holds.
pub(crate) fn read_token(path: &std::path::Path) -> Result<HeaderValue, String> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|e| format!("cannot read {shown}: {e}"))?;
    bearer(&text).map_err(|e| format!("{shown}: {e}"))
}

/// `name="value"`, also with `!=`, `=~` and `!~`, and commas between.
fn checked_matchers(text: &str) -> Result<String, UsageError> {
    let error = || {
        UsageError(format!(
            "match: expected label matchers such as cluster=\"eu\",env!=\"test\", not {text:?}"
        ))
    };
    let mut rest = text.trim();
    loop {
        let letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let end = rest.find(|c| !letter(c)).ok_or_else(error)?;
        let name = &rest[..end];
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(error());
        }
        let operators = ["=~", "!~", "!=", "="];
        rest = operators
            .iter()
            .find_map(|operator| rest[end..].trim_start().strip_prefix(operator))
            .and_then(|rest| rest.trim_start().strip_prefix('"'))
            .and_then(after_quoted)
            .ok_or_else(error)?
            .trim_start();
        if rest.is_empty() {
            return Ok(text.trim().to_owned());
        }
        rest = rest.strip_prefix(',').ok_or_else(error)?.trim_start();
    }
}

/// What follows the closing quote.
fn after_quoted(text: &str) -> Option<&str> {
    let mut escaped = false;
    for (at, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(&text[at + 1..]),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Result<(String, Option<HeaderValue>), String> {
        checked_url(text).map(|(url, user)| (url.to_string(), user))
    }

    #[test]
    fn urls_keep_their_path_and_lose_their_user() {
        for (given, base) in [
            ("http://prometheus:9090", "http://prometheus:9090/"),
            ("https://mimir/prometheus/", "https://mimir/prometheus"),
            ("https://[::1]:9/a/b", "https://[::1]:9/a/b"),
            ("http://p:9090/prefix/api/v1", "http://p:9090/prefix"),
        ] {
            assert_eq!(url(given), Ok((base.to_owned(), None)), "{given}");
        }
        let (base, user) = url("https://me:p%40ss@grafana.example/api/prom").unwrap();
        assert_eq!(base, "https://grafana.example/api/prom");
        let user = user.unwrap();
        assert_eq!(user, "Basic bWU6cEBzcw==");
        assert!(!format!("{user:?}").contains("bWU6"));
        for bad in ["", "prometheus:9090", "ftp://p", "http://", "http://p/?a=b"] {
            assert!(url(bad).unwrap_err().contains("expected http://"), "{bad}");
        }
    }

    #[test]
    fn headers_are_checked_and_not_told() {
        let (name, value) = checked_header("X-Scope-OrgID: shop").unwrap();
        assert_eq!(name, "x-scope-orgid");
        assert_eq!(value, "shop");
        for bad in ["", "X", ":x", "a b:c", "a:s3cret\n"] {
            let error = checked_header(bad);
            assert!(
                error.is_ok_and(|(_, v)| v == "s3cret") || checked_header(bad).is_err(),
                "{bad:?}"
            );
        }
        let error = checked_header("a:s3\u{1}cret").unwrap_err();
        assert!(!error.contains("cret"), "{error}");
    }

    #[test]
    fn matchers_are_label_matchers() {
        for good in [
            r#"cluster="eu""#,
            r#" a =~ "x|y" , _b!="\"},{" "#,
            r#"a!~"b""#,
        ] {
            assert_eq!(checked_matchers(good).unwrap(), good.trim());
        }
        for bad in [
            "",
            "a",
            "a=b",
            r#"a="b"}"#,
            r#"a="b" or up"#,
            r#"1a="b""#,
            r#"a="b","#,
            r#"a="b\""#,
        ] {
            assert!(checked_matchers(bad).is_err(), "{bad}");
        }
    }
}
