"The procedural Moon: windows that fit, truth that holds, rasters that stream"
import json
from dataclasses import replace

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.windows import Window

from planetlab.bodies import MOON, body_of, distance_m
from planetlab.core import BadInput
from planetlab.worlds.moon import CLASSES, HIGHLAND, MARE, moon_scene, moon_window, sun_depth, write_moon
from planetlab.worlds.regolith import CELL, Region, cell_objects, ground_at

HERE = Region(1300, 2200, seed=17, swath_px=700)


@pytest.fixture(scope="module")
def whole(): return moon_window(HERE)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_window_is_a_cut(whole, data):
    top, left = data.draw(st.integers(0, 1299)), data.draw(st.integers(0, 2199))
    h, w = data.draw(st.integers(1, min(400, 1300 - top))), data.draw(st.integers(1, min(400, 2200 - left)))
    part, here = moon_window(HERE, Window(left, top, w, h)), np.s_[top:top + h, left:left + w]
    for name in ("pixels", "valid", "labels", "rock"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[here])
    assert part.grid == whole.grid.window(Window(left, top, w, h))
    for name in ("rocks", "craters"):
        table, every = getattr(part, name), getattr(whole, name)
        inside = every.row.round().between(top, top + h - 1) & every.col.round().between(left, left + w - 1)
        pd.testing.assert_frame_equal(*(t.sort_values(["row", "col"], ignore_index=True) for t in (table, every[inside])))


def test_world_is_its_seed(whole):
    np.testing.assert_array_equal(moon_scene((200, 200), rng=np.random.default_rng(1)).pixels,
                                  moon_scene((200, 200), rng=np.random.default_rng(1)).pixels)
    other = moon_window(replace(HERE, seed=18), Window(0, 0, 300, 300))
    assert (other.labels != whole.labels[:300, :300]).mean() > 0.05


def test_labels_and_tables_tell_one_truth(whole):
    assert set(np.unique(whole.labels)) == {-1, 0, 1, 2, 3} and len(CLASSES) == 4
    np.testing.assert_array_equal(whole.valid, whole.pixels > 0)
    np.testing.assert_array_equal(whole.valid, whole.labels >= 0)
    np.testing.assert_array_equal(whole.labels == 1, whole.rock > 0)
    assert whole.rocks.number.is_unique
    big = whole.rocks[whole.rocks.diameter_m > 6]
    rows, cols = (np.rint(big[k]).astype(int) for k in ("row", "col"))
    seen = whole.valid[rows, cols]
    assert (whole.labels[rows, cols][seen] == 1).all() # a rock covers its own centre
    assert (whole.rock[rows, cols][seen] == big.number[seen]).mean() > 0.8
    area = pd.Series(whole.rock.ravel()).value_counts().reindex(big.number[seen])
    assert 0.8 < np.nanmedian(area / (np.pi / 4 * big.diameter_m[seen].to_numpy() ** 2)) < 1.2


def test_objects_lie_where_the_map_says(whole):
    t, xy = whole.craters, whole.grid.transform
    a, b = t.iloc[0], t.iloc[-1]
    across = np.hypot(a.row - b.row, a.col - b.col) * HERE.res_m
    np.testing.assert_allclose(distance_m(MOON, a.lon, a.lat, b.lon, b.lat), across, rtol=1e-4)
    assert body_of(whole.grid.crs) == MOON and xy.a == HERE.res_m


def test_shadows_follow_the_sun():
    rng = np.random.default_rng(0)
    z = np.zeros((90, 90), "float32")
    z[45, 45] = 10
    for azimuth, incidence in rng.uniform((0, 20), (360, 75), (40, 2)):
        rows, cols = np.nonzero(sun_depth(z, 1, azimuth, incidence) > 0)
        down, right = np.cos(np.radians(azimuth)), -np.sin(np.radians(azimuth)) # away from the Sun
        along, aside = (rows - 45) * down + (cols - 45) * right, (rows - 45) * right - (cols - 45) * down
        assert np.abs(aside).max() <= 1 and along.min() > 0
        assert abs(along.max() - 10 * np.tan(np.radians(incidence))) < 1.5


