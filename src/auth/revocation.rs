//! Fetches and keeps the list of revoked API keys.
