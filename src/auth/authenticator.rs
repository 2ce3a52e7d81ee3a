//! Answers who is calling, and counts those who cannot say.

use std::sync::Arc;

use thiserror::Error;

use super::{
    api_key::{ApiKey, ApiKeyError, ApiKeys, CaError},
    revocation::{RevocationList, RevocationSetupError},
    signature::{self, SignatureError},
    signing::SignedRequest,
};
use crate::{
    clock::Clock,
    config::ApiKeyConfig,
    store::{RequestDigest, UserId},
    telemetry::metrics::Metrics,
};

/// Why authentication cannot be set up.
#[derive(Debug, Error)]
pub enum AuthSetupError {
    /// The authority's certificate is unusable.
    #[error("CA_CERT: {0}")]
    Ca(#[from] CaError),
    /// The revocation list cannot be fetched, ever.
    #[error(transparent)]
    Revocation(#[from] RevocationSetupError),
}

/// Why a request is unauthenticated. The texts may be shown to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AuthError {
    /// The API key is refused.
    #[error(transparent)]
    ApiKey(#[from] ApiKeyError),
    /// The signature names nobody.
    #[error(transparent)]
    Signature(#[from] SignatureError),
}

impl AuthError {
    /// The cause as a label of metrics; one of few.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::ApiKey(error) => error.reason(),
            Self::Signature(error) => error.reason(),
        }
    }
}

/// Tells who is calling.
#[derive(Debug)]
pub struct Authenticator {
    /// None are asked for without.
    api_keys: Option<ApiKeys>,
    revocation: Option<Arc<RevocationList>>,
    metrics: Arc<Metrics>,
}

impl Authenticator {
    /// Sets up what the configuration asks for; without `config` no API key is asked for.
    ///
    /// # Errors
    /// If the configuration cannot be used.
    pub fn new(
        config: Option<&ApiKeyConfig>,
        clock: &Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, AuthSetupError> {
        let revocation = config.and_then(|config| config.revocation.as_ref());
        let revocation = revocation
            .map(|config| RevocationList::new(config, Arc::clone(clock), Arc::clone(&metrics)))
            .transpose()?
            .map(Arc::new);
        let api_keys = config
            .map(|config| ApiKeys::new(&config.ca_der, revocation.clone(), Arc::clone(clock)))
            .transpose()?;
        Ok(Self { api_keys, revocation, metrics })
    }

    /// The revocation list, if there is one: to be fetched once before anything is served, and
    /// then run as a task.
    #[must_use]
    pub const fn revocation(&self) -> Option<&Arc<RevocationList>> {
        self.revocation.as_ref()
    }

    /// Checks the value of a request's `authorization`; `None` inside where no key is asked for.
    ///
    /// # Errors
    /// Why the key is refused.
    pub fn check_api_key(&self, authorization: Option<&[u8]>) -> Result<Option<ApiKey>, AuthError> {
        let checked = self.api_keys.as_ref().map(|keys| keys.check(authorization)).transpose();
        checked.map_err(|error| self.count(error.into()))
    }

    /// Finds who signed `request`, and the digest that was signed.
    ///
    /// # Errors
    /// If the signature names nobody.
    pub fn recover_user<R: SignedRequest>(
        &self,
        request: &R,
    ) -> Result<(UserId, RequestDigest), AuthError> {
        signature::recover(request).map_err(|error| self.count(error.into()))
    }

    /// Waits until a key that was accepted is accepted no longer; for ever where none is asked
    /// for.
    pub async fn until_invalid(&self, key: Option<&ApiKey>) -> AuthError {
        match (&self.api_keys, key) {
            // Boxed, so that streams are no larger where no key is asked for.
            (Some(keys), Some(key)) => Box::pin(keys.until_invalid(key)).await.into(),
            _ => std::future::pending().await,
        }
    }

    fn count(&self, error: AuthError) -> AuthError {
        self.metrics.auth_failures.with_label_values(&[error.reason()]).inc();
        error
    }
}
