//! Replays the corpus of every fuzz target: what was once found stays found.

use std::{fs, path::Path};

#[path = "../../fuzz/checks/mod.rs"]
mod checks;

/// Calls `check` with every file of a target's corpus, and with small changes of each, so that
/// the corpus stands for its neighbourhood where no fuzzer runs.
fn replay(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut count = 0;
    for entry in fs::read_dir(&folder).expect("the corpus is in the repository") {
        let path = entry.expect("a file").path();
        let input = fs::read(&path).expect("a readable file");
        eprintln!("{}", path.display());
        check(&input);
        for place in (0..input.len()).step_by(input.len().div_ceil(16).max(1)) {
            check(&input[..place]);
            let mut changed = input.clone();
            changed[place] ^= 1 << (place % 8);
            check(&changed);
        }
        count += 1;
    }
    assert!(count > 0, "{} is empty", folder.display());
}

#[test]
fn every_text_is_one_signature_or_none() {
    replay("signature", checks::signature);
}

#[test]
fn every_message_is_signed_as_the_go_server_writes_it() {
    replay("signed_text", checks::signed_text);
}

#[test]
fn no_api_key_is_forged() {
    replay("api_key", checks::api_key);
}

#[test]
fn every_revocation_list_reads_back_as_itself_or_is_refused() {
    replay("revocation_list", checks::revocation_list);
}

#[test]
fn every_browser_is_answered() {
    replay("grpc_web", checks::grpc_web);
}

#[test]
fn every_request_is_answered_and_never_the_servers_fault() {
    replay("request", checks::request);
}
