"Chips of embeddings and labels: aligned, placed, lazy, and the same from rasters and from folders"
import pickle
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import rasterio
from affine import Affine
from conftest import real
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.windows import Window

from planetlab.bodies import to_graphic
from planetlab.catalog import ground_groups, split_groups
from planetlab.chip_folders import IGNORE, open_area, open_chips, plan_chips, read_chip, write_chips
from planetlab.core import BadInput, CannotWrite, Corrupt
from planetlab.embeddings import open_embeddings, unit_vectors
from planetlab.worlds.dunes import REGIONS, make_desert, write_desert


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder, out = tmp_path_factory.mktemp("world"), {}
    for i, how in ((0, {}), (3, {"int8": True, "south_up": True, "parts": 2})):
        d = make_desert(REGIONS[i], 96, rng=np.random.default_rng(i))
        out[d.region.name] = d, write_desert(folder, d, **how)
    return out


@pytest.fixture
def areas(world): return [open_area(name, files.embedding, files.labels) for name, (_, files) in world.items()]


@pytest.fixture
def dealt(areas):
    chips = plan_chips(areas, 32)
    return chips.with_split(np.where(chips.table.region == "coast", "train", "test"))


def labels_as(path, to, **change):
    with rasterio.open(path) as src: profile, ids = src.profile, src.read()
    change = {k: f(ids) if k == "data" else f for k, f in change.items()}
    data = change.pop("data", ids)
    with rasterio.open(to, "w", **{**profile, "dtype": data.dtype, **change}) as dst: dst.write(data)
    return to


# Reading

@settings(deadline=None, max_examples=25)
@given(st.integers(-20, 90), st.integers(-20, 90), st.integers(1, 40), st.integers(1, 40), st.sampled_from(["coast", "salt lake"]))
def test_every_window_is_the_truth(world, row, col, h, w, name):
    d, files = world[name]
    chip = read_chip(open_area(name, files.embedding, files.labels), Window(col, row, w, h))
    rows, cols = slice(max(row, 0), max(min(row + h, 96), 0)), slice(max(col, 0), max(min(col + w, 96), 0))
    labels, valid = np.full((h, w), IGNORE), np.zeros((h, w), bool)
    here = slice(rows.start - row, rows.stop - row), slice(cols.start - col, cols.stop - col)
    if rows.stop > rows.start and cols.stop > cols.start: labels[here], valid[here] = d.labels[rows, cols], d.valid[rows, cols]
    assert (chip.labels == labels).all() and (chip.valid == valid).all() and not chip.pixels[:, ~valid].any()
    assert chip.grid == d.grid.window(Window(col, row, w, h)) and chip.labels.dtype == np.uint8 and chip.pixels.dtype == np.float32
    if valid.any(): np.testing.assert_allclose(np.linalg.norm(chip.pixels[:, valid], axis=0), 1, atol=1e-5)


def test_labels_upside_down_or_smaller_than_the_ground_still_fit(world, tmp_path):
    d, files = world["coast"]
    turned = labels_as(files.labels, tmp_path / "turned.tif", data=lambda v: v[:, ::-1], transform=d.grid.transform @ Affine.translation(0, 96) @ Affine.scale(1, -1))
    assert (read_chip(open_area("coast", files.embedding, turned), Window(3, 5, 40, 50)).labels == d.labels[5:55, 3:43]).all()
    part = labels_as(files.labels, tmp_path / "part.tif", data=lambda v: v[:, 10:40, 20:70], height=30, width=50, transform=d.grid.transform @ Affine.translation(20, 10))
    got = read_chip(open_area("coast", files.embedding, part), Window(0, 0, 96, 96)).labels
    assert (got[10:40, 20:70] == d.labels[10:40, 20:70]).all() and (np.delete(got, np.s_[10:40], 0) == IGNORE).all()


@pytest.mark.parametrize("change, why", [
    ({"transform": lambda t: t @ Affine.translation(0.3, 0)}, "does not lie"), ({"transform": lambda t: t @ Affine.scale(2)}, "does not lie"),
    ({"crs": lambda _: "EPSG:32734"}, "does not lie"), ({"data": lambda v: v.astype("float32")}, "whole numbers")])
