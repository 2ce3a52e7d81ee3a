//! The load generator against a small server of its own.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    Progress,
    chart::{self, Axis, Chart, Measure},
    plan::{ListenPlan, Load, Operation, Plan, Side, Workload},
    report::Report,
    run, table,
};

mod fake;

use fake::{Fake, Faults};

#[derive(Debug)]
struct Silent;

impl Progress for Silent {
    fn phase(&self, _name: &str, _seconds: Option<f64>) {}

    fn advance(&self, _seconds: f64, _summary: &str) {}
}

fn side(name: &str, fake: &Fake) -> Side {
    Side {
        name: name.to_owned(),
        targets: vec![fake.url()],
        streams_per_connection: 4,
        write_targets: Vec::new(),
        server_pids: Vec::new(),
        database_pid: None,
        api_key: None,
    }
}

/// A run short enough for a test: a round or two.
fn plan(op: &str, sides: Vec<Side>) -> Plan {
    Plan {
        sides,
        workload: Workload::Calls(op.parse().unwrap()),
        load: Load::Closed { concurrency: 8 },
        users: 4,
        stored_users: None,
        records_per_user: 3,
        record_bytes: 64,
        warm_up: Duration::from_millis(20),
        duration: Duration::from_millis(200),
        slice: Duration::from_millis(100),
        timeout: Duration::from_secs(5),
        seed: 7,
        title: String::new(),
    }
}

fn listen_plan(side: Side) -> Plan {
    let listen = ListenPlan {
        streams: 12,
        writes_per_second: 200.0,
        stream_life: None,
        grace: Duration::from_millis(200),
    };
    Plan { workload: Workload::Listen(listen), ..plan("mixed", vec![side]) }
}

async fn measure(plan: Plan) -> Report {
    run(plan, Arc::new(Silent)).await.unwrap()
}

#[tokio::test]
async fn every_operation_succeeds_and_is_timed() {
    let fake = Fake::start(Faults::default()).await;
    for operation in Operation::ALL {
        let report = measure(plan(operation.name(), vec![side("fake", &fake)])).await;
        let total = &report.sides[0].total;
        assert!(total.ok > 0, "{operation}: {total:?}");
        assert_eq!((total.errors, total.conflicts), (0, 0), "{operation}: {total:?}");
        assert_eq!(total.latency.count, total.ok);
        assert!(total.latency.p50_ms > 0.0);
        assert!(total.ok_per_second > 0.0);
    }
}

#[tokio::test]
async fn a_mix_calls_each_operation_about_as_often_as_it_weighs() {
    let fake = Fake::start(Faults::default()).await;
    let report = measure(plan("mixed=set:1,get-lock:9", vec![side("fake", &fake)])).await;
    let side = &report.sides[0];
    let calls = |operation| side.operations[&operation].calls;
    let (sets, asks) = (calls(Operation::Set), calls(Operation::GetLock));
    assert_eq!(sets + asks, side.total.calls);
    assert!(asks > 3 * sets && sets > 0, "{sets} sets, {asks} asks");
}

#[tokio::test]
async fn updates_of_one_shared_user_follow_their_revisions() {
    let fake = Fake::start(Faults::default()).await;
    let plan = Plan { users: 1, ..plan("update", vec![side("fake", &fake)]) };
    let total = measure(plan).await.sides[0].total.clone();
    assert!(total.ok > 8, "{total:?}");
    assert_eq!(total.conflicts, 0);
}

#[tokio::test]
async fn conflicts_are_no_errors_and_errors_are_counted_by_kind() {
    let conflicting = Fake::start(Faults { conflict: true, ..Faults::default() }).await;
    let total = measure(plan("set", vec![side("fake", &conflicting)])).await.sides[0].total.clone();
    assert_eq!((total.ok, total.errors), (0, 0));
    assert!(total.conflicts > 0);

    let failing = Fake::start(Faults { fail_every: 4, ..Faults::default() }).await;
    let total = measure(plan("set", vec![side("fake", &failing)])).await.sides[0].total.clone();
    assert!(total.ok > 0 && total.errors > 0);
    let kinds: Vec<_> = total.error_kinds.keys().map(String::as_str).collect();
    assert_eq!(kinds, ["Unknown: out of luck"]);
    assert_eq!(total.latency.count, total.ok);
}

