//! What a service would write by hand: one prepared statement for each request over a pool, into a table of its own on the same
//! server. It is called in this process, without NATS between, and without a cache.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

use crate::cli::bench::mix::Step;
use crate::cli::bench::records::Records;
use crate::cli::output::Fault;
use crate::model::Code;

/// Connections of its pool.
const POOL: u32 = 16;
/// Rows of one statement that fills the table.
const FILL_ROWS: usize = 1000;

const TABLE: &str = "CREATE TABLE IF NOT EXISTS datastore_bench_peer \
    (ns text NOT NULL, key text NOT NULL, value bytea NOT NULL, PRIMARY KEY (ns, key))";
const EMPTY: &str = "TRUNCATE datastore_bench_peer";
const FILL: &str = "INSERT INTO datastore_bench_peer SELECT 'bench', * FROM unnest($1::text[], $2::bytea[]) \
    ON CONFLICT (ns, key) DO UPDATE SET value = EXCLUDED.value";
const PUT: &str = "INSERT INTO datastore_bench_peer (ns, key, value) VALUES ('bench', $1, $2) \
    ON CONFLICT (ns, key) DO UPDATE SET value = EXCLUDED.value";
const GET: &str = "SELECT value FROM datastore_bench_peer WHERE ns = 'bench' AND key = $1";
const SCAN: &str =
    "SELECT key, value FROM datastore_bench_peer WHERE ns = 'bench' AND key >= $1 ORDER BY key LIMIT $2";
const LOCK: &str = "SELECT value FROM datastore_bench_peer WHERE ns = 'bench' AND key = $1 FOR UPDATE";
const CHANGE: &str = "UPDATE datastore_bench_peer SET value = $2 WHERE ns = 'bench' AND key = $1";
const DROP: &str = "DROP TABLE datastore_bench_peer";

/// A table that holds the records.
pub(in crate::cli::bench) struct Postgres {
    pool: PgPool,
    records: Arc<Records>,
    documents: Vec<Vec<u8>>,
}

impl Postgres {
    /// Connects, makes its table and fills it.
    pub(super) async fn start(url: &str, records: Arc<Records>, timeout: Duration) -> Result<Self, Fault> {
        let pool = PgPoolOptions::new().max_connections(POOL).acquire_timeout(timeout).connect(url).await;
        let pool = pool.map_err(|error| told(&error))?;
        let peer = Self { pool, documents: records.documents(), records };
        sqlx::query(TABLE).execute(&peer.pool).await.map_err(|error| told(&error))?;
        // What a bench left that was stopped in its middle.
        sqlx::query(EMPTY).execute(&peer.pool).await.map_err(|error| told(&error))?;
        // For puts too: replacing a row costs something else than a first write, here as in our table.
        for (part, values) in peer.documents.chunks(FILL_ROWS).enumerate() {
            let keys: Vec<String> =
                (0..values.len()).map(|at| peer.records.key(part * FILL_ROWS + at)).collect();
            let values: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();
            let fill = sqlx::query(FILL).bind(keys).bind(values).execute(&peer.pool);
            fill.await.map_err(|error| told(&error))?;
        }
        Ok(peer)
    }

    pub(super) async fn send(&self, step: Step) -> Result<u64, String> {
        let sent = match step {
            Step::Read(at) => self.read(at).await,
            Step::Update(at) | Step::Insert(at) => self.put(at).await,
            Step::Scan { from, records } => self.scan(from, records).await,
            Step::ReadModifyWrite(at) => self.modify(at).await,
        };
        match sent {
            Ok(0) => Err(Code::NotFound.word().to_owned()),
            Ok(items) => Ok(items),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn read(&self, at: usize) -> sqlx::Result<u64> {
        let get = sqlx::query_scalar::<_, Vec<u8>>(GET).bind(self.records.key(at));
        Ok(u64::from(get.fetch_optional(&self.pool).await?.is_some()))
    }

    async fn put(&self, at: usize) -> sqlx::Result<u64> {
        let put = sqlx::query(PUT).bind(self.records.key(at)).bind(self.document(at));
        put.execute(&self.pool).await.map(|_| 1)
    }

    async fn scan(&self, from: usize, records: u32) -> sqlx::Result<u64> {
        let scan = sqlx::query_as::<_, (String, Vec<u8>)>(SCAN);
        let page = scan.bind(self.records.key(from)).bind(i64::from(records)).fetch_all(&self.pool).await?;
        Ok(page.len() as u64)
    }

    /// Under the row's lock: what is read must not have changed when it is written back.
    async fn modify(&self, at: usize) -> sqlx::Result<u64> {
        let key = self.records.key(at);
        let mut transaction = self.pool.begin().await?;
        let read =
            sqlx::query_scalar::<_, Vec<u8>>(LOCK).bind(&key).fetch_optional(&mut *transaction).await?;
        let Some(value) = read else { return Ok(0) };
        sqlx::query(CHANGE).bind(&key).bind(value).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(1)
    }

    fn document(&self, at: usize) -> &[u8] {
        &self.documents[at % self.documents.len()]
    }

    /// Takes its table away.
    pub(super) async fn end(&self) -> Result<(), Fault> {
        sqlx::query(DROP).execute(&self.pool).await.map(drop).map_err(|error| told(&error))
    }
}

fn told(error: &sqlx::Error) -> Fault {
    Fault::input(format!("the peer on PostgreSQL: {error}"))
}
