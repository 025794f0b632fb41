"Laws of size-frequency: intervals that cover, ground that adds up, counts that close"
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import chi2, kstest

from planetlab.core import BadInput
from planetlab.rings import ground_rings, inclusion, ring_of, ring_sizes, tally
from planetlab.sizes import fit_cover, fit_power, goodness, ks_d_min, poisson_interval, show_sizes, size_table
from planetlab.worlds.boulders import PowerLaw, RockCover, draw_sizes
from planetlab.worlds.mast import pinhole_rays
from planetlab.worlds.moon import HIGHLAND, MARE, moon_window
from planetlab.worlds.regolith import ROCK_PX

few = settings(max_examples=25, deadline=None)


@few
@given(st.integers(0, 500), st.floats(0.5, 0.999))
def test_counts_have_the_interval_of_garwood(n, confidence):
    low, high = poisson_interval(n, n, 1, confidence)
    tail = (1 - confidence) / 2
    np.testing.assert_allclose(low, chi2.ppf(tail, 2 * n) / 2 if n else 0)
    np.testing.assert_allclose(high, chi2.isf(tail, 2 * n + 2) / 2)


@few
@given(st.integers(1, 200), st.floats(0.01, 50))
def test_weights_of_one_size_only_scale_the_interval(n, w):
    np.testing.assert_allclose(poisson_interval(n * w, n * w * w, w), np.multiply(w, poisson_interval(n, n, 1)))


def test_interval_of_a_count_covers():
    n = np.random.default_rng(0).poisson(4, 5000)
    low, high = poisson_interval(n, n, 1)
    assert 0.945 <= np.mean((low <= 4) & (4 <= high)) <= 0.99


def test_interval_of_cover_covers():
    rng, law, hit = np.random.default_rng(0), RockCover(0.1), []
    for _ in range(300):
        d = draw_sizes(law, 100, 0.1, rng=rng)
        row = size_table(d, 100, 0.1, step=10.0).iloc[0] # one bin from 0.1 m up
        hit.append(row.fraction_low <= law.fraction(0.1) <= row.fraction_high)
    assert 0.90 <= np.mean(hit) <= 1


@few
@given(st.floats(0.5, 4.5), st.floats(1.5, 30))
def test_number_and_area_of_a_power_law_agree(slope, end):
    law = PowerLaw(slope, 1.0, end, 0.3)
    density = lambda x: 0.3 * slope * x ** (-slope - 1) / (1 - end**-slope)
    np.testing.assert_allclose(law.number(1.2), quad(density, 1.2, end)[0], rtol=1e-6)
    np.testing.assert_allclose(law.fraction(1.2), quad(lambda x: density(x) * np.pi * x * x / 4, 1.2, end)[0], rtol=1e-6)
    assert law.number(end * 1.1) == 0 and law.fraction(end * 1.1) == 0


@few
@given(st.floats(0.01, 0.6), st.floats(0.05, 2))
def test_number_and_area_of_cover_agree(k, d):
    law, q = RockCover(k), 1.79 + 0.152 / k
    assert law.rate() == q
    by_hand = quad(lambda x: 4 * k * q * np.exp(-q * x) / (np.pi * x * x), d, d + 40 / q, limit=200)[0]
    np.testing.assert_allclose(law.number(d), by_hand, rtol=1e-6)
    np.testing.assert_allclose(RockCover(k, q).number(d), law.number(d))


def test_strewn_sizes_follow_their_law():
    rng = np.random.default_rng(4)
    for law, low in ((RockCover(0.2), 0.1), (PowerLaw(2.5, 1, 9, 1.0), 1.0), (PowerLaw(2.5, 1, density_m2=1.0), 1.0)):
        d = draw_sizes(law, 1500, low, rng=rng)
        assert kstest(d, lambda x: 1 - law.number(x) / law.number(low)).pvalue > 0.01
        assert abs(len(d) - 1500 * law.number(low)) < 4 * np.sqrt(1500 * law.number(low))


@pytest.mark.parametrize("slope, end, n", [(2.8, 7, 60), (2.8, 7, 400), (1.2, 4, 150), (3.5, np.inf, 100), (0.05, 5, 150)])
def test_interval_of_the_slope_covers(slope, end, n):
    rng, law = np.random.default_rng(11), PowerLaw(slope, 1, end)
    fits = [fit_power(law.quantile(rng.random(n)), 1.0, 1.0, end) for _ in range(300)]
    assert 0.90 <= np.mean([f.low <= slope <= f.high for f in fits]) <= 0.99
    slopes = np.array([f.law.slope for f in fits])
    np.testing.assert_allclose(np.mean([f.se for f in fits]), slopes.std(), rtol=0.15)
    assert abs(slopes.mean() - slope) < 0.35 * slopes.std() + 3 * slopes.std() / 300**0.5


