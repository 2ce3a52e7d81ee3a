//! Taking over what the Go server left.

use data_sync::store::{
    LockOutcome, PageLimit, Quotas, Store, UserId, WriteOutcome,
    conformance::{instance, new_write, soon, user},
    migrate::{LegacyState, MigrateError},
    postgres::{migrate, schema_state},
    transfer::Transfer as _,
};
use tokio_postgres::Client;

use super::open;
use crate::support::{
    book::block,
    postgres::{Cluster, Database, until},
};

/// The Go server's tables.
const TABLES: &str = "
    CREATE TABLE records (user_id TEXT NOT NULL, id TEXT NOT NULL, data BYTEA NOT NULL,
        revision INTEGER NOT NULL, schema_version TEXT NOT NULL, PRIMARY KEY (user_id, id));
    CREATE TABLE user_revisions (user_id TEXT NOT NULL, revision INTEGER NOT NULL,
        PRIMARY KEY (user_id, revision));
    CREATE TABLE locks (user_id TEXT NOT NULL, lock_name TEXT NOT NULL, instance_id TEXT NOT NULL,
        expires_at BIGINT NOT NULL, exclusive BOOLEAN NOT NULL,
        PRIMARY KEY (user_id, lock_name, instance_id));
    CREATE TABLE schema_migrations (version BIGINT NOT NULL PRIMARY KEY, dirty BOOLEAN NOT NULL);
    INSERT INTO schema_migrations VALUES (2, false)";

async fn go_database(content: &str) -> (Database<'static>, Client) {
    let database = Cluster::shared().create_database().await;
    let client = database.connect().await;
    client.batch_execute(TABLES).await.expect("tables");
    client.batch_execute(content).await.expect("content");
    (database, client)
}

fn hex(number: u32) -> String {
    user(number).to_hex()
}

