"""Extraction of latents beside the model's own forward rate, and peak memory against the number of chips

    python benchmarks/latents.py [ROUNDS]

Rate: `extract_latents` (one view per chip; ids, ledger, hashes, Parquet) and a bare loop of `encode` over the same chips at the same batch, in
the same rounds; chips in memory, then 8-bit tiles in a shard. Memory: the largest resident size of a fresh process that describes n and
4 n chips.
"""
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import rasterio
import torch
from affine import Affine
from rasterio.crs import CRS

from planetlab.chips import Chips, read_chips, take
from planetlab.latents import Extraction, extract_latents
from planetlab.models.autoencoder import VAE
from planetlab.shards import COLUMNS, open_shard, write_shard
from planetlab.stretch import Stretch

SIZE, N = 64, 4096


def make_model():
    torch.manual_seed(0)
    return VAE(size=SIZE, latent=16, width=32).eval().to(memory_format=torch.channels_last)


def make_shard(folder, n):
    "n tiles of one speckled scene"
    rows = -(-n // 64)
    dn = np.random.default_rng(0).gamma(4, 25, (rows * SIZE, 64 * SIZE)).clip(1, 255).astype("uint8")
    with rasterio.open(folder / "scene.tif", "w", driver="GTiff", height=dn.shape[0], width=dn.shape[1], count=1, dtype="uint8", nodata=0,
                       crs=CRS.from_authority("IAU_2015", 29910), transform=Affine.scale(75, -75)) as dst:
        dst.write(dn, 1)
    plan = pd.DataFrame([(f"t{i:07}", str(folder / "scene.tif"), i // 64 * SIZE, i % 64 * SIZE, SIZE, SIZE) for i in range(n)], columns=list(COLUMNS))
    list(write_shard(folder / "shard", plan))
    return open_shard(folder / "shard")


def bare(model, x, batch):
    with torch.no_grad():
        for part in x.split(batch): model.encode(part)


def extract(path, model, read, ids, batch):
    list(extract_latents(path, model, read, ids, "sar", {"data": "speckle"}, Extraction(batch=batch)))
    path.unlink()


def rates(folder, rounds):
    model, shard, stretch = make_model(), make_shard(folder, N), Stretch((0,), (255,))
    chips, ids = read_chips(shard, stretch, SIZE, np.arange(N)), shard.catalog.id
    rows = {}
    for _ in range(rounds + 1):
        for batch in (16, 64):
            jobs = {"bare encode": partial(bare, model, chips.x, batch),
                    "extract, in memory": partial(extract, folder / "z.parquet", model, partial(take, chips), ids, batch),
                    "extract, from shard": partial(extract, folder / "z.parquet", model, partial(read_chips, shard, stretch, SIZE), ids, batch)}
            for name, job in jobs.items():
                c, w = time.process_time(), time.perf_counter()
                job()
                rows.setdefault((batch, name), []).append((time.process_time() - c, time.perf_counter() - w))
    table = pd.DataFrame([{"batch": b, "what": k, "CPU": np.array(v[1:])[:, 0], "wall": np.array(v[1:])[:, 1]} for (b, k), v in rows.items()])
    base = {b: t for b, t in table[table.what == "bare encode"].set_index("batch")[["CPU", "wall"]].iterrows()}
    out = pd.DataFrame({"batch": table.batch, "what": table.what, "CPU s": table.CPU.map(np.median), "wall s": table.wall.map(np.median),
                        "chips/s of CPU": [N / np.median(c) for c in table.CPU],
                        "CPU: bare/x": [np.median(base[b].CPU / c) for b, c in zip(table.batch, table.CPU)],
                        "wall: bare/x": [np.median(base[b].wall / w) for b, w in zip(table.batch, table.wall)]})
    print(out.round(3).to_string(index=False))
    print(f"{N} chips of {SIZE} px, {torch.get_num_threads()} thread(s), {rounds} rounds")


def speckle(rows: np.ndarray) -> Chips:
    "Chips made when they are asked for: nothing but the extraction itself can grow"
    g = torch.Generator().manual_seed(int(rows[0]))
    return Chips(torch.rand(len(rows), 1, SIZE, SIZE, generator=g), torch.ones(len(rows), 1, SIZE, SIZE, dtype=torch.bool), SIZE)


def memory(n: int) -> None:
    "Resident size of this process, MiB: before, and at the peak of an extraction of n chips"
    model, ids = make_model(), [f"t{i:07}" for i in range(n)]
    with tempfile.TemporaryDirectory() as tmp:
        extract(Path(tmp, "warm.parquet"), model, speckle, ids[:256], 64)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        extract(Path(tmp, "z.parquet"), model, speckle, ids, 64)
    print(f"{n:6} chips: {before / 1024:.0f} MiB before, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB at the peak")


if __name__ == "__main__":
    kind = sys.argv[1] if len(sys.argv) > 1 else "5"
    if kind == "memory": memory(int(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as tmp: rates(Path(tmp), int(kind))
        for n in (5000, 20000): subprocess.run([sys.executable, __file__, "memory", str(n)], check=True)
