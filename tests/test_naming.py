"Clusters against class names: equal to what is got by hand, never without k and chance, never on mixed images"
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.neighbors import KNeighborsClassifier

from planetlab.core import BadInput
from planetlab.naming import Score, carry_names, confusion, majority_names, match_names, score_called, score_names, show_scores, write_confusion
from planetlab.protocols import judge_names, over_seeds, parts_of, purity_curve, show_curve
from planetlab.supervised import classifiers, doubts, held_out, judge_labels, show_labels

settings.register_profile("naming", deadline=None, max_examples=30)
settings.load_profile("naming")
labelled = st.integers(2, 40).flatmap(lambda n: st.tuples(*[st.lists(st.integers(-1, 4), min_size=n, max_size=n)] * 2)).filter(lambda p: max(p[0]) >= 0)


def rng(seed=0): return np.random.default_rng(seed)
def values(*args, **kwargs): return {m: s.value for m, s in score_names(*args, shuffles=2, rng=rng(), **kwargs).items()}


@pytest.mark.parametrize("classes, clusters, one_to_one, macro_f1, purity", [
    ([0, 0, 1, 1], [1, 1, 0, 0], 1, 1, 1),                             # other numbers, same groups
    ([0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1], 5 / 6, (4 / 5 + 6 / 7) / 2, 5 / 6),
    ([0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 2, 2], 4 / 6, (4 / 6 + 1) / 2, 1), # k > classes: a cluster stays without a name
    ([0, 1, 2, 0, 1, 2], [0, 0, 0, 0, 0, 0], 2 / 6, (4 / 8) / 3, 2 / 6), # k = 1: two classes are never said
    ([0, 0, 1, 1], [-1, -1, -1, -1], 0, 0, 1 / 2),                     # all noise: one group, no name
    ([0, 0, 1, 1], [3, -1, 7, 7], 3 / 4, (2 / 3 + 1) / 2, 1),          # noise is wrong by name, a group by itself
    ([0, 0, -1, 1, -1], [0, 0, 0, 1, 2], 1, 1, 1),                     # the unlabelled change nothing
    ([0, 5, 5, 0], [9, 4, 4, 9], 1, 1, 1),                             # classes 1 to 4 do not occur
])
def test_scores_by_hand(classes, clusters, one_to_one, macro_f1, purity):
    found = values(classes, clusters)
    assert found["one_to_one"] == pytest.approx(one_to_one)
    assert found["macro_f1"] == pytest.approx(macro_f1)
    assert found["purity"] == pytest.approx(purity)


def test_information_by_hand():
    found = values([0, 0, 1, 1], [0, 0, 0, 1]) # H(T) = ln 2; H(T|K) = 3/4 (ln 3 - 2/3 ln 2)
    h_t, h_tk = np.log(2), 0.75 * (np.log(3) - 2 / 3 * np.log(2))
    h_k = np.log(4) - 0.75 * np.log(3)
    assert found["homogeneity"] == pytest.approx(1 - h_tk / h_t)
    assert found["completeness"] == pytest.approx((h_t - h_tk) / h_k)
    assert found["nmi"] == pytest.approx(2 * (h_t - h_tk) / (h_t + h_k)) == pytest.approx(found["v_measure"])
    assert found["ari"] == pytest.approx((1 - 2 * 3 / 6) / ((2 + 3) / 2 - 1)) # both 1, rows 1 + 1, columns 3


@given(labelled)
def test_scores_are_those_of_scikit_learn(pair):
    t, c = (np.array(v) for v in pair)
    found, known = values(t, c), t >= 0
    for name, of in (("nmi", metrics.normalized_mutual_info_score), ("ami", metrics.adjusted_mutual_info_score), ("ari", metrics.adjusted_rand_score),
                     ("homogeneity", metrics.homogeneity_score), ("completeness", metrics.completeness_score), ("v_measure", metrics.v_measure_score)):
        assert found[name] == pytest.approx(of(t[known], c[known]), abs=1e-9), name
    said = carry_names(match_names(t, c), c)[known]
    assert found["one_to_one"] == pytest.approx(np.mean(said == t[known]))
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(t[known], said, labels=np.unique(t[known]), average="macro", zero_division=0))
    called = score_called(t, carry_names(majority_names(t, c), c), rng=rng())
    if (c[known] >= 0).all(): assert called["accuracy"][0] == pytest.approx(found["purity"])
    assert found["one_to_one"] <= found["purity"] + 1e-9


@given(st.lists(st.integers(0, 3), min_size=4, max_size=12), st.integers(0, 99))
def test_one_to_one_is_the_best_of_all_matchings(classes, seed):
    clusters = rng(seed).integers(4, size=len(classes))
    best = max(np.mean([p[c] == t for t, c in zip(classes, clusters)]) for p in permutations(range(4)))
    assert values(classes, clusters)["one_to_one"] == pytest.approx(best)


