"Neighbours equal brute force, with faiss and where it is missing, own bursts left out; novelty is measured on what was hidden"
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.base import BaseEstimator

from planetlab import search
from planetlab.cluster import exemplars
from planetlab.core import BadInput, MissingExtra
from planetlab.novelty import fuse, judge_each, judge_novelty, precision_at, rank_novelty, rankers, show_hidden, show_precision
from planetlab.search import about_clusters, boundary, build_index, find, like, lists, recall, write_sheets

settings.register_profile("search", deadline=None, max_examples=30)
settings.load_profile("search")


def rng(seed=0): return np.random.default_rng(seed)


def without_faiss(name, extra): raise MissingExtra(f"`{name}` is not installed; run: pip install 'planetlab[{extra}]'")


@pytest.fixture(params=["faiss", "numpy"])
def engine(request, monkeypatch):
    if request.param == "numpy": monkeypatch.setattr(search, "need", without_faiss)


def brute(z, q, n, out=None, groups=None, own=None): # Loops over everything, in double precision
    rows = []
    for i, one in enumerate(q.astype(float)):
        far = np.linalg.norm(z.astype(float) - one, axis=1).astype("float32")
        gone = np.zeros(len(z), bool) if groups is None else groups == out[i]
        if own is not None: gone[own[i]] = True
        keep = np.flatnonzero(~gone)
        rows.append(far[keep[np.argsort(far[keep], kind="stable")[:n]]])
    return rows


@pytest.mark.parametrize("n, d, k, n_groups", [(1, 1, 1, 1), (7, 3, 10, 2), (300, 5, 4, 9), (500, 33, 20, 3), (257, 2, 1, 300)])
def test_exact_is_brute_force(engine, n, d, k, n_groups):
    z, groups = rng(n).normal(size=(n, d)).astype("float32"), rng(d).integers(n_groups, size=n).astype(str)
    q = rng(9).normal(size=(11, d)).astype("float32")
    index = build_index(z, groups)
    for found, want in ((find(index, q, k), brute(z, q, k)), (find(index, q, k, ["0"] * 11), brute(z, q, k, ["0"] * 11, groups)),
                        (like(index, range(n), k), brute(z, z, k, groups, groups)), (like(index, range(n), k, apart=False), brute(z, z, k, own=np.arange(n)))):
        for rows, far, w in zip(found.rows, found.distance, want):
            assert far[:len(w)] == pytest.approx(w, abs=1e-5)
            assert (rows[len(w):] == -1).all() and np.isinf(far[len(w):]).all() and len(rows) == k
            assert len(set(rows[rows >= 0].tolist())) == len(w)


def test_blocks_change_nothing_and_bound_memory():
    z, q = rng().normal(size=(60_000, 4)).astype("float32"), rng(1).normal(size=(400, 4)).astype("float32")
    tracemalloc.start()
    found = find(build_index(z), q, 5).rows
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6 # all distances would be 96 MB, and their order twice that
    far = np.linalg.norm(z[np.sort(found[:5])] - q[:5, None], axis=2)
    assert np.sort(far) == pytest.approx(np.array(brute(z, q[:5], 5)), abs=1e-5)


def test_near_copies_far_from_zero_are_told_apart(engine):
    z = (1000 + rng().normal(size=(200, 8))).astype("float32")
    z[1] = z[0] + np.float32(0.01)
    found = like(build_index(z), [0], 3)
    assert found.rows[0, 0] == 1 and found.distance[0, 0] == pytest.approx(np.linalg.norm(z[1] - z[0]), rel=1e-4)
    same = like(build_index(np.ones((5, 3))), [2], 3)
    assert same.rows[0].tolist() == [0, 1, 3] and (same.distance == 0).all()


def test_a_long_burst_does_not_hide_the_others(engine):
    z = np.r_[rng().normal(size=(500, 3)) * 0.01, rng(1).normal(size=(20, 3)) + 5].astype("float32")
    groups = np.array(["burst"] * 500 + [f"s{i}" for i in range(20)])
    found = like(build_index(z, groups), [0, 510], 10)
    assert (found.rows[0] >= 500).all() and len(set(found.rows[0].tolist())) == 10 and 510 not in found.rows[1]
    fast = like(build_index(z, groups, approximate=lists(4, 4)), [0], 10) if search.need is not without_faiss else found
    assert (fast.rows[0] >= 500).all()


@given(st.floats(0.01, 100), st.integers(0, 99))
def test_angles_know_no_length(factor, seed):
    z = rng(seed).normal(size=(50, 6))
    index = build_index(z, cosine=True)
    a, b = find(index, z[:4], 5), find(index, factor * z[:4], 5)
    assert (a.rows == b.rows).all() and (a.rows[:, 0] == range(4)).all()


