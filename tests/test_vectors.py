"Objects and areas: no trace of blocks, true on the body, at poles and seams"
import json
import sqlite3
import subprocess
import sys

import geopandas as gpd
import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.windows import Window
from scipy.ndimage import label

from planetlab.areas import adjusted_areas, class_areas, pixel_area_m2
from planetlab.bodies import MARS, MOON, area_m2, body, from_lonlat, to_lonlat
from planetlab.core import BadInput
from planetlab.grid import Grid, grid_around
from planetlab.layers import append_layer, attach_names, to_globe, write_layer
from planetlab.maps import map_scene
from planetlab.outputs import class_map, confidence
from planetlab.predictor import Predictor
from planetlab.scene import open_scene, scene_of
from planetlab.seams import MapPlan
from planetlab.vectors import find_objects, iter_objects

GRID = Affine(1000, 0, 5e5, 0, -1000, 2e6)
MAP = CRS.from_authority("IAU_2015", 49910)


def drawn(seed, h, w, k=3, holes=0.15):
    "A noisy class map with missing pixels"
    rng = np.random.default_rng(seed)
    return rng.integers(0, k, (h, w)).astype("uint8"), rng.random((h, w)) > holes


def cylindrical(h, w, west=-180.0, world=MOON):
    return Grid(h, w, Affine(360 / w, 0, west, 0, -180 / h, 90), world.lonlat_crs)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(1, 20), st.integers(3, 9), st.integers(1, 9), st.sampled_from([4, 8]), st.booleans())
def test_blocks_leave_no_trace(seed, h, w, rows, cols, connectivity, wrap):
    classes, valid = drawn(seed, h, w)
    scene = scene_of(classes, valid, cylindrical(h, w) if wrap else Grid(h, w, GRID, MAP))
    one, many = (find_objects(scene, connectivity=connectivity, wrap=wrap, size=s) for s in (100, (rows, cols)))
    assert one.geometry.to_wkb().tolist() == many.geometry.to_wkb().tolist()
    assert one.columns.tolist() == many.columns.tolist()
    for name in one.columns.drop("geometry"):
        if one[name].dtype.kind == "f": np.testing.assert_allclose(one[name], many[name], rtol=1e-6, atol=1e-6)
        else: assert one[name].tolist() == many[name].tolist()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(1, 20), st.integers(3, 9), st.sampled_from([4, 8]))
def test_objects_are_the_connected_pixels(seed, h, w, size, connectivity):
    classes, valid = drawn(seed, h, w)
    found = find_objects(scene_of(classes, valid), connectivity=connectivity, size=size)
    expected = 0
    for c in range(3):
        numbers, n = label(valid & (classes == c), np.ones((3, 3)) if connectivity == 8 else None)
        expected += n
        assert sorted(np.bincount(numbers.ravel())[1:]) == sorted(found.n_px[found.class_id == c])
    assert len(found) == expected and shapely.is_valid(found.geometry).all()
    np.testing.assert_array_equal(shapely.area(found.geometry), found.n_px)
    assert shapely.area(shapely.union_all(found.geometry)) == valid.sum()


def test_what_leaves_early_is_complete_and_all_there():
    classes, valid = drawn(1, 60, 50)
    scene = scene_of(classes, valid)
    steps = list(iter_objects(scene, size=10))
    assert len(steps) > 3 and sum(map(len, steps)) == len(find_objects(scene))
    assert sorted(i for s in steps for i in s.id) == find_objects(scene).id.tolist()


def test_nodata_inside_and_around():
    classes = np.zeros((9, 9), "uint8")
    valid = np.zeros((9, 9), bool)
    valid[2:7, 2:7] = True
    valid[4, 4] = False
    table = find_objects(scene_of(classes, valid), size=4)
    assert table.n_px.tolist() == [24] and len(table.geometry[0].interiors) == 1 and table.touches_edge.all()
    classes[4, 4], valid[:] = 1, True
    table = find_objects(scene_of(classes, valid), size=4)
    assert table.touches_edge.tolist() == [True, False]
    assert len(find_objects(scene_of(classes, np.zeros((9, 9), bool)))) == 0
    assert find_objects(scene_of(classes, valid), classes=[1]).n_px.tolist() == [1]
    assert find_objects(scene_of(classes, valid), min_px=2).n_px.tolist() == [80]


