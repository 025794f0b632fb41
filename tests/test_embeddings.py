"Embeddings: coding, lengths, grids of every kind, mosaics, public files over HTTP, and the real ones"
import ast
import http.server
import re
import threading
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import rasterio
from affine import Affine
from conftest import real
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.windows import Window
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, StratifiedKFold, cross_val_predict

from planetlab.core import BadInput, Corrupt
from planetlab.download import iter_download
from planetlab.embeddings import (INDEX, dequantise, export_recipe, mosaic_grid, north_up, open_embeddings, pixel_shift, public_files,
                                  read_embeddings, unit_vectors)
from planetlab.grid import Grid
from planetlab.maps import map_scene
from planetlab.predictor import Predictor
from planetlab.scene import mark_gaps, open_scene, read_tile

HOME = Affine(10, 0, 500_000, 0, -10, 7_200_000)


def vectors(h, w, seed=0):
    x = np.random.default_rng(seed).standard_normal((64, h, w)).astype("float32")
    return x / np.linalg.norm(x, axis=0)


def coded(x): return np.where(np.isnan(x).any(0), -128, np.rint(127.5 * np.sqrt(np.abs(np.nan_to_num(x))) * np.sign(np.nan_to_num(x)))).astype("int8")


def write(path, pixels, transform=HOME, crs="EPSG:32733", nodata=None, names=None):
    with rasterio.open(path, "w", driver="GTiff", height=pixels.shape[1], width=pixels.shape[2], count=len(pixels), dtype=pixels.dtype,
                       crs=crs, transform=transform, nodata=nodata) as dst:
        dst.write(pixels)
        if names: dst.descriptions = names
    return path


# The coding

def test_dequantising_is_exact():
    q = np.arange(-128, 128).astype("int8")
    got = dequantise(q)
    assert np.isnan(got[0]) and got.dtype == np.float32 and dequantise(np.array([50], "int8")) == pytest.approx(0.1538, abs=5e-5)
    exact = [np.sign(int(v)) * (abs(int(v)) / 127.5) ** 2 for v in q[1:]]
    assert np.abs(got[1:] - exact).max() < 1e-7
    assert (np.diff(got[1:]) >= 0).all() and (got[1:] == -got[:0:-1]).all()
    assert dequantise(q.reshape(4, 8, 8)).shape == (4, 8, 8)
    for wrong in (q.astype("uint8"), q.astype("int16"), got):
        with pytest.raises(BadInput, match="int8"): dequantise(wrong)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.floats(0, 0.9))
def test_vectors_have_length_one_and_gaps_stay_zero(seed, missing):
    x, valid = vectors(6, 7, seed), np.random.default_rng(seed).random((6, 7)) >= missing
    for stored in (x, x.astype("float64"), coded(x)):
        poisoned = stored.copy()
        poisoned[:, ~valid] = -128 if stored.dtype == np.int8 else np.nan
        got = unit_vectors(poisoned, valid)
        assert got.dtype == np.float32 and not got[:, ~valid].any()
        np.testing.assert_allclose(np.linalg.norm(got[:, valid], axis=0), 1, atol=1e-5)
        np.testing.assert_allclose(got[:, valid], x[:, valid], atol=0.012)


@pytest.mark.parametrize("change, why", [
    (lambda x: x[:63], "63 bands"), (lambda x: np.concatenate([x, x[:1]]), "65 bands"), (lambda x: 2 * x, "no unit vectors"), (lambda x: 0 * x, "64 zeros"),
    (lambda x: x * np.nan, "not finite"), (lambda x: coded(x).astype("float32"), "int8 coding"), (lambda x: coded(x).astype("int16"), "int16")])
def test_what_is_no_embedding_is_refused(change, why):
    with pytest.raises(BadInput, match=why): unit_vectors(change(vectors(5, 5)), np.ones((5, 5), bool))


# Files

