"Scores of a segmentation equal scikit-learn's, stream exactly, and say nothing of what is absent"
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import accuracy_score, cohen_kappa_score, confusion_matrix, f1_score, jaccard_score, precision_score, recall_score

from planetlab.confusion import Counts, Judged, count_images, count_pixels, paired_scores, segmentation_scores
from planetlab.core import BadInput

MOON = ("ground", "small rock", "large rock", "sky")
ROCK = {"rock": ("small rock", "large rock")}
LAWS = settings(max_examples=40, deadline=None)


def rng(seed=0): return np.random.default_rng(seed)


def scores(judged, names=MOON, merged=ROCK, without=(), **kwargs):
    return segmentation_scores(count_images(judged, names, merged, **kwargs), "random", without, 50, rng=rng())


@st.composite
def pairs(draw, k_max=6):
    "Images of labels and predictions that agree more often than chance, some labels 255, some pixels invalid"
    k, seed = draw(st.integers(2, k_max)), draw(st.integers(0, 2**31))
    some, out = np.random.default_rng(seed), []
    used = some.permutation(k)[:draw(st.integers(1, k))]
    for i in range(draw(st.integers(1, 5))):
        labels = some.choice(used, some.integers(2, 12, 2)).astype("uint8")
        predicted = np.where(some.random(labels.shape) < 0.6, labels, some.integers(k, size=labels.shape))
        labels[some.random(labels.shape) < 0.1] = 255
        valid = some.random(labels.shape) < 0.9
        predicted[~valid] = 77 # what lies where there is no data must not matter
        out.append(Judged(f"i{i}", f"g{i % 3}", labels, predicted, valid))
    return k, out


def flat(judged):
    kept = [(j.labels != 255) & j.valid for j in judged]
    return (np.concatenate([v[m] for v, m in zip(vs, kept)]) for vs in ([j.labels for j in judged], [j.predicted for j in judged]))


@LAWS
@given(pairs())
def test_equals_scikit_learn(case):
    k, judged = case
    t, p = flat(judged)
    if not len(t): return
    names = [f"class {i}" for i in range(k)]
    table = scores(judged, names, {"first two": names[:2]}, names[1:2], tolerance_px=None).value
    test = count_images(judged, names, tolerance_px=None).pixels.sum(0)
    np.testing.assert_array_equal(test, confusion_matrix(t, p, labels=range(k)))
    here = np.isin(range(k), t)
    for metric, f in (("iou", jaccard_score), ("dice", f1_score), ("precision", precision_score), ("recall", recall_score)):
        void = 0 if metric == "iou" else np.nan                          # scikit-learn knows no undefined IoU
        want = f(t, p, labels=range(k), average=None, zero_division=void).astype(float)
        want[~here] = np.nan                                             # absent: undefined, whatever was predicted
        np.testing.assert_allclose(table.xs(metric, level=1)[names], want, atol=1e-12)
        merged = f(t < 2, p < 2, zero_division=void) if (t < 2).any() else np.nan
        np.testing.assert_allclose(table["any first two", metric], merged, atol=1e-12)
        np.testing.assert_allclose(table["mean over all", metric], pd.Series(want).mean(), atol=1e-12)
        np.testing.assert_allclose(table[f"mean without {names[1]}", metric], pd.Series(np.delete(want, 1)).mean(), atol=1e-12)
    np.testing.assert_allclose(table["all pixels", "accuracy"], accuracy_score(t, p))
    if len({*t, *p}) > 1: np.testing.assert_allclose(table["all pixels", "kappa"], cohen_kappa_score(t, p), atol=1e-12)
    else: assert np.isnan(table["all pixels", "kappa"])


@LAWS
@given(pairs(), st.integers(0, 2**31))
def test_streaming_equals_batch(case, seed):
    k, judged = case
    names = [str(i) for i in range(k)]
    whole = count_images(judged, names)
    cut = [Judged(j.image, j.group, *(v[s] for v in j[2:])) for j in judged for s in (np.s_[:1], np.s_[1:])]
    np.random.default_rng(seed).shuffle(cut)
    pieces = count_images(iter(cut), names, tolerance_px=None)
    order = [pieces.images.index(i) for i in whole.images]
    np.testing.assert_array_equal(pieces.pixels[order], whole.pixels)
    backwards = count_images(judged[::-1], names)
    a, b = (segmentation_scores(c, "", rng=rng()) for c in (whole, backwards))
    pd.testing.assert_series_equal(a.value, b.value)
    one = [count_images([j], names) for j in judged]                     # boundaries too: image by image = all at once
    np.testing.assert_array_equal(np.concatenate([c.edges for c in one]), whole.edges)