@given(labelled, st.permutations(range(5)))
def test_numbers_of_clusters_mean_nothing(pair, order):
    t, c = (np.array(v) for v in pair)
    other = np.where(c < 0, -1, np.array(order)[c])
    a, b = values(t, c), values(t, other)
    assert {m: a[m] for m in a if m != "macro_f1"} == pytest.approx({m: b[m] for m in b if m != "macro_f1"}) # of equal matchings either may be taken


@given(labelled)
def test_purity_never_falls_when_clusters_are_split(pair):
    t, c = (np.array(v) for v in pair)
    assert values(t, np.arange(len(t)))["purity"] == 1
    assert values(t, 2 * np.maximum(c, 0) + np.arange(len(c)) % 2)["purity"] >= values(t, np.maximum(c, 0))["purity"] - 1e-12


def test_random_clusters_have_the_same_sizes():
    t = np.repeat([0, 1], 500)
    pairs = np.repeat(np.arange(500), 2)
    found = score_names(rng(1).permutation(t), pairs, shuffles=20, rng=rng())["purity"]
    assert found.random == pytest.approx(0.75, abs=0.02) and found.value == pytest.approx(0.75, abs=0.05) # two of two coins, or one
    assert score_names(t, np.zeros(1000, int), rng=rng())["purity"].random == 0.5


def test_a_number_carries_its_k_and_its_chance():
    s = score_names([0, 0, 1, 1], [0, 0, 1, 1], list("aabb"), k=7, rng=rng())["purity"]
    assert isinstance(s, Score) and s.k == 7 and "k = 7" in str(s) and "random" in str(s)
    ax = show_scores({"purity": s})
    assert "k = 7" in ax.get_yticklabels()[0].get_text() and "random" in ax.get_legend().get_texts()[0].get_text()


def test_copies_of_images_are_no_new_witnesses():
    t, c = rng(0).integers(3, size=60), rng(1).integers(3, size=60)
    c = np.where(rng(2).random(60) < 0.6, t, c)
    once = score_names(t, c, np.arange(60), draws=1000, rng=rng())["one_to_one"]
    often = score_names(np.repeat(t, 9), np.repeat(c, 9), np.repeat(np.arange(60), 9), draws=1000, rng=rng())["one_to_one"]
    cheat = score_names(np.repeat(t, 9), np.repeat(c, 9), np.arange(540), draws=1000, rng=rng())["one_to_one"]
    assert (once.value, once.low, once.high) == pytest.approx((often.value, often.low, often.high), abs=0.02)
    assert cheat.high - cheat.low < 0.5 * (often.high - often.low)


