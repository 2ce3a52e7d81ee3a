//! Who is calling: a signature that recovers to a user, and an API key where one is required.

#[cfg(feature = "server")]
pub mod api_key;
#[cfg(feature = "server")]
pub mod revocation;
#[cfg(feature = "server")]
pub mod signature;
pub mod signing;
