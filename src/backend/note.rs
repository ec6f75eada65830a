//! What stores note of a namespace beside its records: where its writes may wait before they are applied.
//!
//! How keys are partitioned is noted once and for ever ([`super::Backend::partitioning`]). The durability in force may be changed,
//! by an operator's command that drains first, so it is looked at again and again. Where a store has several servers each of
//! them has the note: one that is not there keeps nobody from using the others. A change has taken place when every one of them
//! has confirmed it, so whoever can be asked tells the truth of every change that has; two that contradict each other are in the
//! midst of one, which relies on neither yet.

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;

use crate::model::Result;

/// What is told where two servers contradict each other.
pub const CHANGING: &str = "changing";

/// What is done with a note.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Noting {
    /// It is read, from whoever answers first.
    Look,
    /// It is read from all; [`CHANGING`] where they contradict each other.
    LookAtAll,
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
            Self::Look | Self::LookAtAll => None,
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
    let asked = (0..servers).map(|server| ask(server, noting.clone()));
    if noting == Noting::Look {
        return first_word(asked.collect()).await;
    }
    let said = join_all(asked).await;
    let everywhere = said.iter().all(|said| matches!(said, Ok(Some(_))));
    let mut noted = said.iter().filter_map(|said| said.as_ref().ok().cloned().flatten());
    let one = noted.next();
    if one.is_some() && noted.any(|other| Some(&other) != one.as_ref()) {
        return Ok(Some(CHANGING.to_owned()));
    }
    match (&noting, one) {
        (Noting::First(_), Some(one)) => Ok(everywhere.then_some(one)),
        (Noting::Replace { .. }, Some(one)) if everywhere => Ok(Some(one)),
        (Noting::LookAtAll, Some(one)) if said.iter().all(Result::is_ok) => Ok(Some(one)),
        (_, _) => said.into_iter().find_map(Result::err).map_or(Ok(None), Err),
    }
}

/// What the first server says that has something noted: nobody waits for one that hangs.
async fn first_word<F: Future<Output = Result<Option<String>>>>(
    mut asked: FuturesUnordered<F>,
) -> Result<Option<String>> {
    let mut fault = None;
    while let Some(said) = asked.next().await {
        match said {
            Ok(Some(noted)) => return Ok(Some(noted)),
            Ok(None) => {}
            Err(error) => fault = Some(error),
        }
    }
    // One that is away may know.
    fault.map_or(Ok(None), Err)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::model::Error;

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
        assert!(on(&servers, Noting::LookAtAll).await.is_err(), "who changes it asks all");
        assert!(on(&servers, replace("a", "b")).await.is_err(), "one that is away is not changed");
        servers.borrow_mut()[1] = said("a");
        assert_eq!(on(&servers, Noting::LookAtAll).await, said(CHANGING), "half of them were");
        assert_eq!(on(&servers, replace("a", "b")).await, said("b"), "and the same goes on");
        assert_eq!(on(&servers, Noting::LookAtAll).await, said("b"));
        servers.borrow_mut().push(Ok(None));
        assert_eq!(on(&servers, Noting::Look).await, said("b"));
        assert_eq!(on(&servers, replace("a", "c")).await, said(CHANGING), "what stands is no `a`");
    }
}
