#!/usr/bin/env bash
# Runs one worker in the foreground. Starts a private nats-server when none answers at the configured URL.
set -euo pipefail

binary=target/release/datastore
arguments=()
[ -n "${1:-}" ] && arguments=(--config "$1")

# The URL as the worker will see it: defaults, file and environment together.
settings="$("$binary" config show "${arguments[@]}")"
url="$(sed -n 's/^url = "\(nats:[^"]*\)".*/\1/p' <<<"$settings" | head -n 1)"
first="${url%%,*}"
address="${first#*://}"
address="${address##*@}"
host="${address%%:*}"
port="${address##*:}"
[ "$port" = "$host" ] && port=4222

answers() { (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null; }

nats_pid=""
worker_pid=""
stop() {
    [ -n "$worker_pid" ] && kill -TERM "$worker_pid" 2>/dev/null && wait "$worker_pid" || true
    [ -n "$nats_pid" ] && kill -TERM "$nats_pid" 2>/dev/null && wait "$nats_pid" || true
}

if answers "$host" "$port"; then
    echo "using the NATS server at $first"
else
    case "$host" in
        127.*|localhost) ;;
        *) echo "no NATS server answers at $first; the worker will join when one does" ;;
    esac
    case "$host" in
        127.*|localhost)
            nats_server="$(command -v nats-server || echo /usr/sbin/nats-server)"
            mkdir -p run
            # A session of its own: Ctrl-C reaches the worker first, which then still answers what it has in hand.
            setsid "$nats_server" --addr "$host" --port "$port" --log run/nats-server.log &
            nats_pid=$!
            for _ in $(seq 100); do answers "$host" "$port" && break; sleep 0.05; done
            answers "$host" "$port" || { echo "the private nats-server did not start; see run/nats-server.log" >&2; kill "$nats_pid"; exit 1; }
            echo "started a private nats-server at $host:$port (log: run/nats-server.log)"
            ;;
    esac
fi
trap 'stop; exit 0' INT TERM

# In the background, and so deaf to the terminal's Ctrl-C: `stop` passes it on as SIGTERM.
"$binary" serve "${arguments[@]}" &
worker_pid=$!

listen="$(sed -n 's/^listen = "\([^"]*\)".*/\1/p' <<<"$settings" | head -n 1)"
ready() {
    [ -z "$listen" ] && return 0
    exec 3<>"/dev/tcp/${listen%:*}/${listen##*:}" || return 1
    printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3
    head -n 1 <&3 | grep -q ' 200 '
}
for _ in $(seq 200); do
    kill -0 "$worker_pid" 2>/dev/null || break
    if (ready) 2>/dev/null; then
        cat <<TRY

serving at $first${listen:+, health at http://$listen/readyz}. In another terminal, try:

  $binary put demo user:1 '{"name": "Ada", "logins": 1}'
  $binary update demo user:1 --increment logins=1 --return
  $binary scan demo

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
