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
use super::node::Node;
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
        self.ask_patiently(request, self.request_timeout, deadline).await
    }

    /// The same of a request that may take a node longer than others.
    pub(super) async fn ask_patiently<R: Request>(
        &self,
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
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            // Where there is another node, a silent one must leave time to ask it.
            let share = if self.nodes.len() > 1 { (left / 2).max(WAIT_MIN) } else { left };
            let wait = patience.min(share).min(left);
            request.set_timeout(u32::try_from(wait.as_millis()).unwrap_or(u32::MAX).max(1));
            let at = self.choose(&asked);
            let fault = match self.nodes[at].ask(&request, wait, deadline).await {
                Ok(reply) => {
                    self.budget.succeeded();
                    return Ok(reply);
                }
                Err(fault) => fault,
            };
            effect = effect.max(fault.effect);
            let repeat = fault.remedy == Remedy::Again && self.budget.take();
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

    /// Asks one node once, for what is of use only if it comes at once: no node is blamed for it.
    pub(super) async fn ask_once<R: Request>(
        &self,
        mut request: R,
        wait: Duration,
        deadline: Instant,
    ) -> Result<R::Reply, Fault> {
        request.set_timeout(u32::try_from(wait.as_millis()).unwrap_or(u32::MAX).max(1));
        self.nodes[self.choose(&[])].exchange(&request, wait, deadline).await
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

/// The fault of a request whose deadline passed before any node was asked.
fn late() -> Fault {
    Fault {
        error: Error::deadline("the deadline passed before Riak was asked; nothing happened"),
        effect: Effect::None,
        remedy: Remedy::None,
        blames_node: false,
        spoils_connection: false,
    }
}
