//! The scripts, each one atomic step of the server, and the names of the keys they work on.
//!
//! ```text
//! ds1/r/<namespace>/<key>  a row (rows.rs)
//! ds1/o/<namespace>        the order: a sorted set of the keys whose rows are no tombstones, all of one score
//! ds1/slots                a hash: slot (4 digits) -> '1' (owned) and the slot's floor (16 hex digits)
//! ds1/shard                a hash: name, plan (the placement of all slots), mark (drawn when the slots were given)
//! ds1/plan                 the plan, before all servers have their part of it
//! ds1/partitioning         a hash: namespace -> how its keys are partitioned
//! ds1/durability           a hash: namespace -> the durability in force
//! ```
//!
//! `ds1` is the number of this layout: a version of this program with another one reads nothing of it. A script is asked for
//! by its hash; a server that does not know it (any more) is taught it.

use std::fmt::Write as _;
use std::sync::LazyLock;

use redis::Cmd;

use super::shard::{Proposal, Wants};
use crate::backend::RowKey;
use crate::model::Namespace;

pub(super) const SLOTS_KEY: &str = "ds1/slots";
pub(super) const SHARD_KEY: &str = "ds1/shard";
pub(super) const PLAN_KEY: &str = "ds1/plan";
pub(super) const PARTITIONING_KEY: &str = "ds1/partitioning";
pub(super) const DURABILITY_KEY: &str = "ds1/durability";
/// Replaces field ARGV[1] of a hash by ARGV[3] where it says ARGV[2], or nothing.
pub(super) const REPLACE: &str = "local noted = redis.call('HGET', KEYS[1], ARGV[1]) \
    if not noted or noted == ARGV[2] then redis.call('HSET', KEYS[1], ARGV[1], ARGV[3]) end";
const RECORDS: &str = "ds1/r/";
const ORDERS: &str = "ds1/o/";

/// What the server writes is refused as a whole while it has no memory left, before the script begins.
macro_rules! writes {
    ($file:literal) => {
        concat!("#!lua\nlocal full = false\n", include_str!("lua/common.lua"), include_str!($file))
    };
}
/// What frees memory runs also then. It makes no new rows, of which there would be no end.
macro_rules! frees {
    ($file:literal) => {
        concat!(
            "#!lua flags=allow-oom\nlocal full = true\n",
            include_str!("lua/common.lua"),
            include_str!($file)
        )
    };
}
macro_rules! reads {
    ($file:literal) => {
        concat!("#!lua flags=no-writes\n", include_str!($file))
    };
}

/// A script and its hash.
pub(super) struct Script {
    pub(super) text: &'static str,
    pub(super) hash: String,
}

/// All of them.
pub(super) struct Scripts {
    pub(super) read: Script,
    pub(super) scan: Script,
    pub(super) placed: Script,
    pub(super) write: Script,
    pub(super) commit: Script,
    pub(super) apply: Script,
    /// Those three for a full server: of tombstones alone, over rows that are there.
    pub(super) delete: Script,
    pub(super) commit_deletes: Script,
    pub(super) apply_deletes: Script,
    pub(super) bury: Script,
    pub(super) assign: Script,
}

pub(super) static SCRIPTS: LazyLock<Scripts> = LazyLock::new(|| {
    let script = |text| Script { text, hash: redis::Script::new(text).get_hash().to_owned() };
    Scripts {
        read: script(reads!("lua/read.lua")),
        scan: script(reads!("lua/scan.lua")),
        placed: script(reads!("lua/placed.lua")),
        write: script(writes!("lua/write.lua")),
        commit: script(writes!("lua/commit.lua")),
        apply: script(writes!("lua/apply.lua")),
        delete: script(frees!("lua/write.lua")),
        commit_deletes: script(frees!("lua/commit.lua")),
        apply_deletes: script(frees!("lua/apply.lua")),
        bury: script(frees!("lua/bury.lua")),
        assign: script(concat!("#!lua\n", include_str!("lua/assign.lua"))),
    }
});

