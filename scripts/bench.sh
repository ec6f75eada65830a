#!/usr/bin/env bash
# Throughput of a worker on its embedded store beside an echo responder on the same NATS server, in one run.
set -euo pipefail
# Settings of whoever runs this would reach his real parts.
unset "${!DATASTORE__@}"

binary=target/release/datastore
scratch="$(mktemp -d)"
nats_server="$(command -v nats-server || echo /usr/sbin/nats-server)"
port="$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])' 2>/dev/null || echo 42229)"
"$nats_server" --addr 127.0.0.1 --port "$port" --log "$scratch/nats.log" &
nats_pid=$!
cat >"$scratch/bench.toml" <<TOML
[nats]
url = "nats://127.0.0.1:$port"
[http]
listen = ""
[backends.main]
kind = "local"
path = "$scratch/data"
[namespaces."*"]
TOML
"$binary" serve --config "$scratch/bench.toml" 2>"$scratch/worker.log" &
worker_pid=$!
trap 'kill -TERM $worker_pid 2>/dev/null; wait $worker_pid 2>/dev/null; kill -TERM $nats_pid 2>/dev/null; rm -rf "$scratch"' EXIT
for _ in $(seq 100); do grep -q ready "$scratch/worker.log" && break; sleep 0.1; done

data=()
movies="${DATASTORE_DATA:-../shared/data}/movies.ndjson.gz"
if [ -e "$movies" ]; then data=(--data "$movies"); else echo "skipped: no real records at $movies, made-up ones are used"; fi
export DATASTORE__NATS__URL="nats://127.0.0.1:$port"
duration="${BENCH_DURATION:-3s}"
for concurrency in 1 64; do
    "$binary" bench --workload get --concurrency "$concurrency" --duration "$duration" --echo
done
"$binary" bench --workload get --concurrency 64 --duration "$duration" --echo "${data[@]}"
for workload in put batch scan; do
    "$binary" bench --workload "$workload" --concurrency 64 --duration "$duration"
done