@few
@given(st.floats(0.01, 100), st.integers(0, 50))
def test_slopes_know_no_unit(factor, seed):
    d = PowerLaw(2.8, 1, 7).quantile(np.random.default_rng(seed).random(80))
    a, b = fit_power(d, 5.0, 1.0, 7.0), fit_power(d * factor * (1 + 1e-12), 5.0, factor, 7.0 * factor)
    np.testing.assert_allclose([a.law.slope, a.low, a.high, a.se, a.ks], [b.law.slope, b.low, b.high, b.se, b.ks], rtol=1e-5)


def test_fit_is_where_the_likelihood_is_largest():
    d = PowerLaw(2.8, 1, 7).quantile(np.random.default_rng(3).random(200))
    fit = fit_power(d, 1.0, 1.0, 7.0)
    def loglik(b): return len(d) * np.log(b / (1 - 7.0**-b)) - (b + 1) * np.log(d).sum()
    assert loglik(fit.law.slope) > max(loglik(fit.law.slope + e) for e in (-1e-3, 1e-3))
    np.testing.assert_allclose([loglik(fit.law.slope) - loglik(v) for v in (fit.low, fit.high)], chi2.ppf(0.95, 1) / 2, rtol=1e-5)


def test_below_completeness_nothing_counts():
    d = PowerLaw(2.8, 1, 7).quantile(np.random.default_rng(3).random(200))
    a, b = fit_power(d, 9.0, 1.5, 7.0), fit_power(np.append(d, np.full(500, 1.2)), 9.0, 1.5, 7.0)
    assert a == b and a.n == (d >= 1.5).sum()
    a, b = fit_cover(d, 900, 1.5), fit_cover(np.append(d, np.full(500, 1.2)), 900, 1.5)
    assert a == b


def test_weight_two_is_a_rock_twice_for_the_slope():
    d = PowerLaw(2.8, 1, 7).quantile(np.random.default_rng(3).random(100))
    w = np.where(np.arange(100) < 40, 2.0, 1.0)
    one, two = fit_power(d, 1.0, 1.0, 7.0, weights=w), fit_power(np.append(d, d[:40]), 1.0, 1.0, 7.0)
    np.testing.assert_allclose([one.law.slope, one.law.density_m2], [two.law.slope, two.law.density_m2])
    assert one.high - one.low > two.high - two.low # it is still one witness
    flat = fit_power(d, 1.0, 1.0, 7.0, weights=np.full(100, 3.0))
    np.testing.assert_allclose([flat.low, flat.high], [fit_power(d, 1.0, 1.0, 7.0).low, fit_power(d, 1.0, 1.0, 7.0).high])


def test_p_is_fair_and_sees_what_is_no_power_law():
    rng, law = np.random.default_rng(1), PowerLaw(2.5, 1, 10)
    p = [goodness(d, fit_power(d, 1.0, 1.0, 10), 39, rng=rng) for d in (law.quantile(rng.random(120)) for _ in range(60))]
    assert 0.35 < np.mean(p) < 0.65 and np.mean(np.array(p) <= 0.1) < 0.25
    d = rng.lognormal(1, 0.3, 500)
    assert goodness(d, fit_power(d, 1.0, 1.0), 39, rng=rng) <= 0.05
    one, two = (goodness(d, fit_power(d, 1.0, 2.0), 19, rng=np.random.default_rng(7)) for _ in range(2))
    assert one == two


def test_chosen_end_lies_above_the_roll_off():
    rng, chosen = np.random.default_rng(2), []
    for _ in range(10):
        d = PowerLaw(2.8, 0.4, 7).quantile(rng.random(3000))
        chosen.append(ks_d_min(d[rng.random(3000) < 1 / (1 + np.exp(-(d - 0.8) / 0.05))], 7.0))
    assert 0.8 < np.median(chosen) < 1.6


@pytest.mark.parametrize("region", [MARE, HIGHLAND], ids=["mare", "highland"])
def test_procedural_moon_gives_back_its_laws(region):
    held, n = [], 0
    for seed in range(3):
        world = replace(region, height=700, width=700, seed=seed, rock_density=2e-3)
        moon = moon_window(world)
        fit = fit_power(moon.rocks.diameter_m, 490e3, ROCK_PX[0], ROCK_PX[1])
        craters = fit_power(moon.craters.diameter_m, 490e3, 5.0, 300.0)
        assert abs(fit.law.slope - region.rock_slope) < 3.5 * fit.se and abs(craters.law.slope - 2) < 3.5 * craters.se
        expected = region.crater_density * (5.0**-2 - 300.0**-2)
        assert abs(craters.law.density_m2 - expected) < 4 * (expected / 490e3) ** 0.5
        n += 1
    assert n == 3