@pytest.mark.parametrize("world", [MOON, MARS], ids=lambda w: w.name)
@pytest.mark.parametrize("lat0", [90, -90])
def test_a_cap_around_the_pole_of_a_polar_map(world, lat0):
    n, radius = 300, np.radians(10) * world.polar_m
    sign = np.sign(lat0)
    grid = Grid(n, n, Affine(2.4 * radius / n, 0, -1.2 * radius, 0, -2.4 * radius / n, 1.2 * radius), world.iau_crs(30 if sign > 0 else 35))
    rows, cols = np.indices((n, n))
    lat = to_lonlat(*grid.xy(rows.ravel(), cols.ravel()), grid.crs, world)[1].reshape(n, n)
    cap = (lat * sign > 80).astype("uint8")
    table = find_objects(scene_of(cap, grid=grid, body=world), classes=[1], size=64)
    ring = shapely.box(-180, 80 * sign, 180, lat0) if sign > 0 else shapely.box(-180, lat0, 180, 80 * sign)
    assert len(table) == 1
    np.testing.assert_allclose(table.area_m2, area_m2(world, ring), rtol=2e-3) # of the raster's staircase
    assert table.lat[0] * sign > 89.9 and not table.touches_edge[0]
    np.testing.assert_allclose(table.perimeter_m[0], 2 * np.pi * radius, rtol=0.02)
    np.testing.assert_allclose([table.length_m[0], table.width_m[0]], 2 * radius, rtol=0.02)


@pytest.mark.parametrize("west", [-180.0, 0.0])
def test_across_the_edge_of_a_map_of_the_world(west):
    h, w = 90, 180
    grid = cylindrical(h, w, west)
    classes = np.zeros((h, w), "uint8")
    classes[30:40, :5], classes[30:40, -10:] = 1, 1
    scene = scene_of(classes, grid=grid)
    assert len(find_objects(scene, classes=[1], size=33)) == 2
    table = find_objects(scene, classes=[1], wrap=True, size=33)
    box = shapely.box(0, 10, 30, 30)
    assert len(table) == 1 and table.geometry[0].geom_type == "Polygon" and not table.touches_edge[0]
    np.testing.assert_allclose(table.area_m2, area_m2(MOON, box), rtol=1e-5)
    np.testing.assert_allclose((table.lon[0] - west + 5) % 360, 0, atol=1e-3)
    r = MOON.equatorial_m * np.radians(1)
    np.testing.assert_allclose(table.perimeter_m, 40 * r + 30 * r * (np.cos(np.radians(10)) + np.cos(np.radians(30))), rtol=0.09) # a box of 15 by 10 px
    assert table.geometry[0].bounds == (west + 340, 10, west + 370, 30)


def test_caps_and_belts_that_go_round_the_world():
    grid = cylindrical(90, 180)
    classes = np.zeros((90, 180), "uint8")
    classes[:10], classes[-5:] = 1, 2
    table = find_objects(scene_of(classes, grid=grid), wrap=True, size=17).set_index("class_id")
    r = MOON.equatorial_m
    assert not table.touches_edge.any() and len(table) == 3
    np.testing.assert_allclose(table.area_m2[1], 2 * np.pi * r**2 * (1 - np.sin(np.radians(70))), rtol=1e-9)
    np.testing.assert_allclose(table.perimeter_m[1], 2 * np.pi * r * np.cos(np.radians(70)), rtol=0.06) # along rows, 5.2 % short
    np.testing.assert_allclose(table.perimeter_m[0], 2 * np.pi * r * (np.cos(np.radians(70)) + np.cos(np.radians(80))), rtol=0.06)
    np.testing.assert_allclose([table.lat[1], table.lat[2]], [90, -90], atol=1e-3)
    assert find_objects(scene_of(classes, grid=grid), size=17).touches_edge.all()
    with pytest.raises(BadInput, match="map of the whole world"):
        find_objects(scene_of(classes[:, :100], grid=Grid(90, 100, grid.transform, grid.crs)), wrap=True)


