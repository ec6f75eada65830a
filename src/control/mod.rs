//! Background jobs. Each is a loop of bounded steps, and any step may be the last.

pub mod sweep;
