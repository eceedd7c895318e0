//! Instant queries of Prometheus' HTTP API, which Thanos, Mimir and Google's have too.
//! <https://prometheus.io/docs/prometheus/latest/querying/api/>

use std::collections::BTreeMap;

use anyhow::{Result, anyhow, bail};
use futures_util::FutureExt as _;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use hyper::StatusCode;
use serde::Deserialize;

use super::http::{Answer, Http, shown, words};
use crate::config::Access;
use crate::output::printable;

/// Queries that run at once: a server that allows a user few must not refuse the rest.
const AT_ONCE: usize = 4;

/// A client of the API.
#[derive(Clone)]
pub(super) struct Api {
    http: Http,
}

/// One series of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sample {
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

impl Sample {
    /// A label; empty where there is none, which is the same to Prometheus.
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// Answers in the order of the queries, and what the server warned of, each once.
#[derive(Debug, Default)]
pub(super) struct Answers {
    pub samples: Vec<Vec<Sample>>,
    pub warnings: Vec<String>,
}

impl Api {
    pub fn new(access: Access) -> Result<Self> {
        Http::new(access).map(|http| Self { http })
    }

    /// The server, as it may be shown.
    pub fn base(&self) -> &str {
        self.http.base()
    }

    /// Runs all of them; the first error ends it.
    pub async fn query_all(&self, queries: &[String]) -> Result<Answers> {
        // Each has all it needs: borrowed, the compiler cannot tell that they may go to other threads.
        let each = queries.iter().map(|query| (self.clone(), query.clone()));
        let answers: Vec<(Vec<Sample>, Vec<String>)> = stream::iter(each.collect::<Vec<_>>())
            .map(|(api, query)| async move { api.query(&query).await }.boxed())
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        let mut all = Answers::default();
        for (samples, warnings) in answers {
            all.samples.push(samples);
            for warning in warnings {
                if !all.warnings.contains(&warning) {
                    all.warnings.push(warning);
                }
            }
        }
        Ok(all)
    }

    async fn query(&self, query: &str) -> Result<(Vec<Sample>, Vec<String>)> {
        let answer = self.http.get("/api/v1/query", &[("query", query)]).await?;
        let place = shown(&answer.url);
        let Ok(body) = serde_json::from_slice::<Body>(&answer.body) else {
            return Err(no_api(&answer));
        };
        if body.status != "success" || !answer.status.is_success() {
            let error = format!("{}: {}", body.error_type, body.error);
            let advice = match answer.status {
                StatusCode::UNPROCESSABLE_ENTITY => "; a shorter --range may help",
                StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                    "; it is not ready or too busy: try again, or with a larger --interval"
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ACCESS,
                _ => "",
            };
            bail!(
                "{place} answers {} to `{query}`: {}{advice}",
                answer.status,
                printable(&error)
            );
        }
        let samples = body.data.unwrap_or_default().samples().map_err(|what| {
            anyhow!("{place} answers `{query}` with what is no vector: {what}; is it a Prometheus?")
        })?;
        let warnings = body.warnings.iter().map(|w| printable(w).into_owned());
        Ok((samples, warnings.collect()))
    }
}

const ACCESS: &str = "; give what it wants to see by --bearer-token-file, --header NAME:VALUE (such as \
                      X-Scope-OrgID:tenant) or http://USER:PASSWORD@…";

/// What is no answer of the API: of a proxy before it, or of another program.
fn no_api(answer: &Answer) -> anyhow::Error {
    let place = shown(&answer.url);
    let status = answer.status;
    let said = words(&answer.body);
    let colon = if said.is_empty() { "" } else { ": " };
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            anyhow!("{place} refuses us with {status}{colon}{said}{ACCESS}")
        }
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => anyhow!(
            "{place} answers {status}{colon}{said}; does its path want a prefix, such as /prometheus?"
        ),
        status if !status.is_success() => anyhow!("{place} answers {status}{colon}{said}"),
        _ if answer.is_json => {
            anyhow!("{place} answers with JSON that is no answer of a Prometheus{colon}{said}")
        }
        _ => anyhow!(
            "{place} answers with what is no JSON: a page to log in, or not a Prometheus{colon}{said}"
        ),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    status: String,
    data: Option<Data>,
    #[serde(default)]
    error_type: String,
    #[serde(default)]
    error: String,
    #[serde(default)]
    warnings: Vec<String>,
}

/// [`crate::fuzz`]: an answer, with what the server warned of.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(text: &str) -> Option<(Vec<Sample>, Vec<String>)> {
    let body: Body = serde_json::from_str(text).ok()?;
    let samples = body.data.unwrap_or_default().samples().ok()?;
    let warnings = body.warnings.iter().map(|w| printable(w).into_owned());
    Some((samples, warnings.collect()))
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Data {
    result_type: String,
    result: serde_json::Value,
}

#[derive(Deserialize)]
struct Series {
    #[serde(default)]
    metric: BTreeMap<String, String>,
    /// Time, and the value as text.
    value: (f64, String),
}

impl Data {
    fn samples(self) -> Result<Vec<Sample>, String> {
        if self.result_type != "vector" {
            return Err(format!("a {:?}", self.result_type));
        }
        let series: Vec<Series> = serde_json::from_value(self.result)
            .map_err(|e| printable(&e.to_string()).into_owned())?;
        let sample = |series: Series| {
            let (_, text) = series.value;
            // Prometheus writes +Inf, -Inf and NaN, which Rust reads.
            let value = text.parse().map_err(|_| format!("value {text:?}"))?;
            Ok(Sample {
                labels: series.metric,
                value,
            })
        };
        series.into_iter().map(sample).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(text: &str) -> Result<Vec<Sample>, String> {
        let body: Body = serde_json::from_str(text).unwrap();
        body.data.unwrap_or_default().samples()
    }

    #[test]
    fn vectors_are_read() {
        let samples = data(
            r#"{"status":"success","data":{"resultType":"vector","result":[
                {"metric":{"node":"a"},"value":[1.5,"2"]},{"metric":{},"value":[1,"+Inf"]},
                {"metric":{},"value":[1,"NaN"]}]},"warnings":["partial"],"infos":["x"]}"#,
        )
        .unwrap();
        assert_eq!((samples[0].label("node"), samples[0].value), ("a", 2.0));
        assert_eq!(samples[1].label("node"), "");
        assert!(samples[1].value.is_infinite() && samples[2].value.is_nan());
    }

    #[test]
    fn what_is_no_vector_is_said() {
        let matrix = r#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#;
        assert!(data(matrix).unwrap_err().contains("matrix"));
        assert!(data(r#"{"status":"success"}"#).is_err());
        let odd = r#"{"status":"success","data":{"resultType":"vector","result":[{"metric":{}}]}}"#;
        assert!(data(odd).unwrap_err().contains("value"));
    }
}
