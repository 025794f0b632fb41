"Laws of the procedural ground-level worlds: geometry, light, sizes and labels"
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from planetlab.core import BadInput
from planetlab.worlds.boulders import Mixture, Place, PowerLaw, RockCover, Rocks, Terrain, draw_sizes, ground_height, make_terrain, stones
from planetlab.worlds.light import hapke, sky_light, sunlight
from planetlab.worlds.mast import Camera, ground_range, hit_rocks, pinhole_rays, rocks_near, shaded
from planetlab.worlds.rocks import CLASSES, LUNAR, LUNAR_DAWN, LUNAR_FIELD, MARTIAN, MARTIAN_STORM, light_ground, photograph, rock_frames, write_rocks


def flat(*rocks):
    "Level ground with rocks given as (x, y, diameter, stone)"
    columns = np.array(rocks, float).reshape(-1, 4).T
    n = len(columns[0])
    stand = Rocks(*columns[:3], columns[3].astype(int), np.zeros(n), np.ones(n), np.zeros(n))
    return Terrain(np.zeros((320, 320), "float32"), np.ones((320, 320), "float32"), np.zeros((8, 8), "float32"), 64.0, stand)


def towards(azimuth, elevation): return light_ground(flat(), (azimuth, elevation)).sun


@lru_cache
def some(kind, seed=3): return tuple(rock_frames(3, {"moon": LUNAR, "mars": MARTIAN}[kind], poses=2, size=(160, 240), rng=np.random.default_rng(seed)))


@settings(deadline=None, max_examples=12)
@given(pitch=st.floats(-30, 10), azimuth=st.floats(0, 360), focal=st.floats(150, 700))
def test_horizon_follows_pitch(pitch, azimuth, focal):
    cam = Camera(120, 160, focal, azimuth_deg=azimuth, pitch_deg=pitch)
    away = ground_range(flat(), cam, 1e12)
    row = 60 + focal * np.tan(np.radians(pitch)) # of the horizon
    assert abs(np.isinf(away[:, 80]).sum() - np.clip(row, 0, 120)) < 1.2
    np.testing.assert_allclose(cam.project(np.array([0, 0, 1.5]) + 9 * cam.rays())[..., :2], np.stack(np.mgrid[:120, :160], -1) + 0.5, atol=0.01)


@settings(deadline=None, max_examples=10)
@given(r=st.floats(4, 25), d=st.floats(0.3, 1.2), stone=st.integers(0, 63))
def test_a_rock_is_as_wide_as_its_range_says(r, d, stone):
    cam = Camera(pitch_deg=-6)
    near = rocks_near(flat((0, r, d, stone)), cam, towards(180, 40))
    _, at, t = hit_rocks(near, cam.rays())
    width_px, kit = np.ptp(at % 360) + 1, stones()
    assert width_px <= 2 * kit.reach[stone] * 1.25 * d * 400 / (r - d) + 2
    assert width_px >= 0.6 * d * 400 / r - 2
    assert abs(np.median(t) - np.hypot(r, 1.5)) < d


@settings(deadline=None, max_examples=10)
@given(azimuth=st.floats(0, 360), elevation=st.floats(12, 60), stone=st.integers(0, 63))
def test_shadows_point_away_from_the_sun_and_end_where_they_should(azimuth, elevation, stone):
    sun, cam = towards(azimuth, elevation), Camera(300, 300, 260, z_m=9, y_m=-7, pitch_deg=-50)
    near = rocks_near(flat((0, 0, 0.9, stone)), cam, sun)
    range_m = ground_range(flat(), cam, 1e12)
    points = np.where(np.isfinite(range_m), range_m, np.nan)[..., None] * cam.rays()
    dark = shaded(near, points.astype("float32"), sun)
    east, north = (points + [0, -7, 9])[dark][:, :2].T
    along = -(east * sun[0] + north * sun[1]) / np.hypot(*sun[:2])
    across = east * sun[1] - north * sun[0]
    reach, long = 0.9 * stones().reach[stone] * 1.3, near.height_m[0] / np.tan(np.radians(elevation))
    assert dark.any() and np.abs(across).max() < reach and along.min() > -reach
    assert long - reach - 0.1 < along.max() < long + reach + 0.1


def test_hills_hide_what_lies_behind():
    land = flat()
    land.z_m[100:104] = 3 # a wall across the north, y from -20 to -20.8 m
    away = ground_range(land, Camera(120, 160, 150, x_m=20, y_m=-30, pitch_deg=-3), 1e12)
    assert away[np.isfinite(away)].max() < 16 and np.isinf(away[0]).all()


@pytest.mark.parametrize("law", [PowerLaw.of_cover(), PowerLaw.of_cover(0.05, 2), PowerLaw.of_cover(0.2, 3, 0.05, 4), PowerLaw(2.5, 0.1),
                                 RockCover(0.1, None, 0.03, 2.5), RockCover(0.3, 4.0, 0.1),
                                 Mixture((PowerLaw.of_cover(0.05, 1.4, 0.8), PowerLaw.of_cover(0.04, 2.0, 0.25, 0.45)))])
