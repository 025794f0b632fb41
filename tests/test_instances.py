"Rocks one by one: counts, sizes, matches and their scores, by laws and by brute force"
import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.distance import pdist

from planetlab.core import BadInput
from planetlab.worlds.mast import Camera
from planetlab.instances import (PARTS, find_instances, instance_scores, list_instances, match_boxes, match_instances, outlines, show_instances,
                                 to_metres)

LAWS = settings(max_examples=12, deadline=None)


def rng(seed=0): return np.random.default_rng(seed)


def scattered(seed, n=12, side=60, classes=2):
    "Discs that may overlap: ids and labels"
    some, ids, labels = rng(seed), np.zeros((side, side), int), np.zeros((side, side), "uint8")
    for k in range(1, n + 1):
        disc = np.hypot(*(np.ogrid[:side, :side][i] - some.uniform(0, side) for i in (0, 1))) < some.uniform(0.8, 7)
        ids[disc], labels[disc] = 10 * k, 1 + k % classes
    return ids, labels


@LAWS
@given(st.integers(0, 2**31), st.sampled_from([4, 8]), st.sampled_from([None, 0.5, 1.0, 3.0]), st.booleans())
def test_every_rock_pixel_is_in_one_rock(seed, connectivity, split_px, apart):
    _, labels = scattered(seed)
    found = find_instances(labels, [1, 2], connectivity=connectivity, split_px=split_px, apart=apart)
    assert ((found.ids > 0) == (labels > 0)).all()
    t = found.table
    assert t.id.tolist() == list(range(1, len(t) + 1)) and t.n_px.sum() == (labels > 0).sum()
    for r in t.itertuples():
        here = found.ids == r.id
        assert ndimage.label(here, np.ones((3, 3)))[1] == 1
        assert r.n_px == here.sum() and (r.top, r.left, r.bottom, r.right) == (*np.argwhere(here).min(0), *np.argwhere(here).max(0) + 1)
        assert r.touches_edge == (r.top == 0 or r.left == 0 or r.bottom == 60 or r.right == 60)
        assert r.touches_rock == bool((found.ids[ndimage.binary_dilation(here, np.ones((3, 3))) & ~here] > 0).any())
        assert r.is_small == (r.n_px < 12) and r.class_id == np.bincount(labels[here]).argmax()
        if apart: assert len(set(labels[here])) == 1
        edges = (np.argwhere(here)[:, None] + np.array([[0, 0.5], [0.5, 0], [0, -0.5], [-0.5, 0]])).reshape(-1, 2)
        assert r.length_px == pytest.approx(pdist(edges).max())
    shapes = outlines(found)
    np.testing.assert_allclose(shapely.area(shapes), t.n_px)
    assert shapely.is_valid(shapes).all()
    if split_px is None: assert len(t) == sum(ndimage.label(labels > 0 if not apart else labels == k, np.ones((3, 3)) if connectivity == 8 else None)[1]
                                              for k in ((1, 2) if apart else (0,)))


def test_dumbbell_is_cut_at_its_neck():
    r, c = np.ogrid[:30, :60]
    two = (np.hypot(r - 15, c - 18) < 10) | (np.hypot(r - 15, c - 40) < 10) | ((abs(r - 15) < 3) & (abs(c - 29) < 12))
    assert len(find_instances(two, [1], split_px=None).table) == 1
    cut = find_instances(two, [1])
    assert len(cut.table) == 2 and cut.table.touches_rock.all() and abs(cut.table.n_px.diff().iloc[1]) < 30
    assert len(find_instances(np.hypot(r - 15, (c - 30) / 2) < 10, [1]).table) == 1 # an ellipse has no neck
    dots = np.zeros((9, 9), int)
    dots[1, 1] = dots[4:6, 4:6] = 1                                      # too flat to be cut, and kept
    assert find_instances(dots, [1], split_px=5.0).table.n_px.tolist() == [1, 4]


def test_invalid_pixels_are_no_rock():
    labels, valid = np.ones((10, 10), int), np.ones((10, 10), bool)
    valid[:, 5] = False
    found = find_instances(labels, [1], valid, split_px=None)
    assert found.table.n_px.tolist() == [50, 40] and found.table.touches_edge.all()
    probs = np.stack([np.zeros((10, 10)), np.where(valid, 0.75, np.nan)])
    assert find_instances(labels, [1], valid, probs, split_px=None).table.p.tolist() == [0.75, 0.75]


