#!/usr/bin/env bash
# The full figures: many rounds, long loads. Prints one table.
set -euo pipefail

data="${DATASTORE_DATA:-../shared/data}"
log=target/soak.log
mkdir -p target
status=0
DATASTORE_SOAK=1 DATASTORE_DATA="$data" cargo test --release --locked --features test-clock,test-sabotage --test it -- --nocapture --test-threads 1 \
    cache:: coherence:: crash:: history:: lifecycle:: outage:: replica:: stand_in:: transfer:: >"$log" 2>&1 || status=$?
echo "| figure | wanted | found |"
echo "| --- | --- | --- |"
grep -h '^| ' "$log" || true
if [ "$status" -ne 0 ]; then
    echo "soak failed; the log is $log:" >&2
    tail -n 60 "$log" >&2
    exit "$status"
fi
# The tests were of a build whose clock can be moved and whose rules can be broken.
cargo build --release --locked
scripts/bench.sh
cargo bench --locked --bench sizes
FUZZ_SECONDS="${FUZZ_SECONDS:-600}" scripts/fuzz.sh
