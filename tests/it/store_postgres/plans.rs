//! Which rows Postgres touches for an answer.

use crate::support::postgres::migrated_database;

/// Scans of the table, scans of the index by revision, rows that index led to.
const COUNTS: &str = "SELECT
    (SELECT coalesce(seq_scan, 0) FROM pg_stat_user_tables
     WHERE relid = 'data_sync.records'::regclass),
    idx_scan, idx_tup_read FROM pg_stat_user_indexes
    WHERE indexrelname = 'records_user_id_revision_key'";

#[tokio::test]
async fn a_page_is_read_by_the_revision_index_and_no_further_than_its_limit() {
    let database = migrated_database().await;
    let client = database.connect().await;
    client
        .batch_execute(
            "INSERT INTO data_sync.users
                SELECT set_byte(decode(repeat('02', 33), 'hex'), 32, n), 3000, 3000, 300000
                FROM generate_series(0, 3) n;
             INSERT INTO data_sync.records (user_id, id, revision, schema_version, data)
                SELECT user_id, i::text, i, '', decode(repeat('00', 100), 'hex')
                FROM data_sync.users, generate_series(1, 3000) i",
        )
        .await
        .expect("records");
    let key = vec![2_u8; 33];
    let mut key = key;
    key[32] = 1;
    for analyzed in [false, true] {
        if analyzed {
            client.batch_execute("ANALYZE data_sync.records").await.expect("statistics");
        }
        let before = counts(&client).await;
        let rows = client
            .query("SELECT id FROM data_sync.list_changes_v1($1, 500, 1000, 3670016, 28)", &[&key])
            .await
            .expect("a page");
        assert_eq!(rows.len(), 1_000);
        let after = counts(&client).await;
        let used = (after.0 - before.0, after.1 - before.1, after.2 - before.2);
        assert_eq!(used, (0, 1, 1_001), "analyzed: {analyzed}");
    }
}

async fn counts(client: &tokio_postgres::Client) -> (i64, i64, i64) {
    client.batch_execute("SELECT pg_stat_force_next_flush()").await.expect("a flush");
    let row = client.query_one(COUNTS, &[]).await.expect("statistics");
    (row.get(0), row.get(1), row.get(2))
}