@pytest.mark.parametrize("world", [MOON, MARS, body("Vesta")], ids=lambda w: w.name)
@pytest.mark.parametrize("place", [(0, 0), (180, 60), (33, -75), (0, 90)], ids=str)
def test_a_leaning_bar_anywhere(world, place):
    "A bar of 60 by 12 km, 30 degrees east of north, in the local map"
    grid = grid_around(world, *place, 80e3, 400)
    x, y = grid.xy(*np.indices(grid.shape))
    along, across = x * 0.5 + y * np.sqrt(0.75), x * np.sqrt(0.75) - y * 0.5
    bar = ((abs(along) < 30e3) & (abs(across) < 6e3)).astype("uint8")
    row = find_objects(scene_of(bar, grid=grid, body=world), classes=[1], size=150).iloc[0]
    np.testing.assert_allclose([row.length_m, row.width_m, row.area_m2], [60e3, 12e3, 720e6], rtol=0.03)
    if abs(place[1]) < 90: np.testing.assert_allclose([row.azimuth_deg, row.lat], [30, place[1]], atol=0.6)
    x, y = from_lonlat([row.lon], [row.lat], grid.crs, world)
    assert np.hypot(x, y)[0] < 100


@settings(max_examples=8, deadline=None)
@given(st.floats(-170, 170), st.floats(-80, 70), st.integers(2, 20), st.sampled_from(["Moon", "Mars", "Vesta"]))
def test_pixels_and_geodesic_polygons_agree(lon, lat, n, name):
    world = body(name)
    grid = Grid(40, 40, Affine(0.25, 0, lon, 0, -0.25, lat + 10), world.lonlat_crs)
    classes = np.zeros((40, 40), "uint8")
    classes[5:5 + n, 8:8 + n] = 1
    table = find_objects(scene_of(classes, grid=grid, body=world), classes=[1], size=7)
    np.testing.assert_allclose(table.area_m2[0], area_m2(world, table.geometry[0]), rtol=1e-5)


@settings(max_examples=6, deadline=None)
@given(st.integers(-85, 85), st.integers(-180, 180), st.sampled_from(["Moon", "Mars"]), st.integers(1, 60), st.integers(0, 40))
def test_pixel_areas_off_the_cylinder(lat, lon, name, size, off):
    "A rotated local map: pixels add up to the polygon of their outline, windows to the whole"
    world = body(name)
    grid = grid_around(world, lon, lat, 900e3, 100)
    grid = Grid(100, 100, grid.transform @ Affine.rotation(20), grid.crs)
    whole = pixel_area_m2(grid, world)
    np.testing.assert_allclose(pixel_area_m2(grid, world, Window(off, off, size, size)), whole[off:off + size, off:off + size], rtol=1e-6)
    table = find_objects(scene_of(np.ones((100, 100), "uint8"), grid=grid, body=world), size=33)
    np.testing.assert_allclose(table.area_m2[0], whole.sum(), rtol=1e-6)
    np.testing.assert_allclose(table.area_m2[0] / 810e9, 1, rtol=0.03)


def test_probabilities_are_means_over_pixels():
    classes, valid = drawn(3, 40, 30)
    p = np.random.default_rng(0).random((3, 40, 30)).astype("float32")
    scene = scene_of(classes, valid, Grid(40, 30, GRID, MAP))
    shown = np.take_along_axis(p, classes[None].astype(int), 0)[0]
    one = find_objects(scene, probability=scene_of(shown, grid=scene.grid), size=7)
    many = find_objects(scene, probability=scene_of(p, grid=scene.grid), size=100)
    np.testing.assert_allclose(one.probability, many.probability, rtol=1e-12)
    np.testing.assert_allclose((one.probability * one.n_px).sum(), shown[valid].sum(dtype=float), rtol=1e-9)
    with pytest.raises(BadInput, match="different grids"): find_objects(scene, probability=scene_of(shown))
    with pytest.raises(BadInput, match="no band"): find_objects(scene, probability=scene_of(p[:2], grid=scene.grid))