def test_drawn_sizes_follow_the_law(law):
    d = np.sort(draw_sizes(law, 20_000, rng=np.random.default_rng(0)))
    assert law.d_min_m <= d[0] and d[-1] <= law.d_max_m
    cumulative = 1 - law.number(d) / law.number(law.d_min_m)
    assert np.abs(cumulative - np.arange(1, len(d) + 1) / len(d)).max() < 2 / np.sqrt(len(d)) # Kolmogorov's distance
    assert abs(len(d) - 20_000 * law.number(law.d_min_m)) < 5 * np.sqrt(len(d))


@pytest.mark.parametrize("law", [PowerLaw.of_cover(0.05, 2), PowerLaw.of_cover(0.2, 3, 0.05, 4), RockCover(0.1, None, 0.03, 2.5), RockCover(0.3, 4.0, 0.1, 3)])
def test_number_and_cover_of_a_law_are_one(law):
    edges = np.geomspace(law.d_min_m, law.d_max_m, 20_000)
    area = np.pi / 4 * edges[1:] * edges[:-1] * -np.diff(law.number(edges))
    np.testing.assert_allclose(area.sum(), law.fraction(law.d_min_m), rtol=1e-5)
    assert law.number(law.d_min_m / 2) == law.number(law.d_min_m) and law.number(law.d_max_m * 2) == law.fraction(law.d_max_m) == 0


def test_golombek_and_rapp_area():
    law, D = RockCover(0.15, None, 0.01, 8), np.linspace(0.1, 4, 400)
    area = -np.cumsum(np.pi / 4 * ((D[1:] + D[:-1]) / 2) ** 2 * np.diff(law.number(D)))
    q = 1.79 + 0.152 / 0.15
    np.testing.assert_allclose(area, 0.15 * (np.exp(-q * 0.1) - np.exp(-q * D[1:])), rtol=4e-3)


def test_ground_wraps_round():
    land = make_terrain(Place(side_m=32), rng=np.random.default_rng(0))
    x, y = np.random.default_rng(1).uniform(-40, 40, (2, 100))
    near = replace_hills(land)
    np.testing.assert_allclose(ground_height(near, x + 32, y - 64), ground_height(near, x, y), atol=1e-3)


def replace_hills(land): return land._replace(hills=0 * land.hills)


def test_lommel_seeliger_has_no_dark_limb_and_lambert_is_nowhere():
    mu = np.linspace(0.05, 1, 50)
    dark = hapke(mu, mu, 1.0, 1e-4)
    np.testing.assert_allclose(dark, dark[-1], rtol=1e-3)
    moon = hapke(mu, mu, 1.0, 0.3)
    assert moon[0] / moon[-1] > 0.8 > mu[0]
    assert hapke(1, 1, 1.0, 0.3) > 1.3 * hapke(1, 1, 0.9, 0.3) # the opposition surge
    assert (hapke(mu, mu, 0.5, 0.95) < mu + 0.2).all()


@settings(deadline=None, max_examples=20)
@given(up=st.floats(0.15, 1), tau=st.floats(0, 2), haze=st.floats(0.5, 1))
def test_air_makes_no_light(up, tau, haze):
    direct, diffuse = sunlight(up, tau, (haze,))
    assert (0 <= diffuse).all() and (up * direct + diffuse <= up + 1e-9).all()
    rays = np.random.default_rng(0).standard_normal((50, 3))
    rays[:, 2] = np.abs(rays[:, 2])
    sky = sky_light(rays / np.linalg.norm(rays, axis=1, keepdims=True), np.array([np.sqrt(1 - up**2), 0, up]), tau, (haze,))
    assert np.isfinite(sky).all() and (sky >= 0).all() and (tau > 0 or not sky.any())


@pytest.mark.parametrize("kind", ["moon", "mars"])
def test_labels_instances_ranges_and_table_agree(kind):
    world = {"moon": LUNAR, "mars": MARTIAN}[kind]
    for f in some(kind):
        assert f.img.shape == ((1 if kind == "moon" else 3), 160, 240) and f.img.dtype == np.uint8
        assert set(np.unique(f.labels)) <= set(range(len(CLASSES)))
        assert ((f.instances > 0) == np.isin(f.labels, [1, 2])).all()
        assert (np.isinf(f.range_m) == (f.labels == 3)).all()
        assert (f.rocks.id == np.arange(1, len(f.rocks) + 1)).all()
        assert (f.rocks.visible_px == np.bincount(f.instances.ravel(), minlength=len(f.rocks) + 1)[1:]).all()
        assert (f.rocks.visible_px >= world.least_px).all() and (f.rocks.diameter_m >= world.small_m).all() and f.rocks.occluded.between(0, 1).all()
        for r in f.rocks.itertuples():
            here = f.instances == r.id
            assert (f.labels[here] == (2 if r.diameter_m >= world.large_m else 1)).all()
            assert abs(np.median(f.range_m[here]) - r.range_m) < 1.2 * r.diameter_m