def test_wrong_files_are_named(tmp_path):
    x = vectors(8, 8)
    wanted = [f"A{i:02}" for i in range(64)]
    for name, pixels, names, why in (("b63.tif", x[:63], None, "63 bands"), ("b65.tif", np.concatenate([x, x[:1]]), None, "label band"),
                                     ("u16.tif", np.ones((64, 8, 8), "uint16"), None, "uint16"), ("turned.tif", x, wanted[::-1], "another order")):
        with pytest.raises(BadInput, match=f"{name}.*{why}"): open_embeddings(write(tmp_path / name, pixels, names=names))
    with pytest.raises(BadInput, match="Earth"): open_embeddings(write(tmp_path / "mars.tif", x, crs="IAU_2015:49910"))
    with pytest.raises(Corrupt): open_embeddings(tmp_path / "nowhere.tif")
    assert open_embeddings(write(tmp_path / "named.tif", x, names=wanted)).bands == 64
    scene = open_embeddings(write(tmp_path / "long.tif", 3 * x))
    with pytest.raises(BadInput, match="long.tif.*no unit vectors"): read_embeddings([scene], scene.grid)


def test_gaps_in_every_form(tmp_path):
    x, gap = vectors(40, 40), np.zeros((40, 40), bool)
    gap[:20, :25] = True
    for name, value, stored, nodata in (("nan.tif", np.nan, x, None), ("far.tif", -9999, x, -9999), ("byte.tif", -128, coded(x), None)):
        scene = open_embeddings(write(tmp_path / name, np.where(gap, stored.dtype.type(value), stored), nodata=nodata))
        tile = read_embeddings([scene], scene.grid)
        assert (tile.valid == ~gap).all() and not tile.pixels[:, gap].any(), name
    one = x.copy()
    one[17, 3, 30] = np.nan # one band of one vector
    scene = open_embeddings(write(tmp_path / "one.tif", one))
    assert np.argwhere(~read_embeddings([scene], scene.grid).valid).tolist() == [[3, 30]]
    scene = open_embeddings(write(tmp_path / "zero.tif", np.where(gap, 0, x)))
    with pytest.raises(BadInput, match="mark_gaps"): read_embeddings([scene], scene.grid)
    assert (read_embeddings([mark_gaps(scene)], scene.grid).valid == ~gap).all()


@settings(deadline=None, max_examples=20)
@given(st.data())
def test_any_window_of_any_mosaic_is_the_scene(tmp_path_factory, data):
    folder, x, cuts = tmp_path_factory.mktemp("m"), vectors(24, 30), sorted(data.draw(st.sets(st.integers(1, 29), max_size=3)))
    scenes = []
    for i, (a, b) in enumerate(zip([0, *cuts], [*cuts, 30])):
        part, at = x[:, :, a:b], HOME @ Affine.translation(a, 0)
        if data.draw(st.booleans()): part, at = part[:, ::-1], at @ Affine.translation(0, 24) @ Affine.scale(1, -1)
        scenes.append(open_embeddings(write(folder / f"{i}.tif", coded(part) if data.draw(st.booleans()) else part, at)))
    order = data.draw(st.permutations(scenes))
    grid = mosaic_grid(order)
    assert grid == Grid(24, 30, HOME, CRS.from_epsg(32733))
    r, c, h, w = data.draw(st.tuples(st.integers(-5, 22), st.integers(-5, 28), st.integers(1, 20), st.integers(1, 20)))
    tile = read_embeddings(order, grid.window(Window(c, r, w, h)))
    want, seen = np.zeros((64, h, w)), np.zeros((h, w), bool)
    rows, cols = slice(max(r, 0), min(r + h, 24)), slice(max(c, 0), min(c + w, 30))
    if rows.stop > rows.start and cols.stop > cols.start:
        want[:, rows.start - r:rows.stop - r, cols.start - c:cols.stop - c] = x[:, rows, cols]
        seen[rows.start - r:rows.stop - r, cols.start - c:cols.stop - c] = True
    assert (tile.valid == seen).all()
    np.testing.assert_allclose(tile.pixels, want, atol=0.012)


