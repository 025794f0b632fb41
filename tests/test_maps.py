"The map engine: no seam, no made-up pixel, the same bits however the work is cut, stopped or shared out"
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from conftest import DATA, RASTERS, real
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import uniform_filter

from boxes import Slow, box
from planetlab.bodies import body, local_crs
from planetlab.core import BadInput, CannotWrite, ModelMismatch, PlanetlabError, digest
from planetlab.grid import Grid
from planetlab.maps import Mapping, _map_block, _put_together, map_scene
from planetlab.models.autoencoder import Autoencoder
from planetlab.outputs import class_map, probabilities, values
from planetlab.predict import reconstruction_predictor
from planetlab.predictor import Predictor
from planetlab.scene import open_scene, read_tile, scene_of
from planetlab.seams import MapPlan, gaussian, hann, jump_ratio, tile_spans

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
VALUES = values(("wide", "narrow"))


def mapped(scene, folder, predict, plan, outputs=(VALUES,)):
    list(map_scene(scene, folder, predict, outputs, plan=plan))
    return read_tile(open_scene(Path(folder) / f"{outputs[0].name}.tif", body=scene.body))


@st.composite
def plans(draw):
    margin, ramp = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    size = 2 * (margin + ramp) + draw(st.integers(8, 40))
    return MapPlan(size, margin, ramp, draw(st.sampled_from([hann, gaussian])), draw(st.integers(1, 5)), draw(st.integers(1, 6000)))


@settings(deadline=None, max_examples=40)
@given(plans(), st.integers(1, 150), st.integers(1, 150), st.integers(1, 3), st.sampled_from([1, 2, 4]), st.integers(0, 2**31))
def test_a_map_is_what_the_model_says_of_the_whole(tmp_path_factory, plan, h, w, bands, stride, seed):
    rng = np.random.default_rng(seed)
    img, valid = rng.random((bands, h, w), dtype="float32"), rng.random((h, w)) > 0.1
    predict = box(plan.margin, bands, stride=stride)
    try: plan.step(stride)
    except BadInput: return
    got = mapped(scene_of(img, valid), tmp_path_factory.mktemp("m"), predict, plan)
    want = predict(np.where(valid, img, 0)[None])[0]
    assert np.array_equal(got.valid, valid)
    assert np.abs(got.pixels - want)[:, valid].max(initial=0) <= 1e-5


def bits(folder): return {p.name: digest(p.read_bytes().hex(), 64) for p in sorted(Path(folder).glob("*.tif"))}


@settings(deadline=None, max_examples=8)
@given(st.integers(1, 5), st.integers(1, 9000), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**31))
def test_blocks_panels_and_threads_change_no_bit(tmp_path_factory, batch, block_px, panels, workers, seed):
    "Even for a model that depends on where its tile begins"
    rng = np.random.default_rng(seed)
    img, valid = rng.random((1, 130, 170), dtype="float32"), rng.random((130, 170)) > 0.05
    predict = Predictor(lambda x: x - x.mean((2, 3), keepdims=True) * np.arange(1, 4)[:, None, None].astype("float32"), 1, ("a", "b", "c"))
    outputs = (class_map(predict.classes), probabilities(predict.classes), values(predict.classes))
    one, two = (tmp_path_factory.mktemp("m") for _ in range(2))
    list(map_scene(scene_of(img, valid), one, predict, outputs, plan=MapPlan(40, 3, 7)))
    narrow = MapPlan(40, 3, 7, batch=batch, block_px=block_px)
    job = Mapping(scene_of(img, valid), predict, outputs, narrow)
    full = job.blocks
    cuts = np.linspace(0, len(job.cols), panels + 1).astype(int)
    job.__dict__["blocks"] = [(r0, r1, int(a), int(b)) for r0, r1 in dict.fromkeys(b[:2] for b in full) for a, b in zip(cuts[:-1], cuts[1:])]
    parts = []
    for i, item in enumerate(job.blocks):
        parts.append(two / f"{i}.npy")
        _map_block(job, item, parts[-1])
    _put_together(job, two, parts, two / "item.json")
    assert bits(one) == bits(two)


def test_wide_rasters_are_cut_into_panels(tmp_path):
    img = np.random.default_rng(0).random((1, 90, 30_000), dtype="float32")
    wide, narrow = MapPlan(100, 4, 8), MapPlan(100, 4, 8, max_memory=24)
    a, b = mapped(scene_of(img), tmp_path / "a", box(4), wide), mapped(scene_of(img), tmp_path / "b", box(4), narrow)
    assert len({i[2:] for i in Mapping(scene_of(img), box(4), (VALUES,), narrow).blocks}) >= 3
    assert np.array_equal(a.pixels, b.pixels) and bits(tmp_path / "a") == bits(tmp_path / "b")


