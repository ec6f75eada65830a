//! The stored record beside its peers, in one run: size, speed, and reading one field, held to the aims.
//!
//! `make sizes`. `SIZES_ROUNDS` and `SIZES_ROUND_MS` make it longer, `DATASTORE_DATA` names the folder of the
//! records. Formats take turns within each round, so that what else the machine does falls on all alike, and
//! a ratio is the median of the rounds' own ratios. Before anything is timed, every format has given back
//! every record exactly. Without `--bench`, or with `--test`, it makes one short round on a few records.
#![expect(clippy::print_stdout, reason = "the tables are what this program is for")]

mod common;

use std::fmt;
use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::data::{self, Set};
use common::formats::{self, Format};
use common::ours;

/// Most bytes of each set's uncompressed bodies, of what MessagePack takes.
const SIZE_AIMS: [(&str, f64); 3] = [("movies", 1.00), ("messages", 0.80), ("profiles", 0.97)];
/// Least speed of encoding and decoding a body, of rmp-serde's.
const SPEED_AIM: f64 = 1.0;
/// Least speed of reading one field, of a whole decode.
const FIELD_AIM: f64 = 5.0;
/// The set whose single fields are read, and the fields: nested, the first, the last, and one that no record has.
const FIELD_SET: &str = "messages";
const FIELDS: [&str; 4] = ["user.id", "created_at", "lang", "no_such_field"];
/// What a peer compresses with.
const ZSTD_LEVEL: i32 = 3;
/// Records of each set in a smoke run.
const SMOKE_RECORDS: usize = 50;

/// How long everything is timed.
struct Plan {
    rounds: usize,
    /// Each format repeats its pass over the set until this is over.
    round: Duration,
    records_max: usize,
}

impl Plan {
    fn new() -> Self {
        if common::smoke() {
            return Self { rounds: 1, round: Duration::ZERO, records_max: SMOKE_RECORDS };
        }
        let round_ms = number_from_env("SIZES_ROUND_MS", 200);
        Self {
            rounds: number_from_env("SIZES_ROUNDS", 7).max(1) as usize,
            round: Duration::from_millis(round_ms),
            records_max: usize::MAX,
        }
    }
}

fn number_from_env(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")),
        Err(_) => default,
    }
}

fn main() {
    let plan = Plan::new();
    println!(
        "Each format: {} rounds, each of at least {} ms or one pass; one thread; 1 MB = 10^6 bytes.",
        plan.rounds,
        plan.round.as_millis()
    );
    println!(
        "Peers have no word for a time: they hold an integer. Bodies and peers have no checksum, frames do."
    );
    if common::smoke() || cfg!(debug_assertions) {
        println!("A smoke run or an unoptimised build: its speeds mean nothing.");
    }
    println!();
    let mut aims = Vec::new();
    for name in data::NAMES {
        let set = data::load(name, plan.records_max);
        let mut formats = formats::compared(&set);
        print_sizes(&set, &formats, &mut aims);
        formats.push(formats::message_pack_to_vec(&set));
        print_speeds(&set, &formats, &plan, &mut aims);
        if name == FIELD_SET {
            print_fields(&set, &formats, &plan, &mut aims);
        }
    }
    println!("## Aims\n");
    for aim in aims {
        println!("- {aim}");
    }
}

// === aims ===

/// An aim and what was reached, both as ratios.
struct Aim<'s> {
    set: &'s Set,
    what: String,
    reached: f64,
    /// Of the single rounds, where there are any.
    spread: Option<(f64, f64)>,
    bound: Bound,
}

#[derive(Clone, Copy)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Aim<'_> {
    fn verdict(&self) -> String {
        let (bound, room) = match self.bound {
            Bound::AtMost(bound) => (bound, bound - self.reached),
            Bound::AtLeast(bound) => (bound, self.reached - bound),
        };
        if self.set.made_up {
            "not judged, the records are made up".to_owned()
        } else if common::smoke() {
            "not judged in a smoke run".to_owned()
        } else if room >= 0.0 {
            format!("aim {bound:.2}: met, {room:.4} to spare")
        } else {
            format!("aim {bound:.2}: missed by {:.4}", -room)
        }
    }
}

