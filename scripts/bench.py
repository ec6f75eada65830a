"""What `scripts/bench.sh` measured: a line for each run, and the table of ratios.

    bench.py line REPORT.json                       one run in a line
    bench.py note NOTES.json WHEN STATUS READYZ     a worker's memory, by its /proc status and by its /readyz
    bench.py size NOTES.json RECORD                 beside the bytes of a stored record
    bench.py whole READYZ                           waits until all parts of a worker are there
    bench.py drain DRAIN.json DATASTORE             watches a queue until it is empty
    bench.py report FOLDER                          the table
"""

import json
import pathlib
import re
import statistics
import subprocess
import sys
import time
import urllib.request


def line(report):
    result, latency = report["result"], report["result"]["latency_us"]
    said = f"{report['workload']} at {report['concurrency']} in {report['namespace']!r}: "
    said += f"{result['throughput']:.0f} requests/s, p50 {latency['p50']} us, p99 {latency['p99']} us"
    if result["sources"]:
        said += f", from {shares(result)}"
    if result["errors"]:
        said += f", errors {result['errors']}"
    for beside in ("echo", "peer"):
        if beside in report:
            said += f"; {report['beside']} {report[beside]['throughput']:.0f}/s; ratio {ratio(report):.2f}"
            of_rounds = report["item_ratio_of_rounds"]
            said += f" ({min(of_rounds):.2f} to {max(of_rounds):.2f}), p50 {report['p50_more_us']:+.0f} us"
            if report[beside]["errors"]:
                said += f", errors {report[beside]['errors']}"
    return said


def shares(result):
    """Where the records came from."""
    sources = result["sources"]
    return ", ".join(f"{source} {100 * count / sum(sources.values()):.1f} %" for source, count in sources.items())


def ratio(report):
    """A batch of 100 gets stands for 100 gets."""
    return report["item_ratio" if report["workload"] == "batch-get" else "throughput_ratio"]


def note(path, when, status, readyz):
    notes = json.loads(path.read_text()) if path.exists() else {}
    resident = re.search(r"VmRSS:\s+(\d+) kB", pathlib.Path(status).read_text())
    tier = json.load(urllib.request.urlopen(readyz))["parts"]["cache.memory"]["detail"]
    copies, told = (int(re.search(rf"(\d+) {word}\b", tier)[1]) for word in ("copies", "bytes"))
    notes[when] = {"resident": 1024 * int(resident[1]), "copies": copies, "bytes": told}
    path.write_text(json.dumps(notes))
    print(f"{when} warming: {notes[when]['resident']} bytes resident; cache.memory: {tier}")


# Seconds.
WHOLE_WITHIN = 120
# Seconds in which a worker has counted anew how many writes its messages have.
COUNTS_WITHIN = 1.5
DRAINED_WITHIN = 600


def whole(readyz):
    end = time.monotonic() + WHOLE_WITHIN
    while True:
        try:
            parts = json.load(urllib.request.urlopen(readyz))["parts"]
        except OSError as error:
            parts = {"worker": {"ok": False, "detail": str(error)}}
        missing = {name: part for name, part in parts.items() if not part["ok"]}
        if not missing:
            return
        if time.monotonic() > end:
            sys.exit(f"not there: {missing}")
        time.sleep(0.1)


def drain(path, datastore):
    """Notes how many writes wait, from now until none does."""
    begun, seen = time.monotonic(), []
    while not seen or seen[-1][1] > 0:
        status = json.loads(subprocess.check_output([datastore, "queue", "status", "--json"]))
        at, depths = time.monotonic() - begun, [lane["depth"] for lane in status["lanes"]]
        # Of a lane whose consumer has told nothing yet nobody knows.
        if None in depths and at <= DRAINED_WITHIN:
            time.sleep(0.05)
            continue
        depth = sum(depth or 0 for depth in depths)
        # What a worker holds it tells once in a second: a word of an empty queue may be older than what came after it.
        seen.append((at, depth))
        if status["dead_letters"]:
            sys.exit(f"{status['dead_letters']} dead letters")
        if at > DRAINED_WITHIN:
            sys.exit(f"not drained: {status}")
        time.sleep(0.05)
    path.write_text(json.dumps(seen))
    print(f"drained {seen[0][1]} writes in {seen[-1][0]:.1f} s: {drain_rate(seen):.0f}/s")


