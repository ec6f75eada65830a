#!/usr/bin/env bash
# Runs one worker in the foreground. Starts a private nats-server when none answers at the configured URL, and a private
# PostgreSQL, Redis or RabbitMQ where the settings name one on this machine that does not answer.
set -euo pipefail

binary=target/release/datastore
arguments=()
[ -n "${1:-}" ] && arguments=(--config "$1")

# The URLs and the prefix as the worker will see them: defaults, file and environment together.
settings="$("$binary" config show "${arguments[@]}")"
setting() { sed -n "/^\[$1\]/,/^\[/s/^$2 = \"\(.*\)\".*/\1/p" <<<"$settings" | head -n 1; }
urls="$(setting nats url)"
prefix="$(setting nats subject_prefix)"
listen="$(setting http listen)"

answers() { (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null; }

# Host and port of a URL such as nats://user@host:4222/, nats://[::1]:4222 or tls://host.
split() {
    local address="${1#*://}"
    address="${address%%/*}"
    address="${address##*@}"
    case "$address" in
        \[*) host="${address%%]*}"; host="${host#[}"; port="${address##*]}"; port="${port#:}" ;;
        *:*) host="${address%:*}"; port="${address##*:}" ;;
        *) host="$address"; port="" ;;
    esac
    port="${port:-4222}"
}

nats_pid=""
postgres_pids=()
redis_pids=()
rabbit_pid=""
epmd_pid=""
worker_pid=""
log=""
stop() {
    [ -n "$worker_pid" ] && kill -TERM "$worker_pid" 2>/dev/null && wait "$worker_pid" || true
    [ -n "$nats_pid" ] && kill -TERM "$nats_pid" 2>/dev/null && wait "$nats_pid" || true
    # "Fast": it ends its connections and its own work, and does not wait for clients.
    local pid
    for pid in "${postgres_pids[@]}"; do kill -INT "$pid" 2>/dev/null && wait "$pid" || true; done
    for pid in "${redis_pids[@]}"; do kill -TERM "$pid" 2>/dev/null && wait "$pid" || true; done
    [ -n "$rabbit_pid" ] && kill -TERM "$rabbit_pid" 2>/dev/null && wait "$rabbit_pid" || true
    [ -n "$epmd_pid" ] && kill -TERM "$epmd_pid" 2>/dev/null && wait "$epmd_pid" || true
    [ -n "$log" ] && rm -f "$log" || true
}
trap 'stop; exit 0' INT TERM HUP

found=""
IFS=, read -ra each <<<"$urls"
for url in "${each[@]}"; do
    split "$url"
    if answers "$host" "$port"; then found="$url"; break; fi
done
if [ -n "$found" ]; then
    echo "using the NATS server at $found"
else
    split "${each[0]}"
    case "${each[0]}:$host" in
        nats:*:127.*|nats:*:localhost|nats:*:::1)
            nats_server="$(command -v nats-server || echo /usr/sbin/nats-server)"
            mkdir -p run
            # A session of its own: Ctrl-C reaches the worker first, which then still answers what it has in hand.
            setsid "$nats_server" --addr "$host" --port "$port" --log run/nats-server.log &
            nats_pid=$!
            for _ in $(seq 100); do answers "$host" "$port" && break; sleep 0.05; done
            answers "$host" "$port" || { echo "the private nats-server did not start; see run/nats-server.log" >&2; stop; exit 1; }
            echo "started a private nats-server at $host:$port (log: run/nats-server.log)"
            ;;
        *) echo "no NATS server answers at $urls; the worker joins when one does" ;;
    esac
fi

