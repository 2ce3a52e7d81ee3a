//! Reads the extensions of a certificate that decide whether it is accepted.
//!
//! Those that decide nothing are still checked for their form, as Go does: an API key that Go
//! cannot read is no API key.

use std::collections::HashSet;

use super::{
    Malformed,
    der::{
        BOOLEAN, INTEGER, OBJECT_IDENTIFIER, OCTET_STRING, Reader, SEQUENCE, context,
        context_constructed,
    },
    name,
};

/// `id-pe-authorityInfoAccess`, 1.3.6.1.5.5.7.1.1.
const AUTHORITY_INFO_ACCESS: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 1, 1];
/// `anyExtendedKeyUsage`, 2.5.29.37.0.
const ANY_USAGE: &[u8] = &[0x55, 0x1d, 0x25, 0];
/// `id-kp-serverAuth`, 1.3.6.1.5.5.7.3.1.
const SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
/// Bit of `keyCertSign` in a key usage, counted from the first.
const CERTIFICATE_SIGNING: u8 = 0x80 >> 5;
/// The nine bits of a key usage that have a meaning, as they lie in two bytes.
const KEY_USAGE_MASK: [u8; 2] = [0xff, 0x80];

/// What the extensions say.
#[derive(Debug, Default)]
pub(super) struct Extensions<'a> {
    /// Whether the certificate is an authority's, if it says.
    pub(super) authority: Option<bool>,
    /// Whether the key may sign certificates, if any use of the key is named.
    pub(super) may_sign: Option<bool>,
    /// Whether the certificate is good for a server, if any extended use is named.
    pub(super) server_usage: Option<bool>,
    /// The subject's alternative names, as encoded.
    pub(super) alternative_names: Option<&'a [u8]>,
    /// How many of those are of a kind that name constraints may be about.
    pub(super) constrainable_names: usize,
    pub(super) name_constraints: bool,
    pub(super) has_policies: bool,
    /// A policy is required from this very certificate on.
    pub(super) requires_policy: bool,
    /// There is a critical extension that nobody here understands.
    pub(super) unknown_critical: bool,
}

impl<'a> Extensions<'a> {
    /// Reads the list of extensions.
    pub(super) fn read(mut list: Reader<'a>) -> Result<Self, Malformed> {
        const LIST: Malformed = Malformed("extensions");
        let mut list = list.enter(SEQUENCE).ok_or(LIST)?;
        let mut found = Self::default();
        let mut seen = HashSet::new();
        while !list.is_empty() {
            let mut extension = list.enter(SEQUENCE).ok_or(LIST)?;
            let id = extension.object_identifier().ok_or(LIST)?;
            let critical = extension.next_is(BOOLEAN) && extension.boolean().ok_or(LIST)?;
            let value = extension.bytes(OCTET_STRING).ok_or(LIST)?;
            if !seen.insert(id) {
                return Err(Malformed("extensions (one is there twice)"));
            }
            found.add(id, critical, value)?;
        }
        Ok(found)
    }

    fn add(&mut self, id: &[u8], critical: bool, bytes: &'a [u8]) -> Result<(), Malformed> {
        let value = Reader::new(bytes);
        let part = match id {
            // 2.5.29.n
            [0x55, 0x1d, number] => *number,
            AUTHORITY_INFO_ACCESS => {
                let valid = !critical && check_authority_info(value).is_some();
                return if valid { Ok(()) } else { Err(Malformed("authority information access")) };
            }
            _ => 0,
        };
        let (name, read) = match part {
            14 => ("subject key identifier", subject_key_id(value).filter(|()| !critical)),
            15 => ("key usage", key_usage(value).map(|usage| self.may_sign = usage)),
            17 => ("subject alternative name", self.read_alternative_names(bytes, critical)),
            19 => ("basic constraints", authority(value).map(|is| self.authority = Some(is))),
            // What it says is never evaluated: see `Authority::verify`.
            30 => {
                self.name_constraints = true;
                return Ok(());
            }
            31 => ("CRL distribution points", check_distribution_points(value)),
            32 => ("certificate policies", policies(value).map(|any| self.has_policies = any)),
            33 => ("policy mappings", check_policy_mappings(value)),
            35 => ("authority key identifier", authority_key_id(value).filter(|()| !critical)),
            36 => {
                ("policy constraints", policy_required(value).map(|is| self.requires_policy = is))
            }
            37 => ("extended key usage", server_usage(value).map(|is| self.server_usage = is)),
            54 => ("inhibit any-policy", inhibit_any_policy(value)),
            _ => {
                self.unknown_critical |= critical;
                return Ok(());
            }
        };
        read.ok_or(Malformed(name))
    }

