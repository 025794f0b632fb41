"""Cut a 3839 x 4096 speckled image into 64 tiles: planetlab beside the raw limit and rasterio, in the same rounds

    python benchmarks/tiles.py [ROUNDS]

There are two limits, and neither knows what it writes. The first decodes the image once and writes the pixels of each tile to a plain file. The
second writes the very bytes of a shard: the pixels, and one bit per pixel that says whether it is data. CPU seconds and wall, medians; the
ratios are of the same round. planetlab's rows include what both lack: a catalog, a ledger, hashes of the input, and files that are on the
disk (fsync).
"""
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
import torch
from affine import Affine
from PIL import Image
from rasterio.crs import CRS
from rasterio.windows import Window

from planetlab.shards import COLUMNS, open_shard, read_tiles, write_shard, write_tiles
from planetlab.windows import tile_windows

SIZE, HEIGHT, WIDTH = 512, 3839, 4096


def make_image(path):
    "Four-look speckle on a slow gradient, LZW, georeferenced on Venus"
    rng = np.random.default_rng(0)
    ground = 60 + 60 * np.linspace(0, 1, HEIGHT)[:, None] * np.linspace(0.5, 1, WIDTH)
    dn = (ground * rng.gamma(4, 1 / 4, (HEIGHT, WIDTH))).clip(1, 255).astype("uint8")
    with rasterio.open(path, "w", driver="GTiff", height=HEIGHT, width=WIDTH, count=1, dtype="uint8", nodata=0, compress="lzw",
                       crs=CRS.from_authority("IAU_2015", 29910), transform=Affine(75, 0, 1e6, 0, -75, 2e6)) as dst: dst.write(dn, 1)


def seed_plan(path):
    "The 64 windows of the Venus seed: rows overlap by 32 px, columns do not"
    rows = sorted({w.row_off for w in tile_windows(HEIGHT, WIDTH, SIZE, 480)})
    return pd.DataFrame([(f"tile_{r}_{c}", str(path), r, c, SIZE, SIZE) for r in rows for c in range(0, WIDTH, SIZE)], columns=list(COLUMNS))


def decode(path):
    with rasterio.open(path) as src: return src.read(1)


def slices(plan, img):
    for name, r, c in zip(plan.id, plan.row_off, plan.col_off): yield name, r, c, img[r:r + SIZE, c:c + SIZE]


def limit(plan, out):
    for name, _, _, px in slices(plan, decode(plan.scene[0])): (out / name).write_bytes(px.tobytes())


def limit_shard(plan, out):
    with open(out / "pixels", "wb") as pixels, open(out / "valid", "wb") as valid:
        for _, _, _, px in slices(plan, decode(plan.scene[0])):
            pixels.write(px.tobytes())
            valid.write(np.packbits(px != 0).tobytes())


def pillow(plan, out):
    Image.MAX_IMAGE_PIXELS = None
    for name, _, _, px in slices(plan, np.asarray(Image.open(plan.scene[0]))): Image.fromarray(px).save(out / f"{name}.tif")


def rasterio_once(plan, out):
    with rasterio.open(plan.scene[0]) as src: img, crs, at, nodata = src.read(1), src.crs, src.transform, src.nodata
    for name, r, c, px in slices(plan, img):
        with rasterio.open(out / f"{name}.tif", "w", driver="GTiff", height=SIZE, width=SIZE, count=1, dtype=px.dtype, crs=crs, nodata=nodata,
                           transform=at @ Affine.translation(c, r)) as dst: dst.write(px, 1)


def rasterio_boundless(plan, out):
    with rasterio.open(plan.scene[0]) as src:
        for name, r, c in zip(plan.id, plan.row_off, plan.col_off):
            w = Window(c, r, SIZE, SIZE)
            px = src.read(1, window=w, boundless=True)
            with rasterio.open(out / f"{name}.tif", "w", driver="GTiff", height=SIZE, width=SIZE, count=1, dtype=px.dtype, crs=src.crs,
                               transform=src.window_transform(w)) as dst: dst.write(px, 1)


CONTENDERS = {
    "limit: decode once + 64 plain files": limit,
    "limit: decode once + bytes of a shard": limit_shard,
    "planetlab, one memory-mapped shard": lambda plan, out: list(write_shard(out, plan)),
    "planetlab, straight to tensors": lambda plan, out: torch.from_numpy(read_tiles(plan)[0]),
    "planetlab, georeferenced files": lambda plan, out: list(write_tiles(out, plan)),
    "Pillow, decode once, no georeference": pillow,
    "rasterio, read once, georeferenced": rasterio_once,
    "rasterio, boundless window per tile": rasterio_boundless}


def check(plan, folder):
    "Every product holds the same pixels, and the files the same place"
    shard, (pixels, valid) = open_shard(folder / "planetlab, one memory-mapped shard"), read_tiles(plan)
    bare = folder / "limit: decode once + bytes of a shard"
    assert (bare / "pixels").read_bytes() == shard.pixels.tobytes() and (bare / "valid").read_bytes() == shard.packed.tobytes()
    for i, (name, _, _, px) in enumerate(slices(plan, decode(plan.scene[0]))):
        assert (folder / "limit: decode once + 64 plain files" / name).read_bytes() == px.tobytes()
        assert (shard[i][0] == px).all() and (shard[i][1] == (px > 0)).all() and (pixels[i] == px).all() and (valid[i] == (px > 0)).all()
        with rasterio.open(folder / "planetlab, georeferenced files" / "tiles" / f"{name}.tif") as a, \
             rasterio.open(folder / "rasterio, read once, georeferenced" / f"{name}.tif") as b:
            assert (a.crs, a.transform, a.nodata) == (b.crs, b.transform, b.nodata) and (a.read(1) == b.read(1)).all() and (a.read(1) == px).all()


def main(rounds):
    folder = Path(tempfile.mkdtemp(prefix="tiles_"))
    make_image(folder / "image.tif")
    plan, cpu, wall = seed_plan(folder / "image.tif"), {}, {}
    for i in range(rounds + 1): # the first round warms up
        for name, cut in CONTENDERS.items():
            out = folder / name
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            c, w = time.process_time(), time.perf_counter()
            cut(plan, out)
            if i: cpu.setdefault(name, []).append(time.process_time() - c), wall.setdefault(name, []).append(time.perf_counter() - w)
    check(plan, folder)
    cpu, wall = pd.DataFrame(cpu), pd.DataFrame(wall)
    base, same, loop = "limit: decode once + 64 plain files", "limit: decode once + bytes of a shard", "rasterio, read once, georeferenced"
    print(pd.DataFrame({"CPU s": cpu.median(), "wall s": wall.median(), **{
        f"{kind}: {short}/x": (t[ref].to_numpy()[:, None] / t).median() for kind, t in (("CPU", cpu), ("wall", wall))
        for short, ref in (("files", base), ("shard", same), ("rasterio once", loop))}}).round(3).to_string())
    print(f"{len(plan)} tiles of {SIZE} px, {rounds} rounds; all outputs equal")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
