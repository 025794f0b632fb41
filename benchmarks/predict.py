"""The forward of a light network, as loops run it and as `torch_predictor` does: `python benchmarks/predict.py`

`Dilated`, one band, three classes; 1024 x 1024 px in four tiles of 512 px, one thread. Each way alone in a process, round after round in
turn. Seconds are of CPU, user and system, the median over rounds; `times_faster` is the first way's seconds over these. Differences are of
logits and of probabilities against the first way. Writes `benchmarks/predict.json`."""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from planetlab.models.dilated import Dilated
from planetlab.predict import torch_predictor
from planetlab.train import keep_memory

BARE = {"bare loop, batch 4": (False, False), "bare loop, batch 4, kept memory": (True, False),
        "bare loop, batch 4, kept memory, channels last": (True, True)}
OURS = {"torch_predictor": {}, "torch_predictor, micro-batch 2": {"micro_batch": 2}, "torch_predictor, micro-batch 4": {"micro_batch": 4},
        "torch_predictor, no kept memory": {"keep_memory": False}, "torch_predictor, bfloat16": {"precision": "bfloat16"},
        "torch_predictor, bfloat16, micro-batch 4": {"precision": "bfloat16", "micro_batch": 4}}


def bare(model, kept, channels_last):
    "What anybody would write"
    if kept: keep_memory()
    if channels_last: model.to(memory_format=torch.channels_last)

    def run(x):
        with torch.inference_mode():
            x = torch.from_numpy(x)
            return model(x.contiguous(memory_format=torch.channels_last) if channels_last else x).numpy()
    return run


def measure(way, repeats):
    "CPU seconds per Mpx of `repeats` passes over the picture, and the logits"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Dilated(classes=3).eval()
    run = bare(model, *BARE[way]) if way in BARE else torch_predictor(model, "abc", **OURS[way])
    x = np.random.default_rng(0).random((4, 1, 512, 512), "float32")
    y = run(x)
    before = os.times()
    for _ in range(repeats): run(x)
    after = os.times()
    return (after.user + after.system - before.user - before.system) / repeats / (x.size / 1e6), y


def probs(y):
    e = np.exp(y - y.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"rounds": 5, "repeats": 4}.items(): p.add_argument(f"--{name}", type=int, default=value)
    p.add_argument("--child", nargs=2, metavar=("WAY", "FILE"), help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child:
        seconds, y = measure(a.child[0], a.repeats)
        np.save(a.child[1], y.astype("float32"))
        return print(seconds)
    took, logits, file = {way: [] for way in [*BARE, *OURS]}, {}, f"{tempfile.gettempdir()}/predict_{os.getpid()}.npy"
    for _ in range(a.rounds):
        for way in took:
            out = subprocess.run([sys.executable, __file__, "--repeats", str(a.repeats), "--child", way, file], check=True, stdout=subprocess.PIPE, text=True)
            took[way].append(float(out.stdout))
            logits[way] = np.load(file)
    os.unlink(file)
    first = next(iter(took))
    rows = [{"way": way, "cpu_s_per_mpx": round(statistics.median(s), 4), "low": round(min(s), 4), "high": round(max(s), 4),
             "times_faster": round(statistics.median(took[first]) / statistics.median(s), 2),
             "logits_off": float(np.abs(logits[way] - logits[first]).max()),
             "probability_off": float(np.abs(probs(logits[way]) - probs(logits[first])).max()),
             "class_changed": float((logits[way].argmax(1) != logits[first].argmax(1)).mean())} for way, s in took.items()]
    print("| way | CPU s/Mpx (low to high) | times faster | logits off | probability off | class changed |\n|---|--:|--:|--:|--:|--:|")
    for r in rows:
        print(f"| {r['way']} | {r['cpu_s_per_mpx']:.3f} ({r['low']:.3f} to {r['high']:.3f}) | {r['times_faster']:.2f} | {r['logits_off']:.1e} | "
              f"{r['probability_off']:.1e} | {r['class_changed']:.3%} |")
    Path(__file__).with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
