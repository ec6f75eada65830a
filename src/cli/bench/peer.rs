//! What a workload is measured beside, in turns with it: the transport's own limit, or what somebody would do who has none of us.
//!
//! A peer knows some operations and refuses a workload that has others. It draws from a mix of its own, works on a place of its
//! own that it makes and fills before, and takes it away at the end.

mod kv;
mod postgres;
mod rabbitmq;
mod redis;

use std::sync::Arc;

use super::echo::Echo;
use super::load::Sent;
use super::mix::{Mix, Shares, Step};
use super::records::Records;
use crate::cli::Session;
use crate::cli::args::Bench;
use crate::cli::output::Fault;
use crate::client::Client;

/// One of them, ready.
pub(super) enum Peer {
    /// One message there and back.
    Echo(Echo),
    /// A JetStream key-value bucket.
    Kv(Mix, kv::Kv),
    /// Redis, and an echo.
    Redis(Mix, redis::Redis, Echo),
    /// A queue of RabbitMQ.
    RabbitMq(Mix, rabbitmq::RabbitMq),
    /// Statements on PostgreSQL.
    Postgres(Mix, postgres::Postgres),
}

impl Peer {
    /// The one that the command line names.
    pub(super) async fn start(
        session: &Session,
        client: &Client,
        bench: &Bench,
        records: &Arc<Records>,
    ) -> Result<Option<Self>, Fault> {
        let timeout = session.connection.timeout;
        let shares = Shares::of(bench.workload);
        let mix = Mix::new(bench, records.count());
        let alone = |what: &str, knows: &str, can: bool| match can {
            true => Ok(()),
            false => Err(Fault::input(format!(
                "the peer {what} knows {knows}, which this workload is not made of"
            ))),
        };
        if bench.echo {
            return Ok(Some(Self::Echo(Echo::start(session, client, bench.value_bytes as usize).await?)));
        }
        if bench.peer_kv {
            alone("JetStream KV", "gets and puts", shares.scans == 0 && !shares.modify())?;
            return Ok(Some(Self::Kv(mix, kv::Kv::start(client, records.clone(), timeout).await?)));
        }
        if let Some(url) = &bench.peer_redis {
            alone("Redis", "gets", shares.reads == 100)?;
            let echo = Echo::start(session, client, bench.value_bytes as usize).await?;
            return Ok(Some(Self::Redis(mix, redis::Redis::start(url, records, timeout).await?, echo)));
        }
        if let Some(url) = &bench.peer_rabbitmq {
            alone("RabbitMQ", "puts", shares.updates == 100)?;
            return Ok(Some(Self::RabbitMq(mix, rabbitmq::RabbitMq::start(url, records, timeout).await?)));
        }
        if let Some(url) = &bench.peer_postgres {
            return Ok(Some(Self::Postgres(
                mix,
                postgres::Postgres::start(url, records.clone(), timeout).await?,
            )));
        }
        Ok(None)
    }

    /// Its key in a report, and its name.
    pub(super) fn name(&self) -> (&'static str, &'static str) {
        match self {
            Self::Echo(_) => ("echo", "echo"),
            Self::Kv(..) => ("peer", "JetStream KV"),
            Self::Redis(..) => ("peer", "Redis GET and an echo"),
            Self::RabbitMq(..) => ("peer", "a confirmed publish"),
            Self::Postgres(..) => ("peer", "hand-written PostgreSQL"),
        }
    }

    /// One request of the workload; its error in a word.
    pub(super) async fn send(&self) -> Result<Sent, String> {
        match self {
            Self::Echo(echo) => echo.send().await.map(|()| Sent::items("echo", 1)),
            Self::Kv(mix, kv) => {
                let step = mix.next();
                ended(mix, step, kv.send(step).await)
            }
            Self::Redis(mix, redis, echo) => {
                let step = mix.next();
                echo.send().await?;
                ended(mix, step, redis.send(step).await)
            }
            Self::RabbitMq(mix, rabbitmq) => {
                let step = mix.next();
                ended(mix, step, rabbitmq.send(step).await)
            }
            Self::Postgres(mix, postgres) => {
                let step = mix.next();
                ended(mix, step, postgres.send(step).await)
            }
        }
    }

    /// Takes away what it made.
    pub(super) async fn end(&self) -> Result<(), Fault> {
        match self {
            Self::Echo(_) => Ok(()),
            Self::Kv(_, kv) => kv.end().await,
            Self::Redis(_, redis, _) => redis.end().await,
            Self::RabbitMq(_, rabbitmq) => rabbitmq.end().await,
            Self::Postgres(_, postgres) => postgres.end().await,
        }
    }
}

fn ended(mix: &Mix, step: Step, items: Result<u64, String>) -> Result<Sent, String> {
    mix.ended(step, items.is_ok());
    items.map(|items| Sent::items(step.name(), items))
}

/// An operation that a peer was started without.
fn unknown(step: Step) -> String {
    format!("unknown operation {}", step.name())
}