#[tokio::test]
async fn an_open_loop_keeps_its_schedule_and_counts_waiting_as_latency() {
    let fake = Fake::start(Faults { delay: Duration::from_millis(20), ..Faults::default() }).await;
    // One call at a time takes 20 ms, so of 100 a second each second one must wait its turn.
    let load = Load::Open { per_second: 100.0, in_flight: 1 };
    let plan = Plan { load, ..plan("get-lock", vec![side("fake", &fake)]) };
    let total = measure(plan).await.sides[0].total.clone();
    assert!(total.calls >= 10, "{total:?}");
    assert!(total.latency.max_ms > 40.0, "waiting was not counted: {:?}", total.latency);
}

#[tokio::test]
async fn two_servers_are_measured_in_one_run_and_compared() {
    let quick = Fake::start(Faults::default()).await;
    let slow = Fake::start(Faults { delay: Duration::from_millis(10), ..Faults::default() }).await;
    let report = measure(plan("get-lock", vec![side("quick", &quick), side("slow", &slow)])).await;
    assert!(report.ratios["p50"] < 1.0, "{:?}", report.ratios);
    assert!(report.ratios["ok per second"] > 1.0, "{:?}", report.ratios);
}

#[tokio::test]
async fn every_notification_of_a_faultless_server_is_accounted_for() {
    for revisions in [true, false] {
        let fake = Fake::start(Faults { no_revisions: !revisions, ..Faults::default() }).await;
        let report = measure(listen_plan(side("fake", &fake))).await;
        let listen = report.sides[0].listen.clone().unwrap();
        assert_eq!(report.sides[0].total.ok, 40);
        // 12 streams of 4 users: each write is told to 3.
        assert_eq!((listen.streams, listen.expected), (12, 120), "{listen:?}");
        assert_eq!((listen.delivered, listen.lost, listen.spare), (120, 0, 0), "{listen:?}");
        assert_eq!((listen.reopened, listen.ended), (0, BTreeMap::new()));
        assert!(listen.after_send.p50_ms > 0.0);
    }
}

#[tokio::test]
async fn lost_notifications_are_found() {
    let faults = Faults { mute: true, ..Faults::default() };
    let fake = Fake::start(faults).await;
    let report = measure(listen_plan(side("fake", &fake))).await;
    let listen = report.sides[0].listen.clone().unwrap();
    assert_eq!((listen.expected, listen.delivered, listen.lost), (120, 0, 120));
}

#[tokio::test]
async fn streams_that_are_closed_and_opened_again_lose_nothing() {
    let fake = Fake::start(Faults::default()).await;
    let mut plan = listen_plan(side("fake", &fake));
    if let Workload::Listen(listen) = &mut plan.workload {
        listen.stream_life = Some(Duration::from_millis(30));
    }
    let listen = measure(plan).await.sides[0].listen.clone().unwrap();
    assert!(listen.reopened > 0);
    assert_eq!(listen.lost, 0, "{listen:?}");
    assert_eq!(listen.delivered + listen.caught_up, listen.expected);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_an_error() {
    let fake = Fake::start(Faults::default()).await;
    let mut side = side("fake", &fake);
    side.targets = vec!["http://127.0.0.1:1".to_owned()];
    let error = run(plan("set", vec![side]), Arc::new(Silent)).await.unwrap_err();
    assert!(error.to_string().contains("cannot reach http://127.0.0.1:1"), "{error}");
}

#[tokio::test]
async fn a_report_reads_back_from_json_and_shows_in_table_and_charts() {
    let fake = Fake::start(Faults::default()).await;
    let sides = vec![side("one", &fake), side("two", &fake)];
    let mut small = measure(plan("mixed", sides)).await;
    let json = serde_json::to_string(&small).unwrap();
    let table = table::markdown(&small);
    let read_back: Report = serde_json::from_str(&json).unwrap();
    assert_eq!(table::markdown(&read_back), table);
    for text in ["ok/s", "| one", "| two", "list-new", "one ÷ two"] {
        assert!(table.contains(text), "{text} is not in\n{table}");
    }

    let large = small.clone();
    small.settings.users = 400;
    let reports = [small, large];
    let growth = Chart::Growth { along: Axis::Users, measure: Measure::P99 };
    for chart in [Chart::Bars(vec![Measure::Rate, Measure::P99]), growth, Chart::Latency] {
        let picture = chart::svg("a title", &reports, &chart).unwrap();
        assert!(picture.starts_with("<svg"), "{picture}");
        for text in ["a title", "one", "two"] {
            assert!(picture.contains(text), "{chart:?}: {text}");
        }
    }
    let nothing = Chart::Bars(vec![Measure::StreamMemory]);
    assert!(chart::svg("a title", &reports, &nothing).is_err());
}
