"Ground and rasters: real products, other archives' formats, hostile files, maps with seams and poles"
import functools
import http.server
import json
import shutil
import subprocess
import threading
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from affine import Affine
from conftest import DATA, real
from rasterio.crs import CRS
from rasterio.windows import Window

from planetlab import mosaic
from planetlab.bodies import (MARS, MOON, VENUS, area_m2, body, body_of, datum_of, distance_m, from_lonlat, to_centric, to_graphic,
                              to_lonlat, wrap_lon)
from planetlab.catalog import catalog_of, check_split, ground_groups, read_footprints, write_footprints
from planetlab.core import BadInput, Corrupt, EmptyTile, MissingCRS
from planetlab.grid import Grid, footprint, grid_around
from planetlab.headers import MAGELLAN
from planetlab.mosaic import cut, measure_shift
from planetlab.scene import Frame, find_frame, find_gaps, mark_gaps, open_scene, read_tile, scene_of, to_physical
from planetlab.stretch import Stretch, fit_stretch, fit_zscore, stretch_db
from planetlab.windows import from_tiles, tile_windows, to_tiles

PRODUCTS = sorted(p for d in ("pds3_products", "planetary_rasters") for p in (DATA / d).glob("*") if p.suffix != ".md") \
    or [Path("no real products")]
NO_IMAGE = "1173MR0053120040602271E01_DRCL"
IAU = ["Sun", "Mercury", "Venus", "Moon", "Mars", "Phobos", "Jupiter", "Io", "Ganymede", "Titan", "Iapetus", "Miranda", "Pluto", "Ceres", "Vesta"]
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def write(path, pixels, crs=VENUS.iau_crs(10), **kwargs):
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    with rasterio.open(path, "w", **{"driver": "GTiff", "height": pixels.shape[1], "width": pixels.shape[2], "count": len(pixels),
                                     "dtype": pixels.dtype, "crs": crs, "transform": Affine.scale(1500, -1500), **kwargs}) as dst:
        dst.write(pixels)
    return path


# Every real product opens, shows and keeps its CRS