async fn count(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.expect("a count").get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adoption_keeps_odd_contents() {
    let longest = "i".repeat(64);
    let content = format!(
        "INSERT INTO records VALUES
            ('{one}', '', '', 3, ''), ('{one}', '{longest}', decode(repeat('ab', 65536), 'hex'), 7, '1.0'),
            ('{two}', 'b', 'bb', 5, 'v'), ('{two}', 'a', 'a', 5, 'v'), ('{two}', 'c', 'ccc', 5, 'v'),
            ('{two}', 'd', 'd', 6, 'v'), ('{two}', 'zero', 'z', 0, 'v');
         INSERT INTO user_revisions VALUES ('{one}', 12), ('{one}', 11), ('{two}', 6), ('{three}', 4);
         INSERT INTO locks
            SELECT u, n, i, floor(extract(epoch FROM now()))::bigint + t, e FROM (VALUES
                ('{one}', 'l', '00000000-0000-0000-0000-00000000000A', 100, true),
                ('{one}', 'l', '0000000000000000000000000000000a', 200, false),
                ('{one}', 'l', 'urn:uuid:00000000-0000-0000-0000-00000000000b', 50, false),
                ('{two}', 'gone', 'whatever', -5, true)) v (u, n, i, t, e)",
        one = hex(1),
        two = hex(2),
        three = hex(3),
    );
    let (database, client) = go_database(&content).await;
    let found = schema_state(&database.config()).await.expect("a readable database");
    assert_eq!((found.legacy, found.is_ready()), (LegacyState::Unadopted, false));
    assert!(matches!(migrate(&database.config(), false).await, Err(MigrateError::Unadopted)));
    assert_eq!(
        count(&client, "SELECT count(*) FROM pg_namespace WHERE nspname = 'data_sync'").await,
        0
    );

    let (state, report) = migrate(&database.config(), true).await.expect("adopted");
    assert_eq!((state.legacy, state.is_ready()), (LegacyState::Adopted, true));
    let report = report.expect("a report");
    assert_eq!((report.users, report.records, report.bytes), (3, 7, 65_544));
    assert_eq!((report.renumbered_records, report.locks, report.expired_locks), (3, 2, 1));

    let replica = open(&database.config(), Quotas::default());
    let store = &replica.store;
    let heads = store.heads(&[user(1), user(2), user(3)], soon()).await;
    assert_eq!(heads, Ok(vec![12, 9, 4]));
    let listed = async |user: UserId| {
        let page = store.list_changes(user, 0, PageLimit::WIRE, soon()).await.expect("a page");
        page.records.into_iter().map(|r| (r.revision, r.id, r.data.len())).collect::<Vec<_>>()
    };
    assert_eq!(listed(user(1)).await, [(3, String::new(), 0), (7, longest, 65_536)]);
    let two: Vec<_> =
        listed(user(2)).await.into_iter().map(|(r, id, _)| format!("{r}{id}")).collect();
    assert_eq!(two, ["5a", "6d", "7zero", "8b", "9c"]);
    let next = store.set_record(new_write(user(1), "", 3, b"new"), soon()).await;
    assert_eq!(next, Ok(WriteOutcome::Written { revision: 13 }));

    let locks = store.locks(None, 10).await.expect("locks");
    let held: Vec<_> = locks.iter().map(|l| (l.user, l.instance, l.exclusive)).collect();
    assert_eq!(held, [(user(1), instance(10), false), (user(1), instance(11), false)]);
    let left_ms =
        locks[0].expires_at_ms - store.status(soon()).await.expect("a status").database_time_ms;
    assert!((150_000..=200_000).contains(&left_ms), "the later expiry wins: {left_ms} ms");
    let take = data_sync::store::LockRequest {
        user: user(1),
        name: "l".to_owned(),
        instance: instance(12),
        action: data_sync::store::LockAction::Acquire { exclusive: true, ttl_ms: 1_000 },
    };
    assert_eq!(store.set_lock(take, soon()).await, Ok(LockOutcome::Held));

    assert_eq!(count(&client, "SELECT count(*) FROM go_records").await, 7);
    assert_eq!(count(&client, "SELECT count(*) FROM schema_migrations WHERE dirty").await, 1);
    let (_, again) = migrate(&database.config(), true).await.expect("nothing to do");
    assert_eq!(again, None);
}

#[tokio::test]
async fn adoption_that_fails_changes_nothing() {
    let good = format!("INSERT INTO user_revisions VALUES ('{}', 1);", hex(1));
    for (bad, reason) in [
        ("INSERT INTO user_revisions VALUES ('02ab', 1)", "33-byte"),
        ("INSERT INTO records VALUES ('not hex at all', 'r', '', 1, '')", "33-byte"),
        (
            "INSERT INTO user_revisions SELECT upper(user_id), 2 FROM user_revisions;
             INSERT INTO user_revisions VALUES (repeat('AB', 33), 1), (repeat('ab', 33), 1)",
            "upper and lower",
        ),
        ("UPDATE schema_migrations SET dirty = true", "half done"),
        ("DROP TABLE schema_migrations", "schema_migrations is missing"),
        (
            "INSERT INTO locks SELECT user_id, 'l', 'no-uuid', 4000000000, true FROM user_revisions",
            "no uuid",
        ),
    ] {
        let (database, client) = go_database(&format!("{good}{bad}")).await;
        let tables = "SELECT string_agg(c::text, ';') FROM (
            SELECT relname, reltuples FROM pg_class WHERE relnamespace = 'public'::regnamespace
            ORDER BY 1) c";
        let before: String = client.query_one(tables, &[]).await.expect("tables").get(0);
        match migrate(&database.config(), true).await {
            Err(MigrateError::Adoption(text)) => assert!(text.contains(reason), "{text}"),
            other => panic!("{bad}: {other:?}"),
        }
        let after: String = client.query_one(tables, &[]).await.expect("tables").get(0);
        assert_eq!(after, before);
        let ours = "SELECT count(*) FROM pg_namespace WHERE nspname = 'data_sync'";
        assert_eq!(count(&client, ours).await, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adoption_takes_a_hundred_thousand_records_and_their_last_write() {
    // 100 users of 1,000 records, each user's head above its records.
    let (database, client) = go_database(
        "INSERT INTO records
            SELECT '02' || lpad(to_hex(u), 64, '0'), 'r' || r, convert_to(repeat('x', r % 300), 'UTF8'), r, '1'
            FROM generate_series(1, 100) u, generate_series(1, 1000) r;
         INSERT INTO user_revisions SELECT '02' || lpad(to_hex(u), 64, '0'), 1000 + u
            FROM generate_series(1, 100) u",
    )
    .await;
    // An old replica in the middle of its last write.
    let old_replica = database.connect().await;
    let last = format!("'02{}1'", "0".repeat(63));
    old_replica
        .batch_execute(&format!(
            "BEGIN ISOLATION LEVEL SERIALIZABLE;
             SELECT revision FROM records WHERE user_id = {last} AND id = 'r1';
             INSERT INTO user_revisions VALUES ({last}, 2000)"
        ))
        .await
        .expect("half a write");
    let config = database.config();
    let adoption = migrate(&config, true);
    let finish = async {
        until("the adoption waits for the write", async || {
            let waiting = "SELECT count(*) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
                           WHERE NOT l.granted AND c.relname = 'records'
                             AND l.database = (SELECT oid FROM pg_database
                                               WHERE datname = current_database())";
            count(&client, waiting).await == 1
        })
        .await;
        old_replica
            .batch_execute(&format!(
                "UPDATE records SET revision = 2000, data = 'last' WHERE user_id = {last} AND id = 'r1';
                 COMMIT"
            ))
            .await
            .expect("the other half");
    };
    let (adopted, ()) = tokio::join!(adoption, finish);
    let report = adopted.expect("adopted").1.expect("a report");
    assert_eq!((report.users, report.records, report.renumbered_records), (100, 100_000, 0));

    let refused = old_replica.batch_execute("INSERT INTO records VALUES ('', '', '', 1, '')").await;
    assert!(refused.is_err(), "an old replica still writes");
    let replica = open(&config, Quotas::default());
    let mut key = [0; UserId::BYTES];
    (key[0], key[32]) = (2, 1);
    let user = UserId::new(key);
    assert_eq!(replica.store.heads(&[user], soon()).await, Ok(vec![2_000]));
    let record = replica.store.record(user, "r1", soon()).await.expect("a read").expect("a record");
    assert_eq!((record.revision, &record.data[..]), (2_000, &b"last"[..]));
    let untrue = "SELECT count(*) FROM data_sync.users u WHERE (u.records, u.bytes) <>
        (SELECT count(*), sum(octet_length(data))::int8 FROM data_sync.records r
         WHERE r.user_id = u.user_id)";
    assert_eq!(count(&client, untrue).await, 0);
}

/// The way back, by the statements of the book: the Go server finds everything that was written
/// since, and the database can be adopted again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_way_back_takes_along_what_was_written_since() {
    let content = format!(
        "INSERT INTO records VALUES ('{one}', 'kept', 'k', 1, 'v'), ('{one}', 'old', 'o', 2, 'v');
         INSERT INTO user_revisions VALUES ('{one}', 1), ('{one}', 2), ('{two}', 7)",
        one = hex(1),
        two = hex(2),
    );
    let (database, client) = go_database(&content).await;
    migrate(&database.config(), true).await.expect("adopted");
    let replica = open(&database.config(), Quotas::default());
    for (user, id, base, revision) in
        [(user(1), "old", 2, 3), (user(1), "new", 0, 4), (user(3), "first", 0, 1)]
    {
        let written = replica.store.set_record(new_write(user, id, base, b"since"), soon()).await;
        assert_eq!(written, Ok(WriteOutcome::Written { revision }));
    }
    replica.store.close().await;

    client.batch_execute(&block("migrate.md", "postgres-back")).await.expect("the way back");
    // What the Go server reads: one head a user, records by user and revision, no dirty mark.
    let text = async |sql: &str| {
        let rows = client.query(sql, &[]).await.expect("rows");
        rows.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>()
    };
    let records = text(
        "SELECT format('%s %s %s %s %s', right(user_id, 1), id, revision, schema_version,
                       convert_from(data, 'UTF8')) FROM records ORDER BY user_id, revision",
    );
    let expected =
        ["1 kept 1 v k", "1 old 3 1.0.0 since", "1 new 4 1.0.0 since", "3 first 1 1.0.0 since"];
    assert_eq!(records.await, expected);
    let heads = text(
        "SELECT format('%s %s', right(user_id, 1), revision) FROM user_revisions ORDER BY user_id",
    );
    assert_eq!(heads.await, ["1 4", "2 7", "3 1"]);
    let sql = "SELECT count(*) FROM schema_migrations WHERE NOT dirty";
    assert_eq!(count(&client, sql).await, 1);

    let (_, report) = migrate(&database.config(), true).await.expect("adopted again");
    let report = report.expect("a report");
    assert_eq!((report.users, report.records, report.renumbered_records), (3, 4, 0));
}
