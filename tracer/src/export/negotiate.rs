//! What a client wants to read, by its `Accept` and `Accept-Encoding` (RFC 9110, 12.5).

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format 0.0.4.
    Text,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Format {
    /// The `Content-Type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// OpenMetrics where it is asked for by name and nothing of ours is liked better; else the
    /// older format, also for who wants neither.
    pub fn wanted(accept: &str) -> Self {
        let weight = |range, version| {
            members(accept)
                .filter(|member| member.is(range) && member.has("version", version))
                .map(|member| member.weight)
                .reduce(f64::max)
        };
        let openmetrics = weight("application/openmetrics-text", "1.0.0").unwrap_or(0.0);
        // The most exact range decides.
        let text = weight("text/plain", "0.0.4")
            .or_else(|| weight("text/*", "0.0.4"))
            .or_else(|| weight("*/*", "0.0.4"))
            .unwrap_or(0.0);
        if openmetrics > 0.0 && openmetrics >= text {
            Self::OpenMetrics
        } else {
            Self::Text
        }
    }
}

/// Is gzip asked for by name, and not liked less than none?
pub fn wants_gzip(accept_encoding: &str) -> bool {
    let weight = |coding| {
        members(accept_encoding)
            .find(|member| member.is(coding))
            .map_or(0.0, |member| member.weight)
    };
    let gzip = weight("gzip");
    gzip > 0.0 && gzip >= weight("identity")
}

/// One of the alternatives in such a header.
struct Member<'a> {
    name: &'a str,
    parameters: &'a str,
    weight: f64,
}

impl Member<'_> {
    fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }

    /// Has the parameter this value, or is it left open?
    fn has(&self, name: &str, value: &str) -> bool {
        parameter(self.parameters, name).is_none_or(|v| v == value)
    }
}

/// The alternatives that can be read.
fn members(header: &str) -> impl Iterator<Item = Member<'_>> {
    header.split(',').filter_map(|member| {
        let (name, parameters) = member.split_once(';').unwrap_or((member, ""));
        let weight = match parameter(parameters, "q") {
            Some(weight) => weight.parse().ok().filter(|q| (0.0..=1.0).contains(q))?,
            None => 1.0,
        };
        Some(Member {
            name: name.trim(),
            parameters,
            weight,
        })
    })
}

/// Of `name=value; name="value"`.
fn parameter<'a>(parameters: &'a str, name: &str) -> Option<&'a str> {
    parameters
        .split(';')
        .filter_map(|parameter| parameter.split_once('='))
        .find(|(n, _)| n.trim().eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim().trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openmetrics_is_for_those_who_ask() {
        for (accept, format) in [
            ("", Format::Text),
            ("*/*", Format::Text),
            ("application/*", Format::Text),
            ("text/html,application/xml;q=0.9,*/*;q=0.8", Format::Text),
            ("application/openmetrics-text", Format::OpenMetrics),
            (
                "Application/OpenMetrics-Text; Version=\"1.0.0\"",
                Format::OpenMetrics,
            ),
            ("application/openmetrics-text, */*", Format::OpenMetrics),
            ("application/openmetrics-text;version=0.0.1", Format::Text),
            ("application/openmetrics-text;version=2.0.0", Format::Text),
            ("application/openmetrics-text;q=0", Format::Text),
            ("application/openmetrics-text;q=0.0,*/*;q=0.1", Format::Text),
            (
                "application/openmetrics-text;q=0.5,text/plain",
                Format::Text,
            ),
            (
                "application/openmetrics-text;q=0.5,text/*;q=0.6",
                Format::Text,
            ),
            (
                "text/plain;q=0.2, */*;q=0.9, application/openmetrics-text;q=0.5",
                Format::OpenMetrics,
            ),
            ("application/openmetrics-text;q=two", Format::Text),
            ("application/openmetrics-text;q=7", Format::Text),
            (",;,=;q=,", Format::Text),
        ] {
            assert_eq!(Format::wanted(accept), format, "{accept}");
        }
    }

    #[test]
    fn prometheus_gets_openmetrics() {
        for accept in [
            // 2.42
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
             text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            // 3.x
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
             application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
             text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
        ] {
            assert_eq!(Format::wanted(accept), Format::OpenMetrics, "{accept}");
        }
    }

    #[test]
    fn gzip_is_for_those_who_ask() {
        for (accept, gzip) in [
            ("gzip", true),
            ("deflate, GZIP;q=0.5", true),
            ("", false),
            ("*", false),
            ("br", false),
            ("gzip;q=0", false),
            ("identity, gzip;q=0.5", false),
        ] {
            assert_eq!(wants_gzip(accept), gzip, "{accept}");
        }
    }
}