# A private PostgreSQL, for user `datastore` without a password.
private_postgres() { # host, port, database, name of its folder in run/
    local programs="" name="$4" as=() data="$PWD/run/$4"
    scripts/deps.sh postgres
    for programs in /usr/lib/postgresql/*/bin; do :; done
    [ -x "$programs/postgres" ] || programs="$(dirname "$(command -v postgres)")"
    mkdir -p run
    if [ "$(id -u)" -eq 0 ]; then
        as=(setpriv --reuid=postgres --regid=postgres --clear-groups --)
        # PostgreSQL refuses root, and its user may not be let into this folder.
        "${as[@]}" test -x "$PWD/run" || data="${TMPDIR:-/tmp}/datastore-postgres-$2"
        mkdir -p "$data"
        chown postgres:postgres "$data"
    fi
    [ -e "$data/PG_VERSION" ] || "${as[@]}" "$programs/initdb" --auth=trust --username=datastore --encoding=UTF8 --no-locale \
        -D "$data" >"run/$name.log"
    chmod 700 "$data"
    setsid "${as[@]}" "$programs/postgres" -D "$data" -p "$2" -c "listen_addresses=$1" -c unix_socket_directories= \
        >>"run/$name.log" 2>&1 &
    postgres_pids+=($!)
    # Its port is open before it answers: behind an unclean stop it first reads its log again.
    for _ in $(seq 600); do
        "$programs/pg_isready" -q -t 1 -h "$1" -p "$2" && break
        kill -0 "${postgres_pids[-1]}" 2>/dev/null || break
        sleep 0.1
    done
    "$programs/psql" -XAtq -h "$1" -p "$2" -U datastore -d postgres -c "SELECT 1 FROM pg_database WHERE datname = '$3'" \
        2>>"run/$name.log" | grep -q 1 ||
        "$programs/psql" -Xq -h "$1" -p "$2" -U datastore -d postgres -c "CREATE DATABASE \"$3\"" ||
        { echo "the private PostgreSQL did not start; see run/$name.log" >&2; stop; exit 1; }
    echo "started a private PostgreSQL at $1:$2 (data: ${data#"$PWD/"}, log: run/$name.log)"
}
# One for each server of this machine that does not answer: several URLs may be databases of one. The data of the first is in
# run/postgres, that of another in run/postgres-PORT, whichever of them are started.
folder=postgres
while read -r url <&9; do
    split "$url"
    [ "$port" = 4222 ] && [[ "$url" != *:4222* ]] && port=5432
    database="${url#*://*/}"
    database="${database%%\?*}"
    case "$host" in
        127.*|localhost|::1)
            if ! answers "$host" "$port"; then
                private_postgres "$host" "$port" "$database" "${folder:-postgres-$port}"
            elif [ "${#postgres_pids[@]}" -gt 0 ]; then
                psql -Xq -h "$host" -p "$port" -U datastore -d postgres -c "CREATE DATABASE \"$database\"" 2>/dev/null || true
            fi
            ;;
    esac
    folder=""
done 9< <(grep -o '\<url = "postgres\(ql\)\?://[^"]*"' <<<"$settings" | sed 's/^url = "\(.*\)"$/\1/')

# A private Redis, which keeps its data on disk.
private_redis() { # host, port, name of its folder in run/, further settings
    local host="$1" port="$2" name="$3"
    shift 3
    scripts/deps.sh redis
    mkdir -p "run/$name"
    setsid redis-server --bind "$host" --port "$port" --dir "$PWD/run/$name" --appendonly yes "$@" >"run/$name.log" 2>&1 &
    redis_pids+=($!)
    for _ in $(seq 100); do answers "$host" "$port" && break; sleep 0.05; done
    answers "$host" "$port" || { echo "the private Redis did not start; see run/$name.log" >&2; stop; exit 1; }
    echo "started a private Redis at $host:$port (data: run/$name, log: run/$name.log)"
}
split_redis() { # URL
    split "$1"
    [ "$port" = 4222 ] && [[ "$1" != *:4222* ]] && port=6379
    case "$host" in 127.*|localhost|::1) return 0 ;; *) return 1 ;; esac
}
# For the shared cache and the pending writes: what is least used may go.
url="$(setting cache redis_url)"
if [ -n "$url" ] && split_redis "$url"; then
    answers "$host" "$port" || private_redis "$host" "$port" redis --maxmemory-policy volatile-lru
fi
# For records: nothing may go, and each write is on the disk before it is acknowledged.
while read -r url <&9; do
    split_redis "$url" || continue
    answers "$host" "$port" ||
        private_redis "$host" "$port" "redis-$port" --maxmemory-policy noeviction --appendfsync always