@pytest.mark.parametrize("k, area, low", [(0.05, 200, 0.1), (0.1, 60, 0.2), (0.3, 30, 0.2)])
def test_interval_of_k_covers(k, area, low):
    rng = np.random.default_rng(5)
    fits = [fit_cover(d, area, low) for d in (draw_sizes(RockCover(k), area, low, rng=rng) for _ in range(200)) if len(d) >= 5]
    assert 0.90 <= np.mean([f.k[0] <= k <= f.k[1] for f in fits]) <= 0.99


def test_free_intervals_cover():
    rng, law = np.random.default_rng(6), RockCover(0.1, 4.0)
    fits = [fit_cover(draw_sizes(law, 80, 0.15, rng=rng), 80, 0.15, free_q=True) for _ in range(60)]
    assert 0.88 <= np.mean([f.q[0] <= 4 <= f.q[1] for f in fits]) and 0.88 <= np.mean([f.k[0] <= 0.1 <= f.k[1] for f in fits])


def test_rings_are_fitted_as_one():
    rng, law = np.random.default_rng(8), RockCover(0.1)
    area, low = np.array([20.0, 50.0, 100.0]), np.array([0.1, 0.2, 0.4])
    d = [draw_sizes(law, a, v, rng=rng) for a, v in zip(area, low)]
    ring = np.repeat(np.arange(3), [len(v) for v in d])
    all_d = np.concatenate(d)
    fit = fit_cover(all_d, area, low, ring=ring)
    assert fit.n == len(all_d) and fit.k[0] <= 0.1 <= fit.k[1]
    assert fit.k[1] - fit.k[0] < min(np.diff(fit_cover(v, a, m).k)[0] for v, a, m in zip(d, area, low) if len(v) >= 5)
    assert fit_cover(np.append(all_d, 0.15), area, low, ring=np.append(ring, 2)) == fit # below its own ring's diameter
    assert fit_cover(np.append(all_d, 5.0), area, low, ring=np.append(ring, -1)) == fit


@few
@given(st.lists(st.floats(0.01, 50), min_size=1, max_size=60), st.sampled_from([2**0.5, 10**0.1, 2.0]))
def test_tables_lose_no_rock(d, step):
    table = size_table(d, 10.0, 0.5, step=step)
    assert table.n.sum() == len(d)
    np.testing.assert_allclose(table.number_m2, table.n[::-1].cumsum()[::-1] / 10.0)
    np.testing.assert_allclose(table.fraction[0], np.sum(np.pi * np.square(d) / 4) / 10.0)
    for of in ("number_m2", "fraction"):
        assert (table[f"{of}_low"] <= table[of] + 1e-12).all() and (table[of] <= table[f"{of}_high"]).all()


def test_incomplete_rows_are_grey_and_laws_start_at_completeness():
    d = PowerLaw(2.8, 1, 7).quantile(np.random.default_rng(3).random(200))
    ax = show_sizes(size_table(d, 100, 2.0), {"fit": PowerLaw(2.8, 2, 7, 0.3)}, compare={"k": RockCover(0.1)}, of="number_m2")
    labels = ax.get_legend_handles_labels()[1]
    assert {"fit", "k", "counted, 95 %", "below completeness", "complete from 2 m"} <= set(labels)
    lines = {line.get_label(): line for line in ax.lines}
    assert lines["fit"].get_xdata().min() == pytest.approx(2.0) and lines["k"].get_xdata().min() < 2


