"The engine of long work: laws of restart, killed processes, killed workers, hostile input; what is cut and described with it"
import os
import random
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.windows import Window

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import kills

from planetlab.blocks import Blocks, check_same, finish, iter_blocks
from planetlab.chips import Chips, read_chips, take
from planetlab.core import BadInput, CannotWrite, Corrupt, ModelMismatch, PlanetlabError
from planetlab.grid import Grid
from planetlab.latents import Extraction, attention_pool, extract_latents, mean_pool, read_latents
from planetlab.models.autoencoder import Autoencoder, vector
from planetlab.scene import is_valid, open_scene, read_tile, reader, scene_of
from planetlab.shards import COLUMNS, iter_tiles, open_shard, plan_tiles, read_tiles, runs_of, tiff_head, write_shard, write_tiles
from planetlab.stretch import Stretch, to_unit

FAST = settings(max_examples=15, deadline=None)


def square(i, path): path.write_text(str(i * i))
def joined(parts, path): path.write_text(",".join(p.read_text() for p in parts))
def contents(folder): return {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.is_file() and p.name != ".lock"}


def slow_square(i, path):
    time.sleep(0.15)
    square(i, path)


@FAST
@given(n=st.integers(1, 9), stops=st.lists(st.integers(1, 4), max_size=4), workers=st.integers(1, 3), tear=st.integers(0, 60))
def test_stopped_anywhere_and_torn_it_ends_in_the_same_bytes(n, stops, workers, tear):
    with tempfile.TemporaryDirectory() as tmp:
        whole, broken = (Blocks(Path(tmp, f), range(n), {"a": 1}, ".txt") for f in ("whole", "broken"))
        list(iter_blocks(whole, square))
        for stop in stops:
            running = iter_blocks(broken, square, workers)
            for _ in range(min(stop, n)): next(running)
            running.close()
            ledger = broken.folder / "ledger.jsonl"
            ledger.write_bytes(ledger.read_bytes()[:len(ledger.read_bytes()) - tear])
        parts = list(iter_blocks(broken, square, workers))
        assert [p.index for p in parts] == list(range(n)) and contents(whole.folder) == contents(broken.folder)
        finish(broken, Path(tmp, "all.txt"), joined)
        assert Path(tmp, "all.txt").read_text() == ",".join(str(i * i) for i in range(n)) and not broken.folder.exists()


@FAST
@given(then=st.dictionaries(st.text(max_size=3), st.integers() | st.floats() | st.none(), max_size=4), data=st.data())
def test_identities_are_mixed_only_if_equal(then, data):
    check_same("x", then, dict(reversed(then.items())))
    name = data.draw(st.sampled_from([*then, "new"]))
    with pytest.raises(ModelMismatch, match="made another way"): check_same("x", then, {**then, name: "other"})


def test_a_part_changed_or_lost_is_made_again(tmp_path):
    blocks = Blocks(tmp_path, range(5), {}, ".txt")
    list(iter_blocks(blocks, square))
    before = contents(tmp_path)
    blocks.part(1).unlink()
    blocks.part(3).write_text("9 and a half")
    (tmp_path / ".000002-x.99.partial.txt").write_text("left by a kill")
    list(iter_blocks(blocks, square))
    assert {k: v for k, v in contents(tmp_path).items() if k.endswith(".txt")} == {k: v for k, v in before.items() if k.endswith(".txt")}


def test_a_damaged_ledger_is_corrupt(tmp_path):
    blocks = Blocks(tmp_path, range(3), {}, ".txt")
    list(iter_blocks(blocks, square))
    (tmp_path / "ledger.jsonl").write_bytes(b"\0" * 40 + b"\n" + (tmp_path / "ledger.jsonl").read_bytes())
    with pytest.raises(Corrupt, match="start over"): list(iter_blocks(blocks, square))


def test_an_interrupt_stops_at_once_and_keeps_what_is_done(tmp_path):
    def interrupted(i, path):
        if i == 2: raise KeyboardInterrupt
        square(i, path)
    blocks = Blocks(tmp_path, range(4), {}, ".txt")
    with pytest.raises(KeyboardInterrupt): list(iter_blocks(blocks, interrupted))
    assert [blocks.part(i).exists() for i in range(4)] == [True, True, False, False]
    assert len(list(iter_blocks(blocks, square))) == 4


@pytest.mark.parametrize("items, kwargs, message", [([], {}, "schedule .* is empty"), ([1], {"workers": 0}, "0 workers")])
def test_work_that_cannot_be_done(tmp_path, items, kwargs, message):
    with pytest.raises(BadInput, match=message): list(iter_blocks(Blocks(tmp_path / "b", items, {}), square, **kwargs))


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CannotWrite, match="choose another folder"): list(iter_blocks(Blocks(tmp_path / "file" / "b", [1], {}), square))


