"""Read 64-band chips, and classify real embedded points by region: planetlab beside the bare reader and the trivial answers

    python benchmarks/embeddings.py [ROUNDS]

Chips: a procedural desert of 1024 x 1024 px in bytes, 16 chips of 256 px. The bare reader reads the same windows with rasterio and decodes them with one line of
NumPy; it knows nothing of gaps, lengths or labels. CPU seconds, medians of the rounds, ratios within a round; peak memory by tracemalloc.
Points: `aef_points` (2016 Dynamic World points, 224 of each of 9 classes, 4 regions), logistic regression on 64 numbers, C = 10. 4 folds at random and 4
folds that each hold out one region; 95 % intervals by bootstrap over points, and for the folds by region also the lowest and highest region, since four regions
are too few to draw from.
"""
import json
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, StratifiedKFold, cross_val_predict

from planetlab.chip_folders import open_area, read_chip
from planetlab.core import find_input
from planetlab.windows import tile_windows
from planetlab.worlds.dunes import REGIONS, make_desert, write_desert

SIZE, SIDE = 256, 1024


def bare(files, windows):
    with rasterio.open(files.embedding[0]) as src:
        for w in windows:
            q = src.read(window=w).astype("float32")
            yield np.sign(q) * (np.abs(q) / 127.5) ** 2


def ours(files, windows):
    area = open_area("desert", files.embedding, files.labels)
    for w in windows: yield read_chip(area, w)


def spent(fn, *args):
    start = time.process_time()
    for _ in fn(*args): pass
    return time.process_time() - start


def peak_mib(fn, *args):
    tracemalloc.start()
    for _ in fn(*args): pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return round(peak / 2**20, 1)


def chips(rounds):
    with tempfile.TemporaryDirectory() as folder:
        files = write_desert(folder, make_desert(REGIONS[0], SIDE, rng=np.random.default_rng(0)), int8=True, south_up=True)
        windows = tile_windows(SIDE, SIDE, SIZE)
        times = np.array([[spent(fn, files, windows) for fn in (bare, ours)] for _ in range(rounds)])
        return {"chips": len(windows), "size_px": SIZE, "rounds": rounds, "bare_cpu_s": round(float(np.median(times[:, 0])), 3),
                "planetlab_cpu_s": round(float(np.median(times[:, 1])), 3), "ratio": round(float(np.median(times[:, 1] / times[:, 0])), 2),
                "chip_mib": SIZE**2 * 64 * 4 / 2**20, "planetlab_peak_mib": peak_mib(ours, files, windows[:4]), "scene_mib": SIDE**2 * 64 * 4 / 2**20}


def interval(right, rng):
    return [round(float(v), 3) for v in np.percentile(right[rng.integers(len(right), size=(2000, len(right)))].mean(1), [2.5, 97.5])]


def points():
    t = pd.read_csv(find_input("aef_points") / "samples.csv")
    x, y, region, rng = t[[f"A{i:02}" for i in range(64)]].to_numpy(), t.dw_label.to_numpy(), t.region, np.random.default_rng(0)
    out = {"n": len(t), "classes": int(t.dw_label.nunique()), "majority": round(float(np.bincount(y).max() / len(y)), 3)}
    for name, cv in (("random", StratifiedKFold(4, shuffle=True, random_state=0).split(x, y)), ("by region", GroupKFold(4).split(x, y, region))):
        right = cross_val_predict(LogisticRegression(C=10, max_iter=500), x, y, cv=list(cv)) == y
        out[name] = {"accuracy": round(float(right.mean()), 3), "interval": interval(right, rng)}
        if name == "by region": out[name]["regions"] = pd.Series(right).groupby(region).mean().round(3).to_dict()
    return out


if __name__ == "__main__":
    made = {"chips": chips(int(sys.argv[1]) if len(sys.argv) > 1 else 3), "points": points()}
    Path(__file__).with_suffix(".json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(made, indent=1))