def test_areas_of_classes_and_objects_agree():
    classes, valid = drawn(5, 70, 50)
    scene = scene_of(classes, valid, cylindrical(70, 50))
    table = find_objects(scene, size=16)
    np.testing.assert_allclose(table.groupby("class_id").area_m2.sum(), class_areas(scene, size=9).mapped_m2, rtol=1e-9)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_a_perfect_sample_changes_nothing_and_shares_add_up(seed, k):
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, k, (40, 40)).astype("uint8")
    classes[0, :k] = range(k)
    areas = class_areas(scene_of(classes, grid=cylindrical(40, 40)))
    mapped = np.repeat(np.arange(k), 12)
    same = adjusted_areas(areas, mapped, mapped)
    np.testing.assert_allclose(same.area_m2, areas.mapped_m2, rtol=1e-12)
    assert (same.se_m2 == 0).all() and (same.users == 1).all() and abs(same.attrs["overall"] - 1) < 1e-12
    other = adjusted_areas(areas, mapped, rng.integers(0, k, len(mapped)))
    np.testing.assert_allclose(other.area_m2.sum(), areas.mapped_m2.sum(), rtol=1e-12)
    assert (other.low_m2 <= other.area_m2).all() and (other.area_m2 <= other.high_m2).all()


def test_odd_maps_are_refused():
    for odd in (np.zeros((4, 4), "float32"), np.zeros((2, 4, 4), "uint8"), np.zeros((4, 4), "int64")):
        for f in (find_objects, class_areas):
            with pytest.raises(BadInput, match="a class map has one of uint8"): f(scene_of(odd))
    with pytest.raises(BadInput, match="4 neighbours or 8"): find_objects(scene_of(np.zeros((4, 4), "uint8")), connectivity=6)


@pytest.mark.parametrize("lat0", [90, -90])
@pytest.mark.parametrize("hole", [None, (0, 0), (2e5, 0)], ids=str)
def test_a_ring_around_a_pole_on_the_globe(lat0, hole):
    crs = CRS.from_proj4(f"+proj=stere +lat_0={lat0} +R=1737400")
    shape = shapely.Point(1e5, 0).buffer(4e5, 64)
    if hole: shape = shape.difference(shapely.Point(hole).buffer(1e5, 64))
    globe = to_globe(shape, crs, MOON, 1e4)
    assert globe.is_valid and globe.bounds[0] == -180 and globe.bounds[2] == 180 and (abs(globe.bounds[1 if lat0 < 0 else 3]) == 90) == (hole != (0, 0))
    r = MOON.equatorial_m
    def cap(x, rho): # a circle of the map is a circle of the sphere
        a, b = (2 * np.arctan(v / (2 * r)) for v in (x - rho, x + rho))
        return 2 * np.pi * r**2 * (1 - np.cos((b - a) / 2))
    expected = cap(1e5, 4e5) - (cap(hole[0], 1e5) if hole else 0)
    np.testing.assert_allclose(sum(area_m2(MOON, p) for p in globe.geoms), expected, rtol=2e-3)