def test_labels_that_do_not_fit_are_refused(world, tmp_path, change, why):
    d, files = world["coast"]
    given = {"transform": d.grid.transform, "crs": d.grid.crs}
    bad = labels_as(files.labels, tmp_path / "bad.tif", **{k: f if k == "data" else f(given[k]) for k, f in change.items()})
    with pytest.raises(BadInput, match=why): open_area("coast", files.embedding, bad)


def test_embeddings_are_resampled_to_labels_when_asked(world, tmp_path):
    d, files = world["coast"]
    grid = replace(d.grid, transform=d.grid.transform @ Affine.translation(0.5, 0.5))
    moved = labels_as(files.labels, tmp_path / "moved.tif", transform=grid.transform)
    chip = read_chip(open_area("coast", files.embedding, moved, grid=grid), Window(0, 0, 90, 90))
    assert (chip.labels[chip.valid & (d.labels[:90, :90] != IGNORE)] == d.labels[:90, :90][chip.valid & (d.labels[:90, :90] != IGNORE)]).all()
    mean = sum(np.nan_to_num(d.embedding[:, a:a + 90, b:b + 90]) for a in (0, 1) for b in (0, 1))
    full = d.valid[:90, :90] & d.valid[1:91, :90] & d.valid[:90, 1:91] & d.valid[1:91, 1:91] & chip.valid
    mean = mean[:, full] / np.linalg.norm(mean[:, full], axis=0)
    np.testing.assert_allclose((chip.pixels[:, full] * mean).sum(0), 1, atol=1e-3)


def test_ids_outside_the_classes_are_named(world, tmp_path):
    _, files = world["coast"]
    odd = labels_as(files.labels, tmp_path / "odd.tif", data=lambda v: np.where(v == v[0, 40, 40], 77, v))
    with pytest.raises(BadInput, match=r"odd.tif has labels \[77\].*0 to 9"): plan_chips([open_area("coast", files.embedding, odd)], 32)
    low = labels_as(files.labels, tmp_path / "low.tif", data=lambda v: np.where(v == v[0, 40, 40], -3, v.astype("int16")))
    with pytest.raises(BadInput, match=r"\[-3\]"): read_chip(open_area("coast", files.embedding, low), Window(0, 0, 96, 96))
    with pytest.raises(BadInput, match="0 to 1"): read_chip(open_area("coast", files.embedding, files.labels, classes=("plain", "dune")), Window(0, 0, 96, 96))


# Planning

def test_plans_cover_and_say_what_they_leave_out(areas, world):
    chips = plan_chips(areas, 32, 16)
    assert len(chips) == 2 * 25 and not chips.left_out and chips.table.id.is_unique
    for i in (0, 30, -1):
        row = chips.table.iloc[i]
        d = world[row.region][0]
        here = slice(row.row_off, row.row_off + 32), slice(row.col_off, row.col_off + 32)
        assert (chips[i].labels == d.labels[here]).all() and row.valid == d.valid[here].mean() and row.labelled == (d.labels[here] != IGNORE).mean()
    strict = plan_chips(areas, 32, 16, max_nodata=0.01)
    assert len(strict) + len(strict.left_out) == 50 and (strict.table.valid >= 0.99).all() and all("without data" in why for _, why in strict.left_out)
    with pytest.raises(IndexError): chips[50]


def test_a_region_nobody_labelled_is_used_or_named(world):
    _, files = world["coast"]
    bare = open_area("coast", files.embedding)
    assert (plan_chips([bare], 32)[0].labels == IGNORE).all()
    with pytest.raises(BadInput, match="'coast' is left.*0.0% labelled"): plan_chips([bare], 32, min_labelled=0.2)


def test_bad_plans_are_refused(areas, world):
    with pytest.raises(BadInput, match="smaller than a chip"): plan_chips(areas, 97)
    with pytest.raises(BadInput, match="own name"): plan_chips([areas[0], areas[0]], 32)
    with pytest.raises(BadInput, match="one area or more"): plan_chips([], 32)
    with pytest.raises(BadInput, match="same classes"): plan_chips([areas[0], replace(areas[1], classes=("a", "b"))], 32)
    with pytest.raises(BadInput, match="leaves gaps"): plan_chips(areas, 32, 40)
    with pytest.raises(BadInput, match="list of files"): open_area("x", world["coast"][1].embedding[0])


