"""Kill -9 extraction, export, mapping and training at random moments, let them go on, and compare every byte with an uninterrupted run

    python benchmarks/kills.py [KILLS [JOB ...]]
"""
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import rasterio
import torch
from affine import Affine
from rasterio.crs import CRS

from planetlab.chips import Chips, Symmetry, Views, take
from planetlab.core import file_digest, write_json
from planetlab.latents import Extraction, attention_pool, extract_latents
from planetlab.maps import map_scene
from planetlab.models.autoencoder import VAE, vae_loss
from planetlab.outputs import class_map, confidence
from planetlab.predictor import roughness
from planetlab.scene import open_scene
from planetlab.seams import MapPlan
from planetlab.shards import plan_tiles, write_shard, write_tiles
from planetlab.share import save_model
from planetlab.train import Recipe, fit

SIZE = 16


def make_world(folder: Path) -> None:
    "A speckled image of Venus with a gore"
    dn = np.random.default_rng(0).gamma(4, 25, (1300, 900)).clip(1, 255).astype("uint8")
    dn[:, 300:340] = 0
    with rasterio.open(folder / "image.tif", "w", driver="GTiff", height=1300, width=900, count=1, dtype="uint8", nodata=0, compress="lzw",
                       crs=CRS.from_authority("IAU_2015", 29910), transform=Affine(75, 0, 1e6, 0, -75, 2e6)) as dst: dst.write(dn, 1)


def some_chips(n: int) -> Chips:
    g = torch.Generator().manual_seed(0)
    valid = torch.rand(n, 1, SIZE, SIZE, generator=g) > torch.rand(n, 1, 1, 1, generator=g).round()
    return Chips(torch.rand(n, 1, SIZE, SIZE, generator=g), valid, SIZE)


def small_vae() -> VAE:
    torch.manual_seed(0)
    return VAE(size=SIZE, latent=4, width=8)


def extraction(world: Path, out: Path) -> None:
    ids = [f"s{i // 4:05}" for i in range(1600)]
    how = Extraction(Symmetry(upside_down=True), attention_pool, batch=40, part=80)
    for _ in extract_latents(out / "z.parquet", small_vae(), partial(take, some_chips(len(ids))), ids, "sar", {"data": "kills"}, how): pass


def shard(world: Path, out: Path) -> None:
    for _ in write_shard(out / "shard", plan_tiles([world / "image.tif"], 64, 48), part_px=30_000): pass


def tiles(world: Path, out: Path) -> None:
    for _ in write_tiles(out / "maps", plan_tiles([world / "image.tif"], 64, 48), part_px=60_000, workers=2): pass


def mapping(world: Path, out: Path) -> None:
    rough = roughness(20.0, radius=4)
    outputs, plan = [class_map(rough.classes), confidence()], MapPlan(64, 8, 8, block_px=20_000)
    for _ in map_scene(open_scene(world / "image.tif"), out / "map", rough, outputs, plan=plan, workers=2): pass


def training(world: Path, out: Path) -> None:
    model, views = small_vae(), Views(some_chips(128), Symmetry(turn=True), 64, generator=torch.Generator().manual_seed(1))
    rows = list(fit(model, vae_loss, views, views, Recipe(8), out / "state.pt"))
    write_json(out / "rows.json", rows)
    save_model(out / "model", model, {"body": "Venus"})


JOBS = {f.__name__: f for f in (extraction, shard, tiles, mapping, training)}


def products(out: Path) -> dict[str, str]:
    "Hash of every file, but for the training's state and what a killed write left hidden, which are no results"
    return {p.relative_to(out).as_posix(): file_digest(p) for p in sorted(out.rglob("*"))
            if p.is_file() and p.suffix not in (".pt", ".lock") and ".partial" not in p.name}


def processes():
    "Where children start in milliseconds, with everything imported"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kills", "planetlab.latents", "planetlab.maps", "planetlab.shards", "planetlab.train", "planetlab.models.autoencoder"])
    return context


def start(context, name: str, world: Path, out: Path):
    out.mkdir(parents=True, exist_ok=True)
    child = context.Process(target=JOBS[name], args=(world, out))
    child.start()
    return child


def uninterrupted(context, name: str, world: Path, out: Path) -> float:
    "Seconds that a job takes"
    start(context, name, world, out / "warm").join() # the first child loads what the next ones find in memory
    begun = time.perf_counter()
    child = start(context, name, world, out / "whole")
    child.join()
    assert child.exitcode == 0, f"{name} failed without being killed"
    return time.perf_counter() - begun


def killed(context, name: str, world: Path, out: Path, seconds: float, kills: int, rng: random.Random) -> tuple[int, bool]:
    "Kill a job at random moments and let it end; how often it was killed, and whether its products are those of a whole run"
    done = 0
    for _ in range(kills):
        child = start(context, name, world, out / "killed")
        child.join(rng.uniform(0, seconds))
        if child.exitcode is None: done += 1
        child.kill()
        child.join()
    child = start(context, name, world, out / "killed")
    child.join()
    same = child.exitcode == 0 and products(out / "killed") == products(out / "whole")
    shutil.rmtree(out / "killed")
    return done, same


def main(wanted: int, jobs=tuple(JOBS)) -> None:
    rng, context, folder = random.Random(0), processes(), Path(tempfile.mkdtemp(prefix="kills_"))
    make_world(folder)
    seconds = {name: uninterrupted(context, name, folder, folder / name) for name in jobs}
    tally = {name: [0, 0, 0] for name in jobs}
    while sum(t[0] for t in tally.values()) < wanted:
        name = min(tally, key=lambda n: tally[n][0])
        kills, same = killed(context, name, folder, folder / name, seconds[name], rng.choice([1, 2, 3]), rng)
        tally[name] = [tally[name][0] + kills, tally[name][1] + 1, tally[name][2] + same]
        print(f"{name}: {kills} kills, {'the same' if same else 'NOT THE SAME'}", flush=True)
    for name, (kills, runs, same) in tally.items():
        print(f"{name:11} {seconds[name]:5.1f} s whole, {kills:3} kills in {runs:3} runs, {same:3} of {runs} ended in the same bytes")
    shutil.rmtree(folder)
    if any(runs != same for _, runs, same in tally.values()): raise SystemExit("not all the same")


if __name__ == "__main__":
    import kills # under its own name, so that children find the jobs
    kills.main(int(sys.argv[1]) if len(sys.argv) > 1 else 50, tuple(sys.argv[2:]) or tuple(JOBS))