def test_layers_on_disk(tmp_path):
    classes = np.zeros((90, 180), "uint8")
    classes[30:40, :5], classes[30:40, -10:], classes[:4] = 1, 1, 2
    table = find_objects(scene_of(classes, grid=cylindrical(90, 180)), ("plain", "hill", "cap"), classes=[1, 2], wrap=True)
    for suffix in ("gpkg", "parquet"): write_layer(tmp_path / f"a.{suffix}", table, MOON, {"hill": "#112233"})
    with pytest.warns(UserWarning, match="NOT the Earth"): write_layer(tmp_path / "a.geojson", table, MOON)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.geojson", "a.gpkg", "a.parquet"]
    text = json.loads((tmp_path / "a.geojson").read_text())
    assert text["body"] == "Moon" and "NOT the Earth" in text["description"] and "crs" not in text
    globe = gpd.read_file(tmp_path / "a.geojson")
    for shape, area in zip(globe.geometry, table.area_m2):
        assert shape.is_valid and shape.bounds[0] >= -180 and shape.bounds[2] <= 180
        assert all(p.exterior.is_ccw and not any(hole.is_ccw for hole in p.interiors) for p in shape.geoms) # RFC 7946, 3.1.6
        np.testing.assert_allclose(sum(area_m2(MOON, p) for p in shape.geoms), area, rtol=1e-4)
    assert gpd.list_layers(tmp_path / "a.gpkg").name.tolist() == ["a", "layer_styles"]
    with sqlite3.connect(tmp_path / "a.gpkg") as db:
        assert db.execute("select f_table_name, useAsDefault from layer_styles where f_table_schema = '' and f_geometry_column = 'geom'").fetchall() == [("a", 1)]
        assert "17,34,51" in db.execute("select styleQML from layer_styles").fetchone()[0]
        assert db.execute("select data_type from gpkg_contents where table_name = 'layer_styles'").fetchall() == [("attributes",)]
    write_layer(tmp_path / "a.gpkg", table, MOON) # over the old one
    assert len(gpd.read_file(tmp_path / "a.gpkg", layer="a")) == len(table) == 2


def test_a_map_that_does_not_fill_its_raster():
    "A sinusoidal map of the whole Moon: corners lie off the world"
    r = MOON.equatorial_m
    grid = Grid(91, 181, Affine(2 * np.pi * r / 180, 0, -np.pi * r, 0, -np.pi * r / 90, np.pi * r / 2), CRS.from_proj4("+proj=sinu +R=1737400"))
    x, y = grid.xy(*np.indices(grid.shape))
    valid = np.abs(x) < np.pi * r * np.cos(y / r)
    table = find_objects(scene_of(np.ones(grid.shape, "uint8"), valid & (y < np.pi / 2 * r), grid), size=40)
    assert len(table) == 1 and table.touches_edge.all()
    np.testing.assert_allclose(table.area_m2.sum(), 4 * np.pi * r**2, rtol=0.05)


@pytest.mark.parametrize("radius", [6, 20, 60])
def test_the_perimeter_of_a_disc_and_of_a_turned_square(radius):
    grid = grid_around(MOON, 30, 50, 80e3, 160)
    rng, (y, x) = np.random.default_rng(0), np.indices((160, 160))
    long = []
    for turn in rng.uniform(0, np.pi / 2, 5):
        dy, dx = y - 80 - rng.random(), x - 80 - rng.random()
        disc = find_objects(scene_of((dx**2 + dy**2 < radius**2).astype("uint8"), grid=grid), classes=[1], size=100)
        square = np.maximum(abs(dx * np.cos(turn) + dy * np.sin(turn)), abs(dy * np.cos(turn) - dx * np.sin(turn))) < radius
        square = find_objects(scene_of(square.astype("uint8"), grid=grid), classes=[1], size=100)
        long.append([disc.perimeter_m[0] / (2 * np.pi * radius * 500), square.perimeter_m[0] / (8 * radius * 500)])
    np.testing.assert_allclose(np.mean(long, 0)[0], 1, rtol=0.02)
    assert 0.9 < np.min(long) and np.max(long) < 1.05


PLACES = {"stereographic": lambda: grid_around(MOON, 40, -60, 3e5, 300), "equirectangular": lambda: Grid(300, 300, Affine(1000, 0, 1e5, 0, -1000, 1.6e6), MOON.iau_crs(10)),
          "polar": lambda: Grid(300, 300, Affine(1000, 0, -1.5e5, 0, -1000, 1.5e5), MOON.iau_crs(30)), "mars": lambda: Grid(300, 300, Affine(1000, 0, 1e5, 0, -1000, 1.6e6), MARS.iau_crs(12))}
COLOURS = {"ground": "#999999", "dark": "#123456", "bright": "#E69F00"}


