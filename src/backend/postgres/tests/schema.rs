//! Schemas: steps that fail, and workers of two versions.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_that_fails_leaves_what_was_there_and_is_tried_again() {
    let server = Postgres::shared();
    let url = server.database();
    let database = url.rsplit('/').next().unwrap();
    // In the way of the last table of the step.
    server.sql(database, "CREATE TABLE shard_name (mine int)");
    let store = PostgreSql::open(&settings(&[("main", url.as_str(), 1)])).unwrap();
    says(&store, "its schema could not be brought up to date").await;
    assert_eq!(
        server.sql(database, "SELECT count(*) FROM pg_class WHERE relname = 'rec'"),
        "0",
        "all or nothing"
    );
    server.sql(database, "DROP TABLE shard_name");
    while Backend::health(&store).is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Backend::write(&store, vec![put("k")], deadline()).await.remove(0).unwrap();
    Backend::close(&store).await;
}

/// Steps of a version to come, and one that it got wrong.
static NEWER: &[Step] = &[
    migrate::STEPS[0],
    migrate::STEPS[1],
    migrate::STEPS[2],
    migrate::STEPS[3],
    (5, "notes", "ALTER TABLE rec ADD COLUMN note text; CREATE TABLE notes (ns text)"),
];
/// One that takes longer than a look, and than a statement may.
static SLOW: &[Step] = &[
    migrate::STEPS[0],
    migrate::STEPS[1],
    migrate::STEPS[2],
    migrate::STEPS[3],
    (5, "slow", "SELECT pg_sleep(6)"),
];
static BROKEN: &[Step] = &[
    migrate::STEPS[0],
    migrate::STEPS[1],
    migrate::STEPS[2],
    migrate::STEPS[3],
    (5, "notes", "ALTER TABLE rec ADD COLUMN note text; ALTER TABLE nothing ADD COLUMN note text"),
];

/// Writes and reads through a store until it is told to stop; how often, each of them answered.
async fn serve(store: Arc<PostgreSql>, name: &'static str, stop: CancellationToken) -> usize {
    let mut count = 0;
    while !stop.is_cancelled() {
        // Some keys are its own, and some are everybody's.
        let keys = ["shared".to_owned(), format!("{name}{}", count % 50)];
        for written in Backend::write(&*store, keys.iter().map(|key| put(key)).collect(), deadline()).await {
            written.unwrap();
        }
        for read in Backend::read(&*store, keys.iter().map(|key| at(key)).collect(), deadline()).await {
            assert!(read.unwrap().is_some());
        }
        assert!(!scan(&store, 10, false).await.unwrap().is_empty());
        Backend::write_atomic(&*store, vec![put(name)], deadline()).await.unwrap();
        count += 1;
    }
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_of_two_schema_versions_serve_together_and_a_step_that_fails_changes_nothing() {
    let server = Postgres::shared();
    let url = server.database();
    let database = url.rsplit('/').next().unwrap();
    let columns = "SELECT count(*) FROM pg_attribute WHERE attrelid = 'rec'::regclass AND attname = 'note'";
    let stop = CancellationToken::new();
    let older = Arc::new(open(&[("main", url.as_str(), 1)]).await);
    let served = tokio::spawn(serve(older.clone(), "older", stop.clone()));
    let settings = settings(&[("main", url.as_str(), 1)]);

    let broken = PostgreSql::with_schema(&settings, BROKEN).unwrap();
    says(&broken, "its schema could not be brought up to date").await;
    says(&broken, "\"nothing\" does not exist").await;
    assert_eq!(server.sql(database, columns), "0", "all or nothing");
    Backend::close(&broken).await;

    let slow = PostgreSql::with_schema(&PostgresSettings { ..settings.clone() }, SLOW).unwrap();
    says(&slow, "is being brought up to date").await;
    assert!(Backend::unfit(&slow).is_some(), "others serve meanwhile");
    healed(&slow).await;
    Backend::close(&slow).await;
    server.sql(database, "DELETE FROM datastore_schema WHERE version = 5");

    let newer = Arc::new(PostgreSql::with_schema(&settings, NEWER).unwrap());
    while Backend::health(&*newer).is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(server.sql(database, columns), "1");
    let also_served = tokio::spawn(serve(newer.clone(), "newer", stop.clone()));
    tokio::time::sleep(Duration::from_millis(500)).await;
    // One of the older version may also be started now: what it does not know is left alone.
    let late = open(&[("main", url.as_str(), 1)]).await;
    assert!(Backend::read(&late, vec![at("newer0")], deadline()).await.remove(0).unwrap().is_some());
    assert_eq!(server.sql(database, columns), "1");
    stop.cancel();
    let (by_older, by_newer) = (served.await.unwrap(), also_served.await.unwrap());
    assert!(by_older > 10 && by_newer > 10, "{by_older}, {by_newer}");
    for key in ["older0", "newer0", "shared"] {
        for store in [&older, &newer] {
            assert!(Backend::read(&**store, vec![at(key)], deadline()).await.remove(0).unwrap().is_some());
        }
    }
    for store in [&*older, &*newer, &late] {
        Backend::close(store).await;
    }
}
