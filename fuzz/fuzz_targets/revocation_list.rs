#![no_main]

#[path = "../checks/mod.rs"]
#[allow(dead_code, unused_imports, reason = "each target uses one check")]
mod checks;

libfuzzer_sys::fuzz_target!(|input: &[u8]| checks::revocation_list(input));