def test_absent_is_neither_0_nor_1():
    "systems.md 4.6 L2: smoothing scored a class that is not there 1"
    t = np.zeros((8, 8), "uint8")
    t[2:4, 2:4] = 1
    for predicted in (t, np.where(t == 0, 3, t)):                        # sky never said; sky said where there is none
        table = scores([Judged("a", "a", t, predicted)])
        for of in ("large rock", "sky"): assert table.value[of].isna().all() and table.is_absent[of].all()
        assert table.left_out["mean over all", "iou"] == "large rock, sky" and not table.is_absent["mean over all", "iou"]
        assert table.value["mean over rock", "iou"] == table.value["small rock", "iou"] == 1
    assert table.value["ground", "iou"] == 0 and table.value["mean over all", "iou"] == 0.5 # false sky is missed ground
    silent = scores([Judged("a", "a", t, np.zeros_like(t))])             # there, and never said
    assert silent.value["small rock", "iou"] == 0 and np.isnan(silent.value["small rock", "precision"])
    assert not silent.is_absent["small rock"].any()


def test_sky_is_no_success_and_rock_has_a_class():
    "systems.md 4.6 L3: foreground against the rest took sky for success and small for large"
    t = np.repeat([[0, 1, 2, 3]], 8, 0).repeat(8, 1)
    swapped = np.array([0, 2, 1, 3])[t]
    table = scores([Judged("a", "a", t, swapped)], without=("ground", "sky")).value
    assert table["any rock", "iou"] == 1 and table["mean over rock", "iou"] == 0
    assert table["mean over all", "iou"] == 0.5 and table["mean without ground, sky", "iou"] == 0
    no_rock = scores([Judged("a", "a", t, np.where((t == 1) | (t == 2), 0, t))], without=("ground", "sky")).value
    assert no_rock["sky", "iou"] == 1 and no_rock["any rock", "iou"] == 0


def test_dataset_not_mean_of_batches():
    "L2: an image with one rock pixel counts one pixel"
    big, tiny = np.ones((10, 10), int), np.zeros((10, 10), int)
    tiny[0, 0] = 1
    table = scores([Judged("big", "a", big, big), Judged("tiny", "b", tiny, np.zeros_like(tiny))]).value
    assert table["small rock", "iou"] == 100 / 101


@LAWS
@given(st.integers(0, 2**31), st.sampled_from([0.0, 1.0, 1.5, 3.0]))
def test_boundaries_by_brute_force(seed, tolerance):
    some = np.random.default_rng(seed)
    t, p = (ndimage.zoom(some.integers(3, size=(4, 4)), 4, order=0) for _ in range(2))
    valid = some.random(t.shape) < 0.95
    edges = count_images([Judged("a", "a", t, p, valid)], "abc", {"bc": "bc"}, tolerance).edges[0]

    def points(inside):
        out = []
        for r, c in np.argwhere(inside & valid):
            near = [(r + i, c + j) for i, j in ((0, 1), (1, 0), (0, -1), (-1, 0)) if 0 <= r + i < 16 and 0 <= c + j < 16]
            if any(valid[n] and not inside[n] for n in near): out.append((r, c))
        return np.array(out).reshape(-1, 2)
    for row, classes in zip(edges, ([0], [1], [2], [1, 2])):
        said, true = points(np.isin(p, classes)), points(np.isin(t, classes))
        d = np.hypot(*(said[:, None] - true[None]).transpose(2, 0, 1))
        right, found = ((d <= tolerance).any(a).sum() if d.size else 0 for a in (1, 0))
        assert row.tolist() == [len(said), right, len(true), found]


def test_boundary_f1_of_what_is_known():
    disc = np.hypot(*np.ogrid[-20:21, -20:21]) < 12
    def f1(predicted, tolerance): return scores([Judged("a", "a", disc.astype(int), predicted.astype(int))], "gr", {}, tolerance_px=tolerance).value["r", "boundary_f1"]
    assert f1(disc, 0) == 1 and f1(np.zeros_like(disc), 2) == 0
    wide = ndimage.binary_dilation(disc, iterations=2)
    assert f1(wide, 2) == 1 > f1(wide, 1) > -1 and f1(wide, 0) == 0
    full = np.ones((5, 5), int)                                          # fills the frame: no boundary, no score
    assert np.isnan(scores([Judged("a", "a", full, full)], "gr", {}).value["r", "boundary_f1"])


def noisy(n=24, groups=6, wrong=0.1, seed=0, spread=0.0):
    some = np.random.default_rng(seed)
    for i in range(n):
        labels = np.random.default_rng(99 + i).integers(4, size=(12, 12))
        share = wrong + spread * (i % groups) / groups
        yield Judged(f"i{i}", f"g{i % groups}", labels, np.where(some.random(labels.shape) < share, some.integers(4, size=labels.shape), labels))


