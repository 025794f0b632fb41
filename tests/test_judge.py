"Clusters, their judgement and its controls: what must be found is found, and nothing else"
import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from sklearn.cluster import DBSCAN, HDBSCAN, AgglomerativeClustering, KMeans
from sklearn.datasets import make_blobs
from sklearn.manifold import Isomap
from sklearn.mixture import GaussianMixture

from planetlab.agreement import Controls, agreement, ari, interval, judge, matched, nmi, purity, separation, show_judged, show_types, stability
from planetlab.choice import bic_gain, choose_k, gaussian, silhouette_of
from planetlab.cluster import assign, clusterers, exemplars, fit_clusters, fit_reduction, membership, permuted, umap_map
from planetlab.core import BadInput, MissingExtra
from planetlab.probes import balance, balanced, describe, nmi_ceiling, probe, retrieval

settings.register_profile("judge", deadline=None, max_examples=25)
settings.load_profile("judge")
FIVE = ("k-means", "Ward", "Gaussian mixture", "DBSCAN", "HDBSCAN")
THREE = KMeans(3, n_init=3, random_state=0)


def rng(seed=0): return np.random.default_rng(seed)


def structures(n=180, seed=0, apart=6.0):
    "Three types well apart in 4 numbers, on 45 pieces of ground, half of them train"
    types = np.repeat(["cor", "vlc", "vlcInt"], n // 3)
    z = np.repeat(np.eye(3, 4) * apart, n // 3, axis=0) + rng(seed).normal(size=(n, 4))
    ground = rng(seed + 1).integers(45, size=n)
    return z, types, np.where(ground % 2, "train", "val"), ground


labelled = st.integers(4, 40).flatmap(lambda n: st.tuples(*[st.lists(st.integers(-1, 4), min_size=n, max_size=n)] * 2))


@given(labelled)
def test_tables_score_as_scikit_learn_does(pair):
    types, labels = pair
    table = pd.crosstab(np.array(types), np.array(labels)).to_numpy()
    assert ari(table) == pytest.approx(metrics.adjusted_rand_score(types, labels), abs=1e-9)
    assert nmi(table) == pytest.approx(metrics.normalized_mutual_info_score(types, labels), abs=1e-9)
    assert purity(types, labels)["majority"] - 1e-12 <= purity(types, labels)["purity"] <= 1


@given(st.integers(0, 1000), st.integers(2, 5), st.floats(0, 0.9))
def test_indices_are_those_of_scikit_learn_on_clustered_rows(seed, k, noise):
    z = rng(seed).normal(size=(40, 3))
    labels = np.where(rng(seed).random(40) < noise, -1, rng(seed + 1).integers(k, size=40))
    scores, here = separation(z, labels), labels >= 0
    assert scores["noise"] == np.mean(labels == -1)
    if 1 < len(set(labels[here])) < here.sum():
        for name, f in (("silhouette", metrics.silhouette_score), ("davies_bouldin", metrics.davies_bouldin_score), ("calinski_harabasz", metrics.calinski_harabasz_score)):
            assert scores[name] == pytest.approx(f(z[here], labels[here]))
    else:
        assert all(np.isnan(scores[n]) for n in ("silhouette", "davies_bouldin", "calinski_harabasz"))


@pytest.mark.parametrize("name", FIVE)
def test_five_through_one_door_beside_null_and_metadata(name):
    z, types, split, ground = structures()
    metadata = pd.DataFrame({"lon": ground % 9, "lat": ground // 9, "max_km": rng(5).lognormal(5, 0.5, len(z))})
    estimator = clusterers(3, z[split == "train"])[name]
    table = judge({"latents": z}, types, split, ground, estimator, controls=Controls(metadata, metadata.max_km), rng=rng())
    assert list(table.index) == ["latents", "metadata only", "latents, permuted"]
    assert table.ari["latents"] >= 0.6 and abs(table.ari["latents, permuted"]) < 0.1 and abs(table.ari["metadata only"]) < 0.1
    assert table.ari_matched["latents"] >= 0.6 and abs(table.like_metadata["latents"]) < 0.1
    assert {"silhouette", "davies_bouldin", "calinski_harabasz", "noise", "stability", "ari", "ari_low", "ari_high", "nmi", "nmi_low", "nmi_high",
            "purity", "majority", "ari_matched", "like_metadata", "fitted", "n", "k"} <= set(table)
    assert table.stability["latents"] > 0.6 and table.ari_low["latents"] <= table.ari["latents"] <= table.ari_high["latents"] + 0.02
    assert [t.get_text() for t in show_judged(table).get_yticklabels()] == list(table.index)


@pytest.mark.parametrize("estimator", [DBSCAN(1e-9), HDBSCAN(min_cluster_size=85, copy=True), KMeans(1), GaussianMixture(1), AgglomerativeClustering(1), DBSCAN(1e9)], ids=str)
def test_nothing_but_noise_and_nothing_but_one(estimator):
    z, types, split, ground = structures()
    row = judge({"latents": z}, types, split, ground, estimator, rng=rng()).loc["latents"]
    assert row.k in (0, 1) and row.noise in (0, 1) and row.ari == 0
    assert all(np.isnan(row[c]) for c in ("silhouette", "davies_bouldin", "calinski_harabasz", "stability", "like_metadata"))
    assert row.purity == row.majority
    show_types(types, fit_clusters(z, estimator).labels)
    assert len(exemplars(z, fit_clusters(z, estimator).labels, rng=rng()))


def test_other_rows_change_nothing_and_a_seed_decides_everything():
    z, types, split, ground = structures()
    tests = np.where(np.arange(len(z)) % 5 == 0, "test", split)
    spoiled = np.where(tests[:, None] == "test", 99.0, z)
    a, b = (judge({"latents": d}, types, tests, ground, THREE, controls=Controls(pd.DataFrame(d[:, :1]), d[:, 1]), rng=rng()) for d in (z, spoiled))
    pd.testing.assert_frame_equal(a, b)


def test_longitude_in_the_matrix_is_found_out():
    "Seventy columns of noise and the catalogue give clusters of longitude: the published trap"
    n, r = 400, rng(3)
    lon, km = np.where(r.random(n) < 0.55, r.normal(-105, 25, n), r.normal(75, 25, n)), r.lognormal(5, 0.6, n)
    catalogue = pd.DataFrame({"lon": lon, "lat": r.uniform(-60, 70, n), "max_km": km, "min_km": np.where(r.random(n) < 0.5, np.nan, km)})
    scaled = ((catalogue - catalogue.min()) / (catalogue.max() - catalogue.min())).fillna(0).to_numpy()[:, :3]
    noise = r.normal(0, 0.1, (n, 70))
    places = np.where(lon < 0, "west", "east") # what such clusters are really about
    split = np.where(np.arange(n) % 2, "train", "val")
    control = Controls(catalogue[["lon"]], draws=4)
    table = judge({"latents and catalogue": np.c_[noise, scaled]}, places, split, np.arange(n), KMeans(2, n_init=5, random_state=0), controls=control, rng=rng())
    assert table.ari["latents and catalogue"] > 0.5 and table.ari["metadata only"] > 0.5
    assert table.like_metadata["latents and catalogue"] > 0.5
    honest = judge({"latents": noise}, places, split, np.arange(n), KMeans(2, n_init=5, random_state=0), controls=control, rng=rng())
    assert abs(honest.like_metadata["latents"]) < 0.1 and abs(honest.ari["latents"]) < 0.1


def test_missing_metadata_is_told_to_the_control_not_to_the_latents():
    "Missing minor diameters tell the type, so the control must know them to be missing"
    z, types, split, ground = structures()
    metadata = pd.DataFrame({"min_km": np.where(types == "cor", rng().normal(200, 5, len(z)), np.nan), "empty": np.nan})
    table = judge({"latents": rng(9).normal(size=z.shape)}, types == "cor", split, ground, KMeans(2, n_init=5, random_state=0),
                  controls=Controls(metadata, draws=0), rng=rng())
    assert table.ari["metadata only"] > 0.95 and abs(table.ari["latents"]) < 0.1 and table.stability.isna().all()


def test_stable_blobs_and_unstable_noise():
    z, *_ = structures()
    assert stability(z, THREE, 8, rng=rng()) > 0.95
    assert stability(rng(1).normal(size=(180, 12)), KMeans(5, n_init=3, random_state=0), 8, rng=rng()) < 0.4
    assert np.isnan(stability(z[:4], KMeans(4, n_init=1), 4, rng=rng()))


def test_intervals_cover():
    r, hits = rng(7), []
    whole = r.integers(3, size=60_000)
    seen = np.where(r.random(60_000) < 0.5, r.integers(3, size=60_000), whole)
    for of in (ari, nmi):
        true = of(pd.crosstab(whole, seen).to_numpy())
        for _ in range(80):
            rows = r.integers(60_000, size=150)
            low, high = interval(whole[rows], seen[rows], np.arange(150), 300, of, rng=r)
            hits.append(low <= true <= high)
    assert 0.85 < np.mean(hits[:80]) and 0.75 < np.mean(hits[80:])  # NMI, not corrected for chance, sits a little high


def test_clusters_of_scale_fall_inside_matched_bins():
    r, n = rng(2), 400
    log_km = r.uniform(3, 7, n)
    types = np.where(log_km + r.normal(0, 0.3, n) > 5, "large", "intermediate")
    blur = fit_clusters(log_km[:, None] + r.normal(0, 0.05, (n, 1)), KMeans(2, n_init=3, random_state=0)).labels
    shape = np.where(r.random(n) < 0.05, types == "intermediate", types == "large").astype(int)
    by_scale, by_shape = (matched(types, labels, log_km, np.arange(n), 8, rng=r) for labels in (blur, shape))
    assert agreement(types, blur)["ari"] > 0.6 and by_scale.ari["all"] < 0.15
    assert by_shape.ari["all"] > 0.5 and by_scale.n[:-1].sum() == n == by_scale.n["all"]
    each = by_shape[:-1][by_shape.ari[:-1].notna()]
    assert by_shape.ari["all"] == pytest.approx(np.average(each.ari, weights=each.n))
    some = matched(types, shape, np.where(np.arange(n) < 100, np.nan, log_km), np.arange(n), 8, rng=r)
    assert some.n["all"] == 300
    with pytest.raises(BadInput, match="none of"): matched(types, blur, np.full(n, np.nan), np.arange(n), rng=r)


@pytest.mark.parametrize("name", FIVE)
def test_fitted_rows_keep_their_labels_and_far_rows_are_noise_where_noise_exists(name):
    z, *_ = structures()
    found = fit_clusters(z, clusterers(3, z)[name])
    again, core = assign(found, z), np.ones(len(z), bool)
    if name == "DBSCAN": core = np.isin(np.arange(len(z)), found.estimator.core_sample_indices_) | (found.labels < 0)
    assert np.array_equal(again[core], found.labels[core])
    assert (assign(found, np.full((1, 4), 1e3)) == -1).all() == (name in ("DBSCAN", "HDBSCAN"))
    assert (np.diff(np.bincount(found.labels + 1)[1:]) <= 0).all()


@given(st.integers(0, 500), st.floats(0.3, 3))
def test_dbscan_elsewhere_follows_its_own_rule(seed, eps):
    z, new = rng(seed).normal(size=(60, 2)), rng(seed + 1).normal(size=(40, 2)) * 2
    found = fit_clusters(z, DBSCAN(eps, min_samples=4))
    core = found.estimator.core_sample_indices_
    far = np.linalg.norm(new[:, None] - z[core][None], axis=2)
    want = np.where(far.min(1) <= eps, found.labels[core][far.argmin(1)], -1) if len(core) else np.full(40, -1)
    assert np.array_equal(assign(found, new), want)


def test_membership_orders_as_assignment_does():
    z, *_ = structures()
    found = fit_clusters(z, clusterers(3, z)["Gaussian mixture"])
    assert np.array_equal(membership(found, z).argmax(1), assign(found, z))
    with pytest.raises(BadInput, match="no probabilities"): membership(fit_clusters(z, AgglomerativeClustering(2)), z)


def test_no_full_fit_in_silence():
    z, *_ = structures()
    many = np.tile(z, (120, 1)) + rng().normal(0, 0.1, (len(z) * 120, 4))
    for estimator in (AgglomerativeClustering(3), HDBSCAN(copy=True), DBSCAN()):
        with pytest.raises(BadInput, match="give rng="): fit_clusters(many, estimator)
    found = fit_clusters(many, AgglomerativeClustering(3), 300, rng=rng())
    assert len(found.rows) == 300 and len(found.labels) == len(many) and "300 of 21600" in found.note
    assert metrics.adjusted_rand_score(np.tile(structures()[1], 120), found.labels) > 0.9
    assert fit_clusters(many, KMeans(3, n_init=1, random_state=0)).note == "fitted on all 21600 rows"
    drawn = fit_reduction(many, Isomap(n_neighbors=90, n_components=2), 200, rng=rng())
    assert drawn.transform(z).shape == (180, 2) and "200 of 21600" in drawn.note
    with pytest.raises(BadInput, match="give rng="): fit_reduction(many, Isomap())


def test_umap_is_optional_and_seeded(monkeypatch):
    class Module:
        @staticmethod
        def UMAP(**options): return options
    monkeypatch.setitem(sys.modules, "umap", Module)
    assert umap_map(3, seed=5) == {"n_components": 3, "n_neighbors": 15, "random_state": 5, "n_jobs": 1}
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MissingExtra, match="cluster"): umap_map()


def test_bad_descriptions_are_refused():
    z, *_ = structures()
    for bad, words in ((z[:1], "two or more"), (z * np.inf, "not finite"), (z[0], "two or more"), (z[:2], "2 descriptions for 3")):
        with pytest.raises(BadInput, match=words): fit_clusters(bad, THREE)
    with pytest.raises(BadInput, match="needs 9"): fit_clusters(z[:8], HDBSCAN(min_cluster_size=9))
    with pytest.raises(BadInput, match="at least 6 rows"): clusterers(3, z[:3])


MEANS, MIXTURE = (lambda k: KMeans(k, n_init=1, random_state=0)), (lambda k: GaussianMixture(k, covariance_type="diag", reg_covar=0.05, random_state=0))


@pytest.mark.parametrize("k, make, measure, ks, nulls", [*[(k, MEANS, silhouette_of, range(2, 7), (permuted, gaussian)) for k in (2, 3, 5)],
                                                         *[(k, MIXTURE, bic_gain, (2, 3, 4), (permuted, gaussian)) for k in (2, 3)],
                                                         (3, MEANS, partial(stability, draws=6), (2, 3, 4), (gaussian,))])
def test_the_number_of_blobs(k, make, measure, ks, nulls):
    z, _ = make_blobs(40 * k, centers=rng(4).normal(size=(5, 4))[:k] * 6, random_state=k)
    choice = choose_k(z, make, measure, ks, nulls, rng=rng())
    assert choice.k == k and choice.p <= 0.05 and list(choice.curve.index) == list(ks)


@pytest.mark.parametrize("make, measure", [(MEANS, silhouette_of), (MIXTURE, bic_gain)], ids=["silhouette", "bic"])
def test_no_structure_is_said_to_be_none(make, measure):
    long = np.array([[1, 0.9, 0], [0, 0.3, 0.2], [0, 0, 1]])
    clouds = [*(rng(s).normal(size=(60, 3)) @ m for s in range(2) for m in (np.eye(3), long)), rng(5).random((60, 3)), rng(6).exponential(size=(60, 3))]
    answers = [choose_k(z, make, measure, (2, 4), rng=rng()).k for z in clouds]
    assert answers.count(1) >= 5, answers


def test_the_null_is_a_choice():
    z = np.c_[rng().normal(size=100) + np.repeat([0, 8], 50), rng(1).normal(size=100)]
    assert choose_k(z, MEANS, silhouette_of, (2, 3), rng=rng()).k == 1          # nothing lies between the columns
    assert choose_k(z, MEANS, silhouette_of, (2, 3), (gaussian,), rng=rng()).k == 2


def test_probes_find_a_leak_and_nothing_in_noise():
    r, n = rng(4), 120
    ground, z = r.integers(30, size=n), r.normal(size=(n, 8))
    nuisances = pd.DataFrame({"m/px": r.lognormal(size=n), "look": r.choice(["left", "right"], n), "elevation": np.where(r.random(n) < 0.2, np.nan, r.normal(size=n)), "same": 1.0})
    clean = probe(z, nuisances, ground, rng=rng())
    assert (clean.score[:3] <= clean.null_high[:3] + 0.1).all() and np.isnan(clean.score["same"]) and clean.n["elevation"] < n
    leaky = np.c_[z, np.log(nuisances["m/px"]) + r.normal(0, 0.1, n), (nuisances.look == "left") + r.normal(0, 0.1, n)]
    found = probe(leaky, nuisances.assign(**{"m/px": np.log(nuisances["m/px"])}), ground, rng=rng())
    assert found.score["m/px"] > 0.9 and found.score["look"] > 0.9 and (found.p[["m/px", "look"]] <= 0.05).all() and found.score["elevation"] < 0.1
    assert list(found.what[:2]) == ["r2", "balanced accuracy"]


@given(st.integers(0, 500), st.booleans())
def test_retrieval_is_average_precision(seed, ties):
    r = rng(seed)
    z = r.integers(3, size=(40, 2)).astype(float) if ties else r.normal(size=(40, 2))
    types, split = r.choice(["a", "b"], 40), np.where(np.arange(40) < 15, "train", "val")
    found = retrieval(z, types, split, np.arange(40), draws=10, rng=rng())
    for t in found.index:
        right = types[15:] == t
        if right.any():
            want = [metrics.average_precision_score(right, -np.linalg.norm(z[15:] - q, axis=1)) for q in z[:15][types[:15] == t]]
            assert found["map"][t] == pytest.approx(np.mean(want))
            assert found.prevalence[t] == pytest.approx(right.mean())


def test_retrieval_finds_types_not_noise():
    z, types, split, ground = structures()
    there, noise = (retrieval(d, types, split, ground, rng=rng()) for d in (z, rng(5).normal(size=z.shape)))
    assert (there["map"] > 0.9).all() and (there.map_low > there.prevalence + 0.3).all()
    assert (noise["map"] < noise.prevalence + 0.12).all() and (noise.map_low < noise["map"]).all() and (noise["map"] < noise.map_high).all()


@given(st.lists(st.sampled_from("abc"), min_size=3, max_size=60), st.integers(1, 12), st.integers(0, 99))
def test_no_equal_clusters_beat_the_ceiling(types, k, seed):
    m = len(types) // k
    if m == 0: return
    types = types[:m * k]
    for labels in (rng(seed).permutation(np.arange(m * k) % k), np.argsort(np.argsort(types, kind="stable")) // m):
        assert agreement(types, labels)["nmi"] <= nmi_ceiling(types, k) + 1e-9


def test_rare_types_count_as_much():
    types = np.array(["none"] * 180 + ["volcano"] * 20)
    lazy = np.zeros(200, int)
    assert purity(types, lazy)["purity"] == 0.9
    assert balanced(types, lazy, 20, rng=rng())["ari"] == 0 and balanced(types, types == "volcano", 20, rng=rng())["nmi"] == pytest.approx(1)
    assert pd.Series(types[balance(types, rng=rng())]).value_counts().to_dict() == {"none": 20, "volcano": 20}
    assert nmi_ceiling(["none", "volcano"], 20) == pytest.approx(0.376, abs=1e-3)


def test_descriptors_beside_clusters():
    labels = np.repeat([-1, 0, 1], [10, 40, 30])
    rim = np.where(labels == 1, 900.0, 300.0) + rng().normal(0, 50, 80)
    rim[:2] = np.nan
    table = describe(pd.DataFrame({"rim (m)": rim, "noise": rng(1).normal(size=80), "flat": 1.0}), labels)
    assert table.loc["rim (m)"].n.to_dict() == {-1: 8, 0: 40, 1: 30}
    assert table.loc[("rim (m)", 1), "median"] == np.median(rim[50:]) and table.loc[("rim (m)", 1), "sd"] == pytest.approx(rim[50:].std(ddof=1))
    eta2 = table.eta2.groupby("descriptor").first()
    assert eta2["rim (m)"] > 0.9 and eta2["noise"] < 0.1 and np.isnan(table.loc["flat"].eta2).all()
    assert describe(pd.DataFrame({"rim (m)": rim}), np.full(80, -1)).eta2.isna().all()
