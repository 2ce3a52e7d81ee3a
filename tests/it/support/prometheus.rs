//! A private Prometheus that scrapes servers under test and evaluates rules, both in haste.

use std::{fmt::Write as _, fs, time::Duration};

use serde_json::Value;
use tempfile::TempDir;

use super::{
    http::http1,
    process::{Guarded, free_port, give_away, program, unprivileged},
    server::Server,
    wait::{until, within},
};

/// Between two scrapes and between two evaluations.
const INTERVAL: Duration = Duration::from_millis(500);

/// One Prometheus.
#[derive(Debug)]
pub(crate) struct Prometheus {
    server: Guarded,
    directory: TempDir,
    port: u16,
}

impl Prometheus {
    /// Scrapes `servers` as the job `data-sync` and evaluates `rules`, the text of a rule file.
    pub(crate) async fn start(servers: &[Server], rules: &str) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("data-sync-prometheus-")
            .tempdir()
            .expect("a directory");
        give_away(directory.path());
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::write(&path, text).expect("a settings file");
            give_away(&path);
            path.display().to_string()
        };
        let rules = file("rules.yaml", rules);
        let interval = INTERVAL.as_millis();
        let mut settings = format!(
            "global: {{scrape_interval: {interval}ms, scrape_timeout: {interval}ms, \
             evaluation_interval: {interval}ms}}\n\
             rule_files: [{rules}]\n\
             scrape_configs:\n- job_name: data-sync\n  static_configs:\n  - targets:\n"
        );
        for server in servers {
            writeln!(settings, "    - {}", server.admin).expect("strings take text");
        }
        let settings = file("prometheus.yaml", &settings);
        let port = free_port();
        let program = program("prometheus").display().to_string();
        let data = directory.path().join("data").display().to_string();
        let command = unprivileged(&[
            &program,
            &format!("--config.file={settings}"),
            &format!("--storage.tsdb.path={data}"),
            &format!("--web.listen-address=127.0.0.1:{port}"),
        ]);
        let log = directory.path().join("log");
        let server = Guarded::start(&command, "KILL", directory.path(), &log);
        let prometheus = Self { server, directory, port };
        until("prometheus is ready", async || {
            assert!(!prometheus.server.has_ended(), "{}", prometheus.log());
            prometheus.get("-/ready", &[]).await.is_ok()
        })
        .await;
        prometheus
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    async fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<String, reqwest::Error> {
        let mut url = reqwest::Url::parse(&format!("http://127.0.0.1:{}/{path}", self.port))
            .expect("an address");
        url.query_pairs_mut().extend_pairs(query);
        let response = within(path, http1().get(url).send()).await?.error_for_status()?;
        within(path, response.text()).await
    }

    async fn data(&self, path: &str, query: &[(&str, &str)]) -> Value {
        let answer = self.get(path, query).await.expect("prometheus answers");
        let mut answer: Value = serde_json::from_str(&answer).expect("JSON");
        answer["data"].take()
    }

    /// The series of an expression now: labels and value.
    pub(crate) async fn query(&self, expression: &str) -> Vec<(Value, f64)> {
        let data = self.data("api/v1/query", &[("query", expression)]).await;
        let series = data["result"].as_array().expect("a vector").iter();
        let value = |series: &Value| series["value"][1].as_str().and_then(|v| v.parse().ok());
        series.map(|series| (series["metric"].clone(), value(series).expect("a number"))).collect()
    }

    /// Every name that a series of the job has had.
    pub(crate) async fn names(&self) -> Vec<String> {
        let data = self.data("api/v1/label/__name__/values", &[]).await;
        let names = data.as_array().expect("a list").iter();
        names.map(|name| name.as_str().expect("a name").to_owned()).collect()
    }

    /// Rules that could not be evaluated, with the reason.
    pub(crate) async fn broken_rules(&self) -> Vec<String> {
        let data = self.data("api/v1/rules", &[]).await;
        let groups = data["groups"].as_array().expect("groups").iter();
        groups
            .flat_map(|group| group["rules"].as_array().expect("rules"))
            .filter(|rule| rule["health"] != "ok")
            .map(|rule| format!("{} is {}: {}", rule["name"], rule["health"], rule["lastError"]))
            .collect()
    }
}
