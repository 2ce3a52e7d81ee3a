//! Listeners and the life of connections.

pub mod layers;
