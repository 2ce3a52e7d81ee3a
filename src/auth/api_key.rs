//! Checks the certificate that a caller shows as its API key.

/// Reads the authority's certificate from base64 of its DER form.
///
/// # Errors
/// What is wrong with the text.
pub fn decode_ca(text: &str) -> Result<Vec<u8>, String> {
    data_encoding::BASE64.decode(text.as_bytes()).map_err(|error| error.to_string())
}
