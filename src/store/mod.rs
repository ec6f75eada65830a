//! Operations on records.

pub mod policy;
