//! An engine in memory, for tests and simulations.
