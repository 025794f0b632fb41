"Outputs: the same bytes however they are cut, read back by an independent reader, whole or not at all"
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import rasterio
from conftest import RASTERS, real
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import CRS as ProjCRS
from rasterio.enums import Resampling
from rasterio.windows import Window

from planetlab.bodies import MARS, MOON, VENUS, body_of, datum_of, local_crs
from planetlab.core import BadInput, CannotWrite, file_digest
from planetlab.grid import Grid, grid_around
from planetlab.outputs import class_map, confidence, entropy, probabilities, values, write_cog
from planetlab.scene import open_scene
from planetlab.stac import Model, map_item, write_item

NAMES = ("a", "b", "c")
STEP = Affine(100, 0, 5e4, 0, -100, 7e4)
MAKERS = [class_map(NAMES), probabilities(NAMES, 1.7), entropy(), confidence(0.6), values(NAMES)]


def cut(pixels, size):
    "Pieces of an array, last first"
    _, h, w = pixels.shape
    for r, c in [(r, c) for r in range(0, h, size) for c in range(0, w, size)][::-1]:
        yield Window(c, r, min(size, w - c), min(size, h - r)), pixels[:, r:r + size, c:c + size]


def smooth_ids(h, w, seed=0):
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 3, (h // 16 + 1, w // 16 + 1), "uint8"), np.ones((16, 16), "uint8"))[None, :h, :w]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 40), st.integers(1, 4), st.integers(0, 99))
def test_a_pixel_does_not_depend_on_its_neighbours(k, h, w, step, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(0, rng.choice([1, 30]), (k, h, w)).astype("float32")
    names = [f"c{i}" for i in range(k)]
    for out in (class_map(names), probabilities(names, 1.3), entropy(), confidence(), values(names)):
        whole = out.fn(x)
        assert whole.shape == (len(out.bands), h, w) and whole.dtype == out.dtype and whole.flags.c_contiguous
        i, j = rng.integers(h), rng.integers(w)
        assert out.fn(x[:, i:i + 1, j:j + 1]).tobytes() == whole[:, i:i + 1, j:j + 1].tobytes()
        assert out.fn(x[:, ::step, ::-step]).tobytes() == whole[:, ::step, ::-step].tobytes()
        assert out.fn(np.asfortranarray(x)).tobytes() == whole.tobytes()


def test_softmax_is_right_and_survives_extremes():
    x = np.random.default_rng(0).normal(0, 20, (6, 30, 30)).astype("float32")
    z = x.astype("float64") / 1.7
    p = np.exp(z - z.max(0))
    p /= p.sum(0)
    np.testing.assert_allclose(probabilities("abcdef", 1.7).fn(x), p, atol=2e-6, rtol=2e-5)
    np.testing.assert_allclose(entropy(1.7).fn(x)[0], -(p * np.log(p + 1e-300)).sum(0) / np.log(6), atol=2e-6)
    wild = np.float32([[3e38, -3e38, 0]])[None].repeat(2, 0)
    wild[1] = 0
    for out in (probabilities("ab"), entropy(), confidence()):
        with np.errstate(over="ignore"): got = out.fn(wild)
        assert np.isfinite(got).all() and got.min() >= 0 and got.max() <= 1 + 1e-6


def info(path):
    if not shutil.which("gdalinfo"): pytest.skip("gdalinfo is not on this machine, so no independent reader")
    return json.loads(subprocess.run(["gdalinfo", "-json", path], capture_output=True, text=True, check=True).stdout)


def crs_cases():
    yield "moon_10", MOON.iau_crs(10), STEP
    yield "moon_lonlat", MOON.lonlat_crs, Affine(0.01, 0, 20, 0, -0.01, 40)
    yield "mars_west", MARS.iau_crs(11), STEP
    yield "mars_centric", MARS.iau_crs(12), STEP
    yield "mars_lonlat_west", MARS.iau_crs(1), Affine(0.01, 0, 20, 0, -0.01, 40)
    yield "moon_pole", MOON.iau_crs(30), STEP
    yield "rotated", local_crs(VENUS, 30, 60), STEP @ Affine.rotation(30)
    yield "no_crs", None, STEP @ Affine.rotation(-10)
    yield from ((path.stem, path, None) for path in RASTERS)


@pytest.mark.parametrize("crs,transform", [pytest.param(c, t, id=n) for n, c, t in crs_cases()])
def test_an_independent_reader_sees_what_was_meant(tmp_path, crs, transform):
    if transform is None:
        with rasterio.open(real(crs)) as src: crs, transform = src.crs, src.transform
    out, ids = class_map(NAMES, {"b": "#123456"}), smooth_ids(600, 700)
    ids[:, :50] = 255
    write_cog(tmp_path / "classes.tif", Grid(600, 700, transform, crs), out, cut(ids, 333), {"model": "x"})
    said = info(tmp_path / "classes.tif")
    if crs is None: assert not said.get("coordinateSystem", {}).get("wkt")
    else: assert ProjCRS.from_wkt(said["coordinateSystem"]["wkt"]) == ProjCRS.from_wkt(crs.to_wkt(version="WKT2_2019"))
    assert np.allclose(said["geoTransform"], transform.to_gdal(), rtol=1e-15, atol=1e-12)
    assert said["size"] == [700, 600] and said["metadata"]["IMAGE_STRUCTURE"]["LAYOUT"] == "COG" and said["metadata"][""]["model"] == "x"
    band, = said["bands"]
    assert band["noDataValue"] == 255 and band["description"] == "class" and band["block"] == [512, 512]
    assert band["colorTable"]["entries"][:3] == [[0x00, 0x72, 0xB2, 255], [0x12, 0x34, 0x56, 255], [0x00, 0x9E, 0x73, 255]]
    assert [o["size"] for o in band["overviews"]] == [[350, 300]]
    with rasterio.open(tmp_path / "classes.tif") as src:
        assert (src.read() == ids).all() and src.transform == transform and json.loads(src.tags(1)["classes"]) == list(NAMES)
        if crs is not None and body_of_or_none(crs): assert datum_of(src.crs)[1:] == datum_of(crs)[1:]
    plain = subprocess.run(["gdalinfo", tmp_path / "classes.tif"], capture_output=True, text=True, check=True).stdout
    assert all(f"{i}: {n}" in plain for i, n in enumerate(NAMES)) # category names
    style = (tmp_path / "classes.qml").read_text()
    assert 'value="1" label="b" color="#123456" alpha="255"' in style


def body_of_or_none(crs):
    try: return body_of(crs)
    except BadInput: return None


@pytest.mark.parametrize("out", MAKERS, ids=lambda o: o.name)
def test_same_pixels_same_bytes_and_no_larger_than_a_plain_write(tmp_path, out):
    rng = np.random.default_rng(1)
    x = np.stack([np.add.accumulate(np.add.accumulate(rng.normal(0, 0.05, (700, 1300)), 0), 1) / 20 for _ in NAMES]).astype("float32")
    pixels, grid = out.fn(x), Grid(700, 1300, STEP, MOON.iau_crs(10))
    pixels[:, 100:300, 200:400] = np.array(out.nodata, out.dtype)
    for name, size in (("a", 100), ("b", 512), ("c", 2000)): write_cog(tmp_path / f"{name}.tif", grid, out, cut(pixels, size), {"k": [1]})
    assert len({file_digest(tmp_path / f"{n}.tif") for n in "abc"}) == 1
    packed = dict(compress="lzw") if out.colors else dict(compress="zstd", zstd_level=1, predictor=3)
    with rasterio.open(tmp_path / "plain.tif", "w", driver="GTiff", height=700, width=1300, count=len(pixels), dtype=out.dtype,
                       crs=grid.crs, transform=STEP, nodata=out.nodata, tiled=True, blockxsize=512, blockysize=512, **packed) as dst:
        if out.colors: dst.write_colormap(1, {0: (0, 0, 0, 255)}) # a palette weighs 1.5 kB, once more for every overview
        for window, part in list(cut(pixels, 512))[::-1]: dst.write(part, window=window)
    with rasterio.Env(COMPRESS_OVERVIEW=packed["compress"], PREDICTOR_OVERVIEW=packed.get("predictor", 1), ZSTD_LEVEL_OVERVIEW=1,
                      GDAL_TIFF_OVR_BLOCKSIZE=512), rasterio.open(tmp_path / "plain.tif", "r+") as dst:
        dst.build_overviews([2, 4], Resampling.mode if out.colors else Resampling.average)
    assert (tmp_path / "a.tif").stat().st_size <= 1.1 * (tmp_path / "plain.tif").stat().st_size
    with rasterio.open(tmp_path / "a.tif") as src:
        assert src.read().tobytes() == pixels.tobytes() and src.descriptions == tuple(out.bands) and src.overviews(1) == [2, 4]


@pytest.mark.parametrize("h,w", [(1, 1), (1, 5000), (2000, 1), (513, 511)])
def test_odd_sizes(tmp_path, h, w):
    x = np.random.default_rng(0).normal(size=(1, h, w)).astype("float32")
    x[0, 0, 0], x[0, -1, -1] = -np.nan, -0.0 # other bits of the same values must not be taken for damage
    write_cog(tmp_path / "v.tif", Grid(h, w, STEP), values(["v"]), cut(x, 300), {})
    with rasterio.open(tmp_path / "v.tif") as src: assert src.read().tobytes() == x.tobytes()
    assert not (tmp_path / "v.tif.aux.xml").exists()


def test_many_bands(tmp_path):
    x = np.random.default_rng(0).normal(size=(64, 300, 300)).astype("float32")
    write_cog(tmp_path / "v.tif", Grid(300, 300, STEP), values([f"{i}" for i in range(64)]), cut(x, 97), {})
    with rasterio.open(tmp_path / "v.tif") as src: assert src.read().tobytes() == x.tobytes() and src.block_shapes[0] == (256, 256)


def test_a_failure_leaves_nothing_and_changes_nothing(tmp_path):
    ids, grid, out = smooth_ids(400, 400), Grid(400, 400, STEP, MOON.iau_crs(10)), class_map(NAMES)
    path = tmp_path / "[odd] name.tif"
    write_cog(path, grid, out, cut(ids, 100), {})
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def breaks():
        yield from list(cut(ids, 100))[:5]
        raise RuntimeError("the model fell over")
    with pytest.raises(RuntimeError, match="fell over"): write_cog(path, grid, out, breaks(), {})
    with pytest.raises(BadInput, match="every pixel once"): write_cog(path, grid, out, list(cut(ids, 100))[1:], {})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


FULL = """
import resource, sys, numpy as np
from affine import Affine
from rasterio.windows import Window
from planetlab.core import CannotWrite
from planetlab.grid import Grid
from planetlab.outputs import values, write_cog
rng = np.random.default_rng(0)
x = rng.random((1, 1024, 1024), dtype="float32")
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try: write_cog(sys.argv[1], Grid(1024, 1024, Affine.scale(2)), values(["v"]), [(Window(0, r, 1024, 256), x[:, r:r + 256]) for r in range(0, 1024, 256)], {})
except CannotWrite: sys.exit(7)
"""


@pytest.mark.parametrize("limit", [1_000_000, 4_100_000, 4_800_000])
def test_a_full_disk_is_told(tmp_path, limit): # in the pixels, between them and the overviews, in the overviews
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path / "v.tif", str(limit)], capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    assert list(tmp_path.iterdir()) == []


PEAK = """
import re, sys, numpy as np
from affine import Affine
from rasterio.windows import Window
from planetlab.grid import Grid
from planetlab.outputs import class_map, write_cog
def hwm(): return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) # kB; unlike ru_maxrss, nothing of the parent
part = np.kron(np.random.default_rng(0).integers(0, 3, (64, 64), "uint8"), np.ones((8, 8), "uint8"))[None]
def write(height, width):
    windows = (Window(c, r, 512, 512) for r in range(0, height, 512) for c in range(0, width, 512))
    write_cog(sys.argv[1], Grid(height, width, Affine.scale(2)), class_map("abc"), ((w, part) for w in windows), {})
write(512, 512)
before = hwm()
write(int(sys.argv[2]), 6144)
print(hwm() - before)
"""


def test_memory_does_not_grow_with_height(tmp_path):
    low, high = (int(subprocess.run([sys.executable, "-c", PEAK, tmp_path / "c.tif", str(h)], capture_output=True, text=True,
                                    check=True).stdout) / 1024 for h in (3072, 15360))
    assert high < low + 60, (low, high) # the cache of 64 MiB fills up; the raster grows by 72


def test_item_has_what_stac_wants(tmp_path):
    outputs = class_map(NAMES), probabilities(NAMES)
    grid = grid_around(MARS, 179.9, 40, 3e4, 64)
    for out in outputs: write_cog(tmp_path / f"{out.name}.tif", grid, out, [(Window(0, 0, 64, 64), out.fn(np.zeros((3, 64, 64), "float32")))], {})
    model = Model("rocks v1", "U-Net", "model/model.safetensors", 1, about={"sha256": "ab"})
    item = json.loads(write_item(tmp_path, grid, MARS, outputs, model).read_text())
    assert item["type"] == "Feature" and item["stac_version"] == "1.1.0" and item["id"] and item["links"] == []
    prop = item["properties"]
    assert prop["datetime"] is None and prop["start_datetime"] < prop["end_datetime"]
    used = {u.split("/")[3] for u in item["stac_extensions"]}
    assert used == {"projection", "file", "ssys", "classification", "mlm", "processing"}
    west, south, east, north = item["bbox"]
    assert item["geometry"]["type"] == "MultiPolygon" and west > 179 and east < -179 and south < 40 < north
    rings = [np.array(p[0]) for p in item["geometry"]["coordinates"]]
    assert all((r[0] == r[-1]).all() and abs(r[:, 0]).max() <= 180 for r in rings)
    assert all(np.sum(r[:-1, 0] * r[1:, 1] - r[1:, 0] * r[:-1, 1]) > 0 for r in rings) # anticlockwise
    assert {"mlm:name", "mlm:architecture", "mlm:tasks", "mlm:input", "mlm:output"} <= set(prop)
    assert all({"name", "bands", "input"} <= set(i) and {"shape", "dim_order", "data_type"} <= set(i["input"]) for i in prop["mlm:input"])
    assert all({"name", "tasks", "result"} <= set(o) for o in prop["mlm:output"])
    models = [a for a in item["assets"].values() if "mlm:model" in a["roles"]]
    assert len(models) == 1 and models[0]["mlm:artifact_type"]
    for out in outputs:
        asset = item["assets"][out.name]
        assert asset["file:checksum"] == "1220" + file_digest(tmp_path / asset["href"]) and len(asset["bands"]) == len(out.bands)
    assert [c["name"] for c in item["assets"]["classes"]["classification:classes"]] == list(NAMES)
    assert prop["ssys:targets"] == ["Mars"] and prop["proj:shape"] == [64, 64] and "WGS 84" in prop["description"]


def test_item_without_a_place_has_no_geometry(tmp_path):
    out = class_map(NAMES)
    write_cog(tmp_path / "classes.tif", Grid(8, 8, STEP), out, [(Window(0, 0, 8, 8), np.zeros((1, 8, 8), "uint8"))], {})
    item = map_item(tmp_path, Grid(8, 8, STEP), None, [out])
    assert item["geometry"] is None and "bbox" not in item and not [u for u in item["stac_extensions"] if "mlm" in u or "ssys" in u]


def test_no_room_is_told_before_the_work(tmp_path):
    with pytest.raises(CannotWrite, match="GB are free"): write_cog(tmp_path / "v.tif", Grid(10**7, 10**7, STEP), values(["v"]), iter(()), {})


@pytest.mark.parametrize("out", MAKERS, ids=lambda o: o.name)
def test_a_raster_without_any_answer(tmp_path, out):
    pixels = np.full((len(out.bands), 1100, 700), out.nodata, out.dtype)
    write_cog(tmp_path / "n.tif", Grid(1100, 700, STEP), out, cut(pixels, 300), {})
    with rasterio.open(tmp_path / "n.tif") as src: assert src.read().tobytes() == pixels.tobytes() and not src.dataset_mask().any()


@pytest.mark.parametrize("code", [1, 11, 31])
def test_west_longitudes_come_back_through_the_books_own_door(tmp_path, code):
    crs = MARS.iau_crs(code)
    write_cog(tmp_path / "classes.tif", Grid(8, 8, Affine(0.01, 0, 20, 0, -0.01, 40), crs), class_map(NAMES), [(Window(0, 0, 8, 8), np.zeros((1, 8, 8), "uint8"))], {})
    assert datum_of(open_scene(tmp_path / "classes.tif").grid.crs).west == datum_of(crs).west


def test_colours_are_those_of_the_classes():
    assert class_map(NAMES, {"b": "#123456"}).colors["b"] == "#123456"
    with pytest.raises(BadInput, match="spell it as one of them"): class_map(NAMES, {"B": "#123456"})
