"The procedural desert: forms obey the wind, labels are exact, regions differ, difficulty is where it was set"
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import maximum_filter, minimum_filter, uniform_filter
from sklearn.linear_model import LogisticRegression

from planetlab.core import BadInput
from planetlab.dune_classes import CLASSES
from planetlab.embeddings import mosaic_grid, open_embeddings, read_embeddings
from planetlab.scene import open_scene, read_tile
from planetlab.worlds.dunes import REGIONS, Signal, dune_relief, form_of, make_desert, quantise, write_desert

unit = st.floats(0, 1)


@pytest.fixture(scope="module")
def deserts(): return [make_desert(r, 256, rng=np.random.default_rng([11, r.number])) for r in REGIONS]


def named(*climate): return CLASSES[form_of(*(np.array([v]) for v in climate))[0]]


@settings(deadline=None, max_examples=60)
@given(unit, unit, unit)
def test_every_climate_has_one_form_and_no_sand_means_plain(s, v, g):
    assert named(s, v, g) in CLASSES and (named(s, v, g) == "plain") == (s < 0.15)


@settings(deadline=None, max_examples=40)
@given(st.floats(0, 0.35), st.floats(0, 0.6))
def test_more_sand_under_one_wind_joins_dunes(v, g):
    order = ["plain", "barchan", "barchanoid ridge", "transverse ridge"]
    seen = [order.index(named(s, v, g)) for s in np.linspace(0, 1, 30)]
    assert seen == sorted(seen) and set(seen) == {0, 1, 2, 3}


def test_plants_hold_parabolic_dunes_and_stars_need_many_winds():
    assert named(0.5, 0.1, 0.9) == "parabolic dune" and named(0.5, 0.9, 0.9) == "sand sheet"
    assert named(0.9, 0.9, 0) == "star dune" and named(0.9, 0.5, 0) == "reversing dune" and named(0.3, 0.5, 0) == "linear dune"


def trend(z): # Azimuth of the steepest changes, degrees clockwise from up, 0 to 180
    south, east = np.gradient(z)
    return np.degrees(0.5 * np.arctan2(-2 * (east * south).mean(), (south**2).mean() - (east**2).mean())) % 180


@pytest.mark.parametrize("wind", [0, 35, 110, 250])
def test_ridges_lie_across_the_wind_and_linear_dunes_along_it(wind):
    z = dict(zip(CLASSES, dune_relief(256, wind, rng=np.random.default_rng(wind))))
    for name, turn in (("transverse ridge", 0), ("reversing dune", 0), ("linear dune", 90)):
        assert abs((trend(z[name]) - wind - turn + 90) % 180 - 90) < 20, name


@pytest.mark.parametrize("wind", [20, 200])
def test_lee_sides_are_steep_and_face_downwind(wind):
    z = dict(zip(CLASSES, dune_relief(256, wind, rng=np.random.default_rng(1))))
    a = np.radians(wind)
    for name, lopsided in (("transverse ridge", True), ("reversing dune", False)):
        south, east = np.gradient(z[name])
        down = east * np.sin(a) - south * np.cos(a) # rise towards where the wind blows
        steep = np.percentile(down, 99) / -np.percentile(down, 1)
        assert steep < 0.6 if lopsided else 0.8 < steep < 1.25


def test_same_seed_same_desert():
    a, b, c = (make_desert(REGIONS[2], 64, rng=np.random.default_rng(s)) for s in (4, 4, 5))
    for x, y in zip(a[:5], b[:5]): np.testing.assert_array_equal(x, y)
    assert (a.labels != c.labels).any()


def test_vectors_labels_and_gaps_agree(deserts):
    for d in deserts:
        np.testing.assert_allclose(np.linalg.norm(d.embedding[:, d.valid], axis=0), 1, atol=1e-5)
        assert np.isnan(d.embedding[:, ~d.valid]).all() and ((d.labels == 255) == ~d.valid).all()
        assert (d.labels[d.valid] == form_of(*d.climate)[d.valid]).all()
        assert 0 < (~d.valid).mean() < 0.1 and d.embedding.dtype == np.float32
    assert {d.grid.crs.to_epsg() for d in deserts} == {32733, 32734}
    assert set(np.unique(np.concatenate([d.labels[d.valid] for d in deserts]))) == set(range(10))


def test_a_region_moves_its_classes_and_a_new_draw_does_not(deserts):
    again = make_desert(REGIONS[0], 256, rng=np.random.default_rng(99))
    def mean(d, c): return d.embedding[:, d.labels == c].mean(1)
    here, other, draw = deserts[0], deserts[2], again
    for c in (CLASSES.index(n) for n in ("plain", "barchanoid ridge")):
        assert np.linalg.norm(mean(here, c) - mean(other, c)) > 2 * np.linalg.norm(mean(here, c) - mean(draw, c))


