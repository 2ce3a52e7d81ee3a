//! Settings of `data-sync client`.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use super::{ConfigErrors, Secret, reader::Reader};
use crate::limits;

/// Where `data-sync client` calls when nothing else is set.
const DEFAULT_URL: &str = "http://127.0.0.1:8080";
/// Where the key lies below the home directory when nothing else is set.
const DEFAULT_KEY_FILE: &str = ".config/data-sync/key";

/// Settings of the client commands.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Client")]
pub struct ClientArgs {
    /// Address of the server.
    #[arg(
        long,
        env = "DATA_SYNC_URL",
        value_name = "URL",
        default_value = DEFAULT_URL,
        global = true
    )]
    pub url: String,

    /// File that holds the secret key of the user as 64 hexadecimal digits
    /// [default: ~/.config/data-sync/key].
    #[arg(long, env = "DATA_SYNC_KEY_FILE", value_name = "PATH", global = true)]
    pub key_file: Option<String>,

    /// The secret key itself. On a command line others can see it: better set the variable, or
    /// use a file.
    #[arg(long, env = "DATA_SYNC_KEY", value_name = "HEX", hide_env_values = true, global = true)]
    pub key: Option<Secret>,

    /// API key for servers that ask for one: base64 of a certificate's DER form.
    #[arg(
        long,
        env = "DATA_SYNC_API_KEY",
        value_name = "BASE64",
        hide_env_values = true,
        global = true
    )]
    pub api_key: Option<Secret>,

    /// File that holds the API key.
    #[arg(long, env = "DATA_SYNC_API_KEY_FILE", value_name = "PATH", global = true)]
    pub api_key_file: Option<String>,

    /// Name of this instance in the notifications of its writes [default: a random UUID].
    #[arg(long, env = "DATA_SYNC_CLIENT_ID", value_name = "NAME", global = true)]
    pub client_id: Option<String>,

    /// PEM file of the authorities that sign the server's certificate [default: the public ones].
    #[arg(long, env = "DATA_SYNC_CA_FILE", value_name = "PATH", global = true)]
    pub ca_file: Option<String>,

    /// Longest time one call may take, repeated attempts included.
    #[arg(
        long,
        env = "DATA_SYNC_TIMEOUT",
        value_name = "DURATION",
        default_value = "10s",
        global = true
    )]
    pub timeout: String,
}

/// Where the secret key of the user is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// Given directly.
    Given(Secret),
    /// In a file.
    File(PathBuf),
}

/// The settings of the client commands, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientConfig {
    /// Address of the server.
    pub url: String,
    /// Who calls.
    pub key: KeySource,
    /// For servers that ask for one.
    pub api_key: Option<Secret>,
    /// Name of this instance.
    pub client_id: Option<String>,
    /// Authorities to trust instead of the public ones.
    pub ca_file: Option<PathBuf>,
    /// Longest call.
    pub timeout: Duration,
}

fn given(text: Option<&str>) -> Option<&str> {
    text.map(str::trim).filter(|text| !text.is_empty())
}

impl ClientArgs {
    /// Checks the settings of the client commands.
    ///
    /// # Errors
    /// Every problem found.
    pub fn resolve(&self) -> Result<ClientConfig, ConfigErrors> {
        let mut reader = Reader::default();
        let url = given(Some(&self.url)).unwrap_or(DEFAULT_URL);
        if !(url.starts_with("http://") || url.starts_with("https://")) {
            reader
                .problems
                .push(format!("DATA_SYNC_URL: {url:?} does not begin with http:// or https://"));
        }
        let timeout =
            reader.duration("DATA_SYNC_TIMEOUT", &self.timeout, limits::CLIENT_CALL_TIMEOUT);
        if timeout.is_zero() {
            reader.problems.push("DATA_SYNC_TIMEOUT: must be more than 0s".to_owned());
        }
        let config = ClientConfig {
            url: url.to_owned(),
            key: self.read_key(&mut reader),
            api_key: reader.secret(
                "DATA_SYNC_API_KEY",
                self.api_key.as_ref(),
                self.api_key_file.as_deref(),
            ),
            client_id: given(self.client_id.as_deref()).map(str::to_owned),
            ca_file: given(self.ca_file.as_deref()).map(PathBuf::from),
            timeout,
        };
        reader.finish(config)
    }

    fn read_key(&self, reader: &mut Reader) -> KeySource {
        let key = given(self.key.as_ref().map(Secret::expose));
        match (key, given(self.key_file.as_deref())) {
            (Some(_), Some(file)) => {
                reader
                    .problems
                    .push("DATA_SYNC_KEY and DATA_SYNC_KEY_FILE are both set; keep one".to_owned());
                KeySource::File(file.into())
            }
            (Some(key), None) => KeySource::Given(Secret::new(key)),
            (None, Some(file)) => KeySource::File(file.into()),
            (None, None) => {
                let home = std::env::home_dir().filter(|home| !home.as_os_str().is_empty());
                if home.is_none() {
                    reader.problems.push(
                        "there is no home directory to look for a key in; set DATA_SYNC_KEY_FILE"
                            .to_owned(),
                    );
                }
                KeySource::File(home.unwrap_or_default().join(DEFAULT_KEY_FILE))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_settings_count_as_unset() {
        let args = ClientArgs {
            key: Some(Secret::new("")),
            key_file: Some("/k".to_owned()),
            api_key: Some(Secret::new(" ")),
            client_id: Some(String::new()),
            ..ClientArgs::default()
        };
        let config = args.resolve().unwrap();
        assert_eq!(config.url, DEFAULT_URL);
        assert_eq!(config.key, KeySource::File("/k".into()));
        assert_eq!(config.timeout, limits::CLIENT_CALL_TIMEOUT);
        assert_eq!((config.api_key, config.client_id), (None, None));
    }

    #[test]
    fn every_problem_is_listed() {
        let args = ClientArgs {
            url: "localhost".to_owned(),
            key: Some(Secret::new("00")),
            key_file: Some("/k".to_owned()),
            timeout: "soon".to_owned(),
            ..ClientArgs::default()
        };
        let problems = args.resolve().unwrap_err().0;
        assert_eq!(problems.len(), 3, "{problems:?}");
    }
}
