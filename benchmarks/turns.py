"Ways that take turns, each in a process of its own, round after round"
import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path


def cpu_s(job):
    "User and system seconds of CPU that a call takes"
    before = os.times()
    job()
    after = os.times()
    return after.user + after.system - before.user - before.system


def take_turns(file, doc, measure, ways, against, **counts):
    "Print and write beside `file` the median over rounds of `measure(way, counts)`, CPU seconds, and its ratio over that of `against(way)`"
    p = argparse.ArgumentParser(description=doc.splitlines()[0])
    p.add_argument("--rounds", type=int, default=5)
    for name, value in counts.items(): p.add_argument(f"--{name}", type=int, default=value)
    p.add_argument("--child", metavar="WAY", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child: return print(measure(a.child, *(getattr(a, name) for name in counts)))
    took = {way: [] for way in ways}
    for _ in range(a.rounds):
        for way in ways:
            out = subprocess.run([sys.executable, file, *sys.argv[1:], "--child", way], check=True, stdout=subprocess.PIPE, text=True)
            took[way].append(float(out.stdout.split()[-1]))
    mid = {way: statistics.median(s) for way, s in took.items()}
    rows = [{"way": way, "cpu_s": round(mid[way], 4), "low": round(min(s), 4), "high": round(max(s), 4), "ratio": round(mid[way] / mid[against(way)], 3)}
            for way, s in took.items()]
    print("| way | CPU s (low to high) | ratio |\n|---|--:|--:|")
    for r in rows: print(f"| {r['way']} | {r['cpu_s']:.3f} ({r['low']:.3f} to {r['high']:.3f}) | {r['ratio']:.2f} |")
    Path(file).with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
