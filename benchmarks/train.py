"""The training step of the VAE in `fit` beside the same layers in a bare loop: `python benchmarks/train.py`

64 px, batches of 32, one thread. First, all ways train the same number of batches in every round, in turn, in one process: the last
column is the CPU time of `fit` over that of the bare loop beside it, the median of the ratios within a round. Then each way alone in
a process, with the C library's own thresholds and after `keep_memory`. Numbers are medians over rounds."""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import torch
from planetlab.models.autoencoder import VAE, vae_loss
from planetlab.train import Constant, Recipe, fit, keep_memory

WAYS = {"bare, float32, plain layout": ("no", False), "bare, float32": ("no", True), "fit, no": "no",
        "bare, bfloat16": ("bf16", True), "fit, auto": "auto"}
BESIDE = {"fit, no": "bare, float32", "fit, auto": "bare, bfloat16"}


def bare(batches, precision, channels_last, lr=2e-3):
    "What anybody would write; one epoch per `next`"
    model = VAE(size=64)
    if channels_last: model.to(memory_format=torch.channels_last)
    opt = torch.optim.AdamW(model.parameters(), lr)
    while True:
        for x, valid in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"): loss = vae_loss(model, x, valid)["loss"]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            opt.zero_grad()
        yield loss.item()


def measure(rounds, n, batch, kept, names):
    "Seconds of CPU, of which system, and wall, per round and way"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if kept: keep_memory()
    batches = [(torch.rand(batch, 1, 64, 64), torch.ones(batch, 1, 64, 64, dtype=torch.bool)) for _ in range(n)]
    judge = [tuple(t[:1] for t in batches[0])]
    runs = {name: fit(VAE(size=64), vae_loss, batches, judge, Recipe(rounds + 1, precision=way, schedule=Constant(), keep_memory=kept))
            if isinstance(way, str) else bare(batches, *way) for name, way in WAYS.items() if name in names}
    seconds = {name: [] for name in runs}
    for i in range(rounds + 1): # the first warms up
        for name, run in runs.items():
            before, wall = os.times(), time.perf_counter()
            next(run)
            after, wall = os.times(), time.perf_counter() - wall
            if i: seconds[name].append((after.user + after.system - before.user - before.system, after.system - before.system, wall))
    return seconds


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"rounds": 5, "batches": 6, "batch": 32}.items(): p.add_argument(f"--{name}", type=int, default=value)
    p.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child: return print(json.dumps(measure(a.rounds, a.batches, a.batch, a.child[0] == "kept", a.child[1:])))
    print("| memory | way | CPU s | of it system | wall s | chips per CPU s | fit / bare |\n|---|---|--:|--:|--:|--:|--:|")
    for memory, names in [("kept", list(WAYS)), *((m, [name]) for name in WAYS for m in ("default", "kept"))]:
        out = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--child", memory, *names], check=True, stdout=subprocess.PIPE, text=True)
        seconds = json.loads(out.stdout)
        for name, rows in seconds.items():
            cpu, system, wall = (statistics.median(r[k] for r in rows) for k in range(3))
            ratio = [x[0] / y[0] for x, y in zip(rows, seconds.get(BESIDE.get(name), []))]
            print(f"| {memory}{', alone' if len(names) == 1 else ''} | {name} | {cpu:.2f} | {system:.2f} | {wall:.2f} | "
                  f"{a.batches * a.batch / cpu:.0f} | " + (f"{statistics.median(ratio):.2f}" if ratio else "") + " |", flush=True)


if __name__ == "__main__":
    main()
