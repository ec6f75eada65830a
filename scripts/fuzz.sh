#!/usr/bin/env bash
# Fuzzes what reads bytes from outside, one target after the other, and prints one table.
#   FUZZ_SECONDS   seconds for each target (60)
#   FUZZ_TARGETS   targets, separated by spaces (all)
#   FUZZ_JOBS      processes at once for each target (1)
# Starts from the committed corpus and works in a copy of it; `fuzz/corpus` is never written to.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds="${FUZZ_SECONDS:-60}"
read -r -a targets <<<"${FUZZ_TARGETS:-record wire json cursor}"
jobs="${FUZZ_JOBS:-1}"
version=0.13.2
root="$PWD/target/fuzz"
tools="$PWD/target/tools"
# Far more than what the largest bound allows the longest input; it ends what would run away.
rss_mb=4096

if [ "$("$tools/bin/cargo-fuzz" --version 2>/dev/null)" != "cargo-fuzz $version" ]; then
    echo "installing cargo-fuzz $version into target/tools" >&2
    cargo install cargo-fuzz --locked --version "$version" --root "$tools" --target-dir "$root/install" >&2
fi
export PATH="$tools/bin:$PATH"
export CARGO_TARGET_DIR="$root"
# The counters of coverage are an unstable flag of the compiler.
case "$(rustc --version)" in
    *nightly* | *-dev*) ;;
    *) export RUSTC_BOOTSTRAP=1 ;;
esac

# No sanitizer: the package forbids unsafe and zstd's C is not instrumented either; seven times the inputs per second.
for target in "${targets[@]}"; do
    cargo fuzz build -s none "$target" >&2
done
built="$root/$(rustc -vV | sed -n "s/^host: //p")/release"

mkdir -p "$root/logs"
rows=()
status=0
for target in "${targets[@]}"; do
    corpus="$root/corpus/$target"
    artifacts="$root/artifacts/$target"
    log="$root/logs/$target.log"
    mkdir -p "$corpus" "$artifacts"
    cp "fuzz/corpus/$target/"* "$corpus/"
    flags=(-max_total_time="$seconds" -rss_limit_mb="$rss_mb" -timeout=10 -print_final_stats=1)
    [ -f "fuzz/$target.dict" ] && flags+=(-dict="fuzz/$target.dict")
    [ "$jobs" -gt 1 ] && flags+=(-fork="$jobs")
    echo "fuzzing $target for $seconds s" >&2
    result=passed
    marker="$root/logs/$target.started"
    touch "$marker"
    if ! "$built/$target" "${flags[@]}" -artifact_prefix="$artifacts/" "$corpus" >"$log" 2>&1; then
        status=1
        found="$(find "$artifacts" -type f -newer "$marker" | head -n 1)"
        result="**FAILED** ${found:-see $log}"
    fi
    # The engine counts differently alone (`#1 ... cov: 2 ft:`) and with several processes (`#1: cov: 2 ft:`).
    # What fails on the saved corpus has counted nothing yet.
    last="$(grep -aE '^#[0-9]+:?.*cov: [0-9]+' "$log" | tail -n 1 || true)"
    runs="$(sed -E 's/^#([0-9]+).*/\1/' <<<"$last")"
    edges="$(sed -E 's/.*cov: ([0-9]+).*/\1/' <<<"$last")"
    runs="${runs:-0}"
    rows+=("| $target | $seconds | $runs | $((runs / seconds)) | ${edges:-0} | $(find "$corpus" -type f | wc -l) | $result |")
done

echo "| target | seconds | executions | exec/s | coverage (edges) | corpus files | result |"
echo "| --- | ---: | ---: | ---: | ---: | ---: | --- |"
printf '%s\n' "${rows[@]}"
if [ "$status" -ne 0 ]; then
    echo "a target failed: its log is in $root/logs; run it again on one input with" >&2
    echo "  $built/TARGET FILE" >&2
fi
exit "$status"
