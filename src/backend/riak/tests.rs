//! What only nodes can show.
