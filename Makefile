# Two commands matter: `make run` and `make test`. Both install what is missing first.

CONFIG ?=
CARGO ?= cargo

.PHONY: run test check soak bench sizes fuzz build deps-run deps-bench deps-fuzz deps-test clean

## run: a worker on this machine, with a private nats-server when none answers; CONFIG=file to use your own settings
run: deps-run
	$(CARGO) build --release --locked
	scripts/run.sh "$(CONFIG)"

## test: every kind of check in its short form
test: deps-test
	$(CARGO) test --locked --features test-clock,test-sabotage
	$(CARGO) test --locked --features test-clock,test-sabotage --bench record --bench sizes
	$(CARGO) check --locked --no-default-features

## check: formatting and lints, warnings are errors
check: deps-fuzz
	$(CARGO) fmt --check
	$(CARGO) fmt --check --manifest-path fuzz/Cargo.toml
	$(CARGO) clippy --locked --all-targets --all-features -- -D warnings
	CARGO_TARGET_DIR=target/fuzz $(CARGO) check --locked --manifest-path fuzz/Cargo.toml

## soak: the full figures: 20 rounds of kill -9, syncs counted by strace, counters through restarts, the tables of
## bench and sizes, and each fuzz target for 10 minutes
soak: deps-test deps-fuzz
	$(CARGO) build --release --locked
	scripts/soak.sh

## bench: throughput beside the transport's own limit and its peers, measured in the same run; target/bench/report.md;
## BENCH_ROWS="1 2" some rows of it alone
bench: deps-bench
	$(CARGO) build --release --locked
	scripts/bench.sh

## sizes: the stored record beside MessagePack, CBOR, JSON and protobuf: size, speed, reading one field, in one run
sizes:
	$(CARGO) bench --locked --bench sizes

## fuzz: what reads bytes from outside, under libFuzzer for FUZZ_SECONDS (60) each; prints one table
fuzz: deps-fuzz
	scripts/fuzz.sh

build:
	$(CARGO) build --release --locked

deps-run:
	scripts/deps.sh run

deps-bench:
	scripts/deps.sh bench

deps-fuzz:
	scripts/deps.sh fuzz

deps-test:
	scripts/deps.sh test

clean:
	$(CARGO) clean