def test_chips_travel_to_other_processes(dealt):
    there = pickle.loads(pickle.dumps(dealt))
    assert (there[7].pixels == dealt[7].pixels).all() and there[7].grid == dealt[7].grid


def test_no_ground_lies_in_two_splits(areas):
    chips = plan_chips(areas, 32, 16)
    by_region = chips.with_split(np.where(chips.table.region == "coast", "train", "test"))
    assert set(by_region.of("train").table.region) == {"coast"} and len(by_region.of("test")) == 25
    loose = replace(chips, table=chips.table.assign(group=chips.table.id))
    with pytest.raises(BadInput, match="share ground"): loose.with_split(np.where(np.arange(50) % 2, "train", "test"))
    with pytest.raises(BadInput, match="several splits"): chips.with_split(np.where(np.arange(50) % 2, "train", "test"))
    ground = ground_groups(chips.table.footprint)
    assert len(set(ground)) == 2
    with pytest.raises(BadInput, match="no chip in split 'val'; there are test, train"): by_region.of("val")
    blocks = plan_chips(areas, 32)
    blocks = replace(blocks, table=blocks.table.assign(group=ground_groups(blocks.table.footprint)))
    split = split_groups(blocks.table.group, {"train": 0.6, "test": 0.4}, rng=np.random.default_rng(0))
    assert {"train", "test"} == set(blocks.with_split(split).table.split)


# Folders

def test_a_folder_is_the_rasters(dealt, tmp_path):
    assert list(write_chips(tmp_path, dealt, "ours")) == dealt.table.id.tolist()
    names = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*")}
    assert {"img_dir/train/coast_0_0.npy", "ann_dir/train/coast_0_0.png", "img_dir/test/salt_lake_64_32.npy", "chips.csv", "about.json"} <= names
    assert np.load(tmp_path / "img_dir/train/coast_0_0.npy").dtype == np.float32 and np.load(tmp_path / "img_dir/train/coast_0_0.npy").shape == (64, 32, 32)
    with Image.open(tmp_path / "ann_dir/train/coast_0_0.png") as img: assert img.mode == "L" and set(np.unique(img)) <= {*range(10), IGNORE}
    back = open_chips(tmp_path)
    place = {name: i for i, name in enumerate(back.table.id)}
    for i, name in enumerate(dealt.table.id):
        a, b = dealt[i], back[place[name]]
        assert (a.labels == b.labels).all() and (a.valid == b.valid).all() and a.grid == b.grid and a.region == b.region
        np.testing.assert_allclose(a.pixels, b.pixels, atol=1e-6)
    assert back.table.set_index("id").group.to_dict() == dealt.table.set_index("id").group.to_dict()


def test_writing_goes_on_where_it_stopped(dealt, tmp_path):
    job = write_chips(tmp_path, dealt)
    first = next(job)
    job.close()
    assert not (tmp_path / "chips.csv").exists() and len(list(tmp_path.glob("img_dir/*/*.npy"))) == 1
    made = tmp_path / "img_dir" / "train" / f"{first}.npy"
    stamp = made.stat().st_mtime_ns
    assert len(list(write_chips(tmp_path, dealt))) == len(dealt) and made.stat().st_mtime_ns == stamp
    with pytest.raises(BadInput, match="another plan"): list(write_chips(tmp_path, dealt.of("train")))
    with pytest.raises(BadInput, match="no split"): list(write_chips(tmp_path / "x", replace(dealt, table=dealt.table.assign(split=""))))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises((CannotWrite, Corrupt)): list(write_chips(tmp_path / "file", dealt))


def seed_folder(folder, n=3, size=16):
    x = np.random.default_rng(0).standard_normal((n, 64, size, size)).astype("float32")
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    for split in ("train", "val"):
        for i in range(n):
            for kind in ("img_dir", "ann_dir"): (folder / kind / split).mkdir(parents=True, exist_ok=True)
            np.save(folder / "img_dir" / split / f"t{i}.npy", x[i])
            Image.fromarray(np.full((size, size), i, "uint8")).save(folder / "ann_dir" / split / f"t{i}.png")
    return x


