"Laws of calibration and conformal sets"
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from planetlab.calibrate import (Calibration, calibration_error, ece, equal_mass, equal_width, fit_temperature, ground_blocks, judge,
                                 labelled, read_fitted, reliability, sample_pixels, scores, share, write_fitted)
from planetlab.conformal import (SCORES, Abstention, Sets, abstain, abstained_map, aurc, fit_abstention, fit_sets, judge_abstention, judge_sets,
                                 risk_coverage, set_size_map)
from planetlab.core import BadInput, Corrupt

names = ("a", "b", "c")
seeds = st.integers(0, 10_000)


def made(seed, n=600, sharp=1.0, name="one", classes=names):
    "Labels drawn from the softmax of logits that are then multiplied by `sharp`"
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1.5, (n, len(classes)))
    y = (rng.random((n, 1)) > np.cumsum(softmax(x, 1), 1)).sum(1).clip(0, len(classes) - 1)
    return labelled(sharp * x, y, [f"{name} {i // 20}" for i in range(n)], name, classes)


@settings(deadline=None, max_examples=6)
@given(seeds, st.floats(0.3, 5))
def test_temperature_undoes_sharpening(seed, sharp):
    plain, sharpened = (fit_temperature(made(seed, 2000, s)) for s in (1.0, sharp))
    assert sharpened.temperature == pytest.approx(sharp * plain.temperature, rel=1e-3)
    assert plain.temperature == pytest.approx(1, abs=0.25)


def test_temperature_is_the_least_nll():
    part = made(0, sharp=3.0)
    c = fit_temperature(part)
    nll = [scores(replace(c, temperature=t).probs(part.logits), part.labels, part.weights)["nll"] for t in (0.97 * c.temperature, c.temperature, 1.03 * c.temperature)]
    assert nll[1] < min(nll[0], nll[2])


@settings(deadline=None, max_examples=12)
@given(seeds, st.integers(1, 30), st.sampled_from([equal_width, equal_mass]))
def test_calibration_error_is_a_gap(seed, bins, binning):
    rng = np.random.default_rng(seed)
    p, hits = rng.random(200), rng.random(200) < 0.5
    e = calibration_error(p, hits, bins, binning=binning)
    assert abs(p.mean() - hits.mean()) - 1e-12 <= e <= np.abs(p - hits).mean() + 1e-12 # between one bin and a bin for each
    assert e == pytest.approx(calibration_error(p, hits, bins, binning=binning, weights=np.full(200, 7.0)))


def test_ece_by_hand():
    probs = np.array([[0.95, 0.05], [0.85, 0.15], [0.45, 0.55], [0.35, 0.65]])
    # bins of 0.5: all four in the upper one, said 0.75, two of four right
    assert ece(probs, np.array([0, 1, 1, 0]), 2) == pytest.approx(0.25)
    # bins of 0.1: gaps 0.05, 0.85, 0.45, 0.65
    assert ece(probs, np.array([0, 1, 1, 0]), 10) == pytest.approx((0.05 + 0.85 + 0.45 + 0.65) / 4)


@settings(deadline=None, max_examples=12)
@given(seeds, st.integers(1, 12))
def test_weights_of_a_sample_add_up_to_the_map(seed, n):
    rng = np.random.default_rng(seed)
    strata, valid = rng.integers(-1, 4, (30, 40)), rng.random((30, 40)) < 0.7
    s = sample_pixels(strata, valid, ground_blocks(np.arange(30)[:, None], np.arange(40), 10, "m"), n, rng=rng)
    p = s.pixels
    assert valid[p.row, p.col].all() and (strata[p.row, p.col] == p.stratum).all() and (p.stratum >= 0).all()
    assert s.design.mapped.sum() == (valid & (strata >= 0)).sum() and (s.design.drawn == np.minimum(n, s.design.mapped)).all()
    np.testing.assert_allclose(p.groupby("stratum").weight.sum() / len(p), s.design.share)


def test_invalid_pixels_touch_nothing():
    part, rng = made(1), np.random.default_rng(0)
    poison = np.full((50, 3), np.nan)
    logits, labels = np.r_[part.logits, poison], np.r_[part.labels, rng.integers(0, 3, 50)]
    groups, valid = np.r_[part.groups, np.full(50, "poison")], np.arange(650) < 600
    assert fit_temperature(labelled(logits, labels, groups, "one", names, valid=valid)) == fit_temperature(part)
    assert fit_temperature(labelled(logits, np.where(valid, labels, -1), groups, "one", names)) == fit_temperature(part)


@pytest.mark.parametrize(("logits", "labels", "why"), [
    (np.full((4, 3), np.nan), [0, 1, 2, 0], "not finite"), (np.zeros((4, 3)), [0, 1, 3, 0], "labels are 0 to 2"), (np.zeros((4, 3)), [-1] * 4, "valid and labelled"),
    (np.zeros((4, 2)), [0] * 4, "one name for each"), (np.zeros((4, 3)), [0] * 5, "give"), (np.zeros((4, 3)), [0.5] * 4, "integers")])
def test_refused_at_the_door(logits, labels, why):
    with pytest.raises(BadInput, match=why): labelled(logits, labels, np.zeros(len(labels)), "bad", names)


