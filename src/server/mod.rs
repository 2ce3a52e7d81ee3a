//! Listeners and the life of connections.
