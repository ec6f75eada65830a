//! What the servers note of namespaces beside their records: how they are partitioned, and the durability in force.
//!
//! The slot that lies beside a record follows from it, so each server that holds records of a namespace should know. A server that is
//! not there keeps nobody from using the others: what any of them knows is compared, and what one does not know yet is noted on
//! it as soon as it is there. That note never changes, so one that was read is not read again; the durability in force may, and
//! is read each time.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use futures_util::future::join_all;
use sqlx::Row as _;
use tokio::time::{Instant, timeout_at};

use super::classify::Stage;
use super::shard::Shard;
use super::{Server, Shared, sql};
use crate::backend::remote::{Fault, Pause, RETRY_AFTER_MS, Remedy};
use crate::backend::{Noting, note};
use crate::model::{Error, Namespace, Result};

/// Notes that are remembered of each server; further ones are read each time.
const NOTES_MAX: usize = 65_536;
/// How long a server may take to tell a note.
const NOTE_MAX: Duration = Duration::from_secs(1);

/// The notes that were read of one server.
#[derive(Default)]
pub(super) struct Notes(RwLock<HashMap<Namespace, String>>);

impl Notes {
    fn get(&self, namespace: &Namespace) -> Option<String> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(namespace).cloned()
    }

    fn keep(&self, namespace: &Namespace, spec: &str) {
        let mut notes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if notes.len() < NOTES_MAX {
            notes.insert(namespace.clone(), spec.to_owned());
        }
    }
}

impl Shared {
    /// Notes how a namespace is partitioned wherever it is not yet; gives what stands, once it stands everywhere or contradicts.
    pub(super) async fn partitioning(
        &self,
        namespace: &Namespace,
        first: Option<String>,
    ) -> Result<Option<String>> {
        let until = Instant::now() + NOTE_MAX;
        let ask = async |first: Option<&str>| {
            join_all(self.shards.iter().map(|server| server.note(namespace, first, until))).await
        };
        let mut said = ask(first.as_deref()).await;
        let known = said.iter().find_map(|said| said.as_ref().ok().cloned().flatten());
        if first.is_none() && known.is_some() && said.iter().any(|said| matches!(said, Ok(None))) {
            said = ask(known.as_deref()).await;
        }
        let mut noted = said.iter().filter_map(|said| said.as_ref().ok().cloned().flatten());
        let Some(one) = noted.next() else {
            // A write needs the server of its key in any case; a read finds out by itself, on a replica perhaps.
            let fault = said.into_iter().find_map(Result::err).filter(|_| first.is_some());
            return fault.map_or(Ok(None), |fault| Err(fault.error));
        };
        if let Some(other) = noted.find(|other| *other != one) {
            return Err(Error::unsupported(format!(
                "namespace {:?} was written with partition_by {one:?} and with {other:?}, on different servers",
                namespace.as_str()
            )));
        }
        let everywhere = said.iter().all(|said| matches!(said, Ok(Some(_))));
        // What is not settled everywhere is asked for again.
        Ok(Some(one).filter(|one| everywhere || first.as_ref() != Some(one)))
    }
}

impl Shared {
    /// Notes a namespace's durability as asked, on every server; gives what stands.
    pub(super) async fn durability(&self, namespace: &Namespace, noting: Noting) -> Result<Option<String>> {
        let servers = &self.shards;
        note::on_all_servers(servers.len(), noting, |server, noting| async move {
            let until = Instant::now() + NOTE_MAX;
            let noted = servers[server].ask(Subject::Durability, namespace, &noting, until);
            noted.await.map_err(|fault| fault.error)
        })
        .await
    }
}

/// What a note is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    Partitioning,
    Durability,
}

impl Server {
    /// How this server notes that a namespace is partitioned.
    async fn note(
        &self,
        namespace: &Namespace,
        first: Option<&str>,
        until: Instant,
    ) -> Result<Option<String>, Fault> {
        if let Some(known) = self.notes.get(namespace) {
            return Ok(Some(known));
        }
        let noting = first.map_or(Noting::Look, |first| Noting::First(first.to_owned()));
        let noted = self.ask(Subject::Partitioning, namespace, &noting, until).await;
        if let Ok(Some(spec)) = &noted {
            self.notes.keep(namespace, spec);
        }
        noted
    }

    /// What this server notes of a namespace, or one of its replicas does while it is not there.
    async fn ask(
        &self,
        subject: Subject,
        namespace: &Namespace,
        noting: &Noting,
        until: Instant,
    ) -> Result<Option<String>, Fault> {
        let noted = self.shard.noted(subject, namespace, noting, until).await;
        let replaces = matches!(noting, Noting::Replace { .. });
        if noted.is_err()
            && let Some(replicas) = self.replicas.as_ref().filter(|_| !replaces)
        {
            for replica in replicas.shards() {
                let told = replica.noted(subject, namespace, &Noting::Look, until).await;
                if matches!(told, Ok(Some(_))) {
                    return told;
                }
            }
        }
        noted
    }
}

impl Shard {
    /// Notes something of a namespace as asked; gives what stands.
    async fn noted(
        &self,
        subject: Subject,
        namespace: &Namespace,
        noting: &Noting,
        until: Instant,
    ) -> Result<Option<String>, Fault> {
        let slow = || {
            let message = format!("PostgreSQL {:?} does not answer", self.name);
            Fault { error: Error::unavailable(message, RETRY_AFTER_MS), remedy: Remedy::None }
        };
        let mut pause = Pause::new(until);
        loop {
            let tried = timeout_at(until, self.try_note(subject, namespace, noting, until)).await;
            match tried.unwrap_or_else(|_| Err(slow())) {
                Err(fault) if self.fault().is_none() && pause.repeats(&fault, &self.budget).await => {}
                noted => return noted,
            }
        }
    }

    async fn try_note(
        &self,
        subject: Subject,
        namespace: &Namespace,
        noting: &Noting,
        until: Instant,
    ) -> Result<Option<String>, Fault> {
        let judge = |error: sqlx::Error| self.judge(Stage::Read, &error);
        let (read, first) = match subject {
            Subject::Partitioning => (sql::PARTITIONING, sql::NOTE_PARTITIONING),
            Subject::Durability => (sql::DURABILITY, sql::NOTE_DURABILITY),
        };
        let mut connection = self.connection().await?;
        // Nothing is lost by noting it twice, so this is no write that may have happened.
        let note = match noting {
            Noting::Look | Noting::LookAtAll => None,
            Noting::First(text) => Some(sqlx::query(first).bind(namespace.as_str()).bind(text)),
            Noting::Replace { from, to } => {
                Some(sqlx::query(sql::REPLACE_DURABILITY).bind(namespace.as_str()).bind(to).bind(from))
            }
        };
        if let Some(note) = note {
            connection.rows(note, until).await.map_err(judge)?;
        }
        let query = sqlx::query(read).bind(namespace.as_str());
        let rows = connection.rows(query, until).await;
        rows.map_err(judge)?.first().map(|row| row.try_get(0)).transpose().map_err(judge)
    }
}
