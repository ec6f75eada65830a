//! The schema, in numbered steps. A step is run once, in a transaction, under the server's advisory lock; what is written
//! here must leave a worker of the version before able to go on.

use std::borrow::Cow;

use sqlx::migrate::{Migrate as _, Migration, MigrationType, Migrator};
use sqlx::{Connection as _, PgConnection, SqlSafeStr as _};

/// Number, name and statements.
pub(super) type Step = (i64, &'static str, &'static str);

/// All of them. One that was published is never changed.
pub(super) const STEPS: &[Step] = &[
    (1, "records", include_str!("migrations/0001_records.sql")),
    (2, "placement plan", include_str!("migrations/0002_placement_plan.sql")),
    (3, "slots owned", include_str!("migrations/0003_slots_owned.sql")),
    (4, "durability", include_str!("migrations/0004_durability.sql")),
];

// Step 3 counts them.
const _: () = assert!(crate::placement::SLOTS == 4096);

/// Where the steps that were run are noted.
const TABLE: &str = "datastore_schema";

/// Runs the steps that are missing. Those of a newer version that this one does not know are left alone.
pub(super) async fn run(connection: &mut PgConnection, steps: &[Step]) -> Result<(), sqlx::Error> {
    let migrations = steps
        .iter()
        .map(|(version, name, sql)| {
            let sql = sqlx::AssertSqlSafe(*sql).into_sql_str();
            Migration::new(*version, Cow::Borrowed(*name), MigrationType::Simple, sql, false)
        })
        .collect();
    let mut migrator = Migrator::with_migrations(migrations);
    migrator.set_ignore_missing(true);
    migrator.dangerous_set_table_name(TABLE);
    let run = migrator.run_direct(None, connection, false).await;
    if run.is_err() {
        // The library keeps the lock when a step fails; another worker must be able to see for itself.
        connection.unlock().await.ok();
    }
    connection.ping().await?;
    run.map_err(|error| sqlx::Error::Migrate(Box::new(error)))
}