@pytest.mark.parametrize("path", PRODUCTS, ids=lambda p: p.name)
def test_every_product_opens_and_keeps_its_crs(path):
    real(path)
    if path.stem == NO_IMAGE:
        with pytest.raises(Corrupt, match=f"cannot read .*{NO_IMAGE}.LBL"): open_scene(path)
        return
    scene = open_scene(path)
    tile = read_tile(scene)
    named = path.with_suffix(".lbl") if path.suffix == ".IMG" else path # bare numbers are opened through their label
    with rasterio.open(named) as src:
        assert scene.grid == Grid(src.height, src.width, src.transform, src.crs)
        assert (scene.bands, scene.dtype, scene.nodata) == (src.count, src.dtypes[0], src.nodata)
        assert np.array_equal(tile.pixels, src.read())
    assert tile.valid.mean() > 0.5 and fit_stretch([(tile.pixels, tile.valid)]).low[0] > -1e5
    if path.parent.name == "planetary_rasters":
        assert scene.body in (MARS, MOON) and CRS.from_user_input(scene.grid.crs) == scene.grid.crs
        lon, lat = to_lonlat(*scene.grid.xy(scene.grid.height // 2, scene.grid.width // 2), scene.grid.crs, scene.body) \
            if datum_of(scene.grid.crs).latitude != "unknown" else ([0], [0])
        assert np.all(np.abs(lat) <= 90) and np.all(np.abs(lon) <= 180)


@pytest.mark.parametrize("path", PRODUCTS, ids=lambda p: p.name)
def test_gdalinfo_says_the_same(path):
    real(path)
    if not shutil.which("gdalinfo"): pytest.skip("gdalinfo is not on PATH")
    if path.stem == NO_IMAGE or path.suffix == ".IMG": return
    info, scene = json.loads(subprocess.run(["gdalinfo", "-json", path], capture_output=True, text=True, check=True).stdout), open_scene(path)
    assert info["size"] == [scene.grid.width, scene.grid.height] and len(info["bands"]) == scene.bands
    assert info["bands"][0].get("noDataValue") == scene.nodata
    if scene.grid.crs: assert CRS.from_wkt(info["coordinateSystem"]["wkt"]) == scene.grid.crs


def test_radiance_and_light_of_a_rover_image():
    path = real("pds3_products/1p375513899radbqqep2582l2c1.img")
    scene = open_scene(path)
    tile = read_tile(scene)
    radiance = to_physical(tile, scene)
    assert scene.physical.unit == "W/m**2/nm/sr" and scene.viewing.sun_azimuth_deg == 335.007
    assert 15 < scene.viewing.incidence_deg < 20 # 12:30 on Meridiani in southern autumn
    assert np.allclose(radiance.pixels[0][tile.valid], tile.pixels[0][tile.valid] * 1.939106e-06 + 0.0005072708)
    assert not tile.valid[tile.pixels[0] == 0].any()


def test_the_label_names_what_gdal_misses():
    scene = open_scene(real("pds3_products/1p375513987radbqqep2582l5c1.img"))
    tile = read_tile(scene)
    assert scene.specials == (32766.0,) and not tile.valid[tile.pixels[0] == 32766].any()


@pytest.mark.parametrize("number", [0, 4])
def test_real_frames_are_found(number):
    paths = sorted((DATA / "venus_topo_maldan13").glob("*_topo.tif"))
    if number >= len(paths): pytest.skip("real data absent: venus_topo_maldan13 is not in ../shared/data")
    tile = read_tile(open_scene(paths[number]))
    assert tile.pixels.shape == (1, 3839, 4096) and find_frame(tile.pixels) == Frame(5, 3, 5, 4)
    if number: return
    gaps = find_gaps(tile.pixels)
    assert gaps.sum() == 3839 * 4096 - (3839 - 8) * (4096 - 9)
    poisoned = np.where(gaps, 255, tile.pixels)
    assert fit_stretch([(poisoned, ~gaps)]) == fit_stretch([(tile.pixels, ~gaps)])
    windows = tile_windows(3839, 4096, 512, (480, 512), "pad")
    tiles = to_tiles(tile.pixels[0], windows)
    assert len(tiles) == 64 and {t.shape for t in tiles} == {(512, 512)} and not tiles[-1][479:].any()
    assert np.array_equal(tiles[9], tile.pixels[0][480:992, 512:1024])
    assert np.array_equal(from_tiles(tiles, windows, 3839, 4096), tile.pixels[0])


# Bodies

@pytest.mark.parametrize("name", IAU)
def test_a_body_is_known_by_its_own_crs(name):
    world = body(name)
    for code in (0, 15, 30, 60): assert body_of(world.iau_crs(code)) == world
    if name in ("Mercury", "Mars", "Jupiter", "Iapetus", "Ceres"):
        for code in (1, 2, 11): assert body_of(world.iau_crs(code)) == world
        assert world.polar_m < world.equatorial_m
    assert body_of(grid_around(world, 20, -60, world.equatorial_m / 20, 8).crs) == world


def test_the_earth_is_refused_unless_meant(tmp_path):
    path = write(tmp_path / "utm.tif", np.full((40, 40), 7, "uint8"), crs=CRS.from_epsg(32616),
                 transform=Affine.translation(300e3, 4800e3) @ Affine.scale(30, -30))
    with pytest.raises(BadInput, match="utm.tif.*this is the Earth"): open_scene(path)
    with pytest.raises(BadInput, match="Mars has"): open_scene(path, body=MARS)
    earth = open_scene(path, body=body("Earth"))
    lon, lat = to_lonlat(*earth.grid.xy(20, 20), earth.grid.crs, earth.body)
    assert abs(to_graphic(lat, earth.body) - 43.33) < 0.05 and abs(lon + 89.46) < 0.05
    assert cut(earth, grid_around(earth.body, float(lon), float(lat), 600, 16)).valid.all()


def test_latitudes_of_mars_differ_by_a_third_of_a_degree():
    assert abs(to_graphic(45, MARS) - 45 - 0.34) < 0.01
    assert abs(distance_m(MARS, 0, 45, 0, to_graphic(45, MARS)) - 20e3) < 200
    maps = CRS.from_proj4("+proj=eqc +a=3396190 +b=3376200"), MARS.iau_crs(10)
    flattened, round_ = (from_lonlat([0], [45], crs, MARS)[1][0] for crs in maps)
    assert abs(flattened - round_ - 20e3) < 200


@pytest.mark.parametrize("code", [1, 2, 11, 12, 31, 32])
def test_flattened_systems_say_which_latitude(code):
    crs = MARS.iau_crs(code)
    x, y = from_lonlat([10.0], [45.0], crs, MARS)
    assert np.allclose(to_lonlat(x, y, crs, MARS), [[10], [45]])
    if code == 1: assert np.allclose([x[0] % 360, y[0]], [350, to_graphic(45, MARS)])
    if code == 2: assert np.allclose([x[0], y[0]], [10, 45])


@pytest.mark.parametrize("radius", [3376200, 3381160, 3393833.26, 3396190])
def test_a_product_on_its_local_radius_is_still_mars(tmp_path, radius):
    path = write(tmp_path / "h.tif", np.ones((9, 9), "uint16"), crs=CRS.from_proj4(f"+proj=eqc +lat_ts=25 +lon_0=180 +R={radius} +units=m"))
    scene = open_scene(path)
    assert scene.body == MARS and datum_of(scene.grid.crs).radius_m == radius


def test_distances_and_areas_follow_the_ellipsoid():
    quarter = distance_m(MARS, 0, 0, 0, 90)
    assert abs(quarter - np.pi / 4 * (MARS.equatorial_m + MARS.polar_m)) < 100 # to second order in the flattening
    for world in (VENUS, MARS, body("Saturn")):
        square = footprint(grid_around(world, 170, 0, world.equatorial_m / 50, 8), world)
        assert np.isclose(area_m2(world, square), (world.equatorial_m / 50) ** 2, rtol=2 * (1 - world.polar_m / world.equatorial_m) + 1e-3)


# Other formats

@pytest.mark.parametrize("driver, suffix", [("ISIS3", "cub"), ("PDS4", "xml"), ("VICAR", "vic"), ("VRT", "vrt"), ("COG", "tif")])
def test_other_archives_open(tmp_path, driver, suffix):
    z = np.linspace(1, 900, 64 * 80).reshape(64, 80).astype("float32")
    path = tmp_path / f"a.{suffix}"
    plain = write(tmp_path / "plain.tif", z, crs=MARS.iau_crs(10), nodata=-32768)
    from rasterio.shutil import copy
    copy(plain, path, driver=driver)
    scene = open_scene(path)
    assert scene.grid.shape == (64, 80) and np.allclose(read_tile(scene).pixels[0], z)
    if driver != "VICAR": assert scene.body == MARS
    assert np.array_equal(read_tile(scene, Window(5, 6, 7, 8)).pixels, read_tile(scene).pixels[:, 6:14, 5:12])


def test_all_five_special_pixels_of_isis_are_gaps(tmp_path):
    z = np.ones((8, 8), "float32")
    z[0, :5] = np.arange(0xFF7FFFFB, 0xFF800000, dtype="uint32").view("float32")
    scene = open_scene(write(tmp_path / "a.cub", z, driver="ISIS3", crs=MARS.iau_crs(10)))
    assert np.array_equal(read_tile(scene).valid, z == 1)


def test_masks_and_alpha_are_gaps_and_no_bands(tmp_path):
    rgba = np.full((4, 16, 16), 200, "uint8")
    rgba[3, :4] = 0
    scene = open_scene(write(tmp_path / "a.png", rgba, driver="PNG", crs=None))
    assert scene.bands == 3 and np.array_equal(read_tile(scene).valid, rgba[3] > 0)
    path = write(tmp_path / "m.tif", rgba[0])
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dst: dst.write_mask(rgba[3] > 0)
    assert np.array_equal(read_tile(open_scene(path)).valid, rgba[3] > 0)


def test_far_and_packed_files_open_like_near_ones(tmp_path):
    path = write(tmp_path / "a.tif", np.arange(1, 65, dtype="uint8").reshape(8, 8))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z: z.write(path, "inside.tif")
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args): super().__init__(*args, directory=str(tmp_path))
        def log_message(self, *_): pass
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        with rasterio.Env(GDAL_HTTP_PROXY="", NO_PROXY="127.0.0.1"):
            far = read_tile(open_scene(f"{url}/a.tif"))
            with pytest.raises(Corrupt, match="nowhere.tif"): open_scene(f"{url}/nowhere.tif")
        server.shutdown()
    packed = read_tile(open_scene(f"/vsizip/{tmp_path}/a.zip/inside.tif"))
    near = read_tile(open_scene(path))
    for other in (far, packed): assert np.array_equal(other.pixels, near.pixels) and other.body == VENUS


# Hostile files

def test_no_bands_and_no_source(tmp_path):
    (tmp_path / "none.vrt").write_text('<VRTDataset rasterXSize="4" rasterYSize="4"></VRTDataset>')
    with pytest.raises(Corrupt): open_scene(tmp_path / "none.vrt")
    (tmp_path / "lost.vrt").write_text('<VRTDataset rasterXSize="4" rasterYSize="4"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
                                       '<SourceFilename relativeToVRT="1">gone.tif</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>')
    with pytest.raises(Corrupt, match="lost.vrt"): read_tile(open_scene(tmp_path / "lost.vrt"))


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.3, 0.9])
@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.cub", "a.jpg"])
def test_a_cut_off_file_is_corrupt(tmp_path, name, keep):
    driver = {"tif": "GTiff", "png": "PNG", "cub": "ISIS3", "jpg": "JPEG"}[name[2:]]
    noise = np.random.default_rng(0).integers(1, 255, (200, 200), dtype="uint8")
    path = write(tmp_path / name, noise, driver=driver, crs=MARS.iau_crs(10) if driver in ("GTiff", "ISIS3") else None)
    for aux in tmp_path.glob("*.aux.xml"): aux.unlink()
    data = path.read_bytes()
    path.write_bytes(data[:int(keep * len(data))])
    with pytest.raises(Corrupt, match=name): read_tile(open_scene(path))


