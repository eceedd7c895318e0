//! `cargo xtask dashboard`: Grafana's dashboard, made of a source that people can read and review
//! (`deploy/grafana/dashboard.toml`).

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::sh;

const SOURCE: &str = "deploy/grafana/dashboard.toml";
const MADE: &str = "deploy/helm/tracer/files/dashboard.json";
/// Schema of Grafana 12's classic dashboards; older ones read it too, newer ones migrate it.
const SCHEMA: u32 = 41;
/// Of each line, whatever the range: Prometheus' limit of samples is for all points of a query.
const POINTS: u32 = 300;
/// Columns of Grafana's grid.
const COLUMNS: u32 = 24;

/// Writes the dashboard, or only compares it.
pub fn run(check: bool) -> Result<()> {
    let made = make()?;
    let path = sh::root().join(MADE);
    if check {
        let there = fs::read_to_string(&path).with_context(|| format!("failed to read {MADE}"))?;
        ensure!(
            there == made,
            "{MADE} is not what {SOURCE} makes; run `cargo xtask dashboard`"
        );
        return Ok(());
    }
    fs::write(&path, made).with_context(|| format!("failed to write {MADE}"))?;
    sh::step(format!("written: {MADE}"));
    Ok(())
}

fn make() -> Result<String> {
    let path = sh::root().join(SOURCE);
    let text = fs::read_to_string(&path).with_context(|| format!("failed to read {SOURCE}"))?;
    let source: Source =
        toml::from_str(&text).with_context(|| format!("failed to read {SOURCE}"))?;
    Ok(serde_json::to_string_pretty(&source.dashboard())? + "\n")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    title: String,
    uid: String,
    description: String,
    /// What `@NAME` in an expression stands for.
    select: BTreeMap<String, String>,
    variable: Vec<Variable>,
    annotation: Vec<Annotation>,
    row: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Variable {
    name: String,
    label: String,
    query: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Annotation {
    name: String,
    expr: String,
    title: String,
    text: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    title: String,
    /// Closed until somebody opens it: its panels ask nothing before.
    #[serde(default)]
    closed: bool,
    panel: Vec<Panel>,
}

#[derive(Clone, Copy, Default, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Kind {
    #[default]
    Timeseries,
    Stat,
    Table,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Panel {
    title: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    kind: Kind,
    width: Option<u32>,
    height: Option<u32>,
    #[serde(default)]
    unit: String,
    decimals: Option<u32>,
    max: Option<f64>,
    #[serde(default)]
    stack: bool,
    /// Colour, and from which value on.
    #[serde(default)]
    thresholds: BTreeMap<String, f64>,
    queries: Vec<Query>,
    /// A table's columns, by the field of the answer; any other field is hidden.
    #[serde(default)]
    columns: BTreeMap<String, String>,
    /// Units of a table's columns.
    #[serde(default)]
    units: BTreeMap<String, String>,
    /// The column by which a table is sorted, greatest first.
    sort: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Query {
    expr: String,
    #[serde(default)]
    legend: String,
    /// Where it is another than the panel's.
    unit: Option<String>,
}

fn datasource() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}

impl Source {
    fn dashboard(&self) -> Value {
        let mut panels = Vec::new();
        let (mut id, mut y) = (0, 0);
        for row in &self.row {
            id += 1;
            let mut head = json!({
                "id": id,
                "type": "row",
                "title": row.title,
                "collapsed": row.closed,
                "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
                "panels": [],
            });
            y += 1;
            let below = y;
            let mut inside = Vec::new();
            let (mut x, mut line) = (0, 0);
            for panel in &row.panel {
                let (width, height) = panel.size();
                if x + width > COLUMNS {
                    (x, y, line) = (0, y + line, 0);
                }
                id += 1;
                let mut made = self.panel(panel);
                made["id"] = json!(id);
                made["gridPos"] = json!({"x": x, "y": y, "w": width, "h": height});
                inside.push(made);
                x += width;
                line = line.max(height);
            }
            y += line;
            if row.closed {
                // They are the row's own, and take no room.
                head["panels"] = json!(inside);
                panels.push(head);
                y = below;
            } else {
                panels.push(head);
                panels.extend(inside);
            }
        }
        json!({
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["tracer", "kubernetes", "network"],
            "schemaVersion": SCHEMA,
            "editable": true,
            "graphTooltip": 1,
            "time": {"from": "now-1h", "to": "now"},
            "refresh": "30s",
            "timezone": "browser",
            "templating": {"list": self.variables()},
            "annotations": {"list": self.annotations()},
            "links": [],
            "panels": panels,
        })
    }

    fn variables(&self) -> Vec<Value> {
        let mut all = vec![json!({
            "name": "datasource",
            "label": "Prometheus",
            "type": "datasource",
            "query": "prometheus",
            "hide": 0,
        })];
        all.extend(self.variable.iter().map(|variable| {
            json!({
                "name": variable.name,
                "label": variable.label,
                "type": "query",
                "datasource": datasource(),
                "definition": variable.query,
                "query": {"query": variable.query, "refId": "variable"},
                // At each change of the range: nodes and pods come and go.
                "refresh": 2,
                "sort": 1,
                "multi": true,
                "includeAll": true,
                "allValue": ".*",
                "current": {"text": ["All"], "value": ["$__all"]},
                "hide": 0,
            })
        }));
        all
    }

    fn annotations(&self) -> Vec<Value> {
        let made = |annotation: &Annotation| {
            json!({
                "name": annotation.name,
                "datasource": datasource(),
                "enable": true,
                "hide": false,
                "iconColor": "red",
                "expr": annotation.expr,
                "titleFormat": annotation.title,
                "textFormat": annotation.text,
                "step": "60s",
            })
        };
        self.annotation.iter().map(made).collect()
    }

    fn panel(&self, panel: &Panel) -> Value {
        let table = panel.kind == Kind::Table;
        let targets: Vec<Value> = ('A'..='Z')
            .zip(&panel.queries)
            .map(|(letter, query)| {
                json!({
                    "refId": letter.to_string(),
                    "datasource": datasource(),
                    "expr": self.expanded(&query.expr),
                    "legendFormat": if query.legend.is_empty() { "__auto" } else { &query.legend },
                    "format": if table { "table" } else { "time_series" },
                    "instant": panel.kind != Kind::Timeseries,
                    "range": panel.kind == Kind::Timeseries,
                })
            })
            .collect();
        let mut made = json!({
            "title": panel.title,
            "description": panel.description,
            "datasource": datasource(),
            "targets": targets,
            "maxDataPoints": POINTS,
            "fieldConfig": {"defaults": panel.defaults(), "overrides": panel.overrides()},
        });
        let (kind, options) = match panel.kind {
            Kind::Timeseries => (
                "timeseries",
                json!({
                    "legend": {"displayMode": "list", "placement": "bottom", "showLegend": true, "calcs": []},
                    "tooltip": {"mode": "multi", "sort": "desc"},
                }),
            ),
            Kind::Stat => (
                "stat",
                json!({
                    "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": false},
                    "colorMode": "value",
                    "graphMode": "none",
                    "textMode": "auto",
                    "justifyMode": "auto",
                    "orientation": "auto",
                }),
            ),
            Kind::Table => (
                "table",
                json!({
                    "showHeader": true,
                    "cellHeight": "sm",
                    "sortBy": panel.sort.iter().map(|by| json!({"displayName": by, "desc": true})).collect::<Vec<_>>(),
                }),
            ),
        };
        made["type"] = json!(kind);
        made["options"] = options;
        if table {
            made["transformations"] = panel.transformations();
        }
        made
    }

    fn expanded(&self, expr: &str) -> String {
        let mut expanded = expr.to_owned();
        for (name, stands_for) in &self.select {
            expanded = expanded.replace(&format!("@{name}"), stands_for);
        }
        expanded
    }
}

impl Panel {
    fn size(&self) -> (u32, u32) {
        let height = if self.kind == Kind::Stat { 4 } else { 8 };
        (self.width.unwrap_or(8), self.height.unwrap_or(height))
    }

    fn defaults(&self) -> Value {
        let mut steps = vec![json!({"color": "green", "value": null})];
        let mut by_value: Vec<_> = self.thresholds.iter().collect();
        by_value.sort_by(|a, b| a.1.total_cmp(b.1));
        steps.extend(
            by_value
                .into_iter()
                .map(|(color, value)| json!({"color": color, "value": value})),
        );
        let mut defaults = json!({
            "unit": if self.unit.is_empty() { "short" } else { &self.unit },
            "thresholds": {"mode": "absolute", "steps": steps},
        });
        if let Some(decimals) = self.decimals {
            defaults["decimals"] = json!(decimals);
        }
        if let Some(max) = self.max {
            defaults["min"] = json!(0);
            defaults["max"] = json!(max);
        }
        match self.kind {
            Kind::Stat => defaults["color"] = json!({"mode": "thresholds"}),
            Kind::Timeseries => {
                defaults["color"] = json!({"mode": "palette-classic"});
                let stacking = if self.stack { "normal" } else { "none" };
                let lines = if self.thresholds.is_empty() {
                    "off"
                } else {
                    "dashed"
                };
                defaults["custom"] = json!({
                    "drawStyle": "line",
                    "lineWidth": 1,
                    "fillOpacity": if self.stack { 30 } else { 0 },
                    "showPoints": "never",
                    "spanNulls": false,
                    "stacking": {"mode": stacking, "group": "A"},
                    "thresholdsStyle": {"mode": lines},
                });
            }
            Kind::Table => {}
        }
        defaults
    }

    fn overrides(&self) -> Vec<Value> {
        let unit = |matcher: Value, unit: &str, right: bool| {
            let mut properties = vec![json!({"id": "unit", "value": unit})];
            if right {
                properties.push(json!({"id": "custom.axisPlacement", "value": "right"}));
            }
            json!({"matcher": matcher, "properties": properties})
        };
        let columns = self
            .units
            .iter()
            .map(|(column, name)| unit(json!({"id": "byName", "options": column}), name, false));
        let queries = ('A'..='Z')
            .zip(&self.queries)
            .filter_map(|(letter, query)| {
                let name = query.unit.as_ref()?;
                let matcher = json!({"id": "byFrameRefID", "options": letter.to_string()});
                Some(unit(matcher, name, true))
            });
        columns.chain(queries).collect()
    }

    /// The queries' answers side by side, and only the named columns.
    fn transformations(&self) -> Value {
        let names: Vec<&String> = self.columns.keys().collect();
        json!([
            {"id": "merge", "options": {}},
            {"id": "filterFieldsByName", "options": {"include": {"names": names}}},
            {"id": "organize", "options": {"renameByName": self.columns, "indexByName": {}, "excludeByName": {}}},
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dashboard_is_what_its_source_makes() {
        run(true).unwrap();
    }
}