@pytest.mark.filterwarnings("ignore")
def test_dask_with_a_killed_worker_is_equal(tmp_path):
    distributed = pytest.importorskip("distributed")
    whole, shared = (Blocks(tmp_path / f, range(16), {}, ".txt") for f in ("whole", "shared"))
    list(iter_blocks(whole, square))
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50) as cluster, \
         distributed.Client(cluster) as client:
        pids = list(client.run(os.getpid).values())
        for part in iter_blocks(shared, slow_square, client=client):
            if part.index == 2: os.kill(pids[0], signal.SIGKILL)
    assert contents(whole.folder) == contents(shared.folder)


@pytest.mark.parametrize("name", ["extraction", "shard", "tiles"])
def test_killed_at_random_moments_the_products_are_equal(tmp_path, name):
    context = kills.processes()
    kills.make_world(tmp_path)
    seconds = kills.uninterrupted(context, name, tmp_path, tmp_path / name)
    done, same = kills.killed(context, name, tmp_path, tmp_path / name, seconds, 2, random.Random(name))
    assert same
    assert not [p for p in (tmp_path / name / "whole").rglob("*") if ".blocks" in p.name or "partial" in p.name]


# what is cut

@pytest.fixture(scope="module")
def image(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image")
    kills.make_world(folder)
    return folder / "image.tif"


@FAST
@given(size=st.integers(20, 300), share=st.floats(0.1, 1), most=st.sampled_from([1, 5_000, 1 << 24]), seed=st.integers(0, 99), shuffled=st.booleans())
def test_runs_cover_a_plan_in_order(image, size, share, most, seed, shuffled):
    plan = plan_tiles([image], size, max(1, size * 3 // 4)).sample(frac=share, random_state=seed)
    if not shuffled: plan = plan.sort_index()
    if plan.empty: return
    assert [i for a, b in runs_of(plan, most) for i in range(a, b)] == list(range(len(plan)))


@FAST
@given(bands=st.integers(1, 3), dtype=st.sampled_from(["uint8", "int16", "float32"]), height=st.integers(1, 9), width=st.integers(1, 9),
       turn=st.sampled_from([0, 30]), north_up=st.booleans(), code=st.sampled_from([29910, 29915, 30100, 49900, None]), nodata=st.sampled_from([None, 0]),
       corner=st.tuples(st.integers(-10**7, 10**7), st.floats(-1e7, 1e7)), seed=st.integers(0, 99))
def test_a_tile_of_our_own_hand_reads_like_one_of_gdal(bands, dtype, height, width, turn, north_up, code, nodata, corner, seed):
    crs = CRS.from_authority("IAU_2015", code) if code else None
    here = Affine.translation(*corner) @ Affine.rotation(turn) @ Affine.scale(75, -75 if north_up else 75)
    pixels = np.random.default_rng(seed).integers(0, 99, (bands, height, width)).astype(dtype)
    head = tiff_head(Grid(height, width, Affine.translation(5, 6) @ here, crs), bands, dtype, nodata)
    with rasterio.MemoryFile(head(here) + np.moveaxis(pixels, 0, -1).tobytes()) as file, file.open() as src:
        assert (src.crs, src.nodata, src.count, src.dtypes[0]) == (crs, nodata, bands, dtype)
        np.testing.assert_allclose(list(src.transform)[:6], list(here)[:6], rtol=1e-12)
        np.testing.assert_array_equal(src.read(), pixels)


def test_every_form_holds_the_same_tiles(image, tmp_path):
    plan = plan_tiles([image], 100, 90).assign(split="train")
    pixels, valid = read_tiles(plan)
    list(write_shard(tmp_path / "shard", plan, part_px=50_000))
    list(write_tiles(tmp_path / "maps", plan, workers=2))
    shard = open_shard(tmp_path / "shard")
    assert len(shard) == len(plan) and (shard.catalog.split == "train").all()
    for i, (tile, name) in enumerate(zip(iter_tiles(plan), plan.id)):
        assert (shard[i][0] == tile.pixels).all() and (shard[i][1] == tile.valid).all() and shard.grid(i) == tile.grid
        assert (pixels[i] == tile.pixels).all() and (valid[i] == tile.valid).all() and shard.catalog.valid_share[i] == tile.valid.mean()
        with rasterio.open(tmp_path / "maps" / "tiles" / f"{name}.tif") as src:
            assert (src.crs, src.transform) == (tile.grid.crs, tile.grid.transform) and (src.dataset_mask().astype(bool) == tile.valid).all()


@FAST
@given(bands=st.integers(1, 2), dtype=st.sampled_from(["uint8", "int16", "float32", "float64"]), nodata=st.sampled_from([None, 0, -5, 300]),
       specials=st.sampled_from([(), (3.0,), (1.0, 4.0)]), seed=st.integers(0, 99))
def test_validity_is_what_each_number_says(bands, dtype, nodata, specials, seed):
    pixels = np.random.default_rng(seed).integers(0, 7, (bands, 8, 9)).astype(dtype)
    if pixels.dtype.kind == "f": pixels[0, :2, :2] = np.nan, np.inf
    truth = [[all(np.isfinite(v) and v != nodata and v not in specials for v in pixels[:, r, c].tolist()) for c in range(9)] for r in range(8)]
    assert is_valid(pixels, nodata, specials).tolist() == truth


@FAST
@given(corner=st.tuples(st.integers(-60, 420), st.integers(-60, 420)), shape=st.tuples(st.integers(1, 120), st.integers(1, 120)))
def test_a_reader_looks_at_any_window_as_often_as_you_like(image, corner, shape):
    scene = open_scene(image)
    whole = read_tile(scene)
    mine = scene_of(whole.pixels, whole.valid, scene.grid)
    for s in (scene, mine):
        with reader(s) as look:
            window = Window(corner[1], corner[0], shape[1], shape[0])
            first, again = look(window), look(window)
            first.pixels[:], first.valid[:] = 7, False # a tile is yours
            inside = [slice(max(c, 0), max(c + n, 0)) for c, n in zip(corner, shape)]
            part = whole.pixels[:, *inside]
            there = again.pixels[:, max(-corner[0], 0):, max(-corner[1], 0):][:, :part.shape[1], :part.shape[2]]
            assert again.pixels.shape[1:] == again.valid.shape == again.grid.shape == shape and (there == part).all()
            assert again.valid.sum() == whole.valid[*inside].sum() and (look(window).pixels == again.pixels).all()
    assert (read_tile(mine).pixels == whole.pixels).all()


def test_a_shard_read_in_batches_is_the_shard_read_one_by_one(image, tmp_path):
    list(write_shard(tmp_path / "shard", plan_tiles([image], 50, 45)))
    shard, stretch = open_shard(tmp_path / "shard"), Stretch((30,), (140,))
    rows = np.random.default_rng(0).permutation(len(shard))
    chips = read_chips(shard, stretch, 50, rows)
    for x, v, i in zip(chips.x, chips.valid, rows):
        assert (v[0].numpy() == shard[i][1]).all() and (x.numpy() == to_unit(*shard[i], stretch)).all()
    with pytest.raises(BadInput, match="same product"): read_chips(shard, Stretch((0, 0), (1, 1)), 50, rows)


def test_scenes_that_changed_or_broke_under_a_shard(image, tmp_path):
    copy = tmp_path / "image.tif"
    copy.write_bytes(image.read_bytes())
    plan = plan_tiles([copy], 100)
    next(write_shard(tmp_path / "shard", plan, part_px=20_000))
    copy.write_bytes(image.read_bytes())
    with pytest.raises(ModelMismatch, match="scenes was"): list(write_shard(tmp_path / "shard", plan, part_px=20_000))
    copy.write_bytes(image.read_bytes()[:400_000])
    with pytest.raises(PlanetlabError, match=r"blocks failed, the first is .*Corrupt: cannot read"):
        list(write_tiles(tmp_path / "maps", plan, part_px=20_000))
    assert [p.name for p in (tmp_path / "maps").iterdir()] == [".blocks"]


def test_a_disk_that_is_too_small_says_so_first(image, tmp_path, monkeypatch):
    def full(*_): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CannotWrite, match="No space left"): list(write_shard(tmp_path / "shard", plan_tiles([image], 100)))
    monkeypatch.undo()
    assert len(list(write_shard(tmp_path / "shard", plan_tiles([image], 100)))) == 1 and len(open_shard(tmp_path / "shard"))


@pytest.mark.parametrize("change, message", [
    (lambda p: p.drop(columns="row_off"), "no column row_off"), (lambda p: p[:0], "no window"),
    (lambda p: p.assign(id="same"), "repeats"), (lambda p: p.assign(id="a/" + p.id), "cannot name a file"),
    (lambda p: p.assign(height=range(1, len(p) + 1)), "sizes")])
def test_plans_that_cannot_be_followed(image, tmp_path, change, message):
    for write in (write_shard, write_tiles):
        with pytest.raises(BadInput, match=message): write(tmp_path / "x", change(plan_tiles([image], 300)))
    assert COLUMNS and not (tmp_path / "x").exists()


def test_missing_pixels_need_a_number_in_files(tmp_path):
    with rasterio.open(tmp_path / "bare.tif", "w", driver="GTiff", height=60, width=60, count=1, dtype="uint8",
                       crs=CRS.from_authority("IAU_2015", 29910), transform=Affine.scale(75, -75)) as dst: dst.write(np.full((60, 60), 7, "uint8"), 1)
    plan = plan_tiles([tmp_path / "bare.tif"], 40).assign(col_off=[-10, 0, 20, 30])
    with pytest.raises(PlanetlabError, match="give one with nodata="): list(write_tiles(tmp_path / "maps", plan))
    list(write_tiles(tmp_path / "filled", plan, nodata=0))
    with rasterio.open(tmp_path / "filled" / "tiles" / f"{plan.id[0]}.tif") as src: assert (src.read(1)[:, :10] == 0).all() and src.nodata == 0


# what is described

class Mean(torch.nn.Module):
    "An encoder one can follow: mean and mean square of a chip"
    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))

    def encode(self, x): return self.factor * torch.stack([x.mean((1, 2, 3)), x.square().mean((1, 2, 3))], 1)