def test_where_files_overlap_the_first_with_data_counts(tmp_path):
    x, y = vectors(10, 10, 1), vectors(10, 10, 2)
    x[:, :5] = np.nan
    a, b = (open_embeddings(write(tmp_path / f"{n}.tif", v)) for n, v in (("a", x), ("b", y)))
    tile = read_embeddings([a, b], a.grid)
    np.testing.assert_allclose(tile.pixels, np.where(np.isnan(x), y, x), atol=1e-6)


def test_grids_know_whether_their_pixels_coincide():
    grid = Grid(20, 30, HOME, CRS.from_epsg(32733))
    upside = Grid(20, 30, HOME @ Affine.translation(0, 20) @ Affine.scale(1, -1), grid.crs)
    assert north_up(upside) == grid and north_up(grid) == grid
    assert pixel_shift(grid, grid.window(Window(7, -3, 4, 4))) == (-3, 7)
    assert pixel_shift(upside, grid) == (20, 0)
    for other in (Grid(20, 30, HOME @ Affine.translation(0.5, 0), grid.crs), Grid(20, 30, HOME @ Affine.scale(1.01), grid.crs),
                  Grid(20, 30, HOME @ Affine.rotation(1), grid.crs), replace(grid, crs=CRS.from_epsg(32734))):
        assert pixel_shift(grid, other) is None


def smooth(lon, lat): # A field of unit vectors that every grid sees alike
    k = np.arange(64)[:, None, None]
    x = np.cos(k + 300 * lon * (1 + k % 3) + 200 * lat * (1 + k % 5))
    return (x / np.linalg.norm(x, axis=0)).astype("float32")


def test_zones_meet_without_a_seam(tmp_path):
    scenes = []
    for epsg, west in ((32733, 805_000), (32734, 193_500)):
        grid = Grid(90, 120, Affine(10, 0, west, 0, 10, 7_346_000), CRS.from_epsg(epsg)) # south up
        cols, rows = np.meshgrid(np.arange(120), np.arange(90))
        lon, lat = rasterio.warp.transform(grid.crs, "EPSG:4326", *(v.ravel() for v in grid.xy(rows, cols)))
        scenes.append(open_embeddings(write(tmp_path / f"{epsg}.tif", coded(smooth(np.reshape(lon, (90, 120)), np.reshape(lat, (90, 120)))), grid.transform, grid.crs)))
    grid = mosaic_grid(scenes)
    tile = read_embeddings(scenes, grid)
    cols, rows = np.meshgrid(np.arange(grid.width), np.arange(grid.height))
    lon, lat = rasterio.warp.transform(grid.crs, "EPSG:4326", *(v.ravel() for v in grid.xy(rows, cols)))
    want = smooth(np.reshape(lon, grid.shape), np.reshape(lat, grid.shape))
    assert tile.valid.sum() > 14_000 and grid.transform.e < 0
    np.testing.assert_allclose(np.linalg.norm(tile.pixels[:, tile.valid], axis=0), 1, atol=1e-5)
    assert (tile.pixels * want).sum(0)[tile.valid].min() > 0.998


def test_ground_that_no_file_shows_is_not_valid(tmp_path):
    scene = open_embeddings(write(tmp_path / "a.tif", vectors(8, 8)))
    for far in (scene.grid.window(Window(500, 500, 6, 4)), Grid(4, 6, HOME, CRS.from_epsg(32735))):
        tile = read_embeddings([scene], far)
        assert tile.pixels.shape == (64, 4, 6) and not tile.valid.any() and not tile.pixels.any()
    with pytest.raises(BadInput, match="no scenes"): read_embeddings([], scene.grid)
    with pytest.raises(BadInput, match="no scenes"): mosaic_grid([])


def test_coarser_pixels_are_means_of_unit_length(tmp_path):
    x = vectors(60, 60)
    scene = open_embeddings(write(tmp_path / "a.tif", coded(x)))
    grid = scene.grid.scaled(10, 10)
    tile = read_embeddings([scene], grid)
    np.testing.assert_allclose(np.linalg.norm(tile.pixels[:, tile.valid], axis=0), 1, atol=1e-5)
    mean = x.reshape(64, 10, 6, 10, 6).mean((2, 4))
    assert ((mean / np.linalg.norm(mean, axis=0)) * tile.pixels).sum(0)[tile.valid].min() > 0.9 and tile.valid.all()


