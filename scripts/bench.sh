#!/usr/bin/env bash
# What a worker carries beside its peers, in one run: real parts of its own, on free ports; ends with a table, kept in
# target/bench/report.md.
#
#   BENCH_ROWS="1 2 3"          these rows of the table alone; without it, all
#   BENCH_DURATION=3s           of a load beside nothing
#   BENCH_ROUNDS_DURATION=10s   of a comparison, for each side, all rounds together
#   BENCH_ROUNDS=5              of a comparison; outages of rows 8 and 9
#   BENCH_OUTAGE_DURATION=12s   of writing in one outage, for each side
set -euo pipefail
# Settings of whoever runs this would reach his real parts.
unset "${!DATASTORE__@}"

binary=target/release/datastore
out=target/bench
rows="${BENCH_ROWS:-store 1 1-postgres 2 3 5 6 7 8 9 10 12 staleness pages}"
for=(--duration "${BENCH_DURATION:-3s}")
turns=(--duration "${BENCH_ROUNDS_DURATION:-10s}" --rounds "${BENCH_ROUNDS:-5}")
outages="${BENCH_ROUNDS:-5}"
scratch="$(mktemp -d)"
pids=()
worker_pid=""
postgres_pid=""
end_worker() {
    [ -z "$worker_pid" ] || { kill -TERM "$worker_pid" 2>/dev/null && wait "$worker_pid" 2>/dev/null; } || true
    worker_pid=""
}
stop() {
    end_worker
    for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null && wait "$pid" 2>/dev/null || true; done
    end_postgres
    rm -rf "$scratch"
}
trap stop EXIT
mkdir -p "$out"
rm -f "$out"/*.json
wants() { # any of these rows
    local row
    for row in "$@"; do [[ " $rows " == *" $row "* ]] && return; done
    return 1
}
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
until_answers() { for _ in $(seq 100); do answers "$1" && return; sleep 0.1; done; return 1; }

nats_port="$(free_port)"
"$(command -v nats-server || echo /usr/sbin/nats-server)" --addr 127.0.0.1 --port "$nats_port" --log "$scratch/nats.log" \
    --jetstream --store_dir "$scratch/jetstream" &
pids=($!)
until_answers "$nats_port"
export DATASTORE__NATS__URL="nats://127.0.0.1:$nats_port"

start_postgres() { # its port, where it had one before
    local port="${1:-}" as=()
    scripts/deps.sh bench
    [ -n "$port" ] || port="$(free_port)"
    for programs in /usr/lib/postgresql/*/bin; do :; done
    [ -x "$programs/postgres" ] || programs="$(dirname "$(command -v postgres)")"
    if [ "$(id -u)" = 0 ]; then
        as=(setpriv --reuid=postgres --regid=postgres --clear-groups --)
        chmod 755 "$scratch"
    fi
    if [ ! -d "$scratch/postgres" ]; then
        install -d ${as:+-o postgres} "$scratch/postgres"
        "${as[@]}" "$programs/initdb" -U bench -A trust -D "$scratch/postgres" >"$scratch/initdb.log"
    fi
    "${as[@]}" "$programs/postgres" -D "$scratch/postgres" -p "$port" -c listen_addresses=127.0.0.1 \
        -c unix_socket_directories= >"$scratch/postgres.log" 2>&1 &
    postgres_pid=$!
    for _ in $(seq 600); do
        "$programs/pg_isready" -q -h 127.0.0.1 -p "$port" && break
        kill -0 "$postgres_pid" || { tail -n 5 "$scratch/postgres.log" >&2; exit 1; }
        sleep 0.1
    done
    postgres_port="$port"
    postgres="postgres://bench@127.0.0.1:$port/postgres"
}
end_postgres() {
    [ -z "$postgres_pid" ] || { kill -INT "$postgres_pid" 2>/dev/null && wait "$postgres_pid" 2>/dev/null; } || true
    postgres_pid=""
}
# A broker with a home, a node name and a name server (epmd) of its own.
start_rabbit() {
    local port names dist home="$scratch/rabbitmq" as=()
    scripts/deps.sh rabbitmq
    port="$(free_port)" names="$(free_port)" dist="$(free_port)"
    mkdir "$home"
    printf 'listeners.tcp.1 = 127.0.0.1:%s\nloopback_users = none\ndisk_free_limit.absolute = 64MB\nlog.console = false\n' "$port" \
        >"$home/rabbitmq.conf"
    echo '[].' >"$home/plugins"
    if [ "$(id -u)" = 0 ]; then
        as=(setpriv --reuid=rabbitmq --regid=rabbitmq --clear-groups --)
        chmod 755 "$scratch"
        chown -R rabbitmq:rabbitmq "$home"
    fi
    epmd -port "$names" -address 127.0.0.1 >/dev/null 2>&1 &
    pids=("${pids[@]}" $!)
    # `-noinput -start_epmd false`: it stays the process that was started, and uses the name server above alone.
    env HOME="$home" LC_ALL=C.UTF-8 ERL_EPMD_PORT="$names" RABBITMQ_NODENAME="bench$port@localhost" RABBITMQ_DIST_PORT="$dist" \
        RABBITMQ_MNESIA_BASE="$home/mnesia" RABBITMQ_LOG_BASE="$home/log" RABBITMQ_CONFIG_FILE="$home/rabbitmq.conf" \
        RABBITMQ_ENABLED_PLUGINS_FILE="$home/plugins" RABBITMQ_PID_FILE="$home/pid" RABBITMQ_ALLOW_INPUT=1 \
        RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="+sbwt none +sbwtdcpu none +sbwtdio none -noinput -start_epmd false -kernel inet_dist_use_interface {127,0,0,1}" \
        "${as[@]}" /usr/lib/rabbitmq/bin/rabbitmq-server </dev/null >"$scratch/rabbitmq.log" 2>&1 &
    # Before its name server, which it asks while it stops.
    pids=($! "${pids[@]}")
    for _ in $(seq 9); do until_answers "$port" && break; done
    rabbit="amqp://guest:guest@127.0.0.1:$port/%2f"
}
start_redis() {
    local port
    scripts/deps.sh redis
    port="$(free_port)"
    redis-server --bind 127.0.0.1 --port "$port" --save '' --appendonly no --dir "$scratch" >"$scratch/redis.log" &
    pids=($! "${pids[@]}")
    until_answers "$port"
    redis="redis://127.0.0.1:$port"
}