def test_occlusion_is_of_what_stands_in_front():
    tall = stones().height.argmax()
    lit = light_ground(flat((0, 8, 0.8, 3), (0.1, 6.8, 0.7, tall)), (200, 40))
    both = photograph(LUNAR, lit, Camera(), rng=np.random.default_rng(0)).rocks
    both = both[both.range_m < 20].set_index("diameter_m") # they are met again a square further on
    assert both.occluded[0.8] > 0.2 and both.occluded[0.7] < 0.02 and both.touching.all()
    alone = photograph(LUNAR, light_ground(flat((0, 8, 0.8, 3)), (200, 40)), Camera(), rng=np.random.default_rng(0)).rocks
    assert alone.occluded[0] < 0.02 and not alone.touching[0] and alone.visible_px[0] > both.visible_px[0.8]


def test_the_moon_has_a_black_sky_and_mars_has_not():
    moon, mars = some("moon")[0], [f for f in some("mars") if (f.labels == 3).any()]
    level = next(rock_frames(1, replace(LUNAR, pitch_deg=(-8, -6)), size=(160, 240), rng=np.random.default_rng(3)))
    assert (level.labels == 3).mean() > 0.1 and level.img[0][level.labels == 3].mean() < 6
    for f in mars:
        red, _, blue = (band[f.labels == 3].mean() for band in f.img)
        assert red > blue > 40
    assert min(f.img[:, f.labels != 3].mean(0).min() for f in mars) > 0 and (moon.img[0][moon.labels == 0] < 20).any()


def test_same_seed_same_bytes_and_groups():
    again = tuple(rock_frames(3, poses=2, size=(160, 240), rng=np.random.default_rng(3)))
    for a, b in zip(some("moon"), again):
        assert a.img.tobytes() == b.img.tobytes() and a.instances.tobytes() == b.instances.tobytes()
        pd.testing.assert_frame_equal(a.rocks, b.rocks)
    assert [f.group for f in again] == [0, 0, 1]
    assert next(rock_frames(1, size=(160, 240), rng=np.random.default_rng(4))).img.tobytes() != again[0].img.tobytes()


def test_other_worlds_differ_in_what_they_say():
    assert LUNAR_DAWN.sun_deg[1] < LUNAR.sun_deg[0] and LUNAR_FIELD.place.law.fraction(0) > LUNAR.place.law.fraction(0) and MARTIAN_STORM.tau > MARTIAN.tau
    low = next(rock_frames(1, LUNAR_DAWN, size=(160, 240), rng=np.random.default_rng(3)))
    assert 5 <= low.sun_deg[1] <= 10


def test_written_sets_come_back(tmp_path):
    index = write_rocks(tmp_path, some("mars"), "mars")
    assert index.id.is_unique and index.group.tolist() == ["mars-0000", "mars-0000", "mars-0001"]
    rocks = pd.read_csv(tmp_path / "rocks.csv")
    for row, f in zip(index.itertuples(), some("mars")):
        with Image.open(tmp_path / row.image) as img: assert (np.asarray(img).transpose(2, 0, 1) == f.img).all()
        with Image.open(tmp_path / row.labels) as img: assert img.mode == "P" and (np.asarray(img) == f.labels).all()
        with Image.open(tmp_path / row.instances) as img: assert (np.asarray(img) == f.instances).all()
        with Image.open(tmp_path / row.ranges) as img: cm = np.asarray(img).astype(float)
        seen = f.range_m < 655
        assert np.abs(cm[seen] / 100 - f.range_m[seen]).max() < 0.006 and not cm[~seen].any()
        assert (rocks.image == row.id).sum() == len(f.rocks)


@pytest.mark.parametrize("wrong", [lambda: PowerLaw.of_cover(slope=-1), lambda: PowerLaw(2, 0), lambda: RockCover(-0.7),
                                   lambda: Place(RockCover(0.7, d_min_m=0.03)), lambda: Place(hills_m=-3),
                                   lambda: Camera(width=3), lambda: Camera(pitch_deg=80), lambda: replace(LUNAR, sun_deg=(30, 20)),
                                   lambda: rock_frames(-1, rng=np.random.default_rng(0)), lambda: write_rocks("x", [])])
def test_bad_input_says_so(wrong):
    with pytest.raises(BadInput): wrong()


def test_rays_of_a_camera_fall_where_it_projects_them():
    camera = Camera(40, 60, 55.0, 3.0, -2.0, 1.5, azimuth_deg=130, pitch_deg=-12)
    at = camera.project(np.array([camera.x_m, camera.y_m, camera.z_m]) + 9 * camera.rays().astype(float))
    row, col = np.mgrid[:40, :60] + 0.5
    np.testing.assert_allclose(at[..., :2], np.stack([row, col], -1), atol=1e-4)
    np.testing.assert_allclose(camera.rays() @ camera.axes[2], pinhole_rays((40, 60), 55.0)[..., 1], atol=1e-6)