def test_judged_on_other_ground_only(tmp_path):
    part, other = made(2), made(3, name="two")
    c = fit_temperature(part)
    third = made(4, name="three")
    s, a = fit_sets(other, c), fit_abstention(other, c, 0.3)
    for f in (lambda: judge(part, c, rng=np.random.default_rng(0)), lambda: reliability(part, c), lambda: fit_sets(part, c), lambda: judge_sets(other, s), lambda: judge_sets(part, s),
              lambda: judge_abstention(other, a), lambda: judge_abstention(part, a)):
        with pytest.raises(BadInput, match="other ground"): f()
    assert (judge_sets(third, s).n_groups > 0).all()
    for value, kind in ((c, Calibration), (s, Sets), (a, Abstention)):
        write_fitted(tmp_path / "x.json", value)
        assert read_fitted(tmp_path / "x.json", kind) == value
    with pytest.raises(Corrupt): read_fitted(tmp_path / "x.json", Calibration)


@settings(deadline=None, max_examples=15)
@given(seeds, st.integers(5, 60), st.floats(0.05, 0.95), st.sampled_from(sorted(SCORES)))
def test_quantile_takes_in_what_it_should(seed, n, coverage, score):
    "At least ceil((n + 1) c) of the n fitted pixels are covered, or none can be"
    c, part = fit_temperature(made(9, name="other")), made(seed, n)
    k = int(np.ceil((n + 1) * coverage - 1e-9))
    if k > n:
        with pytest.raises(BadInput, match="cannot give sets"): fit_sets(part, c, coverage, score)
        return
    inside = fit_sets(part, c, coverage, score).sets(c.probs(part.logits))[np.arange(n), part.labels]
    assert inside.sum() >= k
    if score == "LAC": assert inside.sum() == k # no ties


def test_by_class_covers_each():
    c, part = fit_temperature(made(9, name="other")), made(5, 3000)
    t = judge_sets(made(6, 3000, name="new"), fit_sets(part, c, 0.9, by_class=True))
    assert t.covered.between(0.86, 0.94).all()


def test_one_group_says_little():
    s = share(np.arange(100) < 80, np.zeros(100), np.ones(100))
    assert s.value == pytest.approx(0.8) and s.high - s.low > 0.9 and s.n_groups == 1


@settings(deadline=None, max_examples=12)
@given(seeds)
def test_risk_ends_at_the_error_rate(seed):
    rng = np.random.default_rng(seed)
    certainty, wrong, w = rng.integers(0, 20, 100) / 20, rng.random(100) < 0.3, rng.random(100) + 0.1
    curve = risk_coverage(certainty, wrong, w)
    assert curve.risk.iloc[-1] == pytest.approx(np.average(wrong, weights=w)) and curve.answered.iloc[-1] == 1
    assert curve.answered.is_monotonic_increasing and aurc(risk_coverage(-1.0 * wrong, wrong, w)) <= aurc(curve) + 1e-12


def test_maps_agree_with_tables():
    c, part = fit_temperature(made(9, name="other")), made(5, 900)
    s, a, image = fit_sets(part, c), fit_abstention(part, c, 0.2), part.logits.T.reshape(3, 30, 30).astype("float32")
    size, said = set_size_map(s).fn(image), abstained_map(a).fn(image)
    assert size.shape == said.shape == (1, 30, 30) and size.dtype == said.dtype == np.uint8
    assert (size.ravel() != s.sets(c.probs(part.logits)).sum(1)).mean() < 0.005 # float32 at the threshold
    assert (said.ravel() != abstain(c.probs(part.logits), a.threshold)).mean() < 0.005
    assert list(abstained_map(a).colors) == [*names, "unsure"]


def test_an_abstention_is_judged_by_hand():
    c, part, new = fit_temperature(made(9, name="other")), made(5, 900), made(6, 900, name="new")
    fitted = fit_abstention(part, c, 0.2)
    table, probs = judge_abstention(new, fitted), c.probs(new.logits)
    answered, wrong = probs.max(1) >= fitted.threshold, probs.argmax(1) != new.labels
    np.testing.assert_allclose(table.value, [answered.mean(), wrong[answered].mean(), wrong.mean()])
    assert table.n.tolist() == [900, answered.sum(), 900] and table.asked["risk"] == 0.2 and (table.low <= table.value).all() and (table.value <= table.high).all()
    none = judge_abstention(new, replace(fitted, threshold=1.1))
    assert none.value["answered"] == 0 and np.isnan(none.value["risk"])


@settings(deadline=None, max_examples=8)
@given(seeds, st.floats(0.15, 0.4))
def test_a_bound_answers_no_more(seed, risk):
    c, part = fit_temperature(made(9, name="other")), made(seed, 1500)
    try: bounded = fit_abstention(part, c, risk, 0.95)
    except BadInput: return
    assert bounded.threshold >= fit_abstention(part, c, risk).threshold and bounded.confidence == 0.95


def test_the_bound_holds():
    "The risk of the law itself, over many samples: below the one asked for, but for few"
    c = replace(fit_temperature(made(9, name="other")), temperature=1.0)
    law = made(1, 100_000, name="law")
    over = []
    for seed in range(60):
        try: t = fit_abstention(made(seed, 800), c, 0.25, 0.9).threshold
        except BadInput: continue
        sure = softmax(law.logits, 1).max(1) >= t
        over.append((law.logits.argmax(1) != law.labels)[sure].mean() > 0.25)
    assert len(over) > 30 and np.mean(over) < 0.1


@pytest.mark.parametrize(("risk", "confidence"), [(1.5, None), (-0.1, None), (0.1, 0.0), (0.1, 95)])
def test_a_risk_is_a_share(risk, confidence):
    with pytest.raises(BadInput, match="shares between 0 and 1"): fit_abstention(made(1), fit_temperature(made(9, name="other")), risk, confidence)
