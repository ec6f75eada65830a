//! The hot parts of the stored record, each alone: for finding out what a change did.
//!
//! `cargo bench --bench record`, or with a word to choose: `-- messages/decode`. How the formats compare is
//! the table of `benches/sizes.rs`, which takes turns among them; here each runs by itself.

mod common;

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput};

use common::data::{self, Set};
use common::formats::{self, Format};
use common::ours;

/// Records of a set: few enough that criterion gets its samples in the time given.
const RECORDS_MAX: usize = 128;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(2))
        .sample_size(30)
        .configure_from_args();
    for name in data::NAMES {
        run(&mut criterion, &data::load(name, RECORDS_MAX));
    }
    criterion.final_summary();
}

fn run(criterion: &mut Criterion, set: &Set) {
    let mut formats =
        vec![formats::body(set), formats::message_pack(set), formats::protobuf(set), formats::wire_json(set)];
    formats.extend(ours::compressions().map(|compression| formats::frame(set, compression)));
    let frames: Vec<_> =
        set.documents.iter().map(|document| ours::encode(document, ours::Compression::None)).collect();
    // Movies have no user: there the field is missing.
    let fields = [common::path("user.id")];

    let mut group = criterion.benchmark_group(set.name);
    group.throughput(Throughput::Elements(set.documents.len() as u64));
    for format in &formats {
        group.bench_function(format!("encode {}", short(format)), |bencher| {
            bencher.iter(|| format.encode_all());
        });
        group.bench_function(format!("decode {}", short(format)), |bencher| {
            bencher.iter(|| format.decode_all());
        });
    }
    group.bench_function("open frame", |bencher| {
        bencher.iter(|| {
            for frame in &frames {
                black_box(ours::open(black_box(frame)));
            }
        });
    });
    group.bench_function("project one field of a frame", |bencher| {
        bencher.iter(|| {
            for frame in &frames {
                black_box(ours::project(&ours::open(black_box(frame)), black_box(&fields)));
            }
        });
    });
    group.finish();
}

/// Without the word that sets our rows of a table apart from the peers'.
fn short<'f>(format: &'f Format<'_>) -> &'f str {
    format.name.strip_prefix("ours: ").unwrap_or(format.name)
}