impl fmt::Display for Aim<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}: {:.3}", self.set.name, self.what, self.reached)?;
        if let Some((low, high)) = self.spread {
            write!(f, " (rounds {low:.3} to {high:.3})")?;
        }
        write!(f, "; {}", self.verdict())
    }
}

// === size ===

fn print_sizes(set: &Set, formats: &[Format<'_>], aims: &mut Vec<String>) {
    let records = set.documents.len();
    let message_pack = named(formats, formats::MESSAGE_PACK).bytes();
    println!("## {}: size of {records} records\n", set.name);
    println!(
        "`+ zstd`: each record by itself at level {ZSTD_LEVEL}, the smaller of both counted, nothing for a mark.\n"
    );
    println!("| format | bytes | bytes per record | of MessagePack | |\n| --- | ---: | ---: | ---: | --- |");
    let row = |name: &str, bytes: usize, note: &str| {
        let ratio = bytes as f64 / message_pack as f64;
        println!("| {name} | {bytes} | {:.1} | {ratio:.3} | {note} |", bytes as f64 / records as f64);
    };
    for format in formats {
        let mut note = String::new();
        if format.name == formats::BODY {
            let bound = SIZE_AIMS.iter().find(|(name, _)| *name == set.name).expect("each set has its aim").1;
            let aim = Aim {
                set,
                what: "size of bodies of MessagePack's".to_owned(),
                reached: format.bytes() as f64 / message_pack as f64,
                spread: None,
                bound: Bound::AtMost(bound),
            };
            note = aim.verdict();
            aims.push(aim.to_string());
        }
        row(format.name, format.bytes(), &note);
        if [formats::MESSAGE_PACK, formats::JSON].contains(&format.name) {
            row(&format!("{} + zstd", format.name), format.encoded.iter().map(zstd_len).sum(), "");
        }
    }
    println!();
}

fn zstd_len(bytes: &Bytes) -> usize {
    let compressed = zstd::bulk::compress(bytes, ZSTD_LEVEL).expect("memory suffices for one record");
    compressed.len().min(bytes.len())
}

fn named<'f, 's>(formats: &'f [Format<'s>], name: &str) -> &'f Format<'s> {
    formats.iter().find(|format| format.name == name).expect("the format is among those compared")
}

// === speed ===

