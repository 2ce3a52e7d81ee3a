//! Reads the points in time between which a certificate is valid.

use super::der::Reader;

const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SECONDS_OF_DAY: i64 = 86_400;

/// Reads a time as seconds since 1970-01-01 UTC; negative before.
///
/// Like Go beyond the standard: a zone other than UTC, and no seconds in the two-digit-year form.
pub(super) fn read(reader: &mut Reader<'_>) -> Option<i64> {
    let element = reader.any()?;
    let mut digits = Digits(element.content);
    let year = match element.tag {
        UTC_TIME => {
            let year = digits.pair()?;
            if year < 50 { 2000 + year } else { 1900 + year }
        }
        GENERALIZED_TIME => 100 * digits.pair()? + digits.pair()?,
        _ => return None,
    };
    let (month, day) = (digits.pair()?, digits.pair()?);
    let (hour, minute) = (digits.pair()?, digits.pair()?);
    let second = if element.tag == UTC_TIME && digits.ended() { 0 } else { digits.pair()? };
    let offset = zone(digits.0)?;

    let in_range = (1..=12).contains(&month)
        && (1..=days_of_month(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    let of_day = 3_600 * hour + 60 * minute + second;
    in_range.then(|| days_since_epoch(year, month, day) * SECONDS_OF_DAY + of_day - offset)
}

/// Seconds east of UTC. UTC itself is written `Z` only.
fn zone(text: &[u8]) -> Option<i64> {
    let (sign, mut digits) = match text {
        b"Z" => return Some(0),
        [b'+', rest @ ..] => (1, Digits(rest)),
        [b'-', rest @ ..] => (-1, Digits(rest)),
        _ => return None,
    };
    let (hours, minutes) = (digits.pair()?, digits.pair()?);
    let seconds = 3_600 * hours + 60 * minutes;
    (digits.0.is_empty() && hours <= 24 && minutes < 60 && seconds > 0).then_some(sign * seconds)
}

struct Digits<'a>(&'a [u8]);

impl Digits<'_> {
    /// Two decimal digits.
    fn pair(&mut self) -> Option<i64> {
        let [tens, units, rest @ ..] = self.0 else { return None };
        if !tens.is_ascii_digit() || !units.is_ascii_digit() {
            return None;
        }
        self.0 = rest;
        Some(i64::from(tens - b'0') * 10 + i64::from(units - b'0'))
    }

    fn ended(&self) -> bool {
        self.0.first().is_none_or(|next| !next.is_ascii_digit())
    }
}

const fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

const fn days_of_month(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to a date from the year 0 on.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    /// Days from 0000-01-01 to 1970-01-01.
    const EPOCH: i64 = 719_528;
    let leap_days =
        if year == 0 { 0 } else { 1 + (year - 1) / 4 - (year - 1) / 100 + (year - 1) / 400 };
    let months: i64 = (1..month).map(|month| days_of_month(year, month)).sum();
    365 * year + leap_days + months + day - 1 - EPOCH
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utc(text: &str) -> Option<i64> {
        read_tagged(UTC_TIME, text)
    }

    fn generalized(text: &str) -> Option<i64> {
        read_tagged(GENERALIZED_TIME, text)
    }

    fn read_tagged(tag: u8, text: &str) -> Option<i64> {
        let length = u8::try_from(text.len()).expect("short");
        let bytes = [&[tag, length], text.as_bytes()].concat();
        read(&mut Reader::new(&bytes))
    }

    #[test]
    fn times_count_from_1970() {
        assert_eq!(generalized("19700101000000Z"), Some(0));
        assert_eq!(utc("700101000000Z"), Some(0));
        assert_eq!(utc("231114221320Z"), Some(1_700_000_000));
        assert_eq!(generalized("20231114221320Z"), Some(1_700_000_000));
        assert_eq!(generalized("99991231235959Z"), Some(253_402_300_799));
        assert_eq!(generalized("00000101000000Z"), Some(-62_167_219_200));
        assert_eq!(generalized("20000229000000Z"), Some(951_782_400));
    }

    #[test]
    fn two_digit_years_are_1950_to_2049() {
        assert_eq!(utc("500101000000Z"), generalized("19500101000000Z"));
        assert_eq!(utc("491231235959Z"), generalized("20491231235959Z"));
    }

    #[test]
    fn zones_are_taken_off() {
        assert_eq!(utc("231114231320+0100"), Some(1_700_000_000));
        assert_eq!(utc("231114171320-0500"), Some(1_700_000_000));
        assert_eq!(utc("2311142213Z"), Some(1_700_000_000 - 20));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "Z",
            "231114221320",
            "231114221320z",
            "231114221320+0000",
            "231114221320+2500",
            "231114221320+0160",
            "231314221320Z",
            "230229000000Z",
            "231100221320Z",
            "231114241320Z",
            "231114226020Z",
            "231114221360Z",
            "231114221320.5Z",
            "23111422132Z",
            "2311142213 0Z",
        ] {
            assert_eq!(utc(text), None, "{text}");
        }
        assert_eq!(generalized("202311142213Z"), None, "seconds are left out");
    }
}
