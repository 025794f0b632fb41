"""Clustering of many vectors: CPU seconds, wall, inertia and memory, each job alone in a process with one thread

    python benchmarks/cluster.py [--rows 1000000] [--rounds 1] [--json FILE]

Data: 16 Gaussian blobs in 64 columns, overlapping (centres drawn with 0.3 of the noise, per column) and apart (1.0), and for
density methods and maps blobs in 8 of the 64 columns: the nearest centres 5 deviations of the noise apart (near), or 7 (far).
Memory is the largest resident size less that with the data loaded; rows that are read from the disk count as memory while they
are mapped. `x faiss` is the CPU time over that of faiss with 25 full iterations, in the same round.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"): os.environ[name] = "1"

import numpy as np
from sklearn.cluster import HDBSCAN, KMeans, MiniBatchKMeans
from sklearn.metrics import adjusted_rand_score

from planetlab import __version__
from planetlab.cluster import fit_clusters, fit_reduction, umap_map
from planetlab.consensus import consensus
from planetlab.core import need, write_json
from planetlab.scale import FastKMeans, Placed, fit_many

D, K = 64, 16
DATA = {"overlapping": (0.3, D), "apart": (1.0, D), "8 columns, near": (3.0, 8), "8 columns, far": (4.0, 8)} # Spread, columns


def blobs(n, apart, columns=D):
    rng = np.random.default_rng(0)
    types = rng.integers(K, size=n)
    centres = np.zeros((K, D), "float32")
    centres[:, :columns] = rng.normal(0, apart, (K, columns))
    return rng.standard_normal((n, D), dtype="float32") + centres[types], types


def faiss_25(z):
    faiss = need("faiss", "cluster")
    faiss.omp_set_num_threads(1)
    found = faiss.Kmeans(z.shape[1], K, niter=25, seed=1, max_points_per_centroid=len(z))
    found.train(z)
    far, labels = found.index.search(z, 1)
    return {"inertia": float(far.sum(dtype="float64")), "labels": labels[:, 0]}


def of(estimator):
    def job(z):
        estimator.fit(z)
        return {"inertia": float(estimator.inertia_), "labels": estimator.labels_, "said": f"{estimator.n_iter_} rounds"}
    return job


def through_clusters(z):
    found = fit_clusters(z, FastKMeans(K))
    return {"inertia": float(found.estimator.inertia_), "labels": found.labels, "said": found.note}


def density(how):
    def job(z):
        estimator = HDBSCAN(min_cluster_size=len(z) // 100, min_samples=5, cluster_selection_method=how, copy=True)
        found = fit_many(z, estimator, rng=np.random.default_rng(0))
        return {"labels": found.labels, "said": f"{found.labels.max() + 1} clusters; {found.note}"}
    return job


def umap(z):
    start = time.process_time()
    fit_reduction(z[:100], Placed(umap_map()))
    loaded = time.process_time() - start
    found = fit_reduction(z, Placed(umap_map()), most=5000, rng=np.random.default_rng(0))
    assert found.transform(z).shape == (len(z), 2)
    return {"said": f"{loaded:.1f} CPU s of it to load and compile UMAP; {found.note}"}


def votes(z):
    found = consensus([FastKMeans(K, n_init=1, random_state=s).fit(z).labels_ for s in range(5)])
    return {"labels": found.labels, "said": f"5 seeds, stability {found.stability:.3f}"}


JOBS = { # data, size as a share of the rows asked for, job
    "faiss, 25 iterations, one start": faiss_25,
    "FastKMeans": of(FastKMeans(K)),
    "FastKMeans, rows on the disk": of(FastKMeans(K)),
    "FastKMeans through fit_clusters": through_clusters,
    "FastKMeans, all 25 rounds": of(FastKMeans(K, tol=-1)),
    "FastKMeans, sample only": of(FastKMeans(K, max_iter=0)),
    "KMeans, one start, 25 iterations": of(KMeans(K, n_init=1, max_iter=25, random_state=0)),
    "MiniBatchKMeans": of(MiniBatchKMeans(K, n_init=3, random_state=0)),
    "KMeans, best of ten starts": of(KMeans(K, n_init=10, random_state=0)),
    "HDBSCAN, 10 000 rows, the rest assigned": density("eom"),
    "HDBSCAN, leaves, 10 000 rows": density("leaf"),
    "UMAP, 5000 rows, the rest placed": umap,
    "consensus of five seeds": votes}
SMALL = ["FastKMeans", "KMeans, best of ten starts", "consensus of five seeds"]
DENSITY = ["HDBSCAN, 10 000 rows, the rest assigned", "HDBSCAN, leaves, 10 000 rows"]
PLAN = [*((kind, 1.0, name) for kind in ("overlapping", "apart") for name in list(JOBS)[:8]),
        *((kind, 0.1, name) for kind in ("overlapping", "apart") for name in SMALL),
        *((kind, 0.1, name) for kind in ("apart", "8 columns, near", "8 columns, far") for name in DENSITY),
        ("8 columns, far", 0.1, "UMAP, 5000 rows, the rest placed")]


def peak(): # MiB; not `ru_maxrss`, which a process inherits from the one that started it
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in status if line.startswith("VmHWM:"))) / 1024


def child(path, name):
    "One job; a line of JSON"
    z = np.load(path / "z.npy", mmap_mode="r" if "disk" in name else None)
    if name.startswith("faiss"): need("faiss", "cluster")
    before, cpu, wall = peak(), time.process_time(), time.perf_counter()
    found = JOBS[name](z)
    row = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall, "mib": peak() - before}
    types, labels = np.load(path / "types.npy"), found.pop("labels", None)
    print(json.dumps(row | found | ({} if labels is None else {"ari": adjusted_rand_score(types, labels)})))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--rows", type=int, default=1_000_000)
    p.add_argument("--rounds", type=int, default=1)
    p.add_argument("--json", type=Path)
    p.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child: return child(Path(a.child[0]), a.child[1])
    rows = {}
    with tempfile.TemporaryDirectory() as tmp:
        for kind, share in dict.fromkeys((kind, share) for kind, share, _ in PLAN):
            folder = Path(tmp, f"{kind} {share}")
            folder.mkdir()
            z, types = blobs(round(a.rows * share), *DATA[kind])
            np.save(folder / "z.npy", z), np.save(folder / "types.npy", types)
            for _ in range(a.rounds):
                for name in (name for *key, name in PLAN if key == [kind, share]):
                    command = [sys.executable, __file__, "--child", str(folder), name]
                    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                    rows.setdefault((kind, len(z), name), []).append(json.loads(out.splitlines()[-1]))
            for f in folder.iterdir(): f.unlink()
    table = tabled(rows)
    print("| data | rows | what | CPU s | x faiss | wall s | MiB | inertia / best | ARI | |")
    print("|---|--:|---|--:|--:|--:|--:|--:|--:|---|")
    for row in table: print("| " + " | ".join("" if v is None else str(v) for v in row.values()) + " |")
    command = f"python benchmarks/cluster.py --rows {a.rows} --rounds {a.rounds}"
    if a.json:
        write_json(a.json, {"protocol": " ".join(__doc__.split("Data: ")[1].split()), "command": command, "version": __version__,
                            "threads": 1, "k": K, "columns": D, "table": table})


def tabled(rows): # (data, N, job) -> rounds; a list of rows
    table = []
    for (kind, n, name), runs in rows.items():
        beside = rows.get((kind, n, next(iter(JOBS))), [])
        same = [r for (k, m, _), v in rows.items() if (k, m) == (kind, n) for r in v if "inertia" in r]
        best = min((r["inertia"] for r in same), default=None)
        cpu, wall, mib = (round(statistics.median(r[c] for r in runs), 2) for c in ("cpu_s", "wall_s", "mib"))
        x = round(statistics.median(r["cpu_s"] / b["cpu_s"] for r, b in zip(runs, beside)), 2) if beside else None
        inertia = round(max(r["inertia"] for r in runs) / best, 4) if "inertia" in runs[0] else None
        ari = round(runs[0]["ari"], 3) if "ari" in runs[0] else None
        table.append({"data": kind, "rows": n, "what": name, "cpu_s": cpu, "x_faiss": x, "wall_s": wall, "mib": mib,
                      "inertia": inertia, "ari": ari, "said": runs[0].get("said", "")})
    return table


if __name__ == "__main__":
    main()
