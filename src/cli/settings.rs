//! `config check` and `config show`, and the settings of every other command.

use std::path::Path;
use std::process::ExitCode;

use crate::config::{self, Loaded};

use super::args::{ConfigCommand, Connection};
use super::output::{Ended, Fault, Output, failed, tell};

/// Which variables of the environment count.
#[derive(Clone, Copy)]
enum Environment {
    /// All of ours.
    Whole,
    /// Those of the connection: what a worker is told is no business of a client on the same machine.
    Nats,
    /// None: a file is checked as it stands.
    Ignored,
}

/// Loads and checks all layers. The faults are told, each on its line.
pub(super) fn load(file: Option<&Path>, connection: &Connection) -> Result<Loaded, Fault> {
    load_with(file, connection, Environment::Whole)
}

/// The settings of a command that talks to workers.
pub(super) fn client(connection: &Connection) -> Result<Loaded, Fault> {
    load_with(None, connection, Environment::Nats)
}

fn load_with(
    file: Option<&Path>,
    connection: &Connection,
    environment: Environment,
) -> Result<Loaded, Fault> {
    let text = match file {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(path);
            Some(text.map_err(|error| Fault::input(format!("cannot read {}: {error}", path.display())))?)
        }
    };
    let counts = |name: &str| match environment {
        Environment::Whole => true,
        Environment::Nats => name.to_ascii_uppercase().starts_with("DATASTORE__NATS__"),
        Environment::Ignored => false,
    };
    // A name that is not text cannot be one of ours; a value that is not is kept, for the check to find.
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
        .filter(|(name, _)| counts(name));
    let mut flags = Vec::new();
    if !matches!(environment, Environment::Ignored) {
        flags.extend(connection.nats.clone().map(|url| ("nats.url", url)));
        flags.extend(connection.subject_prefix.clone().map(|prefix| ("nats.subject_prefix", prefix)));
    }
    let loaded = config::load(file.zip(text.as_deref()), variables, &flags);
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
        ConfigCommand::Check { file } => match load_with(Some(&file), connection, Environment::Ignored) {
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
