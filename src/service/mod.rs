//! What is asked: one file an RPC.