# Getting them

INDEX_ROWS = [("s3://us-west-2.opendata.source.coop/tge-labs/aef/v1/annual/2023/33S/a.tiff", 2023, 14.0, -25.0, 15.0, -24.0),
              ("s3://us-west-2.opendata.source.coop/tge-labs/aef/v1/annual/2023/34S/b.tiff", 2023, 17.9, -25.0, 19.0, -24.0),
              ("gs://alphaearth_foundations/satellite_embedding/v1/annual/2024/34S/c.tiff", 2024, 17.9, -25.0, 19.0, -24.0)]


@pytest.fixture
def index(tmp_path):
    pd.DataFrame(INDEX_ROWS, columns=["path", "year", "wgs84_west", "wgs84_south", "wgs84_east", "wgs84_north"]).to_parquet(tmp_path / INDEX.name)
    return tmp_path / INDEX.name


def test_the_index_gives_addresses(index):
    assert public_files(index, (14.5, -24.9, 18, -24.1), 2023) == ["https://data.source.coop/tge-labs/aef/v1/annual/2023/33S/a.tiff",
                                                                   "https://data.source.coop/tge-labs/aef/v1/annual/2023/34S/b.tiff"]
    assert public_files(index, (18, -24.9, 18.1, -24.1), 2024) == ["https://storage.googleapis.com/alphaearth_foundations/satellite_embedding/v1/annual/2024/34S/c.tiff"]
    with pytest.raises(BadInput, match="land"): public_files(index, (0, 0, 1, 1), 2024)
    with pytest.raises(BadInput, match="2023 to 2024"): public_files(index, (14, -25, 15, -24), 2017)
    for bounds in ((15, -25, 14, -24), (14, -24, 15, -25), (14, -95, 15, -24)):
        with pytest.raises(BadInput, match="west, south, east, north"): public_files(index, bounds, 2023)
    index.write_bytes(index.read_bytes()[:100])
    with pytest.raises(Corrupt, match="iter_download"): public_files(index, (14, -25, 15, -24), 2023)


def test_the_whole_way_over_http(tmp_path, index):
    x = vectors(16, 16)
    write(tmp_path / "b.tiff", coded(x), Affine(10, 0, 240_000, 0, 10, 7_240_000), "EPSG:32734", -128)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args): super().__init__(*args, directory=str(tmp_path))
        def log_message(self, *_): pass
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home = f"http://127.0.0.1:{server.server_port}/"
        list(iter_download(replace(INDEX, urls=(home + INDEX.name,)), tmp_path / "cache"))
        urls = public_files(tmp_path / "cache" / INDEX.name, (18, -24.9, 18.1, -24.1), 2023,
                            hosts={"s3://us-west-2.opendata.source.coop/tge-labs/aef/v1/annual/2023/34S/": home})
        assert urls == [home + "b.tiff"]
        with rasterio.Env(GDAL_HTTP_PROXY="", NO_PROXY="127.0.0.1"):
            scene = open_embeddings(urls[0])
            tile = read_embeddings([scene], north_up(scene.grid))
            with pytest.raises(Corrupt, match="lost.tiff"): open_embeddings(home + "lost.tiff")
        server.shutdown()
    np.testing.assert_allclose(tile.pixels, x[:, ::-1], atol=0.012)


@settings(deadline=None, max_examples=40)
@given(st.floats(-179, 178), st.floats(-80, 79), st.integers(2017, 2030))
def test_recipes_are_python_in_the_right_zone(west, south, year):
    text = export_recipe((west, south, west + 0.5, south + 0.5), year)
    ast.parse(text)
    epsg = int(re.search(r"EPSG:(32\d\d\d)", text)[1])
    area = CRS.from_epsg(epsg)
    (x,), _ = rasterio.warp.transform("EPSG:4326", area, [west + 0.25], [south + 0.25])
    assert 150_000 < x < 850_000 and (epsg < 32700) == (south + 0.25 >= 0)
    assert f"{year}-01-01" in text and "first()" not in text and "noData" in text


