"""Colouring one full frame of Mastcam-Z, 1200 x 1648 px: `python benchmarks/colorize.py`

The default network (resnet18, 4 steps up), not trained, one thread; a smooth random frame. Each way alone in a process: CPU seconds (user and
system), median over rounds after one to warm up, and the peak memory of the process above what it held before the first frame. `bare` is the network
on the shrunk frame and a bilinear zoom, without tiles, files or conversion to a picture. `de00_off` is the mean ΔE00 between the picture and that of one
tile. Writes `benchmarks/colorize.json`."""
import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from skimage.color import deltaE_ciede2000, rgb2lab

from planetlab.colorize import PLAN, colorize, lightness
from planetlab.color_frames import color_predictor
from planetlab.models.colorizer import Colorizer
from planetlab.seams import MapPlan

SHAPE = (1200, 1648)
WHOLE = MapPlan(size=2048)
WAYS = {"bare, shrink 4": (4, None), "one tile, shrink 4": (4, WHOLE), "tiles, shrink 4": (4, PLAN), "tiles, shrink 2": (2, PLAN), "one tile, shrink 2": (2, WHOLE)}


def peak_mb():
    "Largest memory of this process so far"
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1024


def measure(way, rounds):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    (shrink, plan), model = WAYS[way], Colorizer(widths=[96, 48, 32, 24]).eval()
    rng = np.random.default_rng(0)
    img = ndimage.zoom(rng.random((30, 41)), np.array(SHAPE) / (30, 41), order=1)[None]
    img, valid, predict = (255 * img).astype("uint8"), np.ones(SHAPE, bool), color_predictor(model, shrink)

    def bare():
        x = torch.from_numpy(lightness(img, valid))[None, None]
        with torch.inference_mode(): return F.interpolate(model.chroma(F.avg_pool2d(x, shrink)), scale_factor=shrink, mode="bilinear")

    run = bare if plan is None else lambda: colorize(img, valid, predict, plan)
    small, times = peak_mb(), []
    for _ in range(rounds + 1):
        before = os.times()
        said = run()
        after = os.times()
        times.append(after.user + after.system - before.user - before.system)
    peak, off = peak_mb(), None
    if plan is PLAN: off = float(deltaE_ciede2000(rgb2lab(said), rgb2lab(colorize(img, valid, predict, WHOLE))).mean())
    return {"way": way, "cpu_s": round(statistics.median(times[1:]), 2), "mpx_per_cpu_s": round(np.prod(SHAPE) / 1e6 / statistics.median(times[1:]), 3),
            "peak_mb_above": round(peak - small), "de00_off": None if off is None else round(off, 3)}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--way", help="Measure this one here and print it")
    args = p.parse_args()
    if args.way: return print(json.dumps(measure(args.way, args.rounds)))
    rows = []
    for way in WAYS:
        done = subprocess.run([sys.executable, __file__, "--way", way, "--rounds", str(args.rounds)], capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1])
    Path(__file__).with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__": main()