def test_a_folder_from_elsewhere_needs_no_index(tmp_path):
    x = seed_folder(tmp_path)
    chips = open_chips(tmp_path)
    assert len(chips) == 6 and len(chips.of("val")) == 3 and chips[0].grid.crs is None and len(chips.classes) == 10
    np.testing.assert_allclose(chips.of("val")[2].pixels, x[2], atol=1e-6)
    assert (chips.of("val")[2].labels == 2).all()
    hole = x[1].copy()
    hole[:, 3, 4], hole[5, 6, 7] = 0, np.nan
    np.save(tmp_path / "img_dir" / "val" / "t1.npy", hole)
    chip = open_chips(tmp_path).of("val")[1]
    assert np.argwhere(~chip.valid).tolist() == [[3, 4], [6, 7]] and chip.labels[3, 4] == chip.labels[6, 7] == IGNORE and np.isfinite(chip.pixels).all()


def test_what_has_no_partner_is_told(tmp_path):
    seed_folder(tmp_path)
    (tmp_path / "ann_dir/train/t0.png").unlink()
    (tmp_path / "img_dir/val/t2.npy").unlink()
    with pytest.warns(UserWarning, match="2 files.*t0.npy has no labels; .*t2.png has no array"): assert len(open_chips(tmp_path)) == 4
    found = []
    open_chips(tmp_path, problems=found)
    assert found == [("img_dir/train/t0.npy", "has no labels"), ("ann_dir/val/t2.png", "has no array")]
    with pytest.raises(BadInput, match="no chip in"): open_chips(tmp_path / "nowhere")


@pytest.mark.parametrize("name, value, error, why", [
    ("npy", np.zeros((63, 16, 16), "float32"), BadInput, r"\(64, H, W\)"), ("npy", np.zeros((64, 16, 16), "int8"), BadInput, "float32"),
    ("npy", np.full((64, 16, 16), 0.125, "float32")[:, :8], BadInput, "for each pixel"), ("npy", np.ones((64, 16, 16), "float32"), BadInput, "no unit vectors"),
    ("npy", b"\x93NUMPY", Corrupt, "t0"), ("png", b"\x89PNG", Corrupt, "t0"), ("png", np.full((16, 16), 10, "uint8"), BadInput, r"\[10\].*0 to 9"),
    ("png", np.zeros((16, 16, 3), "uint8"), BadInput, "one whole number")])
def test_bad_chips_are_named_when_read(tmp_path, name, value, error, why):
    seed_folder(tmp_path)
    path = tmp_path / ("img_dir" if name == "npy" else "ann_dir") / "train" / f"t0.{name}"
    if isinstance(value, bytes): path.write_bytes(value)
    elif name == "npy": np.save(path, value)
    else: Image.fromarray(value).save(path)
    chips = open_chips(tmp_path)
    with pytest.raises(error, match=why): chips.of("train")[0]
    assert chips.of("train")[1].valid.all()


def test_a_damaged_index_is_no_surprise(dealt, tmp_path):
    list(write_chips(tmp_path, dealt))
    lines = (tmp_path / "chips.csv").read_text().splitlines()
    (tmp_path / "chips.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(BadInput, match="1 chips are not in"): open_chips(tmp_path)


# The real scene

def test_a_real_scene_is_never_held(tmp_path):
    path = real("aef_wisconsin") / "aef64_exact_1m_int8.tif"
    scene = open_embeddings(path)
    area = open_area("wisconsin", [path])
    tracemalloc.start()
    chip = read_chip(area, Window(600, 500, 128, 128))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert chip.valid.all() and peak < 8 * chip.pixels.nbytes < scene.grid.height * scene.grid.width * 64 * 4 / 8
    with rasterio.open(path) as src: stored = src.read(window=Window(600, 500, 128, 128))
    assert (chip.pixels == unit_vectors(stored, np.ones((128, 128), bool))).all()
    chips = plan_chips([open_area("wisconsin", [path.parent / "aef64_exact_10m_float32.tif"])], 64, 36)
    assert len(chips) == 2 * 4 and (chips.table.valid == 1).all()
    assert to_graphic(chips.table.footprint.iloc[0].centroid.y, scene.body) == pytest.approx(44.296, abs=0.003) # footprints are planetocentric