def test_interval_is_by_groups_and_repeats():
    alike = count_images(noisy(48, 48, spread=0.5), MOON, ROCK, None)
    clumped = Counts(alike.names, alike.merged, None, alike.images, [f"g{i * 6 // 48}" for i in range(48)], alike.pixels, None)
    a, b = (segmentation_scores(c, "", rng=rng()) for c in (alike, clumped))
    pd.testing.assert_series_equal(a.value, b.value)
    width = lambda t: (t.high - t.low)["any rock", "iou"]
    assert width(b) > 1.5 * width(a) > 0                                 # few groups that differ: wider
    assert (a.low <= a.value).all() and (a.value <= a.high).all()
    pd.testing.assert_frame_equal(a, segmentation_scores(alike, "", rng=rng()))
    assert (a.n_images == 48).all() and (b.n_groups == 6).all()


def test_interval_covers_the_truth():
    "By images that are independent, 95 % intervals hold the true accuracy about 95 times in 100"
    inside = 0
    for seed in range(60):
        table = segmentation_scores(count_images(noisy(30, 30, 0.4, seed), MOON, None, None), "", draws=300, rng=rng(seed))
        low, high = table.loc[("all pixels", "accuracy"), ["low", "high"]]
        inside += low <= 1 - 0.4 * 0.75 <= high
    assert 49 <= inside <= 60


def test_paired_is_sharper_and_signed():
    hard = [j for j in noisy(30, 30, 0.05, spread=0.6)]
    better = [j._replace(predicted=np.where(rng(i).random(j.labels.shape) < 0.1, j.labels, j.predicted)) for i, j in enumerate(hard)]
    a, b = (count_images(v, MOON, ROCK, 2.0) for v in (hard, better[::-1]))  # in another order
    d, single = paired_scores(a, b, "", rng=rng()), segmentation_scores(a, "", rng=rng())
    key = "any rock", "iou"
    assert d.low[key] > 0 and d.better[key] > d.worse[key]
    np.testing.assert_allclose(d.difference, d["second"] - d["first"])
    assert (d.high - d.low)[key] < 0.5 * (single.high - single.low)[key]
    back = paired_scores(b, a, "", rng=rng())
    np.testing.assert_allclose(back.difference[d.index], -d.difference)


def test_ten_classes_by_name():
    "Dunes: any number of classes, any merged ones"
    dunes = [f"dune {i}" for i in range(10)]
    t = rng().integers(10, size=(20, 20))
    table = scores([Judged(str(i), f"region {i}", t, np.where(rng(i).random(t.shape) < 0.3, 0, t)) for i in range(3)], dunes, {"barchanoid": dunes[:3]}, dunes[:1])
    assert ("any barchanoid", "iou") in table.index and ("mean over barchanoid", "dice") in table.index
    assert set(table.protocol) == {"random"}


@pytest.mark.parametrize("labels, predicted, says", [
    ([[0, 1]], [[0, 4]], "4 classes"), ([[0, 1]], [[0, -1]], "4 classes"), ([[0, 9]], [[0, 1]], "labels from"), ([[0, 1]], [[0, 255]], "may be 255"),
    ([[0, 1]], [[0], [1]], "one shape"), ([[0, 1]], [[0.2, 0.9]], "arg-max")])
def test_refused(labels, predicted, says):
    with pytest.raises(BadInput, match=says): count_pixels(np.array(labels), np.array(predicted), 4)
    with pytest.raises(BadInput, match="image 'x'"): count_images([Judged("x", "a", np.array(labels), np.array(predicted))], MOON)


def test_refused_pairs_of_models():
    a = list(noisy(4, 2))
    counts = count_images(a, MOON, ROCK)
    others = count_images([j._replace(labels=j.predicted) for j in a], MOON, ROCK), count_images(a[:3], MOON, ROCK), count_images(a, MOON, ROCK, 1.0)
    for other in others:
        with pytest.raises(BadInput): paired_scores(counts, other, "", rng=rng())
    with pytest.raises(BadInput, match="one group"): count_images([a[0], a[0]._replace(group="elsewhere")], MOON)
    with pytest.raises(BadInput, match="no class"): count_images(a, MOON, {"dune": ("dune",)})


def test_nothing_counted_is_undefined():
    t = np.full((4, 4), 255)
    table = scores([Judged("a", "a", t, t * 0)])
    assert table.value.isna().all() and table.is_absent.all() and (table.n_images == 0).all()
