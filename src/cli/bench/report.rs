//! What a bench has to say.

use std::collections::BTreeMap;

use clap::ValueEnum;
use serde_json::{Value as Json, json};

use super::load::Measured;
use crate::cli::args::{Bench, Workload};

/// Percentiles that are told, with their names.
const PERCENTILES: [(&str, f64); 4] = [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9)];

/// The measured rounds.
pub(super) struct Report {
    workload: Measured,
    peer: Option<Compared>,
}

struct Compared {
    /// Its key in JSON, and its name.
    key: &'static str,
    name: &'static str,
    measured: Measured,
    /// Of each round: workload / peer.
    rounds: Vec<f64>,
    /// Of the medians over the rounds: workload / peer.
    throughput_ratio: f64,
    item_ratio: f64,
    p50_ratio: f64,
    /// Of the medians over the rounds: workload - peer.
    p50_more_us: f64,
}

impl Report {
    pub(super) fn alone(workload: Measured) -> Self {
        Self { workload, peer: None }
    }

    pub(super) fn against(
        (key, name): (&'static str, &'static str),
        rounds: Vec<(Measured, Measured)>,
    ) -> Self {
        let (workload, peer): (Vec<_>, Vec<_>) = rounds.into_iter().unzip();
        let medians = |of: fn(&Measured) -> f64| {
            (median(workload.iter().map(of).collect()), median(peer.iter().map(of).collect()))
        };
        let ratio = |(workload, peer): (f64, f64)| workload / peer.max(f64::MIN_POSITIVE);
        let p50 = medians(Measured::p50_us);
        let compared = Compared {
            key,
            name,
            measured: Measured::sum(&peer),
            rounds: workload
                .iter()
                .zip(&peer)
                .map(|(workload, peer)| ratio((workload.item_rate(), peer.item_rate())))
                .collect(),
            throughput_ratio: ratio(medians(Measured::throughput)),
            item_ratio: ratio(medians(Measured::item_rate)),
            p50_ratio: ratio(p50),
            p50_more_us: p50.0 - p50.1,
        };
        Self { workload: Measured::sum(&workload), peer: Some(compared) }
    }

    pub(super) fn nothing_succeeded(&self) -> bool {
        self.workload.latency_us.is_empty()
    }

    pub(super) fn lines(&self, bench: &Bench) -> Vec<String> {
        let name = name(bench.workload);
        let rate = bench.rate.map_or(String::new(), |rate| format!(", paced at {rate}/s"));
        let data = bench
            .data
            .as_deref()
            .map_or_else(|| format!("{} bytes a value", bench.value_bytes), str::to_owned);
        let mut lines = vec![format!("{name}: concurrency {}, {data}{rate}", bench.concurrency)];
        lines.extend(measured_lines(&self.workload));
        if let Some(compared) = &self.peer {
            lines.push(format!("{}:", compared.name));
            lines.extend(measured_lines(&compared.measured));
            let records = match compared.item_ratio {
                ratio if ratio == compared.throughput_ratio => String::new(),
                ratio => format!(", records {ratio:.2}"),
            };
            lines.push(format!(
                "{name} / {}, medians of {} rounds: throughput {:.2}{records}, p50 {:.2} ({:+.0} us)",
                compared.name,
                compared.rounds.len(),
                compared.throughput_ratio,
                compared.p50_ratio,
                compared.p50_more_us
            ));
        }
        lines
    }

    pub(super) fn json(&self, bench: &Bench) -> Json {
        let mut report = json!({
            "workload": name(bench.workload),
            "namespace": bench.namespace,
            "concurrency": bench.concurrency,
            "peer_concurrency": bench.peer_concurrency,
            "rate": bench.rate,
            "value_bytes": bench.data.is_none().then_some(bench.value_bytes),
            "data": bench.data,
            "result": measured_json(&self.workload),
        });
        if let Some(compared) = &self.peer {
            report[compared.key] = measured_json(&compared.measured);
            report["beside"] = json!(compared.name);
            report["throughput_ratio"] = json!(compared.throughput_ratio);
            report["item_ratio"] = json!(compared.item_ratio);
            report["item_ratio_of_rounds"] = json!(compared.rounds);
            report["p50_ratio"] = json!(compared.p50_ratio);
            report["p50_more_us"] = json!(compared.p50_more_us);
        }
        report
    }
}

/// As it is written on the command line.
fn name(workload: Workload) -> String {
    workload.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

fn measured_lines(measured: &Measured) -> Vec<String> {
    let requests = measured.latency_us.len();
    let items = match measured.items {
        items if items == requests => String::new(),
        _ => format!(", {:.0} records/s", measured.item_rate()),
    };
    let mut latency = String::from("  latency us:");
    for (name, percentile) in PERCENTILES {
        latency.push_str(&format!(" {name} {}", measured.latency_us.value_at_percentile(percentile)));
    }
    latency.push_str(&format!(" max {}", measured.latency_us.max()));
    let errors: Vec<String> = measured.errors.iter().map(|(code, count)| format!("{code} {count}")).collect();
    let errors = if errors.is_empty() { "none".to_owned() } else { errors.join(", ") };
    let elapsed = measured.elapsed.as_secs_f64();
    let mut lines = vec![
        format!(
            "  throughput: {:.0} requests/s{items} ({requests} in {elapsed:.1} s)",
            measured.throughput()
        ),
        latency,
        format!("  errors: {errors}"),
    ];
    let counts = |counts: Vec<(&str, u64)>| {
        counts.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
    };
    if measured.kinds.len() > 1 {
        let kinds = measured.kinds.iter().map(|(kind, count)| (*kind, *count)).collect();
        lines.push(format!("  requests: {}", counts(kinds)));
    }
    let sources: Vec<_> = measured.sources().collect();
    if !sources.is_empty() {
        lines.push(format!("  records read from: {}", counts(sources)));
    }
    lines
}

fn measured_json(measured: &Measured) -> Json {
    let mut latency = serde_json::Map::new();
    for (name, percentile) in PERCENTILES {
        latency.insert(name.to_owned(), json!(measured.latency_us.value_at_percentile(percentile)));
    }
    latency.insert("max".to_owned(), json!(measured.latency_us.max()));
    json!({
        "requests": measured.latency_us.len(),
        "items": measured.items,
        "elapsed_ms": u64::try_from(measured.elapsed.as_millis()).unwrap_or(u64::MAX),
        "throughput": measured.throughput(),
        "item_rate": measured.item_rate(),
        "kinds": measured.kinds,
        "sources": measured.sources().collect::<BTreeMap<_, _>>(),
        "latency_us": latency,
        "errors": measured.errors,
    })
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(0.0)
}