def world(n=240, seed=0):
    "Image table and features: 24 sols, 4 classes, a burst of two per scene"
    r = rng(seed)
    label = np.repeat(r.integers(4, size=n // 2), 2)
    sol = np.repeat(r.integers(24, size=n // 2), 2)
    z = np.repeat(np.eye(4)[label[::2]] * 3 + r.normal(size=(n // 2, 4)), 2, axis=0) + r.normal(size=(n, 4)) * 0.01
    table = pd.DataFrame({"label": label, "group": [f"sol {s}" for s in sol], "instrument": np.where(sol % 2, "left", "right"),
                          "split": np.where(sol < 14, "train", np.where(sol < 18, "val", "test"))})
    return z.astype("float32"), table, np.arange(n).reshape(-1, 2)


def test_selections_are_never_mixed():
    z, table, twins = world()
    parts = parts_of(table, twins)
    assert list(parts) == ["all images", "test split", "all images, no near-duplicates", "test split, no near-duplicates"]
    assert (table.split[parts["test split"]] == "test").all()
    for name, part in parts.items(): assert not ("no near" in name and part[twins].all(1).any())
    assert parts["test split, no near-duplicates"].sum() * 2 == parts["test split"].sum()
    runs = [rng(s).integers(5, size=len(z)) for s in range(5)]
    judged = judge_names(runs, table, parts, (table.split == "train").to_numpy(), draws=20, rng=rng())
    assert (judged.groupby(["part", "instrument", "metric"]).seed.nunique() == 5).all() and (judged.k == 5).all() and judged.random.notna().all()
    carried = judged[judged.metric.str.startswith("carried")]
    assert set(carried.part) == {"test split", "test split, no near-duplicates"}
    n = judged.drop_duplicates(["part", "instrument"]).set_index(["part", "instrument"]).n
    assert n["all images", "left"] + n["all images", "right"] == n["all images", "all"] == len(z)
    summary = over_seeds(judged)
    one = judged[(judged.part == "all images") & (judged.instrument == "all") & (judged.metric == "purity")].value
    assert summary.xs(("all images", "all", "purity"), level=("part", "instrument", "metric"))[["mean", "sd"]].values.ravel() == pytest.approx([one.mean(), one.std()])


def test_carried_names_know_only_the_train_part():
    z, table, _ = world()
    train, test = (table.split == "train").to_numpy(), (table.split == "test").to_numpy()
    clusters = table.label.to_numpy().copy()
    swapped = table.assign(label=np.where(test, (table.label + 1) % 4, table.label)) # other names on the test sols
    for t, right in ((table, 1.0), (swapped, 0.0)):
        judged = judge_names([clusters], t, {"test": test}, train, draws=20, rng=rng()).query("instrument == 'all'").set_index("metric").value
        assert judged["carried"] == judged["carried_one_to_one"] == right and judged["purity"] == judged["one_to_one"] == 1


def test_curve_reaches_one_with_an_image_a_cluster():
    z, table, _ = world()
    z = z[::2]
    curve = purity_curve(z, table.label.to_numpy()[::2], [4, 120], seeds=2, rng=rng())
    top = over_seeds(curve).xs("purity", level="metric")
    assert top["mean"][120] == top.random[120] == 1 and 0.8 < top["mean"][4] < 1 and top.random[4] < 0.45
    assert [c in curve for c in ("k", "seed", "metric", "value", "random")] == [True] * 5
    assert "random" in " ".join(t.get_text() for t in show_curve({"z": curve}).get_legend().get_texts())


def test_confusion_has_every_class_and_is_written_whole(tmp_path):
    counts = confusion([0, 0, 2, -1], [0, -1, 0, 0], ["a", "b", "ç ü"])
    assert counts.to_numpy().tolist() == [[1, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]]
    write_confusion(tmp_path / "new", counts)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["confusion.csv", "confusion.jpg"]
    assert pd.read_csv(tmp_path / "new/confusion.csv", index_col="class").index.tolist() == ["a", "b", "ç ü"]


@pytest.mark.parametrize("call, words", [
    (lambda: match_names([0, 1], [0]), "one integer"), (lambda: match_names([0.5, 1], [0, 1]), "one integer"),
    (lambda: score_names([-1], [0], rng=rng()), "has a label"), (lambda: score_names([0, 1, 1], [0, 1, 2], k=2, rng=rng()), "was fitted"),
    (lambda: judge_names([[0]], pd.DataFrame({"label": [0]}), {"all": np.ones(1, bool)}, rng=rng()), "has no"),
    (lambda: judge_labels(np.ones((4, 1)), [0, 0, -1, -1], list("abcd"), rng=rng()), "two or more"),
    (lambda: held_out(np.full((4, 1), np.nan), [0, 1, 0, 1], list("abcd"), classifiers()["k-NN"]), "not finite"),
])
def test_bad_input_is_refused_in_words(call, words):
    with pytest.raises(BadInput, match=words): call()


class Spy(ClassifierMixin, BaseEstimator):
    "Remembers nothing but the groups it was fitted on, given as the first feature"
    def fit(self, z, y):
        self.classes_, self.seen = np.unique(y), set(z[:, 0].tolist())
        return self

    def predict_proba(self, z):
        assert not self.seen & set(z[:, 0].tolist())
        return np.full((len(z), len(self.classes_)), 1 / len(self.classes_))


def test_no_group_is_both_fitted_and_predicted():
    groups = rng().integers(20, size=200)
    p = held_out(groups[:, None].astype(float), rng(1).integers(3, size=200), groups, Spy())
    assert p.sum(1) == pytest.approx(np.ones(200))
    only = np.where(groups == 3, 2, rng(1).integers(2, size=200)) # a class in one group only
    p = held_out(groups[:, None].astype(float), only, groups, Spy())
    assert (p[groups == 3, 2] == 0).all()


def test_classifiers_beat_chance_only_where_there_is_something():
    z, table, _ = world()
    found = judge_labels(z, table.label, table.group, nulls=2, rng=rng())
    assert (found.value > found.null_high + 0.3).all() and (found.low <= found.value).all() and (found.value <= found.high).all()
    nothing = judge_labels(rng(3).normal(size=z.shape), table.label, table.group, nulls=2, rng=rng())
    assert (nothing.value < 0.42).all()
    assert found.majority["linear probe", "macro_f1"] < found.majority["linear probe", "accuracy"] < 0.4
    assert len(show_labels({"z": found, "noise": nothing}).get_yticklabels()) == 4


def test_wrong_labels_are_listed_and_left_alone():
    z, table, _ = world(seed=2)
    right = table.label.to_numpy()
    wrong = rng(5).choice(len(right), 10, replace=False)
    spoilt = right.copy()
    spoilt[wrong] = (right[wrong] + 2) % 4
    given = spoilt.copy()
    listed = doubts(z, given, table.group)
    assert (given == spoilt).all() and (listed.label == spoilt[listed.row]).all()
    assert np.isin(wrong, listed.row[:20]).sum() >= 7
    sure = np.repeat(np.eye(3) * 9, 20, axis=0)
    assert len(doubts(sure, np.repeat([0, 1, 2], 20), np.arange(60) % 10, {"k-NN": KNeighborsClassifier(3)})) == 0
