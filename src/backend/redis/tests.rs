//! What only servers can show.