    fn read_alternative_names(&mut self, bytes: &'a [u8], critical: bool) -> Option<()> {
        self.constrainable_names = name::check_alternative(Reader::new(bytes))?;
        self.alternative_names = Some(bytes);
        // Names of kinds that nobody here understands count as not understood.
        self.unknown_critical |= critical && self.constrainable_names == 0;
        Some(())
    }
}

fn subject_key_id(mut value: Reader<'_>) -> Option<()> {
    value.bytes(OCTET_STRING).map(|_| ())
}

fn authority_key_id(mut value: Reader<'_>) -> Option<()> {
    value.enter(SEQUENCE)?.optional(context(0)).map(|_| ())
}

/// Whether certificates may be signed; `None` inside if no use at all is named.
#[allow(clippy::option_option, reason = "absent and malformed are different answers")]
fn key_usage(mut value: Reader<'_>) -> Option<Option<bool>> {
    let (bytes, _) = value.bit_string()?;
    let names_any = bytes.iter().zip(KEY_USAGE_MASK).any(|(byte, mask)| byte & mask != 0);
    let may_sign = bytes.first().is_some_and(|byte| byte & CERTIFICATE_SIGNING != 0);
    Some(names_any.then_some(may_sign))
}

fn authority(mut value: Reader<'_>) -> Option<bool> {
    let mut constraints = value.enter(SEQUENCE)?;
    let is_authority = constraints.next_is(BOOLEAN) && constraints.boolean()?;
    if constraints.next_is(INTEGER) {
        // No length is too short for a chain of two.
        constraints.small_integer(INTEGER).filter(|length| *length >= 0)?;
    }
    Some(is_authority)
}

/// Whether a server may use it; `None` inside if no extended use is named.
#[allow(clippy::option_option, reason = "absent and malformed are different answers")]
fn server_usage(mut value: Reader<'_>) -> Option<Option<bool>> {
    let mut usages = value.enter(SEQUENCE)?;
    let mut good = None;
    while !usages.is_empty() {
        let usage = usages.object_identifier()?;
        good = Some(good.unwrap_or(false) || usage == SERVER_AUTH || usage == ANY_USAGE);
    }
    Some(good)
}

/// Whether there is any policy.
fn policies(mut value: Reader<'_>) -> Option<bool> {
    let mut policies = value.enter(SEQUENCE)?;
    let mut seen = HashSet::new();
    while !policies.is_empty() {
        let policy = policies.enter(SEQUENCE)?.any_object_identifier()?;
        if !seen.insert(policy) {
            return None;
        }
    }
    Some(!seen.is_empty())
}

fn check_policy_mappings(mut value: Reader<'_>) -> Option<()> {
    let mut mappings = value.enter(SEQUENCE)?;
    while !mappings.is_empty() {
        let mut mapping = mappings.enter(SEQUENCE)?;
        mapping.bytes(OBJECT_IDENTIFIER)?;
        mapping.bytes(OBJECT_IDENTIFIER)?;
    }
    Some(())
}

/// Whether a policy is required of the certificate itself.
fn policy_required(mut value: Reader<'_>) -> Option<bool> {
    let mut constraints = value.enter(SEQUENCE)?;
    let required = constraints.next_is(context(0)) && constraints.small_integer(context(0))? == 0;
    if constraints.next_is(context(1)) {
        constraints.small_integer(context(1))?;
    }
    Some(required)
}

fn inhibit_any_policy(mut value: Reader<'_>) -> Option<()> {
    value.small_integer(INTEGER).map(|_| ())
}

fn check_distribution_points(mut value: Reader<'_>) -> Option<()> {
    const URI: u8 = context(6);
    let mut points = value.enter(SEQUENCE)?;
    while !points.is_empty() {
        let Some(mut point) = points.enter(SEQUENCE)?.optional(context_constructed(0))? else {
            continue;
        };
        let mut names = point.enter(context_constructed(0))?;
        while names.next_is(URI) {
            names.bytes(URI)?;
        }
    }
    Some(())
}

fn check_authority_info(mut value: Reader<'_>) -> Option<()> {
    let mut list = value.enter(SEQUENCE)?;
    while !list.is_empty() {
        let mut access = list.enter(SEQUENCE)?;
        access.object_identifier()?;
        access.optional(context(6))?;
    }
    Some(())
}