def test_one_pixel_and_nothing_but_gaps(tmp_path):
    one = open_scene(write(tmp_path / "one.tif", np.full((1, 1), 7, "uint8")))
    tile = cut(one, grid_around(VENUS, 0.00709, -0.00709, 600, 4))
    assert tile.valid.all() and (tile.pixels == 7).all() and find_frame(read_tile(one).pixels) == Frame(0, 0, 0, 0)
    void = open_scene(write(tmp_path / "void.tif", np.full((40, 40), np.nan, "float32")))
    assert not cut(void, grid_around(VENUS, 0.3, -0.3, 20e3, 16)).valid.any()
    with pytest.raises(EmptyTile): fit_zscore([(read_tile(void).pixels, read_tile(void).valid)])
    with pytest.raises(EmptyTile): measure_shift(*[cut(void, grid_around(VENUS, 0.3, -0.3, 20e3, 32))] * 2)
    assert mark_gaps(scene_of(np.zeros((20, 20), "uint8"))).gaps.all()


def test_a_nodata_value_that_does_not_fit_its_type_hides_nothing(tmp_path):
    scene = open_scene(write(tmp_path / "a.tif", np.arange(64, dtype="uint8").reshape(8, 8)), nodata=-9999)
    assert read_tile(scene).valid.all()


