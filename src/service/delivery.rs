//! Whether a peer takes what it is sent: noted where replies are written, known to what is dropped
//! when the peer takes nothing any more.
//!
//! Once a peer's flow-control window is used up nobody asks a reply for its next piece, so a reply
//! cannot see for itself that it is stuck, nor end itself. The task that writes it can do both.

use std::cell::Cell;

/// How the delivery of one reply stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Delivery {
    /// Nothing waits for the peer.
    #[default]
    Taken,
    /// The piece of this number was handed out and the next one is not asked for.
    Owed(u64),
    /// The peer took nothing for too long; the reply is being dropped.
    Stalled,
}

/// The delivery of the reply that the current task writes, and the pieces handed out so far.
#[derive(Debug, Default)]
struct Current {
    delivery: Cell<Delivery>,
    pieces: Cell<u64>,
}

tokio::task_local! {
    static CURRENT: Current;
}

/// Runs one step of writing a reply, whose delivery stood at `delivery` and which had handed out
/// `pieces`. Returns both as they stand after it.
pub fn observe<R>(delivery: Delivery, pieces: u64, step: impl FnOnce() -> R) -> (R, Delivery, u64) {
    let current = Current { delivery: Cell::new(delivery), pieces: Cell::new(pieces) };
    CURRENT.sync_scope(current, || {
        let result = step();
        let (delivery, pieces) = CURRENT.with(|now| (now.delivery.get(), now.pieces.get()));
        (result, delivery, pieces)
    })
}

/// Notes that a reply is asked for its next piece: the one before is on its way.
pub fn asked() {
    // Where nobody observes there is nothing to note: HTTP/1 has the limits of its socket.
    let _ = CURRENT.try_with(|now| now.delivery.set(Delivery::Taken));
}

/// Notes that a reply handed out a piece.
pub fn handed_out() {
    let _ = CURRENT.try_with(|now| {
        now.pieces.set(now.pieces.get().wrapping_add(1));
        now.delivery.set(Delivery::Owed(now.pieces.get()));
    });
}

/// Whether the current task drops its reply because the peer does not read.
#[must_use]
pub fn has_stalled() -> bool {
    CURRENT.try_with(|now| now.delivery.get() == Delivery::Stalled).unwrap_or(false)
}
