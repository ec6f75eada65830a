#!/usr/bin/env bash
# What a worker carries beside its peers, in one run: on its embedded store beside an echo on the same NATS server, on PostgreSQL
# beside what a service would write by hand. Real parts of its own, on free ports; ends with a table, kept in target/bench/report.md.
set -euo pipefail
# Settings of whoever runs this would reach his real parts.
unset "${!DATASTORE__@}"

binary=target/release/datastore
out=target/bench
for=(--duration "${BENCH_DURATION:-3s}")
scratch="$(mktemp -d)"
pids=()
stop() {
    for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null && wait "$pid" 2>/dev/null || true; done
    [ -z "$postgres_pid" ] || { kill -INT "$postgres_pid" 2>/dev/null && wait "$postgres_pid" 2>/dev/null; } || true
    rm -rf "$scratch"
}
postgres_pid=""
trap stop EXIT
mkdir -p "$out"
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

nats_port="$(free_port)"
"$(command -v nats-server || echo /usr/sbin/nats-server)" --addr 127.0.0.1 --port "$nats_port" --log "$scratch/nats.log" &
pids=($!)

scripts/deps.sh bench
postgres_port="$(free_port)"
for programs in /usr/lib/postgresql/*/bin; do :; done
[ -x "$programs/postgres" ] || programs="$(dirname "$(command -v postgres)")"
as=()
if [ "$(id -u)" = 0 ]; then
    as=(setpriv --reuid=postgres --regid=postgres --clear-groups --)
    chmod 755 "$scratch"
fi
install -d ${as:+-o postgres} "$scratch/postgres"
"${as[@]}" "$programs/initdb" -U bench -A trust -D "$scratch/postgres" >"$scratch/initdb.log"
"${as[@]}" "$programs/postgres" -D "$scratch/postgres" -p "$postgres_port" -c listen_addresses=127.0.0.1 \
    -c unix_socket_directories= >"$scratch/postgres.log" 2>&1 &
postgres_pid=$!
for _ in $(seq 100); do "$programs/pg_isready" -q -h 127.0.0.1 -p "$postgres_port" && break; sleep 0.1; done
postgres="postgres://bench@127.0.0.1:$postgres_port/postgres"

worker() { # kind, key and value of its place
    printf '[nats]\nurl = "nats://127.0.0.1:%s"\nsubject_prefix = "%s"\n[http]\nlisten = ""\n[backends.main]\nkind = "%s"\n%s\n[namespaces."*"]\n' \
        "$nats_port" "$1" "$1" "$2" >"$scratch/$1.toml"
    env -u DATASTORE__NATS__SUBJECT_PREFIX "$binary" serve --config "$scratch/$1.toml" 2>"$scratch/$1.log" &
    pids=($! "${pids[@]}")
    for _ in $(seq 100); do grep -q ready "$scratch/$1.log" && return; sleep 0.1; done
    cat "$scratch/$1.log" >&2
    exit 1
}
bench() { # name of its report, requests at a time, further arguments
    local name="$1" concurrency="$2"
    shift 2
    "$binary" --json bench --concurrency "$concurrency" "$@" >"$out/$name.json"
    python3 scripts/bench.py line "$out/$name.json"
}

data=()
movies="${DATASTORE_DATA:-../shared/data}/movies.ndjson.gz"
if [ -e "$movies" ]; then data=(--data "$movies"); else echo "skipped: no real records at $movies, made-up ones are used"; fi
rm -f "$out"/*.json
export DATASTORE__NATS__URL="nats://127.0.0.1:$nats_port"

worker local "path = \"$scratch/data\""
export DATASTORE__NATS__SUBJECT_PREFIX=local
bench echo-1 1 "${for[@]}" --workload get --echo
bench echo-64 64 "${for[@]}" --workload get --echo
bench echo-64-real 64 "${for[@]}" --workload get --echo "${data[@]}"
for workload in put batch scan; do bench "local-$workload" 64 "${for[@]}" --workload "$workload"; done

# The first worker is done: nothing but what is measured may take the machine's time.
kill -TERM "${pids[0]}" && wait "${pids[0]}" || true
pids=("${pids[@]:1}")

worker postgres "url = \"$postgres\""
export DATASTORE__NATS__SUBJECT_PREFIX=postgres
# A server that has just been made writes each file of its log for the first time, and the first tables grow: a round of both sides
# is thrown away, and what they left is written out, as on a server that has run for a while.
bench warm-up 256 --duration "${BENCH_ROUNDS_DURATION:-10s}" --workload put --peer-postgres "$postgres" "${data[@]}" >/dev/null
rm "$out/warm-up.json"
"$programs/psql" -XAtq -d "$postgres" -c "VACUUM" -c "CHECKPOINT"
for workload in put get; do
    bench "postgres-$workload" 256 --duration "${BENCH_ROUNDS_DURATION:-10s}" --workload "$workload" --peer-postgres "$postgres" \
        "${data[@]}"
done
# Pages of a small and of a large namespace, five times in turn.
bench pages-load 1 few "${for[@]}" --workload scan --keys 10000
bench pages-load 1 many "${for[@]}" --workload scan --keys 1000000
for round in 1 2 3 4 5; do
    bench "pages-few-$round" 1 few "${for[@]}" --workload scan --keys 10000 --no-load
    bench "pages-many-$round" 1 many "${for[@]}" --workload scan --keys 1000000 --no-load
done
rm "$out/pages-load.json"

python3 scripts/bench.py report "$out" | tee "$out/report.md"
