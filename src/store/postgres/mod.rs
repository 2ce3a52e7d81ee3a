//! The engine for any number of replicas.
