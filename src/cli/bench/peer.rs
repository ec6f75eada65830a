//! What a service would write by hand: one prepared statement for each request over a pool, into a table of its own on the same
//! server. It is called in this process, without NATS between.

use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

use super::workload::Target;
use crate::cli::args::Workload;
use crate::cli::output::Fault;
use crate::codec::json::value_to_string;
use crate::model::Code;

/// Connections of its pool.
const POOL: u32 = 16;
/// Rows of one statement that fills the table before gets.
const FILL_ROWS: usize = 1000;

const TABLE: &str = "CREATE TABLE IF NOT EXISTS datastore_bench_peer \
    (ns text NOT NULL, key text NOT NULL, value bytea NOT NULL, PRIMARY KEY (ns, key))";
const FILL: &str = "INSERT INTO datastore_bench_peer SELECT 'bench', * FROM unnest($1::text[], $2::bytea[]) \
    ON CONFLICT (ns, key) DO UPDATE SET value = EXCLUDED.value";
const PUT: &str = "INSERT INTO datastore_bench_peer (ns, key, value) VALUES ('bench', $1, $2) \
    ON CONFLICT (ns, key) DO UPDATE SET value = EXCLUDED.value";
const GET: &str = "SELECT value FROM datastore_bench_peer WHERE ns = 'bench' AND key = $1";
const DROP: &str = "DROP TABLE datastore_bench_peer";

/// The peer, with the records of a target.
pub(super) struct Peer {
    pool: PgPool,
    records: Vec<(String, Vec<u8>)>,
    workload: Workload,
}

impl Peer {
    /// Connects, makes its table and fills it.
    pub(super) async fn start(url: &str, target: &Target, timeout: Duration) -> Result<Self, Fault> {
        if !matches!(target.workload, Workload::Get | Workload::Put) {
            return Err(Fault::input("the peer on PostgreSQL knows the workloads get and put"));
        }
        let pool = PgPoolOptions::new().max_connections(POOL).acquire_timeout(timeout).connect(url).await;
        let pool = pool.map_err(|error| told(&error))?;
        let document = |value| value_to_string(value, false).into_bytes();
        let records = target.records.iter().map(|(key, value)| (key.clone(), document(value))).collect();
        let peer = Self { pool, records, workload: target.workload };
        sqlx::query(TABLE).execute(&peer.pool).await.map_err(|error| told(&error))?;
        // For puts too: replacing a row costs something else than a first write, here as in our table.
        for part in peer.records.chunks(FILL_ROWS) {
            let keys: Vec<&str> = part.iter().map(|(key, _)| key.as_str()).collect();
            let values: Vec<&[u8]> = part.iter().map(|(_, value)| value.as_slice()).collect();
            let fill = sqlx::query(FILL).bind(keys).bind(values).execute(&peer.pool);
            fill.await.map_err(|error| told(&error))?;
        }
        Ok(peer)
    }

    /// One request of the workload, on a record by its place.
    pub(super) async fn send(&self, at: usize) -> Result<u64, String> {
        let (key, value) = &self.records[at];
        let failed = |error: sqlx::Error| error.to_string();
        if self.workload == Workload::Put {
            sqlx::query(PUT).bind(key).bind(value).execute(&self.pool).await.map_err(failed)?;
            return Ok(1);
        }
        let found = sqlx::query_scalar::<_, Vec<u8>>(GET).bind(key).fetch_optional(&self.pool);
        match found.await.map_err(failed)? {
            Some(_) => Ok(1),
            None => Err(Code::NotFound.word().to_owned()),
        }
    }

    /// Takes its table away.
    pub(super) async fn end(&self) -> Result<(), Fault> {
        sqlx::query(DROP).execute(&self.pool).await.map(drop).map_err(|error| told(&error))
    }
}

fn told(error: &sqlx::Error) -> Fault {
    Fault::input(format!("the peer on PostgreSQL: {error}"))
}
