//! Logs: format, level, and where they are set up. They go to standard error.

use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How lines look.
    pub format: LogFormat,
    /// `tracing` filter, e.g. `info` or `info,datastore=debug`.
    pub level: String,
}

/// The filter of a level. The error says what is wrong with it.
pub fn filter(level: &str) -> Result<EnvFilter, String> {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    let known = |word: &str| LEVELS.contains(&word.to_ascii_lowercase().as_str());
    for part in level.split(',').map(str::trim).filter(|part| !part.contains('[')) {
        // A lone word that is no level would be taken as the name of a part, and say nothing.
        let word = part.rsplit('=').next().unwrap_or(part);
        if !known(word) {
            return Err(format!("{word:?} is no level; there are {}", LEVELS.join(", ")));
        }
    }
    // What libraries have to say below a warning is for those who ask for it by name. The NATS connector is
    // kept quiet for all: it prints passwords, and each failed attempt to connect. So is the AMQP library, which calls an error what it
    // does itself when a connection ends; the queue tells what there is to tell.
    let whole =
        format!("async_nats=warn,fjall=warn,lsm_tree=warn,{level},async_nats::connector=off,lapin=off");
    EnvFilter::try_new(whole).map_err(|error| error.to_string())
}

/// Starts logging. A second call changes nothing. The error says what is wrong with the filter.
pub fn start(settings: &Settings) -> Result<(), String> {
    use std::io::IsTerminal;
    let filter = filter(&settings.level)?;
    let logs =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // A second call means that a program around this one logs already.
    drop(match settings.format {
        LogFormat::Text => logs.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => logs.json().flatten_event(true).try_init(),
    });
    Ok(())
}