def test_stopped_and_resumed_it_has_the_same_bits(tmp_path):
    scene, plan = scene_of(np.random.default_rng(1).random((1, 300, 200), dtype="float32")), MapPlan(48, 4, 8, block_px=4000)
    list(map_scene(scene, tmp_path / "once", box(4), plan=plan))
    for _ in range(4): list(islice(map_scene(scene, tmp_path / "often", box(4), plan=plan), 2))
    list(map_scene(scene, tmp_path / "often", box(4), plan=plan, workers=3))
    assert bits(tmp_path / "once") == bits(tmp_path / "often")
    assert not (tmp_path / "often" / ".blocks").exists()


JOB = """
import sys
from planetlab.maps import map_scene
from planetlab.scene import open_scene
from planetlab.seams import MapPlan
sys.path.insert(0, {tests!r})
from boxes import box
import time
for w in map_scene(open_scene({scene!r}), sys.argv[1], box(4), plan=MapPlan(48, 4, 8, block_px=3000)): time.sleep(0.01)
"""


@pytest.mark.parametrize("signal_", [signal.SIGKILL])
def test_killed_at_random_moments_the_map_has_the_same_bits(tmp_path, signal_):
    img = np.random.default_rng(2).integers(1, 255, (500, 300), dtype="uint8")
    with rasterio.open(tmp_path / "s.tif", "w", driver="GTiff", height=500, width=300, count=1, dtype="uint8", nodata=0) as dst: dst.write(img, 1)
    job, rng = JOB.format(tests=str(Path(__file__).parent), scene=str(tmp_path / "s.tif")), np.random.default_rng(3)
    subprocess.run([sys.executable, "-c", job, str(tmp_path / "once")], check=True)
    kills = 0
    for _ in range(6):
        p = subprocess.Popen([sys.executable, "-c", job, str(tmp_path / "often")])
        started = time.time()
        while not (tmp_path / "often" / ".blocks").exists() and p.poll() is None and time.time() - started < 60: time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        if p.poll() is not None: break
        p.send_signal(signal_)
        p.wait()
        kills += 1
    assert kills
    subprocess.run([sys.executable, "-c", job, str(tmp_path / "often")], check=True)
    assert bits(tmp_path / "once") == bits(tmp_path / "often")
    assert {p.name for p in (tmp_path / "often").iterdir()} == {p.name for p in (tmp_path / "once").iterdir()} > {"classes.tif", "item.json"}


def test_no_seam_can_be_seen_for_any_model(tmp_path):
    "A model that sees its whole tile: squares when cut, none when blended"
    img = uniform_filter(np.random.default_rng(4).random((400, 400)), 15).astype("float32")
    predict = Predictor(lambda x: x - 0.7 * x.mean((2, 3), keepdims=True) + 0.02 * (x[:, :, :1, :1] > 0.5), 1, ("v",))
    plan = MapPlan(80, 8, 16)
    cut, blended = (mapped(scene_of(img), tmp_path / n, predict, p, (values(("v",)),)).pixels[0]
                    for n, p in (("cut", MapPlan(80, 0, 0)), ("blended", plan)))
    edges = {e for s in tile_spans(400, plan) for e in (s.first, s.first + s.rise, s.last)}
    assert jump_ratio(cut, range(80, 400, 80)) > 2
    assert jump_ratio(blended, edges) <= 1.5 and jump_ratio(blended.T, edges) <= 1.5


HOSTILE = {
    "smaller than a tile": (3, 5), "one pixel": (1, 1), "one pixel wide": (700, 1), "one pixel high": (1, 700),
}


@pytest.mark.parametrize("shape", HOSTILE.values(), ids=HOSTILE)
def test_odd_shapes(tmp_path, shape):
    img = np.random.default_rng(5).random((1, *shape), dtype="float32")
    got = mapped(scene_of(img), tmp_path, box(4), MapPlan(64, 4, 8))
    assert np.abs(got.pixels - box(4)(img[None])[0]).max() <= 1e-6


def test_all_nodata_asks_the_model_nothing(tmp_path):
    def never(x): raise AssertionError("asked")
    got = mapped(scene_of(np.ones((1, 90, 90)), np.zeros((90, 90), bool)), tmp_path, Predictor(never, 1, ("a", "b")), MapPlan(64, 4, 8),
                 (class_map(("a", "b")),))
    assert not got.valid.any() and (got.pixels == 255).all()


def test_pixels_without_data_decide_nothing(tmp_path):
    rng = np.random.default_rng(6)
    img, holes = rng.random((1, 200, 200), dtype="float32"), rng.random((200, 200)) < 0.2
    other = np.where(holes, np.float32(np.nan), img)
    a, b = (mapped(scene_of(i, ~holes), tmp_path / n, box(4), MapPlan(64, 4, 8)) for n, i in (("a", img), ("b", other)))
    assert np.array_equal(a.pixels, b.pixels, equal_nan=True) and np.array_equal(a.valid, ~holes)