def test_infinite_pixels_never_reach_an_average():
    z = np.random.default_rng(0).normal(size=(64, 64)).astype("float32")
    z[10:13, 20:22], z[40, 40] = np.inf, -np.inf
    grid = Grid(64, 64, Affine.translation(-48e3, 48e3) @ Affine.scale(1500, -1500), VENUS.iau_crs(10))
    for width in (30e3, 90e3):
        tile = cut(scene_of(z, grid=grid), grid_around(VENUS, 0, 0, width, 20))
        assert np.isfinite(tile.pixels).all() and np.abs(tile.pixels).max() < 5


@pytest.mark.parametrize("array", [np.zeros(5), np.zeros((2, 2, 2, 2)), np.zeros((0, 4)), np.array([["a"]])])
def test_what_is_no_raster_is_no_scene(array):
    with pytest.raises(BadInput, match="give numbers as"): scene_of(array)


def test_a_plane_without_a_world_has_pixels_and_no_place(tmp_path):
    scene = open_scene(write(tmp_path / "a.tif", np.ones((9, 9), "uint8"), crs=CRS.from_wkt('LOCAL_CS["sheet",UNIT["metre",1]]')))
    assert scene.body is None and read_tile(scene).valid.all()
    with pytest.raises(MissingCRS): cut(scene, grid_around(VENUS, 0, 0, 9e3, 4))
    assert open_scene(tmp_path / "a.tif", body=MARS).body == MARS


# Mosaics

def wave(lon, lat):
    lon, lat = np.radians(lon), np.radians(lat)
    x, y, z = np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)
    return 100 * (2 * x * y + np.sin(3 * z) + y**3 + x)