def levels(x): # (B, 1, h, w) -> (B, 3, h, w): which of three grey levels is near
    return np.concatenate([-abs(x - level) / 10 for level in (100, 50, 200)], 1).astype("float32")


@pytest.mark.parametrize("place", PLACES)
def test_from_pixels_to_a_geopackage(tmp_path, place):
    "world -> map -> objects -> layer, as files; areas, names and colours arrive"
    grid = PLACES[place]()
    world = MARS if place == "mars" else MOON
    y, x = np.indices(grid.shape)
    truth = np.zeros(grid.shape, "uint8")
    truth[(y - 150) ** 2 + (x - 150) ** 2 < 60**2], truth[20:40, 200:280] = 1, 2
    pixels = np.array([100, 50, 200], "uint8")[truth]
    pixels[:, :12] = 0 # no data
    outputs = class_map(tuple(COLOURS), COLOURS), confidence()
    model = Predictor(levels, 1, tuple(COLOURS), 1, 0)
    list(map_scene(scene_of(pixels, grid=grid, nodata=0), tmp_path / "map", model, outputs, plan=MapPlan(128, 4, 8)))
    scene = open_scene(tmp_path / "map" / "classes.tif")
    assert (scene.nodata, scene.body.name) == (255, world.name)
    table = find_objects(scene, classes=[1, 2], probability=open_scene(tmp_path / "map" / "confidence.tif"), size=100) # a disc over four blocks
    assert table.name.tolist() == ["bright", "dark"] and table.probability.between(0.9, 1).all() and not table.touches_edge.any()
    area = np.broadcast_to(pixel_area_m2(grid, world), grid.shape)
    np.testing.assert_allclose(table.area_m2, [area[truth == k].sum() for k in (2, 1)], rtol=1e-9)
    names = attach_names(table, gpd.pd.DataFrame({"name": ["X"], "lon": [table.lon[1]], "lat": [table.lat[1]], "diameter_km": [20.0]}), world)
    write_layer(tmp_path / "found.gpkg", names, world)
    n = append_layer(tmp_path / "grown.gpkg", iter_objects(scene, classes=[1, 2], size=50))
    for layer in ("found", "grown"):
        back = gpd.read_file(tmp_path / f"{layer}.gpkg", layer=layer).sort_values("id", ignore_index=True)
        assert len(back) == n == 2 and back.name.tolist() == ["bright", "dark"] and back.crs.ellipsoid.semi_major_metre == pytest.approx(world.equatorial_m)
        np.testing.assert_allclose(back.area_m2, table.area_m2, rtol=1e-12)
        np.testing.assert_array_equal(shapely.area(back.geometry), shapely.area(table.geometry))
        with sqlite3.connect(tmp_path / f"{layer}.gpkg") as db: style = db.execute("select styleQML from layer_styles").fetchone()[0]
        assert "18,52,86,110" in style and "230,159,0,110" in style and 'label="dark"' in style
    assert names.feature.tolist() == ["", "X"]
    counted = class_areas(scene)
    assert counted.name.tolist() == list(COLOURS) and counted.n_px.sum() == 300 * 288


def test_nothing_found_is_a_table_all_the_same(tmp_path):
    scene = scene_of(np.zeros((40, 40), "uint8"), grid=grid_around(MOON, 10, 10, 4e4, 40))
    some, none = find_objects(scene), find_objects(scene, classes=[3])
    assert none.columns.tolist() == some.columns.tolist() and len(none) == 0 and none.crs == some.crs
    write_layer(tmp_path / "none.gpkg", none, MOON)
    assert len(gpd.read_file(tmp_path / "none.gpkg", layer="none")) == 0
    for odd in (["hill"], [], [1.5]):
        with pytest.raises(BadInput, match="give ids"): find_objects(scene, classes=odd)


