"Memory of clustering: bounded by a stated chunk, in memory and on the disk"
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import DBSCAN, HDBSCAN, AgglomerativeClustering, KMeans
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from planetlab.cluster import assign, fit_clusters, fit_reduction
from planetlab.core import BadInput
from planetlab.scale import FastKMeans, assign_many, fit_many

N, D, CHUNK = 120_000, 32, 2048


def blobs(n, d=D, k=5, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n, d), dtype="float32")
    z += rng.normal(0, 4, (k, d)).astype("float32")[rng.integers(k, size=n)]
    return z


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "z.npy"
    np.save(path, blobs(N))
    return path


def peak_bytes(job):
    "What a call allocates at most, above what was there"
    tracemalloc.start()
    try:
        found = job()
        return found, tracemalloc.get_traced_memory()[1]
    finally: tracemalloc.stop()


def test_a_fit_takes_a_chunk_beside_the_data(stored):
    "A few numbers a row (labels, rows), a sample and chunks; never a copy of the rows, nor a flag for each number"
    bound = 32 * N + 8 * CHUNK * D * 4
    for z in (np.load(stored), np.load(stored, mmap_mode="r")):
        found, peak = peak_bytes(lambda z=z: fit_clusters(z, FastKMeans(5, n_init=2, chunk=CHUNK)))
        assert found.z is z and found.note == f"fitted on all {N} rows"
        assert peak < bound < 0.5 * z.nbytes, (peak, bound)


def test_rows_on_the_disk_give_the_same_clusters(stored):
    fitted = [fit_clusters(z, FastKMeans(5, n_init=2, chunk=CHUNK)) for z in (np.load(stored), np.load(stored, mmap_mode="r"))]
    assert isinstance(fitted[1].z, np.memmap)
    assert (fitted[0].labels == fitted[1].labels).all()
    assert (assign(fitted[1], fitted[0].z) == fitted[0].labels).all()


def test_a_sample_is_fitted_and_the_rest_assigned_in_chunks(stored):
    z = np.load(stored, mmap_mode="r")
    found, peak = peak_bytes(lambda: fit_clusters(z, AgglomerativeClustering(5), most=300, rng=np.random.default_rng(0)))
    assert "300 of 120000" in found.note and found.z.shape == (300, D)
    assert peak < 0.8 * z.nbytes, peak
    assert (assign(found, z) == found.labels)[np.delete(np.arange(N), found.rows)].all()


def test_a_reduction_copies_no_rows():
    z = blobs(500)
    seen = []

    class Looks(PCA):
        def fit(self, X, y=None):
            seen.append(X)
            return super().fit(X)

    fit_reduction(z, Looks(3))
    assert seen[0] is z


@settings(deadline=None, max_examples=12)
@given(st.integers(1, 400), st.integers(0, 4), st.integers(0, 50))
def test_chunks_change_no_label(chunk, which, seed):
    z = blobs(300, 4, 3, seed)
    e = (KMeans(3, n_init=1, random_state=0), GaussianMixture(3, random_state=0), AgglomerativeClustering(3),
         DBSCAN(1.0, min_samples=4), HDBSCAN(min_cluster_size=10, copy=True))[which]
    found = fit_clusters(z, e, 150, rng=np.random.default_rng(seed))
    assert (assign(found, z, chunk) == assign(found, z)).all()
    numbers = np.unique(found.labels[found.rows])
    assert (numbers[numbers >= 0] == np.arange(len(numbers[numbers >= 0]))).all() and numbers.min() >= -1


@pytest.mark.parametrize("row", [0, 16_384, 49_999])
def test_a_hole_is_found_wherever_it_is(row):
    z = blobs(50_000, 3)
    z[row, 1] = np.nan
    with pytest.raises(BadInput, match="1 not finite"): fit_clusters(z, FastKMeans(2, n_init=1))
    with pytest.raises(BadInput, match="1 not finite"): fit_reduction(z, PCA(2))


def test_clusters_of_a_part_are_recognised_in_chunks():
    z = blobs(6000, 8)
    many = fit_many(z, HDBSCAN(min_cluster_size=300, copy=True), dims=4, most=1500, rng=np.random.default_rng(0))
    assert (assign_many(many, z, 700) == assign_many(many, z)).all()
    assert (assign_many(many, z)[many.labels < 0] == -1).mean() > 0.9


@pytest.mark.filterwarnings("ignore:invalid value")
def test_components_of_noise_do_not_hide_clusters():
    "Eight columns that tell the clusters apart, and fifty-six of noise"
    r = np.random.default_rng(0)
    types = r.integers(12, size=30_000)
    z = r.standard_normal((30_000, 64), dtype="float32")
    z[:, :8] += 6 * np.r_[np.eye(8), -np.eye(8)].astype("float32")[types]
    found = fit_many(z, HDBSCAN(min_cluster_size=600, copy=True), most=5000, rng=np.random.default_rng(0))
    assert found.reduction.reducer.n_components_ == 8 and found.labels.max() + 1 == 12
    assert (found.labels < 0).mean() < 0.15
    same = fit_many(np.ones((100, 5)), KMeans(1, n_init=1), rng=np.random.default_rng(0))
    assert (same.labels == 0).all() and same.reduction.reducer.n_components_ == 1