def test_nothing_found_is_an_empty_table():
    none = find_instances(np.zeros((8, 8), int), [1])
    assert len(none.table) == 0 and len(outlines(none)) == 0 and len(to_metres(none, res_m=2.0).table) == 0
    assert len(to_metres(none, range_m=np.ones((8, 8)), focal_px=9.0).table) == 0
    show_instances(np.zeros((8, 8)), none)
    ids, labels = scattered(1)
    truth = list_instances(ids, labels)
    missed = match_instances(find_instances(labels * 0, [1]), truth)
    assert (missed.found_id == 0).all() and len(missed) == len(truth.table)
    t = instance_scores(missed, "", rng=rng()).value
    assert t["all", "recall"] == 0 and np.isnan(t["all", "precision"]) and np.isnan(t["all", "size_error"]) and t["all", "panoptic_quality"] == 0


def test_metres_only_where_known():
    ids, labels = scattered(2)
    found = list_instances(ids, labels)
    assert not [c for c in found.table if c.endswith(("_m", "_m2"))]
    t = to_metres(found, res_m=0.5).table
    np.testing.assert_allclose(t.diameter_m, found.table.diameter_px / 2)
    np.testing.assert_allclose(t.area_m2, np.pi / 4 * t.diameter_m**2)
    near, far = (to_metres(found, range_m=np.full(ids.shape, r), focal_px=500.0).table for r in (10.0, 20.0))
    np.testing.assert_allclose(far.diameter_m, 2 * near.diameter_m)
    np.testing.assert_allclose(near.diameter_m, found.table.diameter_px * 10 / 500, rtol=0.01) # near the axis
    first = found.table.id.iloc[0]
    gone = to_metres(found, range_m=np.where(ids == first, np.nan, 10.0), focal_px=500.0).table
    assert np.isnan(gone.diameter_m.iloc[0]) and gone.diameter_m.iloc[1:].notna().all()


@LAWS
@given(st.integers(0, 2**31), st.sampled_from([0.5, 0.6, 0.8]))
def test_matches_by_brute_force(seed, iou):
    (a, la), (b, _) = scattered(seed), scattered(seed + 1)
    b = np.where(rng(seed).random(a.shape) < 0.85, np.roll(a, 1, 0), b)
    valid = rng(seed + 2).random(a.shape) < 0.9
    truth, found = list_instances(a, la), list_instances(b, la)
    rows = match_instances(found, truth, "x", "g", valid, iou)
    want = {}
    for t in truth.table.id:
        for f in found.table.id:
            p, q = (a == t) & valid, (b == f) & valid
            if (b[valid] == f).sum() * 2 >= (b == f).sum() and (p & q).sum() >= iou * max((p | q).sum(), 1): want.setdefault(t, []).append((f, (p & q).sum() / (p | q).sum()))
    pairs = rows[(rows.true_id > 0) & (rows.found_id > 0)]
    assert set(pairs.true_id) == set(want) and pairs.true_id.is_unique and pairs.found_id.is_unique
    for r in pairs.itertuples(): assert (r.found_id, pytest.approx(r.iou)) in want[r.true_id]
    true = rows.true_id[rows.true_id > 0]
    assert true.is_unique and set(true) == set(np.unique(a[valid])) - {0}


def test_unknown_ground_judges_nobody():
    ids = np.zeros((10, 20), int)
    ids[2:6, 2:6], ids[2:6, 12:16] = 1, 2
    valid = np.zeros(ids.shape, bool)
    valid[:, :10] = True
    none = list_instances(np.where(ids == 1, 1, 0), ids)
    assert match_instances(list_instances(ids, ids), none, valid=valid).iou.tolist() == [1.0]


def test_boxes():
    ids, labels = scattered(3)
    found = list_instances(ids, labels)
    t = found.table
    boxes = pd.DataFrame({"TopLeftCornerX": t.left, "TopLeftCornerY": t.top, "Length": t.right - t.left, "Height": t.bottom - t.top})
    rows = match_boxes(found, boxes.iloc[::-1].iloc[1:], list(boxes))
    hit = rows[rows.true_id > 0]
    assert (hit.iou == 1).all() and len(hit) == len(t) - 1 and (rows.true_id == 0).sum() == 1
    assert instance_scores(rows, "", rng=rng()).value["all", "size_error"] == 0
    far = match_boxes(found, boxes.assign(TopLeftCornerX=boxes.TopLeftCornerX + 500), list(boxes))
    assert (far.true_id * far.found_id == 0).all() and len(far) == 2 * len(t)
    assert len(match_boxes(found, boxes.iloc[:0], list(boxes))) == len(t)