@FAST
@given(counts=st.lists(st.integers(1, 7), min_size=1, max_size=8), part=st.integers(1, 12), batch=st.integers(1, 9), seed=st.integers(0, 99))
def test_one_row_per_structure_however_it_is_cut(counts, part, batch, seed):
    ids = [f"s{i}" for i, n in enumerate(counts) for _ in range(n)]
    g = torch.Generator().manual_seed(seed)
    chips = Chips(torch.rand(len(ids), 1, 4, 4, generator=g), torch.rand(len(ids), 1, 4, 4, generator=g) > torch.rand(len(ids), 1, 1, 1, generator=g), 4)
    chips = chips._replace(x=chips.x.where(chips.valid, 0.5)) # as every gate leaves them
    z, share = Mean().encode(chips.x).detach().numpy(), chips.valid.float().mean((1, 2, 3)).numpy()
    mine = {i: [j for j, k in enumerate(ids) if k == i and share[j] > 0] for i in dict.fromkeys(ids)}
    kept = [i for i in mine if mine[i]]
    with tempfile.TemporaryDirectory() as tmp:
        for pool in (mean_pool, attention_pool):
            path = Path(tmp) / f"{pool.__name__}.parquet"
            run = partial(extract_latents, path, Mean(), partial(take, chips), ids, "m", {}, Extraction(pool=pool, batch=batch, part=part))
            if not kept:
                with pytest.raises(BadInput, match="has a valid pixel"): list(run())
                continue
            next(run())
            list(run())
            table, source = read_latents(path)
            assert list(table) == ["id", "m_0", "m_1"] and table.id.tolist() == kept and np.isfinite(table[["m_0", "m_1"]].to_numpy()).all()
            assert sorted(source["dropped"]) == sorted(set(ids) - set(kept)) and list(run()) == []
            np.testing.assert_allclose(table[["m_0", "m_1"]], [pool(z[mine[i]], share[mine[i]]) for i in kept], rtol=1e-5)


