//! What stores note of a namespace beside its records: where its writes may wait before they are applied.
//!
//! How keys are partitioned is noted once and for ever ([`super::Backend::partitioning`]). The durability in force may be changed,
//! by an operator's command that drains first, so it is looked at again and again. Where a store has several servers each of
//! them has the note: one that is not there keeps nobody from using the others. A change has taken place when every one of them
//! has confirmed it, so whoever can be asked tells the truth of every change that has; two that contradict each other are in the
//! midst of one.

use futures_util::future::join_all;

use crate::model::{Error, Result};

/// What a caller is told to wait while a change is under way, milliseconds.
const CHANGING_RETRY_MS: i64 = 1_000;

/// What is done with a note.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Noting {
    /// It is read.
    Look,
    /// This is noted where nothing is noted yet.
    First(String),
    /// One is replaced by another, also where nothing is noted yet; a third one stays.
    Replace {
        /// What stands there.
        from: String,
        /// What shall stand there.
        to: String,
    },
}

impl Noting {
    /// What is to be written where `noted` stands, if anything is.
    pub fn written(&self, noted: Option<&str>) -> Option<&str> {
        match self {
            Self::Look => None,
            Self::First(first) => noted.is_none().then_some(first),
            Self::Replace { from, to } => noted.is_none_or(|noted| noted == from).then_some(to),
        }
    }
}

/// Does something with a note on all `servers` of a store; gives what stands. `ask` asks one of them by its number. `None`: nothing
/// is noted, or not everywhere yet where it was to be.
pub(super) async fn on_all_servers<F: Future<Output = Result<Option<String>>>>(
    servers: usize,
    noting: Noting,
    ask: impl Fn(usize, Noting) -> F,
) -> Result<Option<String>> {
    let ask = |noting: &Noting| join_all((0..servers).map(|server| ask(server, noting.clone())));
    let mut said = ask(&noting).await;
    let known = said.iter().find_map(|said| said.as_ref().ok().cloned().flatten());
    let unaware = said.iter().any(|said| matches!(said, Ok(None)));
    if let (Noting::Look, Some(known), true) = (&noting, known, unaware) {
        // A server that has joined since.
        said = ask(&Noting::First(known)).await;
    }
    let everywhere = said.iter().all(|said| matches!(said, Ok(Some(_))));
    let mut noted = said.iter().filter_map(|said| said.as_ref().ok().cloned().flatten());
    let one = noted.next();
    if let Some(one) = &one
        && let Some(other) = noted.find(|other| other != one)
    {
        let message = format!(
            "one server notes durability {one:?} and another {other:?}: a change that was broken off goes on with the same command"
        );
        return Err(Error::unavailable(message, CHANGING_RETRY_MS));
    }
    match (&noting, one) {
        (Noting::Look, Some(one)) => Ok(Some(one)),
        (Noting::First(_), Some(one)) => Ok(everywhere.then_some(one)),
        (Noting::Replace { .. }, Some(one)) if everywhere => Ok(Some(one)),
        (_, _) => said.into_iter().find_map(Result::err).map_or(Ok(None), Err),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn replace(from: &str, to: &str) -> Noting {
        Noting::Replace { from: from.to_owned(), to: to.to_owned() }
    }

    #[test]
    fn a_note_is_written_where_it_may_be() {
        let first = Noting::First("a".to_owned());
        assert_eq!((first.written(None), first.written(Some("b"))), (Some("a"), None));
        let change = replace("a", "b");
        let written = [None, Some("a"), Some("b"), Some("c")].map(|noted| change.written(noted));
        assert_eq!(written, [Some("b"), Some("b"), None, None]);
        assert_eq!(Noting::Look.written(None), None);
    }

    /// Servers that note as they should, and those of them that are away.
    async fn on(servers: &RefCell<Vec<Result<Option<String>>>>, noting: Noting) -> Result<Option<String>> {
        let count = servers.borrow().len();
        let ask = async |server: usize, noting: Noting| {
            let mut servers = servers.borrow_mut();
            if let Ok(noted) = &mut servers[server]
                && let Some(written) = noting.written(noted.as_deref())
            {
                *noted = Some(written.to_owned());
            }
            servers[server].clone()
        };
        on_all_servers(count, noting, ask).await
    }

    #[tokio::test]
    async fn servers_that_are_there_tell_and_a_change_needs_them_all() {
        let away = || Err(Error::unavailable("away", 1));
        let said = |text: &str| Ok(Some(text.to_owned()));
        let servers = RefCell::new(vec![Ok(None), away(), Ok(None)]);
        assert!(on(&servers, Noting::Look).await.is_err(), "one that is away may know");
        let first = Noting::First("a".to_owned());
        assert_eq!(on(&servers, first.clone()).await, Ok(None), "it is noted, but not everywhere");
        assert_eq!(on(&servers, Noting::Look).await, said("a"), "and is told by those that are there");
        assert!(on(&servers, replace("a", "b")).await.is_err(), "one that is away is not changed");
        servers.borrow_mut()[1] = said("a");
        assert!(on(&servers, Noting::Look).await.is_err(), "half of them were");
        assert_eq!(on(&servers, replace("a", "b")).await, said("b"));
        servers.borrow_mut().push(Ok(None));
        assert_eq!(on(&servers, Noting::Look).await, said("b"));
        assert_eq!(servers.borrow()[3], said("b"), "one that joined is told");
        assert_eq!(on(&servers, replace("a", "c")).await, said("b"), "what stands is no `a`");
    }
}
