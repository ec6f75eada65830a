#!/usr/bin/env bash
# Runs one worker in the foreground. Starts a private nats-server when none answers at the configured URL, and a private
# PostgreSQL when a backend's URL on this machine is not answered.
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
worker_pid=""
log=""
stop() {
    [ -n "$worker_pid" ] && kill -TERM "$worker_pid" 2>/dev/null && wait "$worker_pid" || true
    [ -n "$nats_pid" ] && kill -TERM "$nats_pid" 2>/dev/null && wait "$nats_pid" || true
    # "Fast": it ends its connections and its own work, and does not wait for clients.
    local pid
    for pid in "${postgres_pids[@]}"; do kill -INT "$pid" 2>/dev/null && wait "$pid" || true; done
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
