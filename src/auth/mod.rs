//! Who is calling: a signature that recovers to a user, and an API key where one is required.

#[cfg(feature = "server")]
pub mod api_key;
#[cfg(feature = "server")]
mod authenticator;
#[cfg(feature = "server")]
mod certificate;
#[cfg(feature = "server")]
pub mod revocation;
#[cfg(feature = "server")]
mod serial;
#[cfg(feature = "server")]
pub mod signature;
pub mod signing;
#[cfg(all(test, feature = "server"))]
mod tests;

#[cfg(feature = "server")]
pub use authenticator::{AuthError, AuthSetupError, Authenticator};
#[cfg(feature = "server")]
pub use serial::Serial;
