//! The nodes together: which one is asked, and who is asked next.
//!
//! Any node serves any key. The one with the fewest requests in hand is asked, those that failed last only where there is no
//! other; the keeper looks after them and finds out when they answer again. Whatever fails in a way that another try may not
//! is asked elsewhere at once, within a budget. Repeating a write is always safe here: it carries its version, so a twin of it
//! merges into one and one that comes late loses to what is newer.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::classify::{Effect, Fault, Remedy};
use super::node::{ANSWER_GRACE, Line, Node};
use super::settings::RiakSettings;
use super::wire::Request;
use crate::model::Error;
use crate::model::budget::Budget;

/// Tries beyond one at each node.
const EXTRA_TRIES: usize = 2;
/// Pause once every node has been asked in vain, at most; it is a random part of this.
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// What a request takes to arrive may be added to the time it has: 8 MB/s at least.
const BYTES_PER_MS_MIN: u64 = 8192;
/// A try gets no less than this.
const WAIT_MIN: Duration = Duration::from_millis(20);

/// See the module.
pub(super) struct Pool {
    pub(super) nodes: Vec<Arc<Node>>,
    request_timeout: Duration,
    budget: Budget,
}

impl Pool {
    pub(super) fn new(settings: &RiakSettings) -> Self {
        let node =
            |host: &String| Arc::new(Node::new(host.clone(), settings.pool_size, settings.connect_timeout));
        let nodes = settings.hosts.iter().map(node).collect();
        Self { nodes, request_timeout: settings.request_timeout, budget: Budget::default() }
    }

    /// Asks until there is a reply, a failure that is final, or no time. The fault of the last try is told, with what any of
    /// them may have done.
    pub(super) async fn ask<R: Request>(&self, request: R, deadline: Instant) -> Result<R::Reply, Fault> {
        self.ask_in(Line::Quick, request, self.request_timeout, deadline).await
    }

    /// The same of a request that may take a node longer than others.
    pub(super) async fn ask_patiently<R: Request>(
        &self,
        request: R,
        patience: Duration,
        deadline: Instant,
    ) -> Result<R::Reply, Fault> {
        self.ask_in(Line::Patient, request, patience, deadline).await
    }

    async fn ask_in<R: Request>(
        &self,
        line: Line,
        mut request: R,
        patience: Duration,
        deadline: Instant,
    ) -> Result<R::Reply, Fault> {
        let sending = Duration::from_millis(request.encoded_len() as u64 / BYTES_PER_MS_MIN);
        let patience = patience + sending;
        let mut asked: Vec<usize> = Vec::new();
        let mut effect = Effect::None;
        let mut last: Option<Fault> = None;
        for _ in 0..self.nodes.len() + EXTRA_TRIES {
            if deadline <= Instant::now() {
                break;
            }
            let at = self.choose(&asked);
            let fault = match self.ask_at(at, line, &mut request, patience, deadline).await {
                Ok(reply) => {
                    self.budget.succeeded();
                    return Ok(reply);
                }
                Err(fault) => fault,
            };
            effect = effect.max(fault.effect);
            // What no node has seen yet is no burden to any: it costs no repeat.
            let repeat = fault.remedy == Remedy::Again && (fault.in_line || self.budget.take());
            last = Some(Fault { effect, ..fault });
            if !repeat {
                break;
            }
            asked.push(at);
            if asked.len() == self.nodes.len() {
                asked.clear();
                let pause = PAUSE_MAX.mul_f64(fastrand::f64());
                tokio::time::sleep(pause.min(deadline.saturating_duration_since(Instant::now()))).await;
            }
        }
        Err(last.unwrap_or_else(late))
    }

    /// One try. What the wait for a place took is not taken from the node's time, but from the caller's.
    async fn ask_at<R: Request>(
        &self,
        at: usize,
        line: Line,
        request: &mut R,
        patience: Duration,
        deadline: Instant,
    ) -> Result<R::Reply, Fault> {
        let turn = self.nodes[at].enter(line, self.share(patience, deadline), deadline).await?;
        let wait = self.share(patience, deadline);
        request.set_timeout(millis(wait));
        turn.ask(request, wait, deadline).await
    }

    /// How long one step of a try may take: where there is another node, a silent one must leave time to ask it.
    fn share(&self, patience: Duration, deadline: Instant) -> Duration {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = if self.nodes.len() > 1 { (left / 2).max(WAIT_MIN) } else { left };
        patience.min(share).min(left)
    }

    /// Asks one node once, for what is of use only if it comes at once: no node is blamed for it.
    pub(super) async fn ask_once<R: Request>(
        &self,
        mut request: R,
        wait: Duration,
        deadline: Instant,
    ) -> Result<R::Reply, Fault> {
        let deadline = deadline.min(Instant::now() + wait + ANSWER_GRACE);
        let turn = self.nodes[self.choose(&[])].enter(Line::Quick, wait, deadline).await?;
        let wait = wait.min(deadline.saturating_duration_since(Instant::now()));
        request.set_timeout(millis(wait));
        turn.ask_gently(&request, wait, deadline).await
    }

    /// The node to ask, one that has not been asked if there is one.
    fn choose(&self, asked: &[usize]) -> usize {
        let from = fastrand::usize(..self.nodes.len());
        let turned = (0..self.nodes.len()).map(|step| (from + step) % self.nodes.len());
        let rank = |at: &usize| {
            let node = &self.nodes[*at];
            (asked.contains(at), node.blamed().is_some(), node.in_flight())
        };
        turned.min_by_key(rank).expect("a pool has a node, the settings are checked")
    }

    /// Closes what is idle, and the rest once it is.
    pub(super) fn close(&self) {
        self.nodes.iter().for_each(|node| node.close());
    }
}

/// A wait as a request says it.
fn millis(wait: Duration) -> u32 {
    u32::try_from(wait.as_millis()).unwrap_or(u32::MAX).max(1)
}

/// The fault of a request whose deadline passed before any node was asked.
fn late() -> Fault {
    Fault {
        error: Error::deadline("the deadline passed before Riak was asked; nothing happened"),
        effect: Effect::None,
        remedy: Remedy::None,
        blames_node: false,
        spoils_connection: false,
        in_line: false,
    }
}
