//! Arguments of the commands on records.

use clap::{Args, ValueEnum};

use super::values::{lifetime, positive};
use crate::model::request::{Consistency, PreconditionRequest};

#[derive(Debug, Args)]
pub(crate) struct Get {
    /// Namespace
    #[arg(value_name = "NS")]
    pub(crate) namespace: String,
    /// Key
    pub(crate) key: String,
    /// Print these parts of the value alone (paths, comma separated)
    #[arg(long, value_name = "PATHS", value_delimiter = ',')]
    pub(crate) fields: Vec<String>,
    /// Print what belongs to the record instead of its value
    #[arg(long)]
    pub(crate) head_only: bool,
    /// Level of the read [default: the namespace's]
    #[arg(long, value_name = "LEVEL")]
    pub(crate) consistency: Option<Level>,
    /// How old the answer may be, for bounded reads
    #[arg(long, value_name = "D", value_parser = positive)]
    pub(crate) max_staleness: Option<i64>,
    /// Nothing older than this version
    #[arg(long, value_name = "V", default_value = "", hide_default_value = true)]
    pub(crate) min_version: String,
}

/// A consistency level.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Level {
    Strong,
    Bounded,
    Eventual,
}

/// What must hold for a write to happen.
#[derive(Debug, Clone, Args)]
#[group(multiple = false)]
pub(crate) struct Precondition {
    /// Only if the key is absent
    #[arg(long)]
    if_absent: bool,
    /// Only if the key is there
    #[arg(long)]
    if_exists: bool,
    /// Only if the key is at this version
    #[arg(long, value_name = "V")]
    if_version: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Put {
    /// Namespace
    #[arg(value_name = "NS")]
    pub(crate) namespace: String,
    /// Key
    pub(crate) key: String,
    /// JSON; `-` reads standard input
    #[arg(allow_negative_numbers = true)]
    pub(crate) value: String,
    /// VALUE is text, taken literally
    #[arg(long, conflicts_with = "file")]
    pub(crate) text: bool,
    /// VALUE is a file whose bytes are stored
    #[arg(long)]
    pub(crate) file: bool,
    #[command(flatten)]
    pub(crate) precondition: Precondition,
    /// Lifetime: 90s, 2h, never [default: the namespace's]
    #[arg(long, value_name = "D", value_parser = lifetime, conflicts_with = "keep_ttl")]
    pub(crate) ttl: Option<i64>,
    /// Keep the present expiry
    #[arg(long)]
    pub(crate) keep_ttl: bool,
    /// What the value is, e.g. image/png
    #[arg(long, value_name = "T", default_value = "", hide_default_value = true)]
    pub(crate) content_type: String,
    #[command(flatten)]
    pub(crate) identity: Identity,
}

/// The identity of a write.
#[derive(Debug, Args)]
pub(crate) struct Identity {
    /// Sent again with the same id, the write takes effect once [default: a new one]
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    pub(crate) op_id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// Namespace
    #[arg(value_name = "NS")]
    pub(crate) namespace: String,
    /// Key
    pub(crate) key: String,
    #[command(flatten)]
    pub(crate) precondition: Precondition,
    #[command(flatten)]
    pub(crate) identity: Identity,
}

#[derive(Debug, Args)]
pub(crate) struct Update {
    /// Namespace
    #[arg(value_name = "NS")]
    pub(crate) namespace: String,
    /// Key
    pub(crate) key: String,
    #[command(flatten)]
    pub(crate) changes: Changes,
    /// Start from an empty map where there is no record
    #[arg(long)]
    pub(crate) create: bool,
    /// Print the value after the update
    #[arg(long = "return")]
    pub(crate) return_record: bool,
    #[command(flatten)]
    pub(crate) precondition: Precondition,
    /// Lifetime: 90s, 2h, never [default: stays as it is]
    #[arg(long, value_name = "D", value_parser = lifetime)]
    pub(crate) ttl: Option<i64>,
    #[command(flatten)]
    pub(crate) identity: Identity,
}

/// The changes of an update. Their order among each other is that of the command line, see `update`.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct Changes {
    /// Put a value there
    #[arg(long, value_name = "PATH=JSON")]
    set: Vec<String>,
    /// Add a number; starts from 0
    #[arg(long, value_name = "PATH=N")]
    increment: Vec<String>,
    /// Add one element at a list's end
    #[arg(long, value_name = "PATH=JSON")]
    append: Vec<String>,
    /// Keep the smaller
    #[arg(long, value_name = "PATH=JSON")]
    min: Vec<String>,
    /// Keep the larger
    #[arg(long, value_name = "PATH=JSON")]
    max: Vec<String>,
    /// Add one element unless the list has it
    #[arg(long, value_name = "PATH=JSON")]
    add_to_set: Vec<String>,
    /// Take every equal element away
    #[arg(long, value_name = "PATH=JSON")]
    remove_from_set: Vec<String>,
    /// Take what stands there away
    #[arg(long, value_name = "PATH")]
    unset: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Touch {
    /// Namespace
    #[arg(value_name = "NS")]
    pub(crate) namespace: String,
    /// Key
    pub(crate) key: String,
    /// New lifetime from now: 90s, 2h, never, or default for the namespace's
    #[arg(long, value_name = "D", value_parser = lifetime)]
    pub(crate) ttl: i64,
    #[command(flatten)]
    pub(crate) identity: Identity,
}

#[derive(Debug, Args)]
pub(crate) struct Batch {
    /// Namespace
    #[arg(value_name = "NS")]
    pub(crate) namespace: String,
    /// Operations, one JSON object per line; `-` reads standard input
    pub(crate) file: String,
    /// All or nothing; must fit one request
    #[arg(long)]
    pub(crate) atomic: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Scan {
    /// Namespace
    #[arg(value_name = "NS")]
    pub(crate) namespace: String,
    /// Keys that start with this
    #[arg(long, value_name = "P", default_value = "", hide_default_value = true)]
    pub(crate) prefix: String,
    /// First key, inclusive
    #[arg(long, value_name = "S", default_value = "", hide_default_value = true)]
    pub(crate) start: String,
    /// Last key, exclusive
    #[arg(long, value_name = "E", default_value = "", hide_default_value = true)]
    pub(crate) end: String,
    /// Most records [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: Option<u64>,
    /// From the last key to the first
    #[arg(long)]
    pub(crate) reverse: bool,
    /// Print keys alone
    #[arg(long)]
    pub(crate) keys_only: bool,
    /// Level of the reads [default: the namespace's]
    #[arg(long, value_name = "LEVEL")]
    pub(crate) consistency: Option<Level>,
}

#[derive(Debug, Args)]
pub(crate) struct Transfer {
    /// Namespace
    #[arg(value_name = "NS")]
    pub(crate) namespace: String,
    /// NDJSON, also .gz and .zst; `-` is standard input or output
    pub(crate) file: String,
}

#[derive(Debug, Args)]
pub(crate) struct Warm {
    /// Namespace
    #[arg(value_name = "NS")]
    pub(crate) namespace: String,
    /// Keys that begin with this
    #[arg(long, default_value = "")]
    pub(crate) prefix: String,
}

// === values ===

impl Precondition {
    pub(crate) fn request(&self) -> Option<PreconditionRequest> {
        let none = PreconditionRequest::default();
        if self.if_absent {
            return Some(PreconditionRequest { absent: Some(true), ..none });
        }
        if self.if_exists {
            return Some(PreconditionRequest { exists: Some(true), ..none });
        }
        self.if_version.clone().map(|version| PreconditionRequest { version: Some(version), ..none })
    }
}

impl Level {
    pub(crate) fn request(level: Option<Self>) -> Consistency {
        match level {
            None => Consistency::Default,
            Some(Self::Strong) => Consistency::Strong,
            Some(Self::Bounded) => Consistency::Bounded,
            Some(Self::Eventual) => Consistency::Eventual,
        }
    }
}
