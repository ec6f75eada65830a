//! What is noted of a namespace: how its keys are partitioned, and the durability in force.
//!
//! Riak compares and sets nothing, so a note is written without a clock and stays beside those of others. Of two first writers all
//! agree on the one of the smaller version. A change of the durability is a note of a greater generation; two changes at once are
//! kept apart by whoever commands them.

use std::time::Duration;

use tokio::time::Instant;

use super::classify::Fault;
use super::place::Place;
use super::{Shared, records, sweep};
use crate::backend::{Noting, row};
use crate::model::clock::{hlc_at, wall_ms};
use crate::model::{Code, Error, Namespace, Result, Version};

/// How long what is noted of a namespace may take.
const NOTE_WITHIN: Duration = Duration::from_secs(5);

/// A note as it lies there: a generation, a space, the text. The first generation of all has no number.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Noted {
    generation: u64,
    text: String,
}

impl Shared {
    /// How a namespace is partitioned. `first` is noted where nothing is.
    pub(super) async fn partitioning(
        &self,
        namespace: &Namespace,
        first: Option<String>,
    ) -> Result<Option<String>> {
        let noting = first.map_or(Noting::Look, Noting::First);
        self.note(Place::note(namespace), &noting, |text| Noted { generation: 0, text }).await
    }

    /// The durability of a namespace, after it was noted as asked.
    pub(super) async fn durability(&self, namespace: &Namespace, noting: Noting) -> Result<Option<String>> {
        self.note(Place::durability(namespace), &noting, Noted::read).await
    }

    async fn note(
        &self,
        place: Place,
        noting: &Noting,
        read: impl Fn(String) -> Noted,
    ) -> Result<Option<String>> {
        self.fit()?;
        let deadline = Instant::now() + NOTE_WITHIN;
        let noted = self.noted(&place, &read, deadline).await?;
        let Some(written) = noting.written(noted.as_ref().map(|noted| noted.text.as_str())) else {
            return Ok(noted.map(|noted| noted.text));
        };
        let version = Version { hlc: hlc_at(wall_ms()), origin: Version::draw_origin() };
        let text = match noted {
            None => written.to_owned(),
            Some(noted) => format!("{} {written}", noted.generation + 1),
        };
        // Without a clock, so that another's note stays beside it.
        let row = sweep::own_row(version, text.into());
        self.store(&place, &row, None, deadline).await.map_err(Fault::of_write)?;
        Ok(self.noted(&place, &read, deadline).await?.map(|noted| noted.text))
    }

    async fn noted(
        &self,
        place: &Place,
        read: impl Fn(String) -> Noted,
        deadline: Instant,
    ) -> Result<Option<Noted>> {
        let contents = self.contents(place, deadline).await.map_err(records::of_read)?;
        let rows = contents.iter().filter(|content| !content.deleted());
        let rows = rows.map(|content| row::decode(&place.stored_key(), &content.value));
        let rows = rows.collect::<Result<Vec<_>, _>>().map_err(|why| Error::new(Code::Corrupt, why))?;
        let mut notes = Vec::new();
        for row in rows {
            let Some(body) = row.body else { continue };
            let text = String::from_utf8(body.to_vec());
            let text =
                text.map_err(|_| Error::new(Code::Corrupt, "what is noted of a namespace is no text"))?;
            notes.push((read(text), row.version));
        }
        let newest = notes.iter().map(|(noted, _)| noted.generation).max();
        let of_newest = notes.into_iter().filter(|(noted, _)| Some(noted.generation) == newest);
        Ok(of_newest.min_by_key(|(_, version)| *version).map(|(noted, _)| noted))
    }
}

impl Noted {
    fn read(text: String) -> Self {
        match text.split_once(' ').and_then(|(number, rest)| Some((number.parse().ok()?, rest))) {
            Some((generation, rest)) => Self { generation, text: rest.to_owned() },
            None => Self { generation: 0, text },
        }
    }
}
