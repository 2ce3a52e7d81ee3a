//! Times every step of the hot path: `cargo bench --bench hot_path`.
#![allow(clippy::expect_used, missing_docs, reason = "a benchmark ends when something is off")]

use criterion::{Criterion, criterion_group, criterion_main};

mod steps;

fn hot_path(criterion: &mut Criterion) {
    for (name, prepare) in steps::STEPS {
        let mut step = prepare();
        criterion.bench_function(name, |bencher| bencher.iter(&mut step));
    }
}

criterion_group!(benches, hot_path);
criterion_main!(benches);