@functools.cache
def globe(world, crs, left, h=360):
    "A mosaic of the whole world of which every pixel is known"
    unit = 1 if crs.is_geographic else np.radians(1) * world.equatorial_m
    zero = float(crs.to_dict().get("lon_0", 0))
    step = 180 / h
    grid = Grid(h, 2 * h, Affine.translation((left - zero) * unit, 90 * unit) @ Affine.scale(step * unit, -step * unit), crs)
    lon, lat = left + (np.arange(2 * h) + 0.5) * step, 90 - (np.arange(h) + 0.5) * step
    if datum_of(crs).latitude != "sphere": lat = to_centric(lat, world)
    return scene_of(wave(lon[None], lat[:, None]).astype("float32"), grid=grid)


MAPS = {"degrees, 180": (VENUS, VENUS.lonlat_crs, -180), "degrees, 360": (MARS, MARS.lonlat_crs, 0),
        "metres, 180": (MARS, MARS.iau_crs(10), -180), "metres, 360 on a map centred at 0": (MOON, MOON.iau_crs(10), 0),
        "metres, 360": (VENUS, VENUS.iau_crs(15), 0), "cut at 90 E": (VENUS, CRS.from_proj4("+proj=eqc +lon_0=-90 +R=6051800"), -270),
        "on the ellipsoid": (MARS, CRS.from_proj4("+proj=eqc +a=3396190 +b=3376200 +units=m"), -180)}


@pytest.mark.parametrize("name", MAPS)
def test_a_window_holds_what_lies_there(name):
    world, crs, left = MAPS[name]
    scene = globe(world, crs, left)
    for lon, lat in ((180, 0), (0, 35), (90, -20), (179.9, -70), (10, 90), (-100, -90), (45, 84)):
        for width in (0.1, 0.6):
            here = grid_around(world, lon, lat, width * world.equatorial_m, 40)
            tile, (rows, cols) = cut(scene, here), np.mgrid[:40, :40]
            miss = np.abs(tile.pixels[0] - wave(*to_lonlat(*here.xy(rows, cols), here.crs, world)))
            assert tile.valid.all() and miss.max() < 4 and miss.mean() < 0.5, (lon, lat, width)


def test_warping_on_the_ellipsoid_would_be_twenty_kilometres_off():
    "The same place from a spherical and an ellipsoidal map of Mars"
    a, b = (globe(MARS, MAPS[n][1], -180) for n in ("metres, 180", "on the ellipsoid"))
    here = grid_around(MARS, 20, 45, 1500e3, 100)
    shift = measure_shift(cut(a, here), cut(b, here))
    assert np.hypot(shift.east_m, shift.north_m) < 1000 and shift.correlation > 0.999


def test_a_regional_mosaic_ends_where_it_ends():
    scene = globe(VENUS, VENUS.iau_crs(10), -180)
    piece = Window(700, 100, 20, 200) # up to the antimeridian
    region = scene_of(scene.array[:, *piece.toslices()], grid=scene.grid.window(piece))
    tile = cut(region, grid_around(VENUS, 180, 0, 1000e3, 40))
    assert tile.valid[:, :19].all() and not tile.valid[:, 21:].any()
    assert not cut(region, grid_around(VENUS, -150, 0, 1000e3, 40)).valid.any()


def test_only_what_is_needed_is_read(monkeypatch):
    scene, read = globe(VENUS, VENUS.iau_crs(10), -180), []
    monkeypatch.setattr(mosaic, "read_tile", lambda s, w: read.append(w.width * w.height) or read_tile(s, w))
    cut(scene, grid_around(VENUS, 180, 0, 40 * 52_800, 40))
    assert sum(read) < 60 * 60
    read.clear()
    monkeypatch.setattr(mosaic, "_STRIP_PX", 2_000)
    whole = cut(scene, grid_around(VENUS, 0, 0, 6e6, 20))
    assert max(read) <= 2_000 and len(read) > 2
    monkeypatch.setattr(mosaic, "_STRIP_PX", 10**9)
    assert np.array_equal(whole.pixels, cut(scene, grid_around(VENUS, 0, 0, 6e6, 20)).pixels)


