"What a bad file gets: a typed error or correct handling, and nothing half-written"
import numpy as np
import pandas as pd
import pytest
import rasterio
from affine import Affine
from conftest import command_here
from rasterio.crs import CRS

from planetlab.bodies import VENUS
from planetlab.chips import make_chips
from planetlab.core import BadInput, CannotWrite, Corrupt, EmptyTile, PlanetlabError, atomic, write_json
from planetlab.grid import grid_around
from planetlab.inputs import products, read_catalog
from planetlab.mosaic import cut
from planetlab.scene import open_scene, read_tile
from planetlab.stretch import fit_stretch
from planetlab.windows import random_windows
from planetlab.worlds.venus import make_venus, write_venus


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_venus(make_venus(12, rng=np.random.default_rng(2)), tmp_path_factory.mktemp("w") / "venus", rng=np.random.default_rng(2))


def raster(path, pixels, nodata=None, crs=CRS.from_authority("IAU_2015", 29910)):
    with rasterio.open(path, "w", driver="GTiff", height=pixels.shape[0], width=pixels.shape[1], count=1, dtype=pixels.dtype,
                       nodata=nodata, crs=crs, transform=Affine.scale(1500, -1500)) as dst:
        dst.write(pixels, 1)
    return path


@pytest.mark.parametrize("name, damage", {
    "missing": lambda b: None, "empty": lambda b: b"", "text": lambda b: b"not a raster at all",
    "header only": lambda b: b[:200], "truncated": lambda b: b[:len(b) // 2],
    "middle overwritten": lambda b: b[:len(b) // 4] + bytes(len(b) // 2) + b[-len(b) // 4:],
}.items(), ids=lambda v: v if isinstance(v, str) else "")
def test_a_damaged_raster_is_corrupt(world, tmp_path, name, damage):
    data, path = damage((world / "sar.tif").read_bytes()), tmp_path / "sar.tif"
    if data is not None: path.write_bytes(data)
    with pytest.raises(Corrupt, match="cannot read .*sar.tif"): read_tile(open_scene(path))


def test_one_pixel(tmp_path):
    tile = read_tile(open_scene(raster(tmp_path / "one.tif", np.full((1, 1), 7, "uint8"))))
    assert tile.pixels.shape == (1, 1, 1) and tile.valid.all()
    with pytest.raises(BadInput, match="do not fit a raster of 1 x 1 px"): random_windows(tile.valid, 1, 64, rng=np.random.default_rng(0))


def test_not_one_valid_pixel(tmp_path):
    scene = open_scene(raster(tmp_path / "void.tif", np.zeros((40, 40), "uint8"), nodata=0))
    tile = read_tile(scene)
    assert not tile.valid.any()
    with pytest.raises(EmptyTile): random_windows(tile.valid, 1, 8, rng=np.random.default_rng(0))
    with pytest.raises(PlanetlabError): fit_stretch([(tile.pixels, tile.valid)])
    assert not cut(scene, grid_around(VENUS, 0.1, -0.1, 20e3, 16)).valid.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_a_number_is_never_data(tmp_path, bad):
    z = np.arange(1600, dtype="float32").reshape(40, 40)
    z[5:20, 5:20] = bad
    tile = read_tile(open_scene(raster(tmp_path / "z.tif", z)))
    assert np.array_equal(tile.valid, np.isfinite(z))
    fitted = fit_stretch([(tile.pixels, tile.valid)])
    chips = make_chips([(tile.pixels, tile.valid)], fitted, 32)
    assert all(np.isfinite(v).all() for v in vars(fitted).values() if isinstance(v, float))
    assert chips.x.isfinite().all()


def test_an_earth_crs_is_refused(tmp_path):
    with pytest.raises(BadInput, match="this is the Earth"): open_scene(raster(tmp_path / "earth.tif", np.ones((4, 4), "uint8"), crs=CRS.from_epsg(32631)))


def test_a_folder_of_nothing(tmp_path):
    with pytest.raises(BadInput, match="holds neither"): products(tmp_path)


def table(world, tmp_path, change):
    "A copy of the world whose first catalogue was changed"
    copy = tmp_path / "copy"
    copy.mkdir()
    for p in world.iterdir(): (copy / p.name).write_bytes(p.read_bytes())
    path = sorted(copy.glob("*.csv"))[0]
    rows = pd.read_csv(path)
    change(rows).to_csv(path, index=False)
    return copy


@pytest.mark.parametrize("change, words", [
    (lambda t: t.drop(columns="Latitude"), "no column Latitude"),
    (lambda t: pd.concat([t, t]), "bad rows"),
    (lambda t: t.assign(Latitude=123.0), "latitude is -90 to 90"),
    (lambda t: t.assign(Longitude=np.nan), "bad rows"),
    (lambda t: t.assign(Max_D_km=-5), "Max_D_km is positive"),
    (lambda t: t.assign(uniq_ID="xyz_1"), "ids are unique"),
])
def test_a_bad_catalogue_is_refused(world, tmp_path, change, words):
    with pytest.raises(BadInput, match=words): read_catalog(table(world, tmp_path, change), rng=np.random.default_rng(0))


def test_a_bad_mark_is_refused(tmp_path):
    (tmp_path / "images").mkdir()
    pd.DataFrame({"image": ["a.png"], "x": [1.0], "y": [np.nan], "class_id": [1]}).to_csv(tmp_path / "labels.csv", index=False)
    with pytest.raises(BadInput, match="line 2"): read_catalog(tmp_path, rng=np.random.default_rng(0))
    pd.DataFrame({"image": ["a.png"], "x": [1.0], "y": [1.0], "class_id": [1]}).to_csv(tmp_path / "labels.csv", index=False)
    with pytest.raises(BadInput, match="not in"): read_catalog(tmp_path, rng=np.random.default_rng(0))


def test_a_run_on_a_damaged_mosaic_stops_with_its_reason(world, tmp_path):
    bad = table(world, tmp_path, lambda t: t)
    data = (bad / "topo.tif").read_bytes()
    (bad / "topo.tif").write_bytes(data[:len(data) // 2])
    done = command_here("run", "venus", "-f", "venus_smoke", "-p", f"data_dir={bad}", "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 1 and "Corrupt" in done.stderr and "topo.tif" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "venus.ipynb").exists() and not (tmp_path / "run" / "metrics.json").exists()
    assert (tmp_path / "run" / "venus.failed.ipynb").exists()


def test_a_run_without_data_stops_with_its_reason(world, tmp_path):
    bad = table(world, tmp_path, lambda t: t)
    for name in ("sar.tif", "topo.tif"):
        with rasterio.open(bad / name, "r+") as dst: dst.write(np.full(dst.shape, dst.nodata, dst.dtypes[0]), 1)
    done = command_here("run", "venus", "-f", "venus_smoke", "-p", f"data_dir={bad}", "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 1 and "valid" in done.stderr and "Traceback" not in done.stderr


def test_nothing_half_written(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, 1)
    with pytest.raises(RuntimeError), atomic(path) as p:
        p.write_text("half")
        raise RuntimeError
    with pytest.raises(BadInput): write_json(path, {"x": float("nan")})
    assert path.read_text() == "1\n" and [p.name for p in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(CannotWrite): write_json(path / "below" / "a.json", 1)
