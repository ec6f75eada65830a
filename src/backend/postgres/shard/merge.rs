//! The statements that merge rows which carry their versions, and that tell what a merge would come to.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use sqlx::Row as _;
use tokio::time::Instant;

use super::{Each, Shard};
use crate::backend::postgres::bind::{bind_marks, bind_rows};
use crate::backend::postgres::classify::Stage;
use crate::backend::postgres::connections::Loan;
use crate::backend::postgres::sql;
use crate::backend::remote::Fault;
use crate::backend::{Entry, Row, RowKey};

impl Shard {
    /// Merges rows where that needs no thought ([`sql::MERGE`]), and the others after them; the words of [`sql::APPLY`]. Where many
    /// did lately, all go the long way: two statements cost two syncs.
    pub(in crate::backend::postgres) async fn merge(
        &self,
        entries: &[&Entry],
        deadline: Instant,
        connection: &mut Loan,
    ) -> Each<String> {
        if self.merges_need_thought.load(Ordering::Relaxed) {
            let words = self.apply(entries, deadline, connection).await?;
            let applied = words.iter().filter(|word| word.as_deref() == Some("applied")).count();
            self.merges_need_thought.store(!is_most(applied, words.len()), Ordering::Relaxed);
            return Ok(words);
        }
        let pairs: Vec<(&RowKey, &Row)> = entries.iter().map(|entry| (&entry.at, &entry.row)).collect();
        let query = bind_rows(sqlx::query(sql::MERGE), &pairs);
        let rows = self.run(Stage::Write, query, connection, deadline).await?;
        let judged = |error| self.judge(Stage::Write, &error);
        let mut stored = HashSet::with_capacity(rows.len());
        for row in &rows {
            let (ns, key) = (row.try_get::<&str, _>(0), row.try_get::<&str, _>(1));
            stored.insert((ns.map_err(judged)?, key.map_err(judged)?));
        }
        self.merges_need_thought.store(!is_most(stored.len(), entries.len()), Ordering::Relaxed);
        let is_stored =
            |entry: &Entry| stored.contains(&(entry.at.namespace.as_str(), entry.at.key.as_str()));
        let rest: Vec<&Entry> = entries.iter().copied().filter(|entry| !is_stored(entry)).collect();
        let words = match rest.is_empty() {
            true => Vec::new(),
            false => match self.apply(&rest, deadline, connection).await {
                Ok(words) => words,
                // What was stored is told of, whatever becomes of the others: they are merged each by itself.
                Err(_) if !stored.is_empty() => Vec::new(),
                Err(fault) => return Err(fault),
            },
        };
        let mut words = words.into_iter();
        let word = |entry: &&Entry| match is_stored(entry) {
            true => Some("applied".to_owned()),
            false => words.next().flatten(),
        };
        Ok(entries.iter().map(word).collect())
    }

    /// Merges rows; the words of [`sql::APPLY`].
    pub(in crate::backend::postgres) async fn apply(
        &self,
        entries: &[&Entry],
        deadline: Instant,
        connection: &mut Loan,
    ) -> Each<String> {
        let pairs: Vec<(&RowKey, &Row)> = entries.iter().map(|entry| (&entry.at, &entry.row)).collect();
        let query = bind_rows(sqlx::query(sql::APPLY), &pairs);
        let rows = self.run(Stage::Write, query, connection, deadline).await?;
        self.each(Stage::Write, entries.len(), &rows, |row| sqlx::Row::try_get(row, "res"))
    }

    /// Of each row that need not be merged, whether it stands there itself; see [`sql::ALREADY`].
    pub(in crate::backend::postgres) async fn already(
        &self,
        entries: &[&Entry],
        deadline: Instant,
    ) -> Each<bool> {
        let mut connection = self.connection_by(deadline).await?;
        let query = bind_marks(sqlx::query(sql::ALREADY), entries);
        let rows = self.run(Stage::Read, query, &mut connection, deadline).await?;
        self.each(Stage::Read, entries.len(), &rows, |row| sqlx::Row::try_get(row, "own"))
    }

    /// What merging one row would come to: it is merged, and that is rolled back.
    pub(in crate::backend::postgres) async fn foresee(
        &self,
        entry: &Entry,
        deadline: Instant,
    ) -> Result<Option<String>, Fault> {
        let mut connection = self.connection_by(deadline).await?;
        let judged = |error| self.judge(Stage::Read, &error);
        connection.begin(deadline).await.map_err(judged)?;
        let mut words = self.apply(&[entry], deadline, &mut connection).await?;
        connection.rollback(deadline).await.map_err(judged)?;
        Ok(words.pop().flatten())
    }
}

/// Whether so few of all are left that a statement of their own is worth it.
fn is_most(some: usize, all: usize) -> bool {
    some * 4 >= all * 3
}