def test_rotated_and_lost_rasters_keep_their_place(tmp_path):
    turned = Grid(80, 90, Affine.translation(1000, 2000) @ Affine.rotation(30) @ Affine.scale(2, -2), None)
    list(map_scene(scene_of(np.ones((80, 90)), grid=turned), tmp_path, box(4), plan=MapPlan(64, 4, 8)))
    got = open_scene(tmp_path / "classes.tif").grid
    assert got.transform.almost_equals(turned.transform) and got.crs is None


def test_a_model_for_something_else_is_refused(tmp_path):
    grid = Grid(80, 80, Affine(10, 0, 0, 0, -10, 0), local_crs(body("Mars"), 30, 10))
    scene = scene_of(np.ones((1, 80, 80)), grid=grid)
    for kwargs, said in (({"bands": 2}, "1 bands, the model wants 2"), ({"body": "Moon"}, "shows Mars"), ({"res_m": 1.0}, "10 m/px")):
        with pytest.raises(ModelMismatch, match=said): list(map_scene(scene, tmp_path, box(4, **kwargs)))
    list(map_scene(scene, tmp_path, box(4, body="Mars", res_m=9.0), plan=MapPlan(64, 4, 8)))


@pytest.mark.parametrize("made, said", [(lambda x: x * np.nan, "not finite"), (lambda x: x[:, :, 1:], "wants?|shape")])
def test_a_broken_model_is_told(tmp_path, made, said):
    with pytest.raises(PlanetlabError, match=said):
        list(map_scene(scene_of(np.ones((1, 80, 80), "float32")), tmp_path, Predictor(made, 1, ("a",)), plan=MapPlan(64, 4, 8)))
    assert not (tmp_path / "item.json").exists() and not list(tmp_path.glob("*.tif"))


def test_a_corrupt_block_is_told_and_the_rest_is_kept(tmp_path):
    img = np.random.default_rng(7).integers(1, 255, (512, 256), dtype="uint8")
    with rasterio.open(tmp_path / "s.tif", "w", driver="GTiff", height=512, width=256, count=1, dtype="uint8", compress="deflate",
                       tiled=True, blockxsize=64, blockysize=64) as dst: dst.write(img, 1)
    good = (tmp_path / "s.tif").read_bytes()
    data = bytearray(good)
    at = len(data) * 3 // 4
    data[at:at + 64] = bytes(64)
    (tmp_path / "s.tif").write_bytes(data)
    stamp = os.stat(tmp_path / "s.tif")
    plan = MapPlan(64, 4, 8, block_px=10_000)
    seen = []
    with pytest.raises(PlanetlabError, match="Corrupt"):
        for w in map_scene(open_scene(tmp_path / "s.tif"), tmp_path / "m", box(4), plan=plan): seen.append(w)
    assert seen and len(list((tmp_path / "m" / ".blocks").glob("*.npy"))) == len(seen)
    (tmp_path / "s.tif").write_bytes(good)
    os.utime(tmp_path / "s.tif", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "m" / ".blocks").glob("*.npy")}
    rest = map_scene(open_scene(tmp_path / "s.tif"), tmp_path / "m", box(4), plan=plan)
    next(rest)
    assert all(p.stat().st_mtime_ns == t for p, t in kept.items())
    list(rest)
    assert (tmp_path / "m" / "item.json").exists()


def test_places_that_cannot_be_written(tmp_path):
    scene = scene_of(np.ones((1, 40, 40), "float32"))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CannotWrite): list(map_scene(scene, tmp_path / "file", box(4), plan=MapPlan(64, 4, 8)))
    assert (tmp_path / "file").read_text() == "mine"


def test_another_model_or_plan_is_refused(tmp_path):
    scene = scene_of(np.ones((1, 90, 90), "float32"))
    list(map_scene(scene, tmp_path, box(4), plan=MapPlan(64, 4, 8)))
    for predict, plan in ((box(5), MapPlan(64, 4, 8)), (box(4), MapPlan(64, 4, 9))):
        with pytest.raises(ModelMismatch, match="made another way"): list(map_scene(scene, tmp_path, predict, plan=plan))
    assert list(map_scene(scene, tmp_path, box(4), plan=MapPlan(64, 4, 8))) == []


# on other machines, with little room, on real rasters

