//! What a bench has to say.

use serde_json::{Value as Json, json};

use super::load::Measured;
use crate::cli::args::{Bench, Workload};

/// Percentiles that are told, with their names.
const PERCENTILES: [(&str, f64); 4] = [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9)];

/// The measured rounds.
pub(super) struct Report {
    workload: Measured,
    rival: Option<Compared>,
}

struct Compared {
    name: &'static str,
    measured: Measured,
    /// Of the medians over the rounds: workload / rival.
    throughput_ratio: f64,
    p50_ratio: f64,
}

impl Report {
    pub(super) fn alone(workload: Measured) -> Self {
        Self { workload, rival: None }
    }

    pub(super) fn against(name: &'static str, rounds: Vec<(Measured, Measured)>) -> Self {
        let (workload, rival): (Vec<_>, Vec<_>) = rounds.into_iter().unzip();
        let ratio = |of: fn(&Measured) -> f64| {
            median(workload.iter().map(of).collect())
                / median(rival.iter().map(of).collect()).max(f64::MIN_POSITIVE)
        };
        let throughput_ratio = ratio(Measured::throughput);
        let p50_ratio = ratio(|round| round.latency_us.value_at_percentile(50.0) as f64);
        let compared = Compared { name, measured: Measured::sum(&rival), throughput_ratio, p50_ratio };
        Self { workload: Measured::sum(&workload), rival: Some(compared) }
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
        if let Some(compared) = &self.rival {
            lines.push(format!("{}:", compared.name));
            lines.extend(measured_lines(&compared.measured));
            lines.push(format!(
                "{name} / {}, medians of rounds: throughput {:.2}, p50 {:.2}",
                compared.name, compared.throughput_ratio, compared.p50_ratio
            ));
        }
        lines
    }

    pub(super) fn json(&self, bench: &Bench) -> Json {
        let mut report = json!({
            "workload": name(bench.workload),
            "namespace": bench.namespace,
            "concurrency": bench.concurrency,
            "rate": bench.rate,
            "value_bytes": bench.data.is_none().then_some(bench.value_bytes),
            "data": bench.data,
            "result": measured_json(&self.workload),
        });
        if let Some(compared) = &self.rival {
            report[compared.name] = measured_json(&compared.measured);
            report["throughput_ratio"] = json!(compared.throughput_ratio);
            report["p50_ratio"] = json!(compared.p50_ratio);
        }
        report
    }
}

fn name(workload: Workload) -> &'static str {
    match workload {
        Workload::Get => "get",
        Workload::Put => "put",
        Workload::Batch => "batch",
        Workload::Scan => "scan",
    }
}

fn measured_lines(measured: &Measured) -> Vec<String> {
    let requests = measured.latency_us.len();
    let items = match measured.items {
        items if items == requests => String::new(),
        items => format!(", {:.0} records/s", items as f64 / measured.elapsed.as_secs_f64()),
    };
    let mut latency = String::from("  latency us:");
    for (name, percentile) in PERCENTILES {
        latency.push_str(&format!(" {name} {}", measured.latency_us.value_at_percentile(percentile)));
    }
    latency.push_str(&format!(" max {}", measured.latency_us.max()));
    let errors: Vec<String> = measured.errors.iter().map(|(code, count)| format!("{code} {count}")).collect();
    let errors = if errors.is_empty() { "none".to_owned() } else { errors.join(", ") };
    let elapsed = measured.elapsed.as_secs_f64();
    vec![
        format!(
            "  throughput: {:.0} requests/s{items} ({requests} in {elapsed:.1} s)",
            measured.throughput()
        ),
        latency,
        format!("  errors: {errors}"),
    ]
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
        "latency_us": latency,
        "errors": measured.errors,
    })
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(0.0)
}
