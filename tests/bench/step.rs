//! Does one step of the hot path so many times, for `tests/bench/instructions` to count.
#![allow(clippy::expect_used, clippy::print_stdout, reason = "a tool for one script")]

mod steps;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let Some(wanted) = arguments.next() else {
        steps::STEPS.iter().for_each(|(name, _)| println!("{name}"));
        return;
    };
    let times: u64 = arguments.next().expect("how often").parse().expect("a number");
    let (_, prepare) =
        steps::STEPS.iter().find(|(name, _)| *name == wanted).expect("a step of the list");
    let mut step = prepare();
    // Whatever happens only once has happened then.
    step();
    (0..times).for_each(|_| step());
}
