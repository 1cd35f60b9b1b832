"""The benchmark: `make bench`, or `python bench/run.py [CASE ...]`.

Starts the durable server on a fresh SQLite file for each case, drives it with the load generator (Go, the official SDK)
and prints a Markdown report, which it also leaves in bench/out/. The ceiling is measured in the same run, because what
a machine gives differs from run to run.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
OUT = HERE / "out"
LOADGEN = OUT / "loadgen"

# A workflow with one activity is so many calls: start, two polls and answers of workflow tasks, one of an activity, and
# the wait for the result come to seven that carry something.
CALLS_PER_WORKFLOW = 7

CEILING = "ceiling"
CASES: dict[str, list[str]] = {
    CEILING: ["-noop", str(CALLS_PER_WORKFLOW), "-n", "2000", "-c", "50"],
    "ceiling, latency": ["-noop", str(CALLS_PER_WORKFLOW), "-n", "1000", "-c", "1"],
    "one activity, loaded": ["-n", "2000", "-c", "50", "-activities", "1"],
    "one activity, latency": ["-n", "300", "-c", "1", "-activities", "1"],
    "ten activities": ["-n", "500", "-c", "50", "-activities", "10"],
    "no activity": ["-n", "3000", "-c", "50", "-activities", "0"],
    "start only": ["-n", "5000", "-c", "50", "-start-only", "-warm", "0"],
    "ten signals": ["-n", "300", "-c", "20", "-signals", "10"],
    "long history": ["-n", "1", "-c", "1", "-warm", "0", "-activities", "1000"],
    "wide fan-out": ["-n", "1", "-c", "1", "-warm", "0", "-activities", "1000", "-parallel"],
    "cost over history": ["-n", "5", "-growth", "1000"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Prints a benchmark report as Markdown.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of: {', '.join(CASES)} (default: all)")
    parser.add_argument("--scale", type=float, default=1.0, help="so many times the workflows of each case")
    arguments = parser.parse_args()
    unknown = [case for case in arguments.cases if case not in CASES]
    if unknown:
        parser.error(f"no such case: {', '.join(unknown)}")
    OUT.mkdir(exist_ok=True)
    build()
    results: dict[str, dict[str, Any]] = {}
    for case in arguments.cases or CASES:
        print(f"{case} ...", file=sys.stderr, flush=True)
        flags = scaled(CASES[case], arguments.scale)
        with noop() if case.startswith(CEILING) else durable() as (process, address):
            results[case] = drive(address, process.pid, flags)
    page = report(results)
    (OUT / "report.md").write_text(page)
    (OUT / "report.json").write_text(json.dumps(results, indent=1))
    print(page)
    failed = [case for case, result in results.items() if result["failed"]]
    if failed:
        print(f"workflows failed in: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


def build() -> None:
    go = shutil.which("go")
    if go is None:
        sys.exit("The benchmark needs Go (1.24 or newer, on PATH): its load generator is the official Go SDK.")
    subprocess.run([go, "build", "-o", LOADGEN, "."], cwd=HERE / "loadgen", check=True)


def scaled(flags: list[str], scale: float) -> list[str]:
    number = flags.index("-n") + 1
    return [*flags[:number], str(max(1, round(int(flags[number]) * scale))), *flags[number + 1 :]]


@contextlib.contextmanager
def durable() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The durable server. The file is beside the report rather than in /tmp, which is in memory on many machines."""
    program = pathlib.Path(sys.executable).with_name("perdure")
    with tempfile.TemporaryDirectory(dir=OUT) as directory:
        file = os.path.join(directory, "perdure.db")
        with served([str(program), "server", "start", "--port", "0", "--db", file, "--log-level", "error"]) as running:
            yield running


@contextlib.contextmanager
def noop() -> Iterator[tuple[subprocess.Popen[str], str]]:
    with served([sys.executable, str(HERE / "noop.py")]) as running:
        yield running


@contextlib.contextmanager
def served(command: list[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Server: "):
                break
        else:
            sys.exit(f"the server ended at start with {process.wait()}")
        yield process, line.removeprefix("Server: ").strip()
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


def drive(address: str, pid: int, flags: list[str]) -> dict[str, Any]:
    done = subprocess.run(
        [LOADGEN, "-addr", address, "-pid", str(pid), *flags], stdout=subprocess.PIPE, text=True, timeout=600
    )
    if done.returncode or not done.stdout.strip():
        sys.exit(f"the load generator failed ({' '.join(flags)})")
    return json.loads(done.stdout.strip().splitlines()[-1])


def report(results: dict[str, dict[str, Any]]) -> str:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True
    ).stdout.strip()
    today = datetime.datetime.now(datetime.UTC).date()
    lines = [
        f"# Benchmark of {today}, commit {commit or '?'}",
        "",
        f"{os.cpu_count()} cores ({processor()}), {platform.system()} {platform.release()}, Python "
        f"{platform.python_version()}; load generator and server share them. SQLite on disk, every commit synced. "
        "CPU and memory are the server's.",
        "",
        "| case | workflows/s | p50 ms | p99 ms | CPU ms per workflow | CPU to ceiling | peak MiB | failed |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    ceiling = results.get(CEILING, {}).get("server_cpu_ms_per_workflow")
    for case, r in results.items():
        cpu = r["server_cpu_ms_per_workflow"]
        ratio = f"{cpu / ceiling:.1f}×" if ceiling else ""
        cells = [
            f"{r['per_s']:.1f}",
            f"{r['p50_ms']:.2f}" if "p50_ms" in r else "",
            f"{r['p99_ms']:.2f}" if "p99_ms" in r else "",
            f"{cpu:.2f}",
            ratio,
            f"{r['server_peak_rss_mb']:.0f}",
            str(r["failed"]),
        ]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    lines += ["", f"The ceiling is a server that answers {CALLS_PER_WORKFLOW} calls and does nothing else."]
    for case, r in results.items():
        if "late_to_early" in r:
            lines += [
                "",
                f"{case[0].upper()}{case[1:]}: {r['early_ms']:.2f} ms per activity around the 10th, "
                f"{r['late_ms']:.2f} ms around the {r['activities']:,}th: {r['late_to_early']:.2f}×.",
            ]
    return "\n".join(lines) + "\n"


def processor() -> str:
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    sys.exit(main())
