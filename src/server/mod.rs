//! Listeners and the life of connections.

pub mod admin;
pub mod layers;