def test_neighbours_are_alike_and_boundaries_mixed(deserts):
    d = deserts[1]
    own = np.stack([d.embedding[:, d.labels == c].mean(1) if (d.labels == c).any() else np.zeros(64) for c in range(10)])
    rest = np.nan_to_num(d.embedding - own.T[:, np.minimum(d.labels, 9)])
    near, far = ((rest[:, :, :-k] * rest[:, :, k:]).mean() / (rest**2).mean() for k in (1, 40))
    assert near > 0.3 and abs(far) < 0.15
    clean = make_desert(REGIONS[1], 128, Signal(noise=0, soil=0, slow=0, facet=0, bare=0), rng=np.random.default_rng(2))
    labels = np.where(clean.valid, clean.labels, form_of(*clean.climate))
    own = np.stack([np.nanmedian(clean.embedding[:, labels == c], 1) if (labels == c).any() else np.zeros(64) for c in range(10)])
    cos = np.nan_to_num((clean.embedding * own.T[:, labels]).sum(0), nan=1)
    inner = minimum_filter(labels, 11) == maximum_filter(labels, 11)
    edge = minimum_filter(labels, 3) != maximum_filter(labels, 3)
    assert cos[inner].min() > 0.999 and 0.9 < cos[edge].mean() < 0.99


def test_difficulty_lies_between_the_yardsticks(deserts):
    rng, held = np.random.default_rng(0), deserts[3]
    rows = [(d.embedding[:, d.valid].T[i], d.labels[d.valid][i]) for d in (deserts[k] for k in (0, 1, 2, 4)) for i in [rng.choice(d.valid.sum(), 1500, replace=False)]]
    model = LogisticRegression(C=10, max_iter=150).fit(*(np.concatenate(v) for v in zip(*rows)))
    linear = (model.predict(held.embedding[:, held.valid].T) == held.labels[held.valid]).mean()
    ids = np.unique(held.labels[held.valid])
    means = np.stack([held.embedding[:, held.labels == c].mean(1) for c in ids])
    logits = np.tensordot(means, np.nan_to_num(held.embedding), 1) - 0.5 * (means**2).sum(1)[:, None, None]
    oracle = (ids[np.stack([uniform_filter(q, 9) for q in logits]).argmax(0)] == held.labels)[held.valid].mean()
    common = np.bincount(held.labels[held.valid]).max() / held.valid.sum()
    assert common < 0.5 and 0.70 < linear < 0.90 and oracle > 0.95
    easy = make_desert(REGIONS[3], 128, Signal(noise=0.01, soil=0, facet=0, bare=0, slow=0), rng=np.random.default_rng(1))
    own = np.stack([easy.embedding[:, easy.labels == c].mean(1) if (easy.labels == c).any() else np.zeros(64) for c in range(10)])
    assert (np.tensordot(own, np.nan_to_num(easy.embedding), 1).argmax(0) == easy.labels)[easy.valid].mean() > 0.97


@pytest.mark.parametrize("int8, south_up, parts", [(False, False, 1), (True, False, 3), (False, True, 2), (True, True, 1)])
def test_written_deserts_come_back(tmp_path, int8, south_up, parts):
    d = make_desert(REGIONS[4], 80, rng=np.random.default_rng(8))
    files = write_desert(tmp_path, d, int8=int8, south_up=south_up, parts=parts)
    scenes = [open_embeddings(p) for p in files.embedding]
    assert len(scenes) == parts and all((s.grid.transform.e > 0) == south_up and s.dtype == ("int8" if int8 else "float32") for s in scenes)
    assert mosaic_grid(scenes) == d.grid
    tile = read_embeddings(scenes, d.grid)
    assert (tile.valid == d.valid).all()
    np.testing.assert_allclose(tile.pixels[:, d.valid], d.embedding[:, d.valid], atol=0.008 if int8 else 1e-6)
    truth = read_tile(open_scene(files.labels, body=scenes[0].body))
    assert (truth.pixels[0] == d.labels).all() and (truth.valid == d.valid).all()


def test_codes_stay_clear_of_nodata():
    q = quantise(np.array([[-1.0, 1.0, np.nan], [0.3, -0.3, 0.2]])[:, None])
    assert q.tolist() == [[[-127, 127, -128]], [[70, -70, -128]]]


def test_what_cannot_be_made_is_refused(tmp_path):
    with pytest.raises(BadInput, match="32 or more"): make_desert(REGIONS[0], 31, rng=np.random.default_rng(0))
    with pytest.raises(BadInput, match="1 to 32"): write_desert(tmp_path, make_desert(REGIONS[0], 32, rng=np.random.default_rng(0)), parts=0)
