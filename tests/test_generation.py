"Scores of generated pictures against closed forms, libraries and brute force; copies are found, honest pictures are not blamed"
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression

from planetlab.copies import Near, added_samples, memorised, nearest_training
from planetlab.core import BadInput
from planetlab.generation import fid, judge_samples, kid, kid_interval, precision_recall


def heap(seed, n, d=3): return np.random.default_rng(seed).standard_normal((n, d))


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_fid_is_the_formula_for_any_covariances(seed, d):
    a, b = heap(seed, 40, d) @ heap(seed + 1, d, d), heap(seed + 2, 40, d) @ heap(seed + 3, d, d) + 1
    ca, cb = (np.atleast_2d(np.cov(z.T)) for z in (a, b))
    wanted = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)
    np.testing.assert_allclose(fid(a, b), wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose([fid(a, b), fid(a, a)], [fid(b, a), 0], atol=1e-6 * max(1, np.trace(ca)))


def test_fid_of_gaussians_that_are_known():
    a, b = heap(0, 200_000, 2), heap(1, 200_000, 2) * [2, 1] + [3, 0]
    np.testing.assert_allclose(fid(a, b), 9 + 1, rtol=0.01)


def test_kid_is_that_of_torchmetrics():
    import torch
    from torchmetrics.image.kid import poly_mmd
    a, b = heap(0, 30, 8), heap(1, 30, 8) + 0.3
    np.testing.assert_allclose(kid(a, b), float(poly_mmd(torch.from_numpy(a), torch.from_numpy(b))), rtol=1e-9)


def test_kid_has_no_bias_and_fid_has():
    found = np.array([[kid(z[:5], z[5:]), fid(z[:5], z[5:])] for z in (heap(s, 10) for s in range(1500))])
    error = found.std(0) / np.sqrt(len(found))
    assert abs(found[:, 0].mean()) < 3.5 * error[0] and found[:, 1].mean() > 50 * error[1]


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(2, 6))
def test_the_jackknife_is_leaving_out(seed, ga, gb):
    a, b = heap(seed, 24), heap(seed + 1, 18) + 1
    a_of, b_of = np.arange(24) % ga, np.arange(18) % gb
    value, low, high = kid_interval(a, b, a_of, b_of)
    spread = sum((g - 1) / g * np.square(w - np.mean(w)).sum() for g, w in (
        (ga, np.array([kid(a[a_of != i], b) for i in range(ga)])), (gb, np.array([kid(a, b[b_of != i]) for i in range(gb)]))))
    np.testing.assert_allclose([value, high - value, value - low], [kid(a, b), *[1.96 * np.sqrt(spread)] * 2], rtol=1e-8)


def test_precision_and_recall_are_brute_force():
    real, fake = heap(0, 25, 2), heap(1, 20, 2) * 0.4 + 0.5
    def inside(by, what):
        far = np.linalg.norm(by[:, None] - by, axis=2)
        reach = np.sort(far, 1)[:, 3]
        by, reach = by[reach <= np.median(reach)], reach[reach <= np.median(reach)]
        return np.mean([(np.linalg.norm(by - x, axis=1) <= reach).any() for x in what])
    np.testing.assert_allclose(precision_recall(real, fake, 3), [inside(real, fake), inside(fake, real)])
    assert min(precision_recall(real, real)) > 0.5 and precision_recall(real, real + 99) == (0.0, 0.0)
    odd = np.r_[real, [[500.0, 0.0]]] # one outlier vouches for nobody
    assert precision_recall(odd, real + 99) == (0.0, 0.0)


def test_nearest_training_frames_are_found_mirrored_or_not():
    training = np.random.default_rng(0).integers(0, 256, (60, 3, 16, 16), dtype="uint8")
    near = nearest_training(training[:9, ..., ::-1], training)
    assert near.rows[:, 0].tolist() == list(range(9)) and near.distance.max() == 0 and near.ratio.max() == 0
    plain = nearest_training(training[:9, ..., ::-1], training, mirror=False)
    far = np.linalg.norm((training[:9, None, ..., ::-1].astype(float) - training).reshape(9, 60, -1), axis=2) / 255 / np.sqrt(3 * 256)
    np.testing.assert_allclose(plain.distance, far.min(1), rtol=1e-4)
    few = nearest_training(training[:9], training[20:], mirror=False) # fewer than it would like to compare with
    assert (few.ratio > 0.5).all() and np.isfinite(few.ratio).all()
    with pytest.raises(BadInput, match="one shape"): nearest_training(training[:, :1], training)


def near(ratio): return Near(np.zeros((len(ratio), 5), int), np.asarray(ratio), np.asarray(ratio))


def test_copies_are_found_and_honest_pictures_are_not_blamed():
    clean, caught = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        sols = np.arange(240) // 12
        shift = rng.normal(0, 0.05, 20)[sols] # frames of a sol rise and fall together
        unseen, honest = 0.8 + shift + rng.normal(0, 0.06, 240), 0.8 + rng.normal(0, 0.078, 300)
        copied = np.r_[honest[:-6], rng.uniform(0, 0.2, 6)]
        clean.append(memorised(near(honest), near(unseen), sols, draws=100, rng=rng)["clean"])
        caught.append(not memorised(near(copied), near(unseen), sols, draws=100, rng=rng)["clean"])
    assert np.mean(clean) > 0.85 and all(caught)


def test_samples_that_shift_all_distances_are_found_by_their_share():
    rng, sols = np.random.default_rng(0), np.arange(240) // 12
    found = memorised(near(rng.normal(0.7, 0.06, 300)), near(rng.normal(0.8, 0.06, 240)), sols, rng=rng)
    assert not found["clean"] and found["copies"] == 0 and found["p"] < 0.01 and found["share"] > found["null_high"]


def test_what_adds_nothing_gains_nothing():
    rng = np.random.default_rng(0)
    y, sols = rng.integers(0, 3, 120), np.arange(120) // 10
    z = np.eye(3)[y] + 0.8 * rng.standard_normal((120, 3))
    parts = {"real": (z[:60], y[:60]), "again": (z[:60], y[:60]), "shuffled": (z[:60], rng.permutation(y[:60]))}
    found = added_samples(parts, z[60:], y[60:], sols[60:], LogisticRegression(), rng=rng)
    assert (found.loc["again", ["gain", "gain_low", "gain_high"]] == 0).all() and found.gain_high["shuffled"] < 0
    dull = added_samples(parts, z[60:], y[60:], sols[60:], DummyClassifier(), rng=rng)
    np.testing.assert_allclose(dull.accuracy, 1 / 3)


def test_the_same_set_under_two_names_scores_the_same():
    rng = np.random.default_rng(0)
    real, fake = (rng.integers(0, 256, (n, 3, 8, 8), dtype="uint8") for n in (60, 40))
    found = judge_samples(lambda x: x.reshape(len(x), -1) / 255.0, real, np.arange(60) // 6, {"a": (fake, None), "b": (fake, None)}, rng=rng)
    columns = ["n", "kid", "fid", "precision", "recall"]
    assert found.loc["a", columns].tolist() == found.loc["b", columns].tolist()
