"""Map a raster with one model through every engine, in the same rounds: planetlab, a plain loop, torchgeo and geoai, and the bare forward

    python benchmarks/maps.py [--peers ENV/bin/python] [--rounds N] [CASE ...]

Each contender runs alone in a process of its own, one after another, round by round. CPU seconds (user and system) and wall are counted
from the opened model to the closed file, peak memory above what the process held at that moment. `ceiling` is what the model's own forward takes
for as many tiles in memory, in batches, reading and writing nothing; ratios are the ceiling's seconds over a contender's in the same round,
medians over rounds: 1 means that stitching, reading and writing cost nothing. Peers want an environment of their own (maps.requirements.txt) and are
skipped, saying so, where there is none. Cases: light, light2 (two threads), unet, bands64, memory, huge. Writes benchmarks/maps.json.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve()
CASES = { # raster (bands, height, width), dtype, model, tile, overlap, batch, threads
    "light": ((1, 4096, 4096), "uint8", "light", 512, 64, 4, 1),
    "light2": ((1, 4096, 4096), "uint8", "light", 512, 64, 4, 2),
    "unet": ((1, 1024, 1024), "uint8", "unet", 512, 128, 4, 1),
    "bands64": ((64, 2048, 2048), "float32", "bands64", 256, 64, 8, 1),
    "low": ((1, 4096, 16384), "uint8", "one", 512, 64, 4, 1),
    "high": ((1, 16384, 16384), "uint8", "one", 512, 64, 4, 1),
    "huge": ((1, 30000, 30000), "uint8", "light", 512, 64, 4, 1),
}
OURS = {"planetlab": {}, "planetlab, bfloat16": {"precision": "bfloat16"}, "planetlab, default allocator": {"keep_memory": False}}
PEERS = ("torchgeo", "geoai")


def make_raster(path, shape, dtype):
    "Four-look speckle on a slow gradient, LZW or bare, on the Moon; written in strips"
    import numpy as np
    import rasterio
    rng, (bands, height, width) = np.random.default_rng(0), shape
    profile = dict(driver="GTiff", count=bands, height=height, width=width, dtype=dtype, tiled=True, blockxsize=256, blockysize=256, crs="IAU_2015:30110",
                   transform=rasterio.Affine(5, 0, 0, 0, -5, 0), compress="lzw" if dtype == "uint8" else None, bigtiff="IF_SAFER", interleave="pixel")
    speckle = rng.gamma(4, 0.25, (bands, 512, width)).astype("float32")
    with rasterio.open(path, "w", **profile) as dst:
        for row in range(0, height, 512):
            h, shift = min(512, height - row), int(rng.integers(0, width))
            img = (60 + 60 * np.sin(np.arange(row, row + h) / 3000)[:, None] ** 2) * np.roll(speckle[:, :h], shift, -1)
            img = img.clip(1, 255) if dtype == "uint8" else img / 100
            dst.write(img.astype(dtype), window=rasterio.windows.Window(0, row, width, h))


def make_model(name, bands):
    import torch
    from torch import nn
    torch.manual_seed(0)
    if name == "unet":
        import segmentation_models_pytorch as smp
        return smp.Unet("resnet18", encoder_weights=None, in_channels=bands, classes=1).eval(), 1
    widths = {"light": (bands, 8, 8, 1), "one": (bands, 1), "bands64": (bands, 16, 10)}[name]
    layers = [m for a, b in zip(widths[:-1], widths[1:]) for m in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).eval(), widths[-1]


class Unit:
    "Counts to [0, 1]"
    def __call__(self, pixels, valid): return pixels.astype("float32") / 255 if pixels.dtype == "uint8" else pixels


def ceiling(model, path, out, case, classes, kept=False):
    import torch
    from planetlab.train import keep_memory
    (bands, height, width), _, _, size, overlap, batch, _ = CASES[case]
    if kept: keep_memory()
    step = size - overlap
    tiles = (-(-(height - size) // step) + 1) * (-(-(width - size) // step) + 1)
    x = torch.rand(batch, bands, size, size)
    with torch.inference_mode():
        for i in range(0, tiles, batch): model(x[:min(batch, tiles - i)])


def plain(model, path, out, case, classes):
    "Window by window, no overlap"
    import numpy as np
    import rasterio
    import torch
    size = CASES[case][3]
    with rasterio.open(path) as src, torch.inference_mode():
        profile = {**src.profile, "count": classes, "dtype": "float32", "compress": "lzw"}
        with rasterio.open(out, "w", **profile) as dst:
            for row in range(0, src.height, size):
                for col in range(0, src.width, size):
                    w = rasterio.windows.Window(col, row, min(size, src.width - col), min(size, src.height - row))
                    x = Unit()(src.read(window=w), None)
                    dst.write(model(torch.from_numpy(np.ascontiguousarray(x))[None])[0].numpy(), window=w)


def planetlab(model, path, out, case, classes, workers=1, **how):
    from planetlab.maps import map_scene
    from planetlab.outputs import values
    from planetlab.predict import torch_predictor
    from planetlab.scene import open_scene
    from planetlab.seams import MapPlan
    from dataclasses import replace
    (bands, *_), _, name, size, overlap, batch, _ = CASES[case]
    names = tuple(f"v{i}" for i in range(classes))
    predict = torch_predictor(model, names, bands, stride=32 if name == "unet" else 1, **how)
    plan = MapPlan(size, overlap // 4, overlap // 2, batch=batch)
    for _ in map_scene(open_scene(path), out + ".map", replace(predict, scale=Unit()), [values(names)], plan=plan, workers=workers): pass
    os.replace(f"{out}.map/values.tif", out)


def torchgeo(model, path, out, case, classes):
    "GridGeoSampler and DataLoader; the mean where tiles overlap, in memory: torchgeo has no stitching of its own"
    import numpy as np
    import rasterio
    import torch
    from torch.utils.data import DataLoader
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import GridGeoSampler
    _, _, _, size, overlap, batch, _ = CASES[case]
    data = RasterDataset(path, crs=rasterio.open(path).crs, res=5.0)
    loader = DataLoader(data, batch, sampler=GridGeoSampler(data, size, size - overlap), collate_fn=stack_samples)
    with rasterio.open(path) as src, torch.inference_mode():
        total, n = np.zeros((classes, src.height, src.width), "float32"), np.zeros((src.height, src.width), "float32")
        for some in loader:
            scale = 255 if src.dtypes[0] == "uint8" else 1
            for y, box in zip(model(some["image"].float() / scale).numpy(), some["bounds"]):
                row, col = _corner(src, box)
                top, h, w = max(-row, 0), min(size, src.height - row), min(size, src.width - col) # the last tiles reach above the raster
                total[:, row + top:row + h, col:col + w] += y[:, top:h, :w]
                n[row + top:row + h, col:col + w] += 1
        with rasterio.open(out, "w", **{**src.profile, "count": classes, "dtype": "float32", "compress": "lzw"}) as dst: dst.write(total / n)


def _corner(src, box):
    x, y = (box[0].start, box[1].stop) if isinstance(box, tuple) else (box.minx, box.maxy)
    row, col = src.index(float(x) + 1e-3, float(y) - 1e-3)
    return int(row), int(col)


def geoai(model, path, out, case, classes):
    from geoai.inference import predict_geotiff
    _, dtype, _, size, overlap, batch, _ = CASES[case]
    scale = (lambda x: x.astype("float32") / 255) if dtype == "uint8" else (lambda x: x.astype("float32"))
    predict_geotiff(model, str(path), str(out), size, overlap, batch, num_classes=classes, preprocess_fn=scale, device="cpu", verbose=False)


def one(who, case, path, out):
    "Run one contender here, and say what it took"
    import torch
    (bands, *_), _, name, *_, threads = CASES[case]
    torch.set_num_threads(threads)
    model, classes = make_model(name, bands)
    runs = {"ceiling": ceiling, "ceiling, kept memory": lambda *a: ceiling(*a, kept=True), "plain loop": plain, "torchgeo": torchgeo, "geoai": geoai,
            "planetlab, 2 workers": lambda *a: planetlab(*a, workers=2, threads=1),
            **{k: lambda *a, how=how: planetlab(*a, **how) for k, how in OURS.items()}}
    x = torch.rand(1, bands, 64, 64)
    with torch.inference_mode(): model(x)
    for module in {"torchgeo": ("torchgeo.samplers",), "geoai": ("geoai.inference",)}.get(who, ("planetlab.maps", "planetlab.predict")): __import__(module)
    Path("/proc/self/clear_refs").write_text("5") # the peak begins here
    before, cpu, wall = _peak(), sum(os.times()[:2]), time.perf_counter()
    runs[who](model, path, out, case, classes)
    print(json.dumps({"cpu_s": sum(os.times()[:2]) - cpu, "wall_s": time.perf_counter() - wall, "peak_mib": _peak() - before,
                      "file_mib": os.path.getsize(out) / 2**20 if os.path.exists(out) else 0}))


def _peak():
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) / 1024


def measure(case, python, who, path, folder):
    out = str(Path(folder) / "out.tif")
    env = {**os.environ, "PYTHONPATH": str(HERE.parent.parent), "OMP_NUM_THREADS": str(CASES[case][6]), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([python, "-W", "ignore", str(HERE), "--one", who, case, str(path), out], env=env, capture_output=True, text=True)
    for made in Path(folder).glob("out.tif*"):
        if made.is_dir(): subprocess.run(["rm", "-r", str(made)])
        else: made.unlink()
    if done.returncode: return {"failed": done.stderr.strip().splitlines()[-1][:200] if done.stderr.strip() else f"exit {done.returncode}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def contenders(case, peers):
    if case in ("low", "high", "huge"): return [("planetlab", sys.executable)]
    mine = ["ceiling", "ceiling, kept memory", "plain loop", *OURS]
    if case == "light2": mine.append("planetlab, 2 workers")
    return [(who, sys.executable) for who in mine] + [(who, peers) for who in PEERS if peers]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", default=["light", "light2", "unet", "bands64", "low", "high"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", help="Python of an environment that has maps.requirements.txt")
    parser.add_argument("--one", nargs=4)
    args = parser.parse_args()
    if args.one: return one(*args.one)
    if not args.peers: print("torchgeo and geoai skipped: give --peers ENV/bin/python (benchmarks/maps.requirements.txt)")
    kept = HERE.with_suffix(".json")
    table = json.loads(kept.read_text()) if kept.exists() else {}
    for case in args.cases:
        with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
            path = Path(folder) / "scene.tif"
            make_raster(path, *CASES[case][:2])
            rounds = [{who: measure(case, python, who, path, folder) for who, python in contenders(case, args.peers)} for _ in range(args.rounds)]
        table[case] = {"what": dict(zip(("raster", "dtype", "model", "tile", "overlap", "batch", "threads"), CASES[case])), "rounds": args.rounds,
                       "rows": [summary(who, rounds) for who in rounds[0]]}
        for row in table[case]["rows"]: print(case, row, flush=True)
        kept.write_text(json.dumps(table, indent=1) + "\n")


def summary(who, rounds):
    runs = [r[who] for r in rounds if "failed" not in r[who]]
    if not runs: return {"who": who, "failed": rounds[0][who]["failed"]}
    row = {"who": who, **{k: round(statistics.median(r[k] for r in runs), 2) for k in runs[0]}}
    if "ceiling" in rounds[0]:
        for name, key in (("ratio_cpu", "cpu_s"), ("ratio_wall", "wall_s")):
            row[name] = round(statistics.median(r["ceiling"][key] / r[who][key] for r in rounds if "failed" not in r[who]), 2)
    return row


if __name__ == "__main__": main()