# One worker at a time: nothing but what is measured may take the machine's time.
worker() { # prefix, kind, key and value of its place, lines of [cache], lines of the namespaces' policy, where it answers HTTP
    end_worker
    cat >"$scratch/$1.toml" <<TOML
[nats]
url = "nats://127.0.0.1:$nats_port"
subject_prefix = "$1"
[http]
listen = "${6:-}"
[cache]
${4:-}
[backends.main]
kind = "$2"
$3
[namespaces."*"]
backend = "main"
${5:-}
TOML
    # What an earlier worker of this name said is not what this one says.
    rm -f "$scratch/$1.log"
    env -u DATASTORE__NATS__SUBJECT_PREFIX "$binary" serve --config "$scratch/$1.toml" 2>"$scratch/$1.log" &
    worker_pid=$!
    export DATASTORE__NATS__SUBJECT_PREFIX="$1"
    for _ in $(seq 100); do grep -qs ready "$scratch/$1.log" && return; sleep 0.1; done
    cat "$scratch/$1.log" >&2
    exit 1
}
bench() { # name of its report, requests at a time, further arguments
    local name="$1" concurrency="$2"
    shift 2
    "$binary" --json bench --concurrency "$concurrency" "$@" >"$out/$name.json"
    python3 scripts/bench.py line "$out/$name.json"
}
# Copies that stay for the whole run: what is measured are hits.
copies=$'consistency = "eventual"\ncache_ttl = "1h"'

data=()
movies="${DATASTORE_DATA:-../shared/data}/movies.ndjson.gz"
if [ -e "$movies" ]; then data=(--data "$movies"); else echo "no real records at $movies: made-up ones are used"; fi