def test_approximate_tells_what_it_missed():
    z = rng().normal(size=(5000, 16)).astype("float32")
    truth = find(build_index(z), z[:100] + 0.1)
    found = [recall(find(build_index(z, approximate=lists(50, p)), z[:100] + 0.1), truth) for p in (1, 10, 50)]
    assert found[0] < 0.6 < found[1] < found[2] and found[2] > 0.99
    a, b = (find(build_index(z, approximate=lists(seed=3)), z[:50]) for _ in range(2))
    assert (a.rows == b.rows).all()
    assert recall(search.Found(truth.rows[:, :5], truth.distance[:, :5]), truth) == 0.5


def test_without_faiss_the_fast_way_says_what_to_install(monkeypatch):
    monkeypatch.setattr(search, "need", without_faiss)
    with pytest.raises(MissingExtra, match="cluster"): build_index(np.ones((9, 2)), approximate=lists())


def test_border_cases_lie_between_two_centres():
    z = np.r_[np.c_[np.linspace(0, 4, 41), np.zeros(41)], np.c_[np.linspace(6, 10, 41), np.zeros(41)], [[50, 50]]]
    labels = np.r_[np.zeros(41, int), np.ones(41, int), -1]
    edge = boundary(z, labels, 3)
    assert edge.row.tolist() == [40, 39, 38, 41, 42, 43] and edge.other.tolist() == [1] * 3 + [0] * 3
    assert edge.margin[0] == pytest.approx(4 - 2) and edge.margin.iloc[0] < edge.margin.iloc[1]
    assert boundary(z, np.zeros(83, int)).empty and list(boundary(z, np.full(83, -1)).columns) == list(edge.columns)
    wrong = boundary(z, np.r_[1, labels[1:]], 1) # nearer to the other centre than to its own: a negative margin
    assert wrong.margin.min() < 0 and 0 in wrong.row.tolist()


def test_sheets_and_tables_on_disk(tmp_path):
    images = np.memmap(tmp_path / "images", "uint8", "w+", shape=(30, 3, 20, 20))
    images[:] = rng().integers(256, size=images.shape)
    labels, classes, z = np.arange(30) % 4 - 1, np.arange(30) % 4 // 2, rng().normal(size=(30, 2))
    about = about_clusters(np.where(np.arange(30) < 28, classes, -1), labels, ["wheel", "sky ü"], rng=rng())
    picked = pd.concat([exemplars(z, labels, 3, rng=rng()), boundary(z, labels, 3)], ignore_index=True)
    paths = write_sheets(tmp_path / "sheets", images, picked, about, side=32)
    assert [p.name for p in paths] == ["noise.jpg", "cluster_000.jpg", "cluster_001.jpg", "cluster_002.jpg"]
    assert Image.open(paths[1]).size == (90 + 36 * 3, 30 + 36 * 3)
    table = pd.read_csv(tmp_path / "sheets/clusters.csv", index_col="cluster", keep_default_na=False)
    assert {"k", "random", "purity"} <= set(table) and table["size"].sum() == 30 and (table.k == 3).all() and table.matched[-1] == ""
    assert about.purity[0] == 1 and about.random[0] < 1 and about.labelled.sum() == 28
    with pytest.raises(BadInput, match="uint8"): write_sheets(tmp_path, images / 255, picked, about)


@pytest.mark.parametrize("call, words", [
    (lambda: build_index(np.zeros((0, 3))), "one row or more"), (lambda: build_index(np.full((2, 2), np.inf)), "not finite"),
    (lambda: build_index(np.ones((3, 2)), ["a"]), "one per row"), (lambda: find(build_index(np.ones((3, 2))), np.ones((1, 3))), "same encoder"),
    (lambda: find(build_index(np.ones((3, 2))), np.ones((1, 2)), 0), "1 or more"), (lambda: like(build_index(np.ones((3, 2))), [-1]), "from 0 on"),
    (lambda: rank_novelty(np.ones((5, 2)), np.ones((5, 3)), rng=rng()), "one encoder"), (lambda: precision_at([1.0], [True], ["a"], [5], rng=rng()), "up to"),
    (lambda: fuse(pd.DataFrame({"a": [np.nan]})), "not finite"),
])
def test_bad_input_is_refused_in_words(call, words):
    with pytest.raises(BadInput, match=words): call()


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=30), st.integers(0, 9))
def test_fused_ranks_know_no_units(scores, seed):
    a, b = np.array(scores), rng(seed).normal(size=len(scores))
    assert fuse(pd.DataFrame({"a": a, "b": b})) == pytest.approx(fuse(pd.DataFrame({"a": 8 * a, "b": np.exp(b)})))
    alone = fuse(pd.DataFrame({"a": a}))
    assert (alone[np.argsort(-a, kind="stable")][:-1] >= alone[np.argsort(-a, kind="stable")][1:]).all()