def drain_rate(seen):
    """Writes a second, from when nine tenths waited to when one tenth did: without the beginning, when the worker finds its store,
    and the end, when most lanes are empty. In its first second it counts by how many writes its messages had before: what it tells
    then is passed over, unless that is all."""
    told = [(at, depth) for at, depth in seen if at > COUNTS_WITHIN and depth > 0]
    told = (told or [(at, depth) for at, depth in seen if depth > 0]) + seen[-1:]
    most = max(depth for _, depth in told)
    first = next((at, depth) for at, depth in told if depth <= 0.9 * most)
    last = next(((at, depth) for at, depth in told if depth <= 0.1 * most and at > first[0]), None)
    if last is None:
        sys.exit(f"too little waited to tell how fast it was drained: {most} writes")
    return (first[1] - last[1]) / (last[0] - first[0])


def at_least(aim):
    return f">= {aim:.2f}", lambda found: found >= aim


def at_most(aim, unit=""):
    return f"<= {aim}{unit}", lambda found: found <= aim


def rows(folder):
    """(row, case, ours, beside it, ratio as it is printed, aim, whether it is met), of what was measured."""

    def read(name):
        path = folder / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    for name, row, case, aim in [
        ("store-echo-1", "store", "get, embedded store, one at a time / echo of 1 KB", 0.70),
        ("store-echo-64", "store", "get, embedded store, 64 at a time / echo of 1 KB", 0.70),
        ("store-echo-64-real", "store", "get of real records, embedded store, 64 / echo of 1 KB", 0.70),
        ("1-echo-64", "1", "get, hit in memory, 64 at a time / echo of 1 KB", 0.90),
        ("1-postgres-echo-64", "1-postgres", "the same in front of PostgreSQL", 0.90),
        ("2-kv-64", "2", "get, hit in memory, 64 at a time / JetStream KV get", 1.0),
        ("2-kv-256", "2", "get, hit in memory, 256 at a time / JetStream KV get", 1.3),
        ("3-kv-1", "3", "records/s of one batch of 100 gets at a time, hits / 100 KV gets at a time", 10),
        ("3-kv-8", "3", "records/s of 8 batches of 100 gets at a time, hits / 100 KV gets at a time", 10),
        ("5-postgres-put", "5", "put, PostgreSQL, 256 at a time / hand-written upsert", 2.5),
        ("6-postgres-get", "6", "get, PostgreSQL, 256 at a time / hand-written select", 1.5),
        ("7-redis", "7", "get, hit in Redis, 64 at a time / Redis GET and an echo", 0.8),
        ("10-ycsb-b", "10", "ycsb-b, PostgreSQL, 256 at a time, a tenth fits in memory / hand-written, no cache", 5),
    ]:
        report = read(name)
        if report is None:
            continue
        result, beside = report["result"], report["echo" if "echo" in report else "peer"]
        if result["sources"]:
            case += f" (read from {shares(result)})"
        rate = "item_rate" if report["workload"] == "batch-get" else "throughput"
        text, met = at_least(aim)
        found = ratio(report)
        yield row, case, f"{result[rate]:.0f}/s", f"{beside[rate]:.0f}/s", f"{found:.2f}", text, met(found)

    def outages(name):
        return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}-*.json"))]

    def beside(case, row, ours, theirs, aim):
        text, met = at_least(aim)
        found = ours / theirs
        return row, case, f"{ours:.0f}/s", f"{theirs:.0f}/s", f"{found:.2f}", text, met(found)

    for name, at_a_time in [("8-outage", 1024), ("8-narrow", 256)]:
        reports = outages(name)
        if not reports:
            continue
        queued, all_of_them = (sum(report["result"]["kinds"].get(kind, 0) for report in reports for kind in kinds)
                               for kinds in (["queued"], ["queued", "applied"]))
        ours = statistics.median(report["result"]["throughput"] for report in reports)
        theirs = statistics.median(report["peer"]["throughput"] for report in reports)
        case = (f"put while PostgreSQL is down, {at_a_time} at a time ({100 * queued / all_of_them:.1f} % queued)"
                " / confirmed publish")
        row = beside(case, "8" if at_a_time == 1024 else "8-256", ours, theirs, 0.8)
        # The aim is about the broker's limit.
        yield row if at_a_time == 1024 else (*row[:5], "-", "-")
    drains = outages("9-drain")
    if drains:
        ours = statistics.median(drain_rate(seen) for seen in drains)
        theirs = statistics.median(report["peer"]["throughput"] for report in outages("9-peer"))
        yield beside("drain after the outage / hand-written upsert, 256 at a time", "9", ours, theirs, 2.0)

    for name, row, case in [
        ("1-echo-1", "1", "get, hit in memory, one at a time, p50 - echo of 1 KB"),
        ("1-postgres-echo-1", "1-postgres", "the same in front of PostgreSQL"),
    ]:
        report = read(name)
        if report is None:
            continue
        text, met = at_most(20, " us")
        found = report["p50_more_us"]
        ours, beside = (report[side]["latency_us"]["p50"] for side in ("result", "echo"))
        yield row, case, f"{ours} us", f"{beside} us", f"{found:+.0f} us", text, met(found)

    staleness = read("staleness")
    if staleness is not None:
        late = staleness["result"]["latency_us"]
        p50, p99, longest = (late[part] / 1000 for part in ("p50", "p99", "max"))
        text, met = at_most(20, " ms")
        case = f"eventual read after a write, 3 workers: last old answer, p50 {p50:.2f} ms, max {longest:.2f} ms, p99"
        yield "staleness", case, f"{p99:.2f} ms", "-", "-", text, met(p99)

    memory = read("12-memory")
    if memory is not None:
        before, after = memory["before"], memory["after"]
        grown = after["copies"] - before["copies"]
        # The tier says room that is not filled yet, too: of that, all copies have their part.
        for count, case, copy in [
            (grown, "growth of resident memory", (after["resident"] - before["resident"]) / grown),
            (after["copies"], "what the tier says", after["bytes"] / after["copies"]),
        ]:
            case = f"bytes for each of {count} copies, {case} / its stored record"
            text, met = at_most(1.25)
            found = copy / memory["record"]
            yield "12", case, f"{copy:.0f}", f"{memory['record']}", f"{found:.2f}", text, met(found)

    pages = {size: [read(f"pages-{size}-{round}") for round in range(1, 6)] for size in ("many", "few")}
    if None not in pages["many"] + pages["few"]:
        p50 = {
            size: statistics.median(report["result"]["latency_us"]["p50"] for report in reports)
            for size, reports in pages.items()
        }
        text, met = at_most(1.5)
        found = p50["many"] / p50["few"]
        case = "scan page of 100, PostgreSQL, 10^6 records / 10^4 records, p50"
        yield "pages", case, f"{p50['many']} us", f"{p50['few']} us", f"{found:.2f}", text, met(found)


def main():
    what, path = sys.argv[1], pathlib.Path(sys.argv[2])
    if what == "line":
        print(line(json.loads(path.read_text())))
    elif what == "note":
        note(path, *sys.argv[3:])
    elif what == "size":
        notes = json.loads(path.read_text())
        notes["record"] = len(pathlib.Path(sys.argv[3]).read_bytes())
        path.write_text(json.dumps(notes))
    elif what == "whole":
        whole(sys.argv[2])
    elif what == "drain":
        drain(path, sys.argv[3])
    elif what == "report":
        print("| row | case | ours | beside it | ratio | aim | met |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for *cells, met in rows(path):
            print("| " + " | ".join(cells) + f" | {met if isinstance(met, str) else 'yes' if met else 'no'} |")


main()
