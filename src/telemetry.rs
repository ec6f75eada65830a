//! Logs: targets, format, and where they are set up.

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