def test_speckle_is_averaged_and_gaps_do_not_bleed():
    rng = np.random.default_rng(0)
    noise = rng.gamma(1, 100, (600, 600)).astype("float32")
    noise[:, 280:320] = -1e9
    grid = Grid(600, 600, Affine.translation(-45e3, 45e3) @ Affine.scale(150, -150), VENUS.iau_crs(10))
    tile = cut(scene_of(noise, grid=grid, nodata=-1e9), grid_around(VENUS, 0, 0, 60e3, 40)) # ten to one
    assert tile.pixels.min() >= 0 and not tile.valid[:, 19:21].any() and tile.valid[:, :18].all()
    assert 7 < tile.pixels[0][:, :18].std() < 14 # 100 / sqrt(100), less what neighbours share


@pytest.mark.parametrize("rows, cols", [(0, 0), (4, -7), (-2, 9), (0.5, -3.5)])
def test_a_known_shift_is_measured(rows, cols):
    "Tiles of one rough ground, with holes, the second's origin displaced"
    rng = np.random.default_rng(1)
    from scipy.ndimage import gaussian_filter, shift
    ground = gaussian_filter(rng.normal(size=(160, 160)), 2)
    grid = Grid(128, 128, Affine.scale(250, -250), VENUS.iau_crs(10))
    def tile(img):
        t = read_tile(scene_of(img[16:144, 16:144].astype("float32"), rng.random((128, 128)) > 0.3, grid))
        return t._replace(pixels=np.where(t.valid, t.pixels, 1e6))
    found = measure_shift(tile(ground), tile(3 * shift(ground, (rows, cols), order=3, mode="reflect") + 5))
    assert np.allclose(found[:2], (rows, cols), atol=0.15) and np.allclose(found[2:4], (250 * cols, -250 * rows), atol=40)
    assert found.correlation > 0.95 and found.confidence > 0.5
    other = gaussian_filter(rng.normal(size=(160, 160)), 2)
    assert measure_shift(tile(ground), tile(other)).confidence < 0.5 < found.confidence


# Stretches and catalogs

def test_invalid_pixels_have_no_say_in_any_stretch():
    rng = np.random.default_rng(0)
    img, valid = rng.normal(50, 9, (2, 40, 40)).astype("float32"), rng.random((40, 40)) > 0.4
    for fit in (fit_stretch, fit_zscore):
        for options in ({}, {"levelled": True}, {"levelled": True, "relative": True}):
            assert fit([(img, valid)], **options) == fit([(np.where(valid, img, 1e7), valid)], **options)
    z = fit_zscore([(img, np.ones((40, 40), bool))], sigmas=2)
    assert np.allclose(z.low, img.mean((1, 2)) - 2 * img.std((1, 2)), rtol=1e-4)


def test_magellan_counts_are_decibels_once():
    dn = np.arange(1, 252, dtype="uint8").reshape(1, 1, -1)
    scene = scene_of(dn, physical=MAGELLAN, nodata=0)
    assert np.allclose(to_physical(read_tile(scene), scene).pixels[0, 0], np.arange(-20, 30.1, 0.2), atol=1e-4)
    assert stretch_db(-20, 30) == Stretch((1,), (251,), unit=stretch_db(-20, 30).unit)
    assert scene_of(dn).physical.unit == "uncalibrated"


def test_catalogs_survive_the_disk_and_damage_is_told(tmp_path):
    scene = globe(MARS, MARS.lonlat_crs, -180)
    table = catalog_of(scene, tile_windows(*scene.grid.shape, 120, edge="partial"))
    assert np.isclose(sum(area_m2(MARS, f) for f in table.footprint), 1.4437e14, rtol=1e-3)
    for suffix in ("gpkg", "parquet"):
        path = tmp_path / f"t.{suffix}"
        write_footprints(path, table, MARS)
        back, world = read_footprints(path)
        assert world == MARS and back.window.tolist() == table.window.tolist() and list(back) == [*table.drop(columns="footprint"), "footprint"]
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(Corrupt): read_footprints(path)
    with pytest.raises(BadInput): write_footprints(tmp_path / "t.csv", table, MARS)


def test_ground_around_a_pole_is_one():
    polar = [footprint(grid_around(VENUS, lon, lat, 8e5, 16), VENUS) for lon, lat in ((0, 89), (180, 88), (-90, -89), (90, -88), (10, 60))]
    assert ground_groups(polar).tolist() == [0, 0, 1, 1, 2]
    table = pd.DataFrame({"id": range(5), "group": range(5), "split": ["train", "val", "train", "train", "val"], "footprint": polar})
    with pytest.raises(BadInput, match="share ground"): check_split(table)
    assert wrap_lon(540) == -180
