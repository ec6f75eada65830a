//! Admission: how many requests, and how many bytes of them, are in work at once.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of request payloads in work at once. `max_in_flight` alone would allow gigabytes of large ones.
const IN_FLIGHT_BYTES_MAX: usize = 256 << 20;

/// Permits to work on a request.
pub(super) struct Admission {
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

/// A request's place; given back when dropped.
pub(super) struct Permit {
    _request: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
}

impl Admission {
    pub(super) fn new(max_in_flight: usize) -> Self {
        Self {
            requests: Arc::new(Semaphore::new(max_in_flight)),
            bytes: Arc::new(Semaphore::new(IN_FLIGHT_BYTES_MAX)),
        }
    }

    /// A place, or none: never waits, because NATS has no back-pressure and a request that waits grows stale.
    pub(super) fn admit(&self, payload_bytes: usize) -> Option<Permit> {
        let request = self.requests.clone().try_acquire_owned().ok()?;
        let bytes = u32::try_from(payload_bytes).ok()?;
        let bytes = self.bytes.clone().try_acquire_many_owned(bytes).ok()?;
        Some(Permit { _request: request, _bytes: bytes })
    }
}