@pytest.mark.parametrize("shape", [(1, 30), (30, 1), (1, 1)])
def test_a_line_of_pixels(shape):
    grid = Grid(*shape, Affine(1000, 0, 5e5, 0, -1000, 2e6), MAP)
    row = find_objects(scene_of(np.ones(shape, "uint8"), grid=grid), size=7).iloc[0]
    assert row.n_px == max(shape) and np.isfinite([row.area_m2, row.perimeter_m, row.length_m, row.width_m, row.lon, row.lat]).all()


@pytest.mark.parametrize("turn", ["south up", "east left", "rotated"])
def test_the_same_ground_from_other_rasters(turn):
    "Measures belong to the ground, not to the order of rows and columns"
    grid, (y, x) = grid_around(MARS, 100, 40, 2e5, 200), np.indices((200, 200))
    bar = ((abs(x - 90) < 50) & (abs(y - 120) < 10)).astype("uint8")
    turned = {"south up": (bar[::-1], grid.transform @ Affine(1, 0, 0, 0, -1, 200)), "east left": (bar[:, ::-1], grid.transform @ Affine(-1, 0, 200, 0, 1, 0)),
              "rotated": (np.rot90(bar).copy(), grid.transform @ Affine(0, -1, 200, 1, 0, 0))}[turn]
    a, b = (find_objects(scene_of(np.ascontiguousarray(p), grid=Grid(200, 200, t, grid.crs), body=MARS), classes=[1], size=70).iloc[0] for p, t in ((bar, grid.transform), turned))
    for name in ("area_m2", "perimeter_m", "length_m", "width_m", "azimuth_deg", "lon", "lat"): np.testing.assert_allclose(a[name], b[name], rtol=1e-5)


def test_the_error_of_a_producers_accuracy_against_labels_drawn_anew():
    errors, share = np.array([[60, 5, 10], [4, 70, 6], [3, 9, 150]]), np.array([0.05, 0.2, 0.75])
    areas = gpd.pd.DataFrame({"class_id": range(3), "name": list("abc"), "mapped_m2": share})
    i, j = (np.repeat(v.ravel(), errors.ravel()) for v in np.indices((3, 3)))
    found, rng = adjusted_areas(areas, i, j), np.random.default_rng(0)
    drawn = np.stack([w / row.sum() * rng.multinomial(row.sum(), row / row.sum(), 20_000) for w, row in zip(share, errors)], 1)
    np.testing.assert_allclose(found.producers_se, (np.diagonal(drawn, axis1=1, axis2=2) / drawn.sum(1)).std(0), rtol=0.06)
    np.testing.assert_allclose(found.se_m2, drawn.sum(1).std(0), rtol=0.03)


HEIGHT = """
import re, sys
import numpy as np, rasterio
from affine import Affine
from rasterio.windows import Window
from planetlab.bodies import MOON
from planetlab.scene import open_scene
from planetlab.vectors import iter_objects
def hwm(): return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) # kB; unlike ru_maxrss, nothing of the parent
def write(path, height):
    part = np.zeros((1, 512, 1024), "uint8")
    part[0, 100:120, 30:60] = part[0, 500:, 900:910] = 1
    with rasterio.open(path, "w", driver="GTiff", height=height, width=1024, count=1, dtype="uint8", crs=MOON.iau_crs(10),
                       transform=Affine(9, 0, 0, 0, -9, 0), tiled=True, blockxsize=512, blockysize=512, compress="lzw") as dst:
        for top in range(0, height, 512): dst.write(part, window=Window(0, top, 1024, 512))
def peak(height):
    write(sys.argv[1], height)
    n = sum(len(t) for t in iter_objects(open_scene(sys.argv[1]), classes=[1], size=512))
    return n, hwm()
low, high = peak(2048), peak(int(sys.argv[2]))
print(low[0], high[0], high[1] - low[1])
"""


def test_memory_does_not_grow_with_height(tmp_path):
    said = subprocess.run([sys.executable, "-c", HEIGHT, tmp_path / "m.tif", "40960"], capture_output=True, text=True, check=True).stdout.split()
    assert [int(v) for v in said[:2]] == [8, 160] and int(said[2]) / 1024 < 36, said # 32 MiB of them are GDAL's