@pytest.mark.filterwarnings("ignore")
def test_dask_with_a_killed_worker_has_the_same_bits(tmp_path):
    distributed = pytest.importorskip("distributed")
    img = np.random.default_rng(8).random((1, 400, 150), dtype="float32")
    with rasterio.open(tmp_path / "s.tif", "w", driver="GTiff", height=400, width=150, count=1, dtype="float32") as dst: dst.write(img)
    scene, plan = open_scene(tmp_path / "s.tif"), MapPlan(48, 4, 8, block_px=3000)
    predict = Predictor(Slow(4), 1, ("wide", "narrow"), radius=4, about={"box": 4})
    list(map_scene(scene, tmp_path / "here", predict, plan=plan))
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50) as cluster, \
         distributed.Client(cluster) as client:
        pids = list(client.run(os.getpid).values())
        for i, _ in enumerate(map_scene(scene, tmp_path / "there", predict, plan=plan, client=client)):
            if i == 1: os.kill(pids[0], signal.SIGKILL)
    assert bits(tmp_path / "here") == bits(tmp_path / "there")


def test_a_full_disk_keeps_what_is_finished(tmp_path):
    img = np.random.default_rng(9).integers(1, 255, (300, 300), dtype="uint8")
    with rasterio.open(tmp_path / "s.tif", "w", driver="GTiff", height=300, width=300, count=1, dtype="uint8") as dst: dst.write(img, 1)
    job = JOB.format(tests=str(Path(__file__).parent), scene=str(tmp_path / "s.tif"))
    limit = "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
    full = subprocess.run([sys.executable, "-c", limit + job, str(tmp_path / "m")], capture_output=True, text=True)
    assert full.returncode and "CannotWrite" in full.stderr
    kept = list((tmp_path / "m" / ".blocks").glob("[!.]*.npy"))
    assert kept and not (tmp_path / "m" / "item.json").exists() and not list((tmp_path / "m").glob("*.tif*"))
    subprocess.run([sys.executable, "-c", job, str(tmp_path / "m")], check=True)
    list(map_scene(open_scene(tmp_path / "s.tif"), tmp_path / "once", box(4), plan=MapPlan(48, 4, 8, block_px=3000)))
    assert bits(tmp_path / "m") == bits(tmp_path / "once")


REAL = [*RASTERS, *(DATA / "aef_wisconsin" / f for f in ("aef64_exact_10m_float32.tif", "aef64_exact_1m_int8.tif"))]


def some(x): return x[:, :8] # of 64


@pytest.mark.parametrize("path", REAL, ids=lambda p: p.stem)
def test_real_rasters_come_back_in_their_place(tmp_path, path):
    "Through the engine and back: values, CRS, transform and nodata, read by gdalinfo where it is there"
    scene = open_scene(real(path), body=body("Earth") if "aef" in path.name else None)
    names = tuple(f"band {i + 1}" for i in range(min(scene.bands, 8)))
    plan = MapPlan(256, 8, 16)
    want, got = read_tile(scene), mapped(scene, tmp_path, Predictor(some, scene.bands, names), plan, (values(names),))
    assert np.array_equal(got.valid, want.valid) and np.abs(got.pixels - want.pixels[:8])[:, want.valid].max() <= 1e-4 * np.abs(want.pixels).max()
    made = open_scene(tmp_path / "values.tif", body=scene.body)
    assert made.grid == scene.grid and np.isnan(made.nodata)
    if not shutil.which("gdalinfo"): pytest.skip("gdalinfo is not on PATH")
    info, was = (json.loads(subprocess.run(["gdalinfo", "-json", p], capture_output=True, text=True, check=True).stdout) for p in (tmp_path / "values.tif", path))
    assert info["size"] == was["size"] and info["metadata"]["IMAGE_STRUCTURE"]["LAYOUT"] == "COG"
    if "geoTransform" in was: assert np.allclose(info["geoTransform"], was["geoTransform"], rtol=1e-12)
    if "coordinateSystem" in was: assert rasterio.crs.CRS.from_wkt(info["coordinateSystem"]["wkt"]) == rasterio.crs.CRS.from_wkt(was["coordinateSystem"]["wkt"])


@settings(deadline=None, max_examples=12)
@given(st.integers(1, 64), st.integers(1, 64), st.integers(0, 5), st.integers(0, 6))
def test_reconstruction_covers_every_pixel(tmp_path_factory, h, w, margin, ramp):
    "systems.md 1.7 item 11: all sizes from 1 to twice the tile, any overlap"
    torch.manual_seed(0)
    predict = reconstruction_predictor(Autoencoder(size=32, latent=4, widths=(4, 8)))
    img = np.random.default_rng(h * 64 + w).random((1, h, w), dtype="float32")
    got = mapped(scene_of(img), tmp_path_factory.mktemp("r"), predict, MapPlan(32, margin, ramp), (values(predict.classes),))
    assert got.valid.all() and np.isfinite(got.pixels).all() and got.pixels.shape == img.shape
