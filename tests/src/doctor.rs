//! What `tracer doctor` says.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::process::{Ended, run, tracer_path, without_settings};

/// It loads every program; an emulated machine takes its time.
const LIMIT: Duration = Duration::from_mins(2);

/// Its report.
#[derive(Debug)]
pub struct Doctor {
    /// The JSON.
    pub json: Value,
    /// How it ended.
    pub ended: Ended,
}

/// `WRAPPER… tracer doctor ARGUMENTS…`.
pub fn run_doctor(wrapper: &[&str], arguments: &[&str]) -> Ended {
    let binary = tracer_path();
    let words = [
        wrapper,
        &[binary.to_str().expect("path is text"), "doctor"],
        arguments,
    ]
    .concat();
    let mut command = Command::new(words[0]);
    without_settings(&mut command);
    run(command.args(&words[1..]), LIMIT)
}

impl Doctor {
    /// Asks it for JSON, with these arguments besides; panics unless it ends with 0 or 1.
    pub fn ask(wrapper: &[&str], arguments: &[&str]) -> Self {
        let ended = run_doctor(wrapper, &[arguments, &["--output", "json"]].concat());
        assert!(
            matches!(ended.status.code(), Some(0 | 1)),
            "doctor ended badly: {ended:#?}"
        );
        let json = serde_json::from_str(&ended.stdout)
            .unwrap_or_else(|e| panic!("doctor's JSON: {e}: {ended:#?}"));
        Self { json, ended }
    }

    /// Can the main job run? Its exit code and what it says agree.
    pub fn will_do(&self) -> bool {
        let code = self.ended.status.code() == Some(0);
        assert_eq!(self.json["main_job_can_run"], code, "{:#}", self.json);
        code
    }

    /// The one with this name in a list.
    pub fn named(&self, list: &str, name: &str) -> &Value {
        let found = self.json[list].as_array().expect("it is a list").iter();
        found
            .clone()
            .find(|one| one["name"] == name)
            .unwrap_or_else(|| panic!("no {name} in {list}: {:#}", self.json))
    }

    /// State and reason of a hook.
    pub fn hook(&self, name: &str) -> (&str, &str) {
        let hook = self.named("hooks", name);
        let text = |field: &str| hook[field].as_str().expect("it is text");
        (text("state"), text("reason"))
    }

    /// What to do next: reasons and commands, in lines.
    pub fn next(&self) -> String {
        let steps = self.json["next"].as_array().expect("it is a list").iter();
        steps
            .flat_map(|step| [&step["why"], &step["command"]])
            .filter_map(Value::as_str)
            .fold(String::new(), |all, line| all + line + "\n")
    }
}
