//! What only nodes can show: several of them, their end, their silence, and what no node would say.

use std::time::Duration;

use super::*;
pub(in crate::backend) use crate::backend::private_riak as private;

/// Settings for these nodes.
pub(in crate::backend) fn settings(hosts: Vec<String>) -> RiakSettings {
    RiakSettings {
        hosts,
        bucket_type: private::BUCKET_TYPE.to_owned(),
        pool_size: 8,
        connect_timeout: Duration::from_secs(1),
        request_timeout: Duration::from_secs(1),
        quorums: Quorums::default(),
    }
}