def test_precision_by_hand_and_by_group():
    novel = np.array([True, True, False, True, False, False])
    found = precision_at(np.arange(6)[::-1], novel, list("aabbcc"), (1, 2, 3, 4, 6, 50), rng=rng())
    assert found.precision.tolist() == pytest.approx([1, 1, 2 / 3, 3 / 4, 1 / 2]) and (found.chance == 0.5).all() and list(found.index) == [1, 2, 3, 4, 6]
    bursts = np.repeat(np.arange(20), 10)
    alike = rng().random(20)[bursts] < 0.5
    wide, narrow = (precision_at(rng(3).random(20)[bursts], alike, g, (50,), rng=rng()).iloc[0] for g in (bursts, np.arange(200)))
    assert wide.high - wide.low > narrow.high - narrow.low


class Spy(BaseEstimator):
    "Sees the class in the first number"
    seen, most = [], 0

    def fit(self, z):
        Spy.seen = sorted(set(z[:, 0].tolist()))
        return self

    def score_samples(self, z):
        Spy.most = max(Spy.most, len(z))
        return -z[:, 0]


def test_hidden_classes_stay_hidden_and_blocks_are_bounded():
    label = rng().integers(-1, 4, size=20_000)
    table = pd.DataFrame({"label": label, "group": rng(1).integers(40, size=20_000)})
    train = (table.group < 20).to_numpy()
    judged = judge_novelty(label[:, None].astype(float), table, train, [3], {"spy": Spy()}, at=(10, 100), rng=rng())
    assert Spy.seen == [0.0, 1.0, 2.0] and Spy.most <= 8192
    assert (judged.precision == 1).all() and judged.chance.iloc[0] == pytest.approx(0.25, abs=0.02)
    assert judged.index.unique("ranker").tolist() == ["spy", "fused"]


def test_every_ranker_finds_what_lies_apart():
    z = rng().normal(size=(600, 6))
    label = np.r_[np.zeros(560, int), np.ones(40, int)]
    z[560:] += 4
    table = pd.DataFrame({"label": label, "group": np.arange(600) // 4})
    judged = judge_novelty(z, table, np.arange(600) < 300, [1], at=(20,), rng=rng())
    assert (judged.precision > 0.9).all() and (judged.chance < 0.2).all() and len(judged) == 1 + len(rankers())
    assert len(show_precision(judged).get_lines()) == 7
    with pytest.raises(BadInput, match="split whole groups"): judge_novelty(z, table, np.arange(600) % 2 == 0, [1], rng=rng())


def test_each_class_in_its_turn():
    label = rng().integers(4, size=400)
    label[:3], label[3] = 4, -1 # a class with too few images, and one without a label
    table = pd.DataFrame({"label": label, "group": np.arange(400) // 4}).assign(name=lambda t: t.label.map({0: "a", 1: "b", 2: "c", 3: "d", 4: "rare"}).fillna(""))
    z, train, ask = rng(1).normal(size=(400, 3)) + 6 * np.eye(4)[np.clip(label, 0, 3)][:, :3], np.arange(400) >= 200, {"far": rankers()["Mahalanobis"]}
    every = judge_each(z, table, train, asked=ask, at=(5, 20), rng=rng())
    assert list(every.index.unique("hidden")) == ["a", "b", "c", "d"] and len(every) == 4 * 2 * 2
    assert (every.low <= every.precision).all() and (every.precision <= every.high).all()
    assert every.chance.to_numpy() == pytest.approx((every.of / every.ranked).to_numpy())
    assert judge_each(z, table, train, ["c"], ask, (20,), rng=rng()).loc["c"].precision.tolist() == judge_novelty(z, table, train, [2], ask, at=(20,), rng=rng()).precision.tolist()
    for hidden in (["e"], ["rare"], "a", [""], [2]):
        with pytest.raises(BadInput, match=r"a \(\d+\), b \(\d+\)"): judge_each(z, table, train, hidden, ask, rng=rng())
    with pytest.raises(BadInput, match="are: none"): judge_each(z, table.assign(label=-1), train, rng=rng())
    assert [t.get_text()[0] for t in show_hidden(every, 20).get_yticklabels()] == list(every.xs(("fused", 20), level=("ranker", "n")).precision.sort_values().index)
