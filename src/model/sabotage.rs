//! Switches that break one rule each, so that a test can show that its checker notices.
//!
//! They exist under the cargo feature `test-sabotage` alone: `DATASTORE_TEST_SABOTAGE` names the rules that a process
//! breaks, comma separated. Without the feature every answer is a constant `false` and the compiler removes the question.

/// A rule that can be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// Writers do not tell the shared tier that they are at work.
    WriterSet,
    /// The shared tier does not remember that several writers were at work together.
    Contention,
    /// The first tier keeps what was fetched before an invalidation.
    Generation,
    /// The age of a copy counts from when it was kept, not from before it was fetched.
    AsOf,
    /// Messages of the invalidation bus are dropped, one of ten, before anybody looks at them.
    DropInvalidations,
    /// What was read from the backend is kept only a while later, sometimes much later, and the shared tier learns a while later
    /// that a write has ended: breaks no rule, and shows which do.
    SlowFill,
    /// Gaps in the numbers of the invalidation bus mean nothing.
    Gaps,
    /// Queued writes are acknowledged to the broker as they are delivered, not when they are settled.
    AckFirst,
    /// A write counts as queued when it was sent to the broker, not when the broker has confirmed it.
    SentIsQueued,
}

/// Whether this process breaks a rule.
#[cfg(not(feature = "test-sabotage"))]
pub const fn is(_: Sabotage) -> bool {
    false
}

/// Whether this process breaks a rule.
#[cfg(feature = "test-sabotage")]
pub fn is(rule: Sabotage) -> bool {
    static BROKEN: std::sync::OnceLock<Vec<Sabotage>> = std::sync::OnceLock::new();
    let broken = BROKEN.get_or_init(|| {
        let named = std::env::var("DATASTORE_TEST_SABOTAGE").unwrap_or_default();
        let rule = |name: &str| match name {
            "writer_set" => Sabotage::WriterSet,
            "contention" => Sabotage::Contention,
            "generation" => Sabotage::Generation,
            "as_of" => Sabotage::AsOf,
            "drop_invalidations" => Sabotage::DropInvalidations,
            "slow_fill" => Sabotage::SlowFill,
            "gaps" => Sabotage::Gaps,
            "ack_first" => Sabotage::AckFirst,
            "sent_is_queued" => Sabotage::SentIsQueued,
            other => panic!("DATASTORE_TEST_SABOTAGE: no rule {other:?}"),
        };
        named.split(',').filter(|name| !name.is_empty()).map(rule).collect()
    });
    broken.contains(&rule)
}
