//! `config check` and `config show`, and the settings of every other command.

use std::path::Path;
use std::process::ExitCode;

use crate::config::{self, Loaded};

use super::args::{ConfigCommand, Connection};
use super::output::{Ended, Fault, Output, failed, tell};

/// Loads and checks all layers. The faults are told, each on its line.
pub(super) fn load(file: Option<&Path>, connection: &Connection) -> Result<Loaded, Fault> {
    let text = match file {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(path);
            Some(text.map_err(|error| Fault::input(format!("cannot read {}: {error}", path.display())))?)
        }
    };
    // A variable that is not text cannot be one of ours.
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let mut flags = Vec::new();
    flags.extend(connection.nats.clone().map(|url| ("nats.url", url)));
    flags.extend(connection.subject_prefix.clone().map(|prefix| ("nats.subject_prefix", prefix)));
    let loaded = config::load(file.zip(text.as_deref()), environment, &flags);
    loaded.map_err(|faults| {
        for fault in &faults.0 {
            tell(&format!("error: {fault}"));
        }
        Fault::input(match faults.0.len() {
            1 => "the settings have a fault".to_owned(),
            count => format!("the settings have {count} faults"),
        })
    })
}

pub(super) fn run(connection: &Connection, output: &mut Output, command: ConfigCommand) -> Ended {
    match command {
        ConfigCommand::Check { file } => match load(Some(&file), connection) {
            Ok(_) => {
                output.line("ok")?;
                output.flush()?;
                Ok(ExitCode::SUCCESS)
            }
            // Each fault has been told.
            Err(Fault::Told(summary, _)) => {
                tell(&format!("error: {}: {summary}", file.display()));
                Ok(failed())
            }
            Err(fault) => Err(fault),
        },
        ConfigCommand::Show { config } => {
            let loaded = load(config.as_deref(), connection)?;
            output.line(loaded.show().trim_end())?;
            output.flush()?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