impl Scripts {
    /// Each of them.
    pub(super) fn all(&self) -> [&Script; 11] {
        let Self { read, scan, placed, write, commit, apply, .. } = self;
        let Self { delete, commit_deletes, apply_deletes, bury, assign, .. } = self;
        [read, scan, placed, write, commit, apply, delete, commit_deletes, apply_deletes, bury, assign]
    }
}

/// The command that runs a script on keys; its arguments follow.
pub(super) fn ask(script: &Script, keys: impl IntoIterator<Item = String>) -> Cmd {
    let keys: Vec<String> = keys.into_iter().collect();
    let mut command = redis::cmd("EVALSHA");
    command.arg(&script.hash).arg(keys.len()).arg(keys);
    command
}

/// The command that runs a script on slots and rows, each with its order.
pub(super) fn ask_rows<'r>(script: &Script, rows: impl Iterator<Item = &'r RowKey>) -> Cmd {
    let rows = rows.flat_map(|at| [record(at), order(&at.namespace)]);
    ask(script, std::iter::once(SLOTS_KEY.to_owned()).chain(rows))
}

/// The command that makes a script known.
pub(super) fn load(script: &Script) -> Cmd {
    let mut command = redis::cmd("SCRIPT");
    command.arg("LOAD").arg(script.text);
    command
}

/// The key of a row.
pub(super) fn record(at: &RowKey) -> String {
    format!("{}{}", records(&at.namespace), at.key.as_str())
}

/// What stands before a row's key in its name.
pub(super) fn records(namespace: &Namespace) -> String {
    format!("{RECORDS}{}/", namespace.as_str())
}

/// The key of a namespace's order.
pub(super) fn order(namespace: &Namespace) -> String {
    format!("{ORDERS}{}", namespace.as_str())
}

/// Names of rows, as a pattern.
pub(super) const RECORDS_PATTERN: &str = "ds1/r/*";

/// The key of the order that a row's name belongs to.
pub(super) fn order_of(record: &[u8]) -> Option<Vec<u8>> {
    let rest = record.strip_prefix(RECORDS.as_bytes())?;
    let end = rest.iter().position(|byte| *byte == b'/')?;
    Some([ORDERS.as_bytes(), &rest[..end]].concat())
}

/// The parameters of a write as `write.lua` reads them.
///
/// ```text
/// offset size                                     numbers are decimal or lower-case hex digits of one width
///      0    4  slot
///      4   32  proposed version
///     36    1  kind: 'r' or 't'
///     37   15  end of life
///     52    1  '1' = keep that of a live record
///     53   16  op, 0 = none
///     69    1  '1' = it is a retry
///     70   15  whose first attempt was sent at most so long ago
///     85    1  what must hold: '0' nothing, '1' absent, '2' exists, '3' this version
///     86   32  that version
///    118    1  '1' = under the proposed version, or not at all
/// ```
pub(super) fn parameters(proposal: &Proposal) -> String {
    /// The largest number of 15 digits.
    const MILLIS_MAX: i64 = 999_999_999_999_999;
    let (wants, version) = match proposal.wants {
        Wants::Anything => ('0', None),
        Wants::Absent => ('1', None),
        Wants::Exists => ('2', None),
        Wants::Version(version) => ('3', Some(version)),
    };
    let mut text = String::with_capacity(119);
    let written = write!(
        text,
        "{:04}{}{}{:015}{}{:016x}{}{:015}{wants}",
        proposal.at.slot,
        proposal.version,
        if proposal.body.is_some() { 'r' } else { 't' },
        proposal.expires_at_ms.clamp(0, MILLIS_MAX),
        u8::from(proposal.keep),
        proposal.op,
        u8::from(proposal.lookback_ms.is_some()),
        proposal.lookback_ms.unwrap_or(0).clamp(0, MILLIS_MAX),
    );
    written.expect("text takes everything");
    match version {
        Some(version) => write!(text, "{version}").expect("text takes everything"),
        None => text.push_str(&"0".repeat(32)),
    }
    text.push(if proposal.exact { '1' } else { '0' });
    text
}
