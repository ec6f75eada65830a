"""What `scripts/bench.sh` measured: a line for each run, and the table of ratios.

    bench.py line REPORT.json      one run in a line
    bench.py report FOLDER         the table
"""

import json
import pathlib
import statistics
import sys


def line(report):
    result, latency = report["result"], report["result"]["latency_us"]
    said = f"{report['workload']} at {report['concurrency']} in {report['namespace']!r}: "
    said += f"{result['throughput']:.0f} requests/s, p50 {latency['p50']} us, p99 {latency['p99']} us"
    if result["errors"]:
        said += f", errors {result['errors']}"
    for rival in ("echo", "peer"):
        if rival in report:
            said += f"; {rival} {report[rival]['throughput']:.0f}/s; ratio {report['throughput_ratio']:.2f}"
            if report[rival]["errors"]:
                said += f", errors {report[rival]['errors']}"
    return said


def rates(report, rival):
    return f"{report['result']['throughput']:.0f}/s", f"{report[rival]['throughput']:.0f}/s"


def rows(folder):
    """(case, ours, the peer's, ratio, aim)"""
    read = lambda name: json.loads((folder / f"{name}.json").read_text())
    for name, case, aim in [
        ("echo-1", "get, embedded store, one at a time / echo of 1 KB", ">= 0.70"),
        ("echo-64", "get, embedded store, 64 at a time / echo of 1 KB", ">= 0.70"),
        ("echo-64-real", "get of real records, embedded store, 64 / echo of 1 KB", ">= 0.70"),
        ("postgres-put", "put, PostgreSQL, 256 at a time / hand-written upsert", ">= 2.50"),
        ("postgres-get", "get, PostgreSQL, 256 at a time / hand-written select", ">= 1.50"),
    ]:
        report = read(name)
        ours, theirs = rates(report, "echo" if name.startswith("echo") else "peer")
        yield case, ours, theirs, report["throughput_ratio"], aim
    p50 = lambda size: statistics.median(
        read(f"pages-{size}-{round}")["result"]["latency_us"]["p50"] for round in range(1, 6)
    )
    many, few = p50("many"), p50("few")
    yield "scan page of 100, PostgreSQL, 10^6 records / 10^4 records, p50", f"{many} us", f"{few} us", many / few, "<= 1.50"


def main():
    what, path = sys.argv[1], pathlib.Path(sys.argv[2])
    if what == "line":
        print(line(json.loads(path.read_text())))
        return
    print("| case | ours | beside it | ratio | aim |")
    print("| --- | --- | --- | --- | --- |")
    for case, ours, theirs, ratio, aim in rows(path):
        print(f"| {case} | {ours} | {theirs} | {ratio:.2f} | {aim} |")


main()
