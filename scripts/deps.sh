#!/usr/bin/env bash
# Installs what is missing: `deps.sh run` for a worker; `deps.sh postgres`, `redis`, `rabbitmq` for one with such a private server;
# `deps.sh bench` for the comparison beside peers, `deps.sh test` for all tests, `deps.sh fuzz` for fuzzing.
# Leaves no service running: nats-server and others are only ever started privately.
set -euo pipefail

want="${1:-run}"
missing=()
need() { # command, package
    command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || missing+=("$2")
}

command -v cargo >/dev/null 2>&1 || { echo "cargo is missing: install the Rust toolchain from https://rustup.rs first" >&2; exit 1; }
need cc gcc
if [ "$want" = fuzz ]; then
    need c++ g++
else
    need nats-server nats-server
fi
has_postgres() {
    local program
    for program in /usr/lib/postgresql/*/bin/postgres; do [ -x "$program" ] && return; done
    command -v postgres >/dev/null 2>&1
}
if [ "$want" = test ] || [ "$want" = postgres ] || [ "$want" = bench ]; then
    has_postgres || missing+=(postgresql)
    need psql postgresql-client
    need setpriv util-linux
fi
if [ "$want" = test ] || [ "$want" = redis ]; then
    need redis-server redis-server
fi
if [ "$want" = test ] || [ "$want" = rabbitmq ]; then
    need rabbitmq-server rabbitmq-server
fi
if [ "$want" = test ] || [ "$want" = bench ]; then
    need python3 python3
fi
if [ "$want" = test ]; then
    need strace strace
    need node nodejs
    need npm npm
    need gzip gzip
    python3 -c 'import venv, ensurepip' >/dev/null 2>&1 || missing+=(python3-venv)
fi

if [ "${#missing[@]}" -gt 0 ]; then
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "missing: ${missing[*]}. There is no apt-get here to install them with; install them by hand and try again." >&2
        exit 1
    fi
    sudo=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null 2>&1 || { echo "missing: ${missing[*]}. Installing needs root or sudo." >&2; exit 1; }
        sudo=(sudo)
    fi
    echo "installing ${missing[*]}"
    # Debian starts a service when it installs one; this says no, for this moment alone.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee "$policy" >/dev/null
        "${sudo[@]}" chmod 755 "$policy"
        trap '"${sudo[@]}" rm -f "$policy"' EXIT
    fi
    "${sudo[@]}" apt-get update -qq
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

if [ "$want" = test ]; then
    # The clients that the README's examples use, kept inside target/.
    clients=target/clients
    mkdir -p "$clients"
    if [ ! -x "$clients/venv/bin/python" ] || ! "$clients/venv/bin/python" -c 'import nats' >/dev/null 2>&1; then
        python3 -m venv "$clients/venv"
        "$clients/venv/bin/pip" install --quiet --disable-pip-version-check 'nats-py==2.*'
    fi
    if [ ! -d "$clients/node_modules/nats" ]; then
        npm install --silent --no-audit --no-fund --prefix "$clients" 'nats@2' >/dev/null
    fi
fi
