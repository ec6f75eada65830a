//! Redis as somebody has it who puts a cache beside his service: one GET for each request, over one connection that all of them
//! share. The echo that goes with it is NATS between the service and who asks it.

use std::time::Duration;

use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;

use super::unknown;
use crate::cli::bench::mix::Step;
use crate::cli::bench::records::Records;
use crate::cli::output::Fault;
use crate::model::Code;

/// Before a record's key.
const PREFIX: &str = "datastore-bench-peer:";
/// Commands of one pipeline that fills or empties.
const TOGETHER: usize = 500;

/// A server that holds the records, under keys of their own.
pub(in crate::cli::bench) struct Redis {
    connection: MultiplexedConnection,
    keys: Vec<String>,
}

impl Redis {
    /// Connects and fills.
    pub(super) async fn start(url: &str, records: &Records, timeout: Duration) -> Result<Self, Fault> {
        let client = redis::Client::open(url).map_err(|error| told(&error))?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(timeout))
            .set_response_timeout(Some(timeout));
        let connection = client.get_multiplexed_async_connection_with_config(&config).await;
        let connection = connection.map_err(|error| told(&error))?;
        let keys = (0..records.count()).map(|at| format!("{PREFIX}{}", records.key(at))).collect();
        let peer = Self { connection, keys };
        let documents = records.documents();
        for (keys, documents) in peer.keys.chunks(TOGETHER).zip(documents.chunks(TOGETHER)) {
            let mut pipeline = redis::pipe();
            for (key, document) in keys.iter().zip(documents) {
                pipeline.cmd("SET").arg(key).arg(document.as_slice()).ignore();
            }
            pipeline.query_async::<()>(&mut peer.connection.clone()).await.map_err(|error| told(&error))?;
        }
        Ok(peer)
    }

    pub(super) async fn send(&self, step: Step) -> Result<u64, String> {
        let Step::Read(at) = step else { return Err(unknown(step)) };
        let mut get = redis::cmd("GET");
        get.arg(&self.keys[at]);
        match get.query_async::<Option<Vec<u8>>>(&mut self.connection.clone()).await {
            Ok(Some(_)) => Ok(1),
            Ok(None) => Err(Code::NotFound.word().to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Takes its keys away.
    pub(super) async fn end(&self) -> Result<(), Fault> {
        for keys in self.keys.chunks(TOGETHER) {
            let mut unlink = redis::cmd("UNLINK");
            unlink.arg(keys);
            unlink.query_async::<()>(&mut self.connection.clone()).await.map_err(|error| told(&error))?;
        }
        Ok(())
    }
}

fn told(error: &redis::RedisError) -> Fault {
    Fault::input(format!("the peer Redis: {error}"))
}