done 9< <(grep -o '\<url = "redis://[^"]*"' <<<"$settings" | sed 's/^url = "\(.*\)"$/\1/')

# A private RabbitMQ with a home, a node name and a name server (epmd) of its own; its data is kept in run/rabbitmq.
private_rabbit() { # host, port
    local home="$PWD/run/rabbitmq" names=$(($2 + 20000)) as=()
    scripts/deps.sh rabbitmq
    mkdir -p run
    if [ "$(id -u)" -eq 0 ]; then
        as=(setpriv --reuid=rabbitmq --regid=rabbitmq --clear-groups --)
        # Its user may not be let into this folder.
        "${as[@]}" test -x "$PWD/run" || home="${TMPDIR:-/tmp}/datastore-rabbitmq-$2"
    fi
    mkdir -p "$home"
    printf 'listeners.tcp.1 = %s:%s\ndisk_free_limit.absolute = 64MB\n' "$1" "$2" >"$home/rabbitmq.conf"
    echo '[].' >"$home/plugins"
    [ "$(id -u)" -ne 0 ] || chown -R rabbitmq:rabbitmq "$home"
    setsid epmd -port "$names" -address "$1" >/dev/null 2>&1 &
    epmd_pid=$!
    setsid env HOME="$home" LC_ALL=C.UTF-8 ERL_EPMD_PORT="$names" RABBITMQ_NODENAME="datastore$2@localhost" \
        RABBITMQ_DIST_PORT=$((names + 1)) RABBITMQ_MNESIA_BASE="$home/mnesia" RABBITMQ_LOG_BASE="$home/log" \
        RABBITMQ_CONFIG_FILE="$home/rabbitmq.conf" RABBITMQ_ENABLED_PLUGINS_FILE="$home/plugins" \
        RABBITMQ_PID_FILE="$home/pid" RABBITMQ_ALLOW_INPUT=1 \
        RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="+sbwt none +sbwtdcpu none +sbwtdio none -noinput -start_epmd false" \
        "${as[@]}" /usr/lib/rabbitmq/bin/rabbitmq-server </dev/null >run/rabbitmq.log 2>&1 &
    rabbit_pid=$!
    echo "starting a private RabbitMQ at $1:$2 (data: ${home#"$PWD/"}, log: run/rabbitmq.log); the worker joins when it is there"
}
url="$(setting queue url)"
if [ "$(setting queue kind)" = rabbitmq ] && [ -n "$url" ]; then
    split "$url"
    [ "$port" = 4222 ] && [[ "$url" != *:4222* ]] && port=5672
    case "$host" in
        127.*|localhost|::1) answers "$host" "$port" || private_rabbit "$host" "$port" ;;
    esac
fi

# The worker's own lines are shown and kept, so that this waits for this worker and no other. It runs in the
# background, and so is deaf to the terminal's Ctrl-C: `stop` passes it on as SIGTERM.
log="$(mktemp)"
"$binary" serve "${arguments[@]}" 2> >(tee "$log" >&2) &
worker_pid=$!

how="$binary"
[ "$prefix" = ds ] || how="$how --subject-prefix $prefix"
if [ "$urls" != "nats://127.0.0.1:4222" ] && [ -z "${DATASTORE__NATS__URL:-}" ]; then
    case "$urls" in
        *@*) how="DATASTORE__NATS__URL=... $how" ;;
        *) how="$how --nats $urls" ;;
    esac
fi
for _ in $(seq 300); do
    kill -0 "$worker_pid" 2>/dev/null || break
    if grep -q 'ready: answering' "$log"; then
        cat <<TRY

serving at ${found:-${each[0]}}${listen:+, health at http://$listen/readyz}. In another terminal, try:

  $how put demo user:1 '{"name": "Ada", "logins": 1}'
  $how update demo user:1 --increment logins=1 --return
  $how scan demo

Ctrl-C stops.
TRY
        break
    fi
    sleep 0.1
done
set +e
wait "$worker_pid"
code=$?
worker_pid=""
stop
exit "$code"