def rows_of(seed, n=40, groups=8):
    "Matches with known counts: pairs, missed and false by group, sizes 10 % too large"
    some = rng(seed)
    kind = some.choice(3, n, p=[0.6, 0.2, 0.2])
    true, found = np.where(kind == 2, 0, np.arange(1, n + 1)), np.where(kind == 1, 0, np.arange(1, n + 1))
    size = some.uniform(5, 20, n)
    return pd.DataFrame({"image": "i", "group": some.integers(groups, size=n).astype(str), "true_id": true, "found_id": found,
                         "iou": np.where(kind == 0, 0.8, np.nan), "true_diameter_px": np.where(true > 0, size, np.nan),
                         "found_diameter_px": np.where(found > 0, size * some.uniform(1.05, 1.15, n), np.nan), **{f: some.random(n) < 0.3 for f in PARTS}})


@LAWS
@given(st.integers(0, 2**31))
def test_scores_of_counts(seed):
    rows = rows_of(seed)
    table = instance_scores(rows, "p", draws=5, rng=rng())
    for name, part in (("all", rows), ("whole", rows[~rows[list(PARTS)].any(axis=1)]), ("occluded", rows[rows.is_occluded])):
        tp, fp, fn = ((part.iou > 0).sum(), (part.true_id == 0).sum(), (part.found_id == 0).sum())
        v = table.loc[name].value
        if tp + fp: assert v.precision == tp / (tp + fp)
        if tp + fn: assert v.recall == tp / (tp + fn)
        if tp: np.testing.assert_allclose(v.panoptic_quality, v.f1 * v.mean_iou)
        error = (part.found_diameter_px / part.true_diameter_px - 1)[part.iou > 0]
        np.testing.assert_allclose([v.size_error, v.size_bias], [error.abs().median(), error.median()])
    assert set(table.protocol) == {"p"} and (table.loc["all"].n_groups == rows.group.nunique()).all()
    pd.testing.assert_frame_equal(table, instance_scores(rows, "p", draws=5, rng=rng()))


def test_intervals_shrink_and_one_group_has_none():
    few, many = (instance_scores(rows_of(0, n, n // 5), "", rng=rng()).loc[("all", "recall")] for n in (60, 960))
    assert many.high - many.low < 0.6 * (few.high - few.low) and few.low < few.value < few.high
    assert instance_scores(rows_of(0).assign(group="one"), "", rng=rng())[["low", "high"]].isna().all(axis=None)
    with pytest.raises(BadInput, match="no rocks"): instance_scores(rows_of(0).iloc[:0], "", rng=rng())


def test_shrunk_rocks_have_a_negative_bias():
    ids = np.zeros((80, 80), int)
    for k, (r, c) in enumerate(((20, 20), (20, 60), (60, 20), (60, 60)), 1): ids[np.hypot(*(np.ogrid[:80, :80][i] - v for i, v in enumerate((r, c)))) < 12] = k
    truth, small = list_instances(ids, ids), find_instances(ndimage.binary_erosion(ids > 0), [1])
    v = instance_scores(match_instances(small, truth), "", rng=rng()).value.loc["whole"]
    np.testing.assert_allclose([v.size_bias, v.size_error, v.recall], [-1 / 12, 1 / 12, 1], atol=0.03)


@pytest.mark.parametrize("given", [{}, {"range_m": np.ones((60, 60))}, {"res_m": 1.0, "range_m": np.ones((60, 60)), "focal_px": 1.0}, {"focal_px": 3.0},
                                   {"range_m": np.ones((6, 6)), "focal_px": 1.0}])
def test_sizes_refused(given):
    with pytest.raises(BadInput): to_metres(list_instances(*scattered(0)), **given)


@pytest.mark.parametrize("middle", [(0, 0, 20), (-3, 1, 7), (12, 0, 20), (12, 8, 20)])
def test_metres_are_right_at_the_edge_of_a_frame(middle):
    rays, radius = Camera(300, 400, 300.0, pitch_deg=0).rays().astype(float) @ np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]), 0.6 # right, down, ahead
    near = np.linalg.norm(middle)
    ids = (radius**2 > near**2 - (rays @ np.array(middle)) ** 2).astype(int)
    t = to_metres(list_instances(ids, ids), range_m=np.full(ids.shape, near), focal_px=300.0).table
    np.testing.assert_allclose(t.diameter_m, 2 * radius, rtol=0.012) # the range is that of the middle