# The real ones

@dataclass(frozen=True, eq=False)
class Linear:
    "A linear model of single pixels"
    weights: np.ndarray # (K, 64)
    bias: np.ndarray    # (K,)

    def __call__(self, x): return np.einsum("kc,bchw->bkhw", self.weights, x, optimize=True) + self.bias[:, None, None]


def points():
    t = pd.read_csv(real("aef_points") / "samples.csv")
    return t[[f"A{i:02}" for i in range(64)]].to_numpy("float32"), t.dw_label.to_numpy(), t.region.to_numpy(), t


def test_real_vectors_are_of_unit_length():
    x = points()[0]
    assert unit_vectors(x.T[:, :, None], np.ones((len(x), 1), bool)).shape == (64, len(x), 1)


def test_real_points_by_region_are_much_harder_than_at_random():
    x, y, region, t = points()
    model = LogisticRegression(C=10, max_iter=300)
    random = cross_val_predict(model, x, y, cv=StratifiedKFold(4, shuffle=True, random_state=0)) == y
    blocked = cross_val_predict(model, x, y, cv=GroupKFold(4), groups=region) == y
    majority = np.bincount(y).max() / len(y)
    print(f"aef_points, n = {len(y)}, 4 folds: random {random.mean():.3f}, by region {blocked.mean():.3f}, majority {majority:.3f}")
    assert 0.69 < random.mean() < 0.77 and majority < 0.12 < 0.35 < blocked.mean() < 0.50


def test_real_bytes_and_floats_make_one_map(tmp_path):
    x, y, _, t = points()
    model = LogisticRegression(C=10, max_iter=300).fit(x, y)
    names = t.drop_duplicates("dw_label").set_index("dw_label").class_name.sort_index()
    predict = Predictor(Linear(model.coef_.astype("float32"), model.intercept_.astype("float32")), 64, tuple(names), radius=0, scale=unit_vectors)
    maps = {}
    for kind, name in (("floats", "aef64_exact_10m_float32.tif"), ("bytes", "aef64_exact_1m_int8.tif")):
        scene = open_embeddings(real("aef_wisconsin") / name)
        list(map_scene(scene, tmp_path / kind, predict))
        with rasterio.open(tmp_path / kind / "classes.tif") as src:
            maps[kind] = src.read(1)
            assert (src.crs, src.shape, src.nodata) == (scene.grid.crs, scene.grid.shape, 255)
    centres = maps["bytes"][5::10, 5::10]
    assert centres.shape == maps["floats"].shape and (centres == maps["floats"]).all() and len(np.unique(centres)) >= 3


def test_real_bytes_are_the_real_floats():
    a, b = (open_embeddings(real("aef_wisconsin") / n) for n in ("aef64_exact_10m_float32.tif", "aef64_exact_1m_int8.tif"))
    floats, stored = read_tile(a).pixels, read_tile(b, Window(0, 0, 1391, 200)).pixels
    assert np.abs(dequantise(stored[:, 5::10, 5::10]) - floats[:, :20]).max() < 1e-7


def test_real_degrees_are_cut_in_metres():
    scene = open_embeddings(real("aef_wisconsin") / "aef64_exact_10m_float32.tif")
    (x,), (y,) = rasterio.warp.transform("EPSG:4326", "EPSG:32616", [scene.grid.bounds[0] + 0.004], [scene.grid.bounds[3] - 0.003])
    tile = read_embeddings([scene], Grid(20, 20, Affine(10, 0, x, 0, -10, y), CRS.from_epsg(32616)))
    assert tile.valid.all() and np.abs(np.linalg.norm(tile.pixels, axis=0) - 1).max() < 1e-5
    with pytest.raises(BadInput, match="Earth"): open_scene(scene.path)