def test_a_spatial_code_becomes_one_vector_of_what_is_seen(tmp_path):
    model = Autoencoder(size=16, latent=3, widths=(4, 8), bottleneck="spatial").eval()
    chips = Chips(torch.rand(6, 1, 16, 16), torch.rand(6, 1, 16, 16) > 0.3, 16)
    tables = []
    for fill in (0.0, 9.0):
        read = partial(take, chips._replace(x=chips.x.where(chips.valid, fill)))
        list(extract_latents(tmp_path / f"{fill}.parquet", model, read, list("abcdef"), "m", {}, Extraction(batch=4)))
        tables.append(read_latents(tmp_path / f"{fill}.parquet")[0])
    with torch.no_grad(): truth = vector(model, chips.x, chips.valid)
    assert tables[0].equals(tables[1])
    np.testing.assert_allclose(tables[0].iloc[:, 1:], truth, rtol=1e-4, atol=1e-6)


def test_a_finished_table_knows_its_model(tmp_path):
    chips = Chips(torch.rand(6, 1, 4, 4), torch.ones(6, 1, 4, 4, dtype=bool), 4)
    run = lambda factor, **source: list(extract_latents(tmp_path / "z.parquet", Mean(factor), partial(take, chips), list("abcdef"), "m", source))
    run(1.0, data="x")
    with pytest.raises(ModelMismatch, match="weights was"): run(2.0, data="x")
    with pytest.raises(ModelMismatch, match="data was x, is y"): run(1.0, data="y")


@pytest.mark.parametrize("wrong, message", [(lambda rows: Chips(torch.full((len(rows), 1, 4, 4), torch.nan), torch.ones(len(rows), 1, 4, 4, dtype=bool), 4), "NaN"),
                                            (lambda rows: Chips(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4, dtype=bool), 4), "one per row")])
def test_chips_that_cannot_be_described(tmp_path, wrong, message):
    with pytest.raises(PlanetlabError, match=message): list(extract_latents(tmp_path / "z.parquet", Mean(), wrong, list("abcdef"), "m", {}))
    assert not (tmp_path / "z.parquet").exists()