def test_no_crease_where_cells_meet():
    region = Region(2200, 2200, seed=3)
    seen = moon_window(region, Window(0, CELL - 30, 2200, 60)).pixels.astype(float)
    step = np.abs(np.diff(seen, axis=0)).mean(1)
    assert 0.8 < step[29] / np.median(step) < 1.25
    left, right = (ground_at(region, np.arange(200), np.arange(a, a + 300)).z_m for a in (CELL - 150, CELL))
    np.testing.assert_allclose(left[:, 150:], right[:, :150], atol=5e-3)


def test_no_object_reaches_farther_than_asked():
    from planetlab.worlds.regolith import FAR_PX, REACH
    for seed in range(20):
        craters, rocks = cell_objects(Region(seed=seed), 2, -1)
        for low, at in ((2 * CELL, rocks.row), (-CELL, rocks.col)):
            assert (np.maximum(low - at, at - low - CELL) + 12 < FAR_PX).all()
        assert REACH * 1.1 * craters.diameter_px.max() / 2 < FAR_PX


def test_strips_leave_gaps_and_differ(whole):
    assert 0.005 < (~whole.valid).mean() < 0.1
    assert not whole.valid[0, 0] and not whole.valid[-1, -1] and whole.valid[-1, 60]
    calm = moon_window(replace(HERE, swath_px=0), Window(0, 0, 50, 50))
    assert calm.valid.all()


def test_presets_are_different_places():
    a, b = (moon_scene((700, 700), region, rng=np.random.default_rng(2)) for region in (MARE, HIGHLAND))
    assert (b.labels == 1).mean() > 1.2 * (a.labels == 1).mean() > 0
    left, right = ([np.corrcoef(m.pixels[:, 4:].ravel(), (m.pixels[:, :-4]).ravel())[0, 1] for m in (a, b)])
    assert left > 0 and right > 0 and MARE.sun_azimuth_deg != HIGHLAND.sun_azimuth_deg


def test_written_is_what_windows_give(whole, tmp_path):
    write_moon(tmp_path, HERE)
    with rasterio.open(tmp_path / "moon.tif") as image, rasterio.open(tmp_path / "labels.tif") as labels:
        np.testing.assert_array_equal(image.read(1), whole.pixels)
        np.testing.assert_array_equal(labels.read(1).view("int8"), whole.labels)
        assert image.nodata == 0 and labels.nodata == 255 and image.block_shapes == [(256, 256)] and image.tags()["BODY"] == "Moon"
        assert body_of(image.crs) == MOON and image.transform == HERE.grid.transform
        assert labels.colormap(1)[1][:3] == (0xE6, 0x9F, 0x00)
    truth = json.loads((tmp_path / "truth.json").read_text())
    assert Region(**truth["region"]) == HERE
    assert truth["pixels"]["rock"] == (whole.labels == 1).sum() and sum(truth["pixels"].values()) == whole.labels.size
    rocks = pd.read_parquet(tmp_path / "rocks.parquet")
    assert len(rocks) == len(whole.rocks) and set(rocks.number) == set(whole.rocks.number)
    gpd.GeoDataFrame(rocks, geometry=gpd.points_from_xy(rocks.lon, rocks.lat), crs=MOON.lonlat_crs.to_wkt())


@pytest.mark.parametrize("bad", [dict(height=0), dict(res_m=50.0), dict(incidence_deg=90), dict(rock_slope=0), dict(rock_density=1.0)])
def test_impossible_regions_are_refused(bad):
    with pytest.raises(BadInput): Region(**bad)


@pytest.mark.parametrize("window", [Window(-1, 0, 5, 5), Window(0, 0, 0, 5), Window(2190, 0, 20, 5), Window(0, 1299, 5, 2)])
def test_windows_stay_in_the_region(window):
    with pytest.raises(BadInput, match="does not lie"): moon_window(HERE, window)
