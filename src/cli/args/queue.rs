//! Arguments of `queue`.

use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub(crate) struct Queue {
    #[command(subcommand)]
    pub(crate) command: QueueCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum QueueCommand {
    /// What waits in each lane, how old it is, how fast it goes, and how many dead letters there are
    Status {
        /// Every lane, those with nothing in them too
        #[arg(long)]
        all: bool,
    },
    /// Print dead letters: id, namespace, key, reason; those looked at move to the end of the queue
    List {
        /// How many
        #[arg(long, default_value = "100", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
        limit: usize,
    },
    /// Print a dead letter with its value, and what a replay would come to now
    Show {
        /// Its id: the version that `queued` answered
        #[arg(value_name = "ID")]
        id: String,
    },
    /// Apply dead letters again, under the versions they have: what is newer stays
    Replay(Replay),
    /// Apply all dead letters again, at a rate
    Drain {
        /// Letters a second at most
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        rate: Option<u32>,
    },
    /// Remove all dead letters, once they are in a file
    Purge {
        /// How many there must be
        #[arg(long, value_name = "N")]
        expect: u64,
        /// Where they are written first, one JSON object per line
        #[arg(long, value_name = "FILE")]
        export: PathBuf,
    },
    /// Change the durability in force of a namespace, while workers run; see it through to its end
    Switch {
        /// Namespace
        #[arg(value_name = "NS")]
        namespace: String,
        /// The durability to be in force
        #[arg(value_name = "DURABILITY", value_parser = ["through", "outage_queue"])]
        durability: String,
    },
    /// What became of a write that was answered `queued`: pending, applied, superseded, dead_lettered or unknown
    Receipt {
        /// Namespace
        #[arg(value_name = "NS")]
        namespace: String,
        /// Key
        #[arg(value_name = "KEY")]
        key: String,
        /// The version that `queued` answered
        #[arg(value_name = "VERSION")]
        version: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Replay {
    /// Only those of a namespace
    #[arg(long, default_value = "", value_name = "NS")]
    pub(crate) namespace: String,
    /// Only those whose keys begin with this
    #[arg(long, default_value = "", value_name = "PREFIX")]
    pub(crate) prefix: String,
    /// Only this one
    #[arg(long, default_value = "", value_name = "ID")]
    pub(crate) id: String,
    /// Only those whose reason holds this text
    #[arg(long, default_value = "", value_name = "TEXT")]
    pub(crate) reason: String,
    /// Give each a new version, so that it wins over what stands there
    #[arg(long)]
    pub(crate) force: bool,
}
