//! Tests of authentication as a whole, against corpora, second implementations and real servers.

mod api_keys;
mod corpus;
mod revocation;
mod signatures;
