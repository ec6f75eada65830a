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

/// Starts logging. A second call changes nothing. The error says what is wrong with the filter.
pub fn start(settings: &Settings) -> Result<(), String> {
    use std::io::IsTerminal;
    // What libraries have to say below a warning is for those who ask for it by name.
    let level = format!("async_nats=warn,fjall=warn,lsm_tree=warn,{}", settings.level);
    let filter = EnvFilter::try_new(level).map_err(|error| format!("log.level: {error}"))?;
    let logs =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // A second call means that a program around this one logs already.
    drop(match settings.format {
        LogFormat::Text => logs.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => logs.json().flatten_event(true).try_init(),
    });
    Ok(())
}
