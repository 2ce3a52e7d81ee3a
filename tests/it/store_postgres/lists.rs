//! Short pages are read together, long ones whole, and nobody waits long for either.

use std::time::{Duration, Instant};

use data_sync::{
    limits::{BATCHED_PAGE_RECORDS, MAX_GROUPED_CALLS},
    store::{
        PageLimit, Quotas, Store as _, StoreError,
        conformance::{new_write, soon, user},
    },
};
use futures_util::future::join_all;

use super::open;
use crate::support::postgres::migrated_database;

const USERS: u32 = 8;

#[tokio::test]
async fn lists_of_many_users_share_statements_and_each_gets_its_own() {
    let database = migrated_database().await;
    let opened = open(&database.config(), Quotas::default());
    for number in 0..USERS {
        for nth in 0..=number {
            let write = new_write(user(number), &nth.to_string(), 0, &[number as u8]);
            opened.store.set_record(write, soon()).await.expect("written");
        }
    }
    let statements = || opened.metrics.pool_wait_seconds.get_sample_count();
    let before = statements();
    let asked: u64 = 40 * u64::from(USERS);
    let pages = (0..40).flat_map(|_| 0..USERS).map(|number| {
        let store = &opened.store;
        async move {
            let page = store.list_changes(user(number), 1, PageLimit::WIRE, soon()).await;
            (number, page.expect("a page"))
        }
    });
    for (number, page) in join_all(pages).await {
        assert_eq!(page.head, u64::from(number) + 1);
        assert_eq!(page.records.len(), number as usize, "all but the first record");
        assert!(page.records.iter().all(|record| record.data == vec![number as u8]));
        assert!(page.records.is_sorted_by_key(|record| record.revision));
        assert!(!page.has_more);
    }
    let used = statements() - before;
    let fewest = asked.div_ceil(MAX_GROUPED_CALLS as u64);
    assert!((fewest..asked / 4).contains(&used), "{used} statements for {asked} lists");
}

#[tokio::test]
async fn a_page_too_long_to_be_shared_comes_whole() {
    let database = migrated_database().await;
    let opened = open(&database.config(), Quotas::default());
    let records = BATCHED_PAGE_RECORDS + 2;
    for nth in 0..records {
        let write = new_write(user(1), &nth.to_string(), 0, b"x");
        opened.store.set_record(write, soon()).await.expect("written");
    }
    let list = |since, limit| opened.store.list_changes(user(1), since, limit, soon());
    let page = list(1, PageLimit::WIRE).await.expect("a page");
    assert_eq!((page.records.len(), page.has_more), (records - 1, false));
    let short = PageLimit { max_records: 3, ..PageLimit::WIRE };
    let page = list(1, short).await.expect("a page");
    let revisions: Vec<u64> = page.records.iter().map(|record| record.revision).collect();
    assert_eq!((revisions, page.has_more), (vec![2, 3, 4], true));
}

#[tokio::test]
async fn lists_are_refused_within_a_second_while_no_connection_is_to_be_had() {
    let database = migrated_database().await;
    let mut config = database.config();
    // Nobody listens on the port of discarded packets.
    config.url = data_sync::config::Secret::new("postgres://postgres@127.0.0.1:9/none".to_owned());
    let away = open(&config, Quotas::default());
    for _ in 0..2 {
        let store = &away.store;
        let began = Instant::now();
        let lists = (0..200).map(|_| store.list_changes(user(1), 1, PageLimit::WIRE, soon()));
        for list in join_all(lists).await {
            assert!(matches!(list, Err(StoreError::Unavailable(_))), "{list:?}");
        }
        assert!(began.elapsed() < Duration::from_millis(1_500), "{:?}", began.elapsed());
    }
}