if wants store; then
    worker local local "path = \"$scratch/local\""
    bench store-echo-1 1 "${for[@]}" --workload get --echo
    bench store-echo-64 64 "${for[@]}" --workload get --echo
    bench store-echo-64-real 64 "${for[@]}" --workload get --echo "${data[@]}"
    for workload in put batch scan; do bench "store-$workload" 64 "${for[@]}" --workload "$workload"; done
fi

if wants 1 2 3; then
    worker copies local "path = \"$scratch/copies\"" "" "$copies"
    # The first requests of a process pay for its threads and connections.
    warm=(--warm-up 1s)
    if wants 1; then
        bench 1-echo-1 1 "${turns[@]}" "${warm[@]}" --workload get --echo
        bench 1-echo-64 64 "${turns[@]}" "${warm[@]}" --workload get --echo
    fi
    if wants 2; then
        bench 2-kv-64 64 "${turns[@]}" "${warm[@]}" --workload get --peer-kv
        bench 2-kv-256 256 "${turns[@]}" "${warm[@]}" --workload get --peer-kv
    fi
    if wants 3; then
        for requests in 1 8; do
            bench "3-kv-$requests" "$requests" "${turns[@]}" "${warm[@]}" --workload batch-get --batch 100 \
                --peer-kv --peer-concurrency 100
        done
    fi
fi

if wants 1-postgres 5 6 7 8 9 10 12 staleness pages; then start_postgres; fi

if wants 1-postgres; then
    worker pgcopies postgres "url = \"$postgres\"" "" "$copies"
    bench 1-postgres-echo-1 1 hits "${turns[@]}" --warm-up 1s --workload get --echo
    bench 1-postgres-echo-64 64 hits "${turns[@]}" --warm-up 1s --workload get --echo
fi

if wants 7; then
    start_redis
    worker redis postgres "url = \"$postgres\"" $'memory_bytes = 0\nredis_url = "'"$redis\"" "$copies"
    bench 7-load 64 shared --duration 100ms --workload get
    rm "$out/7-load.json"
    "$binary" warm shared
    bench 7-redis 64 shared "${turns[@]}" --warm-up 1s --workload get --no-load --peer-redis "$redis"
fi

if wants staleness; then
    worker fresh postgres "url = \"$postgres\"" "" "$copies"
    others=()
    for _ in 1 2; do
        env -u DATASTORE__NATS__SUBJECT_PREFIX "$binary" serve --config "$scratch/fresh.toml" 2>>"$scratch/others.log" &
        others+=($!)
    done
    for _ in $(seq 100); do [ "$(grep -c ready "$scratch/others.log")" = 2 ] && break; sleep 0.1; done
    bench staleness 4 "${turns[@]:0:2}" --warm-up 3s --workload staleness --keys 100
    for pid in "${others[@]}"; do kill -TERM "$pid" && wait "$pid" || true; done
fi

if wants 5 6 pages; then
    worker postgres postgres "url = \"$postgres\""
fi
if wants 5 6; then
    # A server that has just been made writes each file of its log for the first time, and the first tables grow: a round of both
    # sides is thrown away, and what they left is written out, as on a server that has run for a while.
    bench warm-up 256 "${turns[@]}" --workload put --peer-postgres "$postgres" "${data[@]}" >/dev/null
    rm "$out/warm-up.json"
    "$programs/psql" -XAtq -d "$postgres" -c "VACUUM" -c "CHECKPOINT"
    if wants 5; then bench 5-postgres-put 256 "${turns[@]}" --workload put --peer-postgres "$postgres" "${data[@]}"; fi
    if wants 6; then bench 6-postgres-get 256 "${turns[@]}" --workload get --peer-postgres "$postgres" "${data[@]}"; fi
fi
if wants pages; then
    # Pages of a small and of a large namespace, five times in turn.
    bench pages-load 1 few "${for[@]}" --workload scan --keys 10000
    bench pages-load 1 many "${for[@]}" --workload scan --keys 1000000
    for round in 1 2 3 4 5; do
        bench "pages-few-$round" 1 few "${for[@]}" --workload scan --keys 10000 --no-load
        bench "pages-many-$round" 1 many "${for[@]}" --workload scan --keys 1000000 --no-load
    done
    rm "$out/pages-load.json"