fn print_speeds(set: &Set, formats: &[Format<'_>], plan: &Plan, aims: &mut Vec<String>) {
    let encode = time(formats.iter().map(|format| || format.encode_all()), plan);
    let decode = time(formats.iter().map(|format| || format.decode_all()), plan);
    let message_pack = formats
        .iter()
        .position(|format| format.name == formats::MESSAGE_PACK)
        .expect("the format is among those compared");
    let bytes = formats[message_pack].bytes();

    println!("## {}: speed, whole records\n", set.name);
    println!("MB/s of the size in MessagePack; `x rmp` is how many times as fast as rmp-serde.\n");
    println!("| format | encode ns/record | MB/s | x rmp | decode ns/record | MB/s | x rmp |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: |");
    for (at, format) in formats.iter().enumerate() {
        print!("| {} |", format.name);
        for (what, rounds) in [("encode", &encode), ("decode", &decode)] {
            let pass = median(&rounds[at]);
            let ratio = Ratio::new(&rounds[message_pack], &rounds[at]);
            print!(
                " {:.0} | {:.0} | {:.2} |",
                per_record(pass, set),
                bytes as f64 / pass / 1e6,
                ratio.median
            );
            if format.name == formats::BODY {
                let what = format!("speed of {what} of rmp-serde's");
                aims.push(ratio.aim(set, what, SPEED_AIM).to_string());
            }
        }
        println!();
    }
    println!();
}

/// Seconds of a pass: for each pass one list, with an element for each round. Passes take turns.
fn time<Pass: Fn()>(passes: impl Iterator<Item = Pass>, plan: &Plan) -> Vec<Vec<f64>> {
    let passes: Vec<Pass> = passes.collect();
    let mut seconds = vec![Vec::with_capacity(plan.rounds); passes.len()];
    for pass in &passes {
        pass();
    }
    for _ in 0..plan.rounds {
        for (pass, seconds) in passes.iter().zip(&mut seconds) {
            let start = Instant::now();
            let mut count = 0;
            let elapsed = loop {
                pass();
                count += 1;
                let elapsed = start.elapsed();
                if elapsed >= plan.round {
                    break elapsed;
                }
            };
            seconds.push(elapsed.as_secs_f64() / f64::from(count));
        }
    }
    seconds
}

fn per_record(pass: f64, set: &Set) -> f64 {
    pass * 1e9 / set.documents.len() as f64
}

fn median(rounds: &[f64]) -> f64 {
    let mut sorted = rounds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

/// How many times as fast, round by round: what slows the machine for a while slows both.
struct Ratio {
    median: f64,
    low: f64,
    high: f64,
}

impl Ratio {
    fn new(other: &[f64], own: &[f64]) -> Self {
        let rounds: Vec<f64> = other.iter().zip(own).map(|(other, own)| other / own).collect();
        Self {
            median: median(&rounds),
            low: rounds.iter().copied().fold(f64::INFINITY, f64::min),
            high: rounds.iter().copied().fold(0.0, f64::max),
        }
    }

    fn aim<'s>(&self, set: &'s Set, what: String, least: f64) -> Aim<'s> {
        let spread = Some((self.low, self.high));
        Aim { set, what, reached: self.median, spread, bound: Bound::AtLeast(least) }
    }
}

// === one field ===

fn print_fields(set: &Set, formats: &[Format<'_>], plan: &Plan, aims: &mut Vec<String>) {
    let frames: Vec<Bytes> =
        set.documents.iter().map(|document| ours::encode(document, ours::Compression::None)).collect();
    let fields = FIELDS.map(|field| [common::path(field)]);
    for (document, frame) in set.documents.iter().zip(&frames) {
        let opened = ours::open(frame);
        for field in &fields {
            let expected = common::pick(&document.value, &field[0]);
            assert!(ours::project(&opened, field) == expected, "another value of {}", field[0]);
        }
    }

    let (frames, peers) = (&frames, ["MessagePack", "CBOR", "JSON", "protobuf Value"]);
    let mut passes: Vec<Box<dyn Fn() + '_>> = vec![Box::new(|| {
        for frame in frames {
            black_box(ours::decode(black_box(frame)));
        }
    })];
    for field in &fields {
        passes.push(Box::new(move || {
            for frame in frames {
                black_box(ours::project(&ours::open(black_box(frame)), black_box(field)));
            }
        }));
    }
    passes.extend(peers.map(|name| -> Box<dyn Fn() + '_> { Box::new(|| named(formats, name).decode_all()) }));
    let rounds = time(passes.into_iter(), plan);
    let mut rows = rounds.iter();
    let mut next = || rows.next().expect("every pass was timed");

    println!("## {}: reading one field of a frame\n", set.name);
    println!("Checksum included. A peer reads one field by decoding the whole record.\n");
    println!("| what | ns/record | times as fast as our whole decode | |\n| --- | ---: | ---: | --- |");
    let whole = next();
    println!("| ours: whole decode | {:.0} | 1.00 | |", per_record(median(whole), set));
    for field in FIELDS {
        let own = next();
        let ratio = Ratio::new(whole, own);
        let aim = ratio.aim(set, format!("speed of reading `{field}` of a whole decode's"), FIELD_AIM);
        let ns = per_record(median(own), set);
        println!("| ours: `{field}` | {ns:.0} | {:.2} | {} |", ratio.median, aim.verdict());
        aims.push(aim.to_string());
    }
    for name in peers {
        let own = next();
        let ratio = Ratio::new(whole, own).median;
        println!("| {name}: whole decode | {:.0} | {ratio:.2} | |", per_record(median(own), set));
    }
    println!();
}
