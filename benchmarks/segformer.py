"""A step of a SegFormer as a bare loop takes it and as `train.fit` does, and 64 bands mapped beside the model alone: `python benchmarks/segformer.py`

Forward, backward and AdamW on 8 chips of 64 px, 64 bands, ten classes, one thread. The ways take turns, round after round. Seconds are of CPU, user and system, the median
over rounds; `ratio` is over the bare loop. The map: 64 float32 bands from a tiled GeoTIFF, band by band as in the public files, and pixel by pixel; its ratio is over the model alone on as many tiles.
Writes `benchmarks/segformer.json`."""
import tempfile

import numpy as np
import rasterio
import torch
import torch.nn.functional as F
from planetlab.dune_classes import CLASSES
from planetlab.embeddings import open_embeddings
from planetlab.maps import map_scene
from planetlab.models.losses import CrossEntropy, PixelLoss
from planetlab.models.segformer import SMALL, SegFormer
from planetlab.seams import MapPlan
from planetlab.segment import SegmentLoss
from planetlab.text_controls import vector_predictor
from planetlab.train import Recipe, fit, keep_memory
from turns import cpu_s, take_turns

WAYS = {"bare loop": ("bare", "no"), "bare loop, channels last": ("channels last", "no"), "train.fit": ("fit", "no"), "train.fit, counting classes": ("count", "no"),
        "train.fit, bfloat16": ("fit", "bf16"), "map_scene": ("band", "no"), "map_scene, pixel by pixel on disk": ("pixel", "no"), "model alone": ("alone", "no")}


def network():
    torch.manual_seed(0)
    return SegFormer(text="prototypes", **vars(SMALL))


def bare(model, how, batches):
    "What anybody would write"
    if how == "channels last": model.to(memory_format=torch.channels_last)
    opt = torch.optim.AdamW(model.parameters(), 1e-3)
    model.train()
    for x, y in batches:
        x = x.contiguous(memory_format=torch.channels_last) if how == "channels last" else x
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y, ignore_index=255)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()


def steps_of(how, precision, n):
    gen = torch.Generator().manual_seed(0)
    batch = torch.rand(8, 64, 64, 64, generator=gen), torch.randint(0, 10, (8, 64, 64), generator=gen)
    if how in ("bare", "channels last"): return bare(network(), how, [batch] * n)
    tiny = [tuple(t[:1, ..., :32, :32] for t in batch)]
    loss = SegmentLoss(CrossEntropy()) if how == "count" else PixelLoss()
    for _ in fit(network(), loss, [batch] * n, tiny, Recipe(1, lr=1e-3, precision=precision)): pass


def tiles_of(how, n):
    "Map n² tiles, or answer as many tiles from memory"
    predict, side, plan = vector_predictor(network(), CLASSES), 192 * n + 64, MapPlan(256, 16, 32, batch=1)
    x = np.random.default_rng(0).normal(size=(64, side, side)).astype("float32")
    x /= np.linalg.norm(x, axis=0)
    with tempfile.TemporaryDirectory() as tmp:
        profile = {"driver": "GTiff", "count": 64, "height": side, "width": side, "dtype": "float32", "crs": "EPSG:32733", "nodata": np.nan,
                   "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 7e6), "tiled": True, "blockxsize": 256, "blockysize": 256, "interleave": how if how != "alone" else "band"}
        with rasterio.open(f"{tmp}/x.tif", "w", **profile) as dst: dst.write(x)
        tile = np.ascontiguousarray((x[None, :, :256, :256] + 1) / 2)
        if how != "alone": return cpu_s(lambda: list(map_scene(open_embeddings(f"{tmp}/x.tif"), f"{tmp}/map", predict, plan=plan)))
        return cpu_s(lambda: [predict(tile) for _ in range(n * n)])


def measure(way, steps):
    "CPU seconds of a step beyond the first few, or of a tile"
    how, precision = WAYS[way]
    torch.set_num_threads(1)
    keep_memory()
    if how in ("band", "pixel", "alone"): return (tiles_of(how, 6) - tiles_of(how, 2)) / 32
    steps_of(how, precision, 2)
    few, many = (cpu_s(lambda n=n: steps_of(how, precision, n)) for n in (2, steps + 2)) # what a training costs once is in both
    return (many - few) / steps


if __name__ == "__main__":
    take_turns(__file__, __doc__, measure, WAYS, lambda way: "model alone" if way[0] == "m" else "bare loop", steps=16)