fi

if wants 8 9; then
    # An outage after the other: PostgreSQL goes, the queue fills beside a queue written by hand, PostgreSQL comes back, the queue is
    # drained, and then the same records are put by hand.
    [ -n "${redis:-}" ] || start_redis
    start_rabbit
    http="127.0.0.1:$(free_port)"
    # By key: the records of the bench share a prefix, and so would share one of the eight lanes.
    policy=$'consistency = "bounded"\npartition_by = "key"\ndurability = "outage_queue"\n[queue]\nkind = "rabbitmq"\nurl = "'"$rabbit\""
    worker outage postgres "url = \"$postgres\"" "redis_url = \"$redis\"" "$policy" "$http"
    python3 scripts/bench.py whole "http://$http/readyz"
    bench warm-up 256 outage "${turns[@]}" --workload put --peer-postgres "$postgres" >/dev/null
    rm "$out/warm-up.json"
    "$programs/psql" -XAtq -d "$postgres" -c "VACUUM" -c "CHECKPOINT"
    for outage in $(seq "$outages"); do
        end_postgres
        # So many at a time that the peer reaches the limit of its broker, and once more as many as elsewhere. The warm-up is of the time
        # in which the breaker opens. The broker writes half a gigabyte down again, for some seconds, when it has taken it: each side
        # writes for so long that it bears that of its own, and not the one what the other has left.
        bench "8-outage-$outage" 1024 outage --duration "${BENCH_OUTAGE_DURATION:-12s}" --rounds 1 --warm-up 2s --workload outage \
            --peer-rabbitmq "$rabbit"
        bench "8-narrow-$outage" 256 outage --duration 2s --rounds 1 --warm-up 500ms --workload outage --no-load \
            --peer-rabbitmq "$rabbit"
        start_postgres "$postgres_port"
        python3 scripts/bench.py drain "$out/9-drain-$outage.json" "$binary"
        bench "9-peer-$outage" 256 outage --duration 4s --rounds 1 --workload put --no-load \
            --peer-postgres "$postgres"
    done
fi

if wants 10; then
    # Room for a tenth of the records' bytes.
    keys="${BENCH_MIX_KEYS:-100000}"
    worker mix postgres "url = \"$postgres\"" "memory_bytes = $((keys * 1024 / 10))" "$copies"
    bench 10-load 256 mix --duration 100ms --workload ycsb-b --keys "$keys"
    rm "$out/10-load.json"
    "$programs/psql" -XAtq -d "$postgres" -c "VACUUM" -c "CHECKPOINT"
    bench 10-ycsb-b 256 mix "${turns[@]}" --warm-up 3s --workload ycsb-b --keys "$keys" --no-load --peer-postgres "$postgres"
fi

if wants 12; then
    keys="${BENCH_MEMORY_KEYS:-100000}"
    http="127.0.0.1:$(free_port)"
    tier=("url = \"$postgres\"" 'memory_bytes = "1GiB"' "$copies" "$http")
    worker memory postgres "${tier[@]}"
    bench 12-load 64 first --duration 100ms --workload get --keys 2000
    bench 12-load 64 records --duration 100ms --workload get --keys "$keys"
    rm "$out/12-load.json"
    # A new worker, whose tier is empty. The first namespace brings up what any warming takes.
    worker memory postgres "${tier[@]}"
    noted() { python3 scripts/bench.py note "$out/12-memory.json" "$1" "/proc/$worker_pid/status" "http://$http/readyz"; }
    "$binary" warm first
    noted before
    "$binary" warm records
    noted after
    "$binary" get records bench/00000000 | "$binary" encode - --raw --compression none >"$scratch/record"
    python3 scripts/bench.py size "$out/12-memory.json" "$scratch/record"
fi
end_worker

python3 scripts/bench.py report "$out" | tee "$out/report.md"
