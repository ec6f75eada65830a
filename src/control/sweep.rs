//! Physical removal of what is dead: expired records become tombstones, old tombstones go.
//!
//! A tombstone is kept for [`GRACE`], so that no write that was on its way when the delete happened can
//! undo it; when it goes, the floor of its slot rises, and nothing older is taken in again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::backend::DynBackend;

/// How long a tombstone is kept.
const GRACE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Between two steps of a walk.
const STEP_PAUSE: Duration = Duration::from_millis(50);
/// Between the end of a walk and the start of the next, and after a failed step.
const WALK_PAUSE: Duration = Duration::from_secs(30);

/// Between two looks at a store that is not there.
const HEALTH_PAUSE: Duration = Duration::from_secs(1);

/// Sweeps every backend until stopped.
pub async fn run(backends: BTreeMap<String, Arc<dyn DynBackend>>, stop: CancellationToken) {
    let sweeps = backends.iter().map(|(name, backend)| sweep(name, backend.as_ref()));
    tokio::select! {
        () = stop.cancelled() => {}
        _ = futures_util::future::join_all(sweeps) => {}
    }
}

async fn sweep(name: &str, backend: &dyn DynBackend) {
    let grace_ms = i64::try_from(GRACE.as_millis()).expect("a week fits");
    let mut resume = None;
    loop {
        // What is wrong with a store that is not there, it says itself.
        if backend.health().is_err() {
            tokio::time::sleep(HEALTH_PAUSE).await;
            continue;
        }
        let pause = match backend.sweep(resume.clone(), grace_ms).await {
            Ok(swept) => {
                if swept.expired + swept.removed > 0 {
                    tracing::debug!(
                        backend = name,
                        expired = swept.expired,
                        removed = swept.removed,
                        "swept"
                    );
                }
                resume = swept.resume;
                if resume.is_some() { STEP_PAUSE } else { WALK_PAUSE }
            }
            Err(error) => {
                tracing::warn!(backend = name, %error, "a sweep step failed; it is tried again");
                WALK_PAUSE
            }
        };
        tokio::time::sleep(pause).await;
    }
}
