"Clusters of many rows, and of what learns with them"
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import HDBSCAN, KMeans
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import check_estimator

from planetlab.chips import Chips
from planetlab.consensus import consensus, vote
from planetlab.core import BadInput
from planetlab.models.autoencoder import Autoencoder
from planetlab.models.deepcluster import (Heads, Joint, Targets, fit_heads, fit_joint, neighbours, sharpened, soft_labels,
                                          with_centres)
from planetlab.scale import FastKMeans, fit_many
from planetlab.train import Recipe


def blobs(n=3000, k=5, d=8, seed=0, apart=4.0):
    rng = np.random.default_rng(seed)
    types = rng.integers(k, size=n)
    return (rng.normal(0, apart, (k, d))[types] + rng.standard_normal((n, d))).astype("float32"), types


def test_fast_k_means_keeps_the_contract():
    check_estimator(FastKMeans(n_init=2))


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 700), st.integers(1, 6), st.integers(0, 99))
def test_chunks_change_nothing(chunk, k, seed):
    z, _ = blobs(600, seed=seed)
    a, b = FastKMeans(k, n_init=2, chunk=chunk).fit(z), FastKMeans(k, n_init=2, chunk=5000).fit(z)
    assert a.inertia_ == pytest.approx(b.inertia_, rel=1e-2)
    assert (a.predict(z) == a.labels_).all()
    assert a.inertia_ == pytest.approx(np.square(z - a.cluster_centers_[a.labels_]).sum(), rel=1e-4)


def test_as_good_as_the_best_of_ten():
    z, _ = blobs(8000, 12, 16, apart=0.7)
    assert FastKMeans(12).fit(z).inertia_ < 1.01 * KMeans(12, n_init=10, random_state=0).fit(z).inertia_


def test_equal_rows_and_far_rows():
    assert FastKMeans(3).fit(np.ones((50, 4))).inertia_ == 0
    z, types = blobs()
    assert adjusted_rand_score(FastKMeans(5).fit(z.astype(float) + 1e7).labels_, types) > 0.95


def test_many_rows_are_never_fitted_in_silence():
    z, types = blobs(30_000, apart=6)
    found = fit_many(z, HDBSCAN(min_cluster_size=900, copy=True), dims=4, most=3000, rng=np.random.default_rng(0))
    assert "3000 of 30000" in found.note and "clusters of 90 " in found.note
    assert len(found.rows) == 3000 and adjusted_rand_score(types, found.labels) > 0.8


@settings(deadline=None, max_examples=15)
@given(st.permutations(range(4)), st.integers(0, 99))
def test_consensus_ignores_names(names, seed):
    labels = np.r_[np.arange(4), np.random.default_rng(seed).integers(-1, 4, 60)]
    renamed = np.append(names, -1)[labels]
    found = consensus([labels, renamed, labels])
    assert found.stability == pytest.approx(1)
    assert adjusted_rand_score(found.labels, labels) == pytest.approx(1)
    assert (vote(found.maps, [labels, renamed, labels])[0] == found.labels).all()


def test_a_minority_is_outvoted():
    a = np.repeat([0, 1], 50)
    b = a.copy()
    b[:10] = 1
    found = consensus([a, a, b])
    assert (found.labels == a).all() and (found.share[:10] == pytest.approx(2 / 3)) and (found.share[10:] == 1).all()


def test_a_target_is_surer_and_fair():
    q = torch.rand(40, 3, generator=torch.Generator().manual_seed(0)).softmax(1)
    p = sharpened(q)
    assert torch.allclose(p.sum(1), torch.ones(40))
    assert (p.max(1).values >= q.max(1).values - 0.05).all()


@pytest.fixture(scope="module")
def pictures():
    g = torch.Generator().manual_seed(0)
    types = torch.randint(2, (96,), generator=g)
    x = torch.rand(96, 1, 8, 8, generator=g) * 0.4
    x[types == 1, :, :4] += 0.5
    return Chips(x, torch.ones(96, 1, 8, 8, dtype=torch.bool), 8), types.numpy()