@few
@given(st.floats(2, 25), st.floats(0.5, 3), st.floats(200, 900))
def test_ground_of_a_plain_adds_up(down, eye, focal):
    rays = pinhole_rays((90, 120), focal / 3, down)
    flat = np.where(rays[..., 2] < -1e-9, -eye / np.minimum(rays[..., 2], -1e-9), np.nan)
    fine, coarse = ground_rings(flat, rays, [eye, 4 * eye, 6 * eye, 9 * eye]), ground_rings(flat, rays, [eye, 9 * eye])
    np.testing.assert_allclose(fine.seen_m2.sum() + fine.hidden_m2.sum(), coarse.seen_m2[0] + coarse.hidden_m2[0], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(coarse.hidden_m2[0], 0, atol=1e-9)
    assert (fine.seen_m2 >= -1e-9).all()
    twice = ground_rings(2 * flat, rays, [2 * eye, 18 * eye])
    np.testing.assert_allclose(twice.seen_m2, 4 * coarse.seen_m2, rtol=1e-6, atol=1e-9)


def test_whole_ring_between_two_bearings():
    rays = pinhole_rays((600, 400), 300.0, 40)
    flat = np.where(rays[..., 2] < -1e-9, -1.5 / np.minimum(rays[..., 2], -1e-9), np.nan)
    x, y = np.meshgrid(np.linspace(-6, 6, 1500), np.linspace(0.01, 6, 1500))
    s, depth = np.sqrt(x**2 + y**2 + 1.5**2), y * np.cos(np.radians(40)) + 1.5 * np.sin(np.radians(40))
    v = (1.5 * np.cos(np.radians(40)) - y * np.sin(np.radians(40))) / depth * 300
    shown = (s >= 2.5) & (s < 4) & (abs(x) / depth * 300 <= 199.5) & (abs(v) <= 299.5)
    np.testing.assert_allclose(ground_rings(flat, rays, [2.5, 4]).seen_m2[0], shown.mean() * 12 * 5.99, rtol=0.005)


def test_a_wall_hides_the_ground_behind_it():
    rays = pinhole_rays((300, 300), 300.0, 15)
    flat = np.where(rays[..., 2] < -1e-9, -2.0 / np.minimum(rays[..., 2], -1e-9), np.nan)
    forward = 8 / rays[..., 1]
    wall = (flat > forward) & (rays[..., 2] * forward < -1.0) # 8 m ahead, 1 m high: hides to 16 m
    bare, hid = (ground_rings(v, rays, [3, 7, 30]) for v in (flat, np.where(wall, forward, flat)))
    np.testing.assert_allclose(hid.seen_m2[0], bare.seen_m2[0])
    np.testing.assert_allclose(hid.seen_m2[1] + hid.hidden_m2[1], bare.seen_m2[1], rtol=0.02)
    x, y = np.meshgrid(np.linspace(-12, 12, 1200), np.linspace(8, 16, 400))
    behind = np.mean(abs(x) <= 0.4983 * (y * np.cos(np.radians(15)) + 2 * np.sin(np.radians(15)))) * 24 * 8
    np.testing.assert_allclose(hid.hidden_m2[1], behind, rtol=0.05)


@few
@given(st.integers(0, 1000), st.floats(0.05, 2))
def test_tallies_close(seed, low):
    rng = np.random.default_rng(seed)
    rocks = pd.DataFrame({"diameter_m": np.where(rng.random(50) < 0.1, np.nan, rng.lognormal(-1, 0.7, 50)), "range_m": rng.uniform(0, 30, 50),
                          "border": rng.random(50) < 0.2, "touches": rng.random(50) < 0.2})
    counted, counts = tally(rocks, low, ("border",))
    assert counts["rocks"] == 50 == counts[["unsized", "below d_min", "left out", "counted"]].sum()
    assert counted.sum() == counts["counted"] and not (counted & rocks.border).any()
    rings = pd.DataFrame({"near_m": [2.0, 5.0], "far_m": [5.0, 12.0], "seen_m2": [10.0, 0.0], "hidden_m2": [0.0, 0.0]})
    table = ring_sizes(rocks, rings, 100.0)
    assert table.rocks.tolist() == [(ring_of(rocks.range_m, rings) == i).sum() for i in (0, 1)]
    assert np.isnan(table.number_m2[1]) and table.d_min_m.tolist() == [0.25, 0.6]


@few
@given(st.integers(5, 60), st.integers(5, 60), st.floats(0.5, 4))
def test_inclusion_of_a_rectangle(h, w, d):
    expected = max(0, h - d) * max(0, w - d) / (h * w)
    valid = np.ones((h * 4, w * 4), bool)
    assert abs(inclusion(valid, 0.25, [d])[0] - expected) < 0.25 * (2 / h + 2 / w)
    valid[h, w] = False # a hole makes it less likely
    assert inclusion(valid, 0.25, [d])[0] <= inclusion(np.ones_like(valid), 0.25, [d])[0]


@pytest.mark.parametrize("call, words", [
    (lambda: fit_power(pd.Series([3.0, 4.0], name="size_px"), 1, 1), "pixels"),
    (lambda: size_table([], 1, 1), "at least one"),
    (lambda: size_table([1.0, -1.0], 1, 1), "not above 0"),
    (lambda: size_table([1.0], 0, 1), "measure both"),
    (lambda: fit_power(np.ones(50), 1, 1.0, 2.0), "coarse lattice"),
    (lambda: fit_power(np.arange(1, 60), 1, 1.0, 20.0), "raise the end"),
    (lambda: fit_cover([0.3] * 20, [1.0, 2.0], 0.1), "one area and one diameter per ring"),
    (lambda: ks_d_min([1.0, 2.0]), "must remain"),
    (lambda: tally(pd.DataFrame({"area_px": [3]}), 1), "no diameter_m"),
    (lambda: inclusion(np.zeros((4, 4), bool), 1.0, [1.0]), "no valid pixel"),
    (lambda: pinhole_rays((4, 4), 0), "focal length"),
])
def test_what_cannot_be_is_refused(call, words):
    with pytest.raises(BadInput, match=words): call()
