//! Turns text into values and remembers everything that is wrong with it.

use std::{net::SocketAddr, str::FromStr, time::Duration};

use super::{ConfigErrors, Secret};

/// Reads values and remembers what is wrong with them.
#[derive(Debug, Default)]
pub(super) struct Reader {
    pub(super) problems: Vec<String>,
}

impl Reader {
    /// Parses `value`, or the default where it is empty.
    pub(super) fn parse<T: FromStr>(
        &mut self,
        name: &str,
        value: &str,
        default: T,
        expected: &str,
    ) -> T {
        let value = value.trim();
        if value.is_empty() {
            return default;
        }
        value.parse().unwrap_or_else(|_| {
            self.problems.push(format!("{name}: {value:?} is not {expected}"));
            default
        })
    }

    pub(super) fn address(&mut self, name: &str, value: &str, default: SocketAddr) -> SocketAddr {
        // Go's notation for "every address": nothing before the colon.
        let value = value.trim();
        let full =
            if value.starts_with(':') { format!("0.0.0.0{value}") } else { value.to_owned() };
        self.parse(name, &full, default, "an address such as 0.0.0.0:8080")
    }

    pub(super) fn duration(&mut self, name: &str, value: &str, default: Duration) -> Duration {
        let value = value.trim();
        if value.is_empty() {
            return default;
        }
        humantime::parse_duration(value).unwrap_or_else(|_| {
            self.problems
                .push(format!("{name}: {value:?} is not a duration such as 250ms, 5s or 2m"));
            default
        })
    }

    /// A duration of which none at all makes no sense.
    pub(super) fn positive(&mut self, name: &str, value: &str, default: Duration) -> Duration {
        let duration = self.duration(name, value, default);
        if duration.is_zero() {
            self.problems.push(format!("{name}: must be more than 0s"));
        }
        duration
    }

    pub(super) fn choice<T: Copy>(
        &mut self,
        name: &str,
        value: &str,
        choices: &[(&str, T)],
        default: T,
    ) -> T {
        let value = value.trim();
        if value.is_empty() {
            return default;
        }
        choices.iter().find(|(text, _)| text.eq_ignore_ascii_case(value)).map_or_else(
            || {
                let known: Vec<&str> = choices.iter().map(|(text, _)| *text).collect();
                self.problems.push(format!("{name}: {value:?} is none of {}", known.join(", ")));
                default
            },
            |(_, choice)| *choice,
        )
    }

    pub(super) fn switch(&mut self, name: &str, value: &str, default: bool) -> bool {
        self.choice(name, value, &[("true", true), ("false", false)], default)
    }

    /// A number within a range.
    pub(super) fn number(
        &mut self,
        name: &str,
        value: &str,
        default: u64,
        range: (u64, u64),
    ) -> u64 {
        let number = self.parse(name, value, default, "a whole number");
        if number < range.0 || number > range.1 {
            self.problems.push(format!("{name}: {number} is not from {} to {}", range.0, range.1));
            return default;
        }
        number
    }

    pub(super) fn count(
        &mut self,
        name: &str,
        value: &str,
        default: u16,
        range: (u16, u16),
    ) -> u16 {
        let range = (u64::from(range.0), u64::from(range.1));
        u16::try_from(self.number(name, value, u64::from(default), range)).unwrap_or(default)
    }

    /// A limit of which 0 means none.
    pub(super) fn limit(&mut self, name: &str, value: &str, default: u64) -> Option<u64> {
        let limit = self.number(name, value, default, (0, u64::MAX >> 1));
        (limit > 0).then_some(limit)
    }

    /// A limit of something held in memory, of which 0 means none.
    pub(super) fn size(&mut self, name: &str, value: &str, default: u64) -> Option<usize> {
        self.limit(name, value, default).map(|limit| usize::try_from(limit).unwrap_or(usize::MAX))
    }

    /// An age of which 0 means no limit.
    pub(super) fn age(&mut self, name: &str, value: &str, default: Duration) -> Option<Duration> {
        Some(self.duration(name, value, default)).filter(|age| !age.is_zero())
    }

    /// A value given directly or by the name of a file that holds it.
    pub(super) fn secret(
        &mut self,
        name: &str,
        value: Option<&Secret>,
        file: Option<&str>,
    ) -> Option<Secret> {
        let value = value.map(|value| value.expose().trim()).filter(|value| !value.is_empty());
        let file = file.map(str::trim).filter(|file| !file.is_empty());
        match (value, file) {
            (Some(_), Some(_)) => {
                self.problems.push(format!("{name} and {name}_FILE are both set; keep one"));
                None
            }
            (Some(value), None) => Some(Secret::new(value)),
            (None, Some(file)) => match std::fs::read_to_string(file) {
                Ok(text) if text.trim().is_empty() => {
                    self.problems.push(format!("{name}_FILE: {file} is empty"));
                    None
                }
                Ok(text) => Some(Secret::new(text.trim())),
                Err(error) => {
                    self.problems.push(format!("{name}_FILE: cannot read {file}: {error}"));
                    None
                }
            },
            (None, None) => None,
        }
    }

    pub(super) fn finish<T>(self, value: T) -> Result<T, ConfigErrors> {
        if self.problems.is_empty() { Ok(value) } else { Err(ConfigErrors(self.problems)) }
    }
}