@pytest.mark.parametrize("bottleneck", ["flatten", "pool", "spatial"])
@pytest.mark.parametrize("loss", [Joint(), Joint(None)], ids=["IDEC", "DEC"])
def test_joint_training_on_any_autoencoder(pictures, bottleneck, loss):
    chips, _ = pictures
    torch.manual_seed(0)
    net = Autoencoder(size=8, latent=4, widths=(8,), variational=False, bottleneck=bottleneck)
    def run():
        model = with_centres(net, chips, 2, seed=0)
        rows = list(fit_joint(model, chips, loss, Recipe(3, lr=1e-3), generator=torch.Generator().manual_seed(1)))
        return rows, soft_labels(model, chips.x, chips.valid)
    (rows, q), (_, again) = run(), run()
    assert torch.equal(q, again) and rows[0]["used"] == 2 and np.isfinite(rows[-1]["train_loss"])


def test_it_says_when_nothing_moves(pictures):
    chips, types = pictures
    torch.manual_seed(0)
    net = Autoencoder(size=8, latent=4, widths=(8,), variational=False)
    model = with_centres(net, chips, 2, seed=0)
    rows = list(fit_joint(model, chips, recipe=Recipe(3, lr=1e-6), generator=torch.Generator().manual_seed(1)))
    assert [r["moved"] for r in rows] == [1, 0, 0]


def test_bursts_share_a_target_and_set_the_measure(pictures):
    chips, _ = pictures
    torch.manual_seed(0)
    net = Autoencoder(size=8, latent=4, widths=(8,), variational=False)
    bursts = np.arange(96) // 4
    model = with_centres(net, chips, 2, bursts, seed=0)
    y = model.describe(chips.x, chips.valid).detach().numpy().reshape(24, 4, 4)
    within = np.cov((y - y.mean(1, keepdims=True)).reshape(96, 4).T, bias=True)
    assert (np.diag(within) < 1.45).all() and np.abs(within - np.diag(np.diag(within))).max() < 1e-2
    order = torch.Generator().manual_seed(1)
    targets = Targets(model, chips, None, 96, bursts, generator=order)
    rows = torch.randperm(96, generator=torch.Generator().manual_seed(1))
    p = next(iter(targets))[2][rows.argsort()].reshape(24, 4, 2)
    assert torch.equal(p, p[:, :1].expand(24, 4, 2))
    own = next(iter(Targets(model, chips, None, 96, np.arange(96), generator=order)))[2]
    assert own.unique(dim=0).shape[0] > 24
    with pytest.raises(BadInput): with_centres(net, chips, 2, np.arange(96), seed=0)
    with pytest.raises(BadInput): next(fit_joint(model, chips, bursts=bursts[:9], generator=order))


def test_heads_resume_equal_to_the_last_bit(tmp_path):
    z, _ = blobs(200, 3, 4)
    def run(epochs, state=None):
        torch.manual_seed(0)
        heads = Heads(4, 3, heads=2)
        rows = fit_heads(heads, z, recipe=Recipe(4), state=state, generator=torch.Generator().manual_seed(0))
        found = [row for row, _ in zip(rows, range(epochs))]
        return found, soft_labels(heads, torch.from_numpy(z))
    whole, q = run(4)
    run(2, tmp_path / "state")
    again, resumed = run(4, tmp_path / "state")
    assert again == whole and torch.equal(q, resumed)


def test_heads_find_blobs_and_keep_groups_apart():
    z, types = blobs(600, 4, 6, apart=5)
    torch.manual_seed(0)
    heads = Heads(6, 4, heads=4)
    rows = list(fit_heads(heads, z, recipe=Recipe(30, lr=3e-3), generator=torch.Generator().manual_seed(0)))
    assert rows[-1]["best"] == int(heads.best)
    assert adjusted_rand_score(types, soft_labels(heads, torch.from_numpy(z)).argmax(1)) > 0.6
    groups = np.arange(600) // 3
    near = neighbours(z, 10, groups)
    assert near.shape == (600, 10) and not (groups[near] == groups[:, None]).any()
    with pytest.raises(BadInput): neighbours(z[:1], 3)
