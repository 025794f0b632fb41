"""The ten nearest of 100 000 and of 1 000 000 features, exactly and fast: CPU, wall, recall and memory, in one run

    python benchmarks/search.py [SIZES [ROUNDS [JSON]]]     e.g. python benchmarks/search.py 100000,1000000 3

1000 queries against N x 64 float32 features, each way in fresh processes with one thread, in turn; medians over the rounds.
"clumped" features lie near 1000 curved sheets of 12 dimensions, as those of images do; "normal" ones are independent normal
numbers, the worst case for any shortcut. Recall of the ten nearest of 200 of the queries is against distances in double
precision. Memory: peak resident size above that of the process holding features and queries.
"""
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"): os.environ[name] = "1"

import numpy as np
import pandas as pd

from planetlab import __version__, search
from planetlab.core import need, write_json

N_QUERIES, D, BEST = 1000, 64, 10


def features(kind, n, rng):
    if kind == "normal": return rng.normal(size=(n, D)).astype("float32")
    centres, sheets = rng.normal(size=(1000, D)).astype("float32") * 2, rng.normal(size=(1000, 12, D)).astype("float32") / 3
    out = np.empty((n, D), "float32")
    for i in range(0, n, 50_000):
        part = out[i:i + 50_000]
        which = rng.integers(1000, size=len(part))
        for c in np.unique(which):
            along = rng.normal(size=(np.sum(which == c), 12)).astype("float32")
            part[which == c] = centres[c] + np.tanh(2 * along) @ sheets[c]
        part += 0.05 * rng.normal(size=part.shape).astype("float32")
    return out


def truth(z, q): # (Q, 10) rows, in double precision
    best = np.full((len(q), BEST), -1)
    for i, one in enumerate(q):
        near = np.argpartition(np.square(z - one).sum(1), BEST + 30)[:BEST + 30]
        best[i] = near[np.argsort(np.square(z[near].astype(float) - one).sum(1), kind="stable")[:BEST]]
    return best


def sklearn_brute(z):
    from sklearn.neighbors import NearestNeighbors
    fitted = NearestNeighbors(n_neighbors=BEST, algorithm="brute").fit(z)
    return lambda q: fitted.kneighbors(q)[1]


def faiss_flat(z):
    index = need("faiss", "cluster").IndexFlatL2(D)
    index.add(z)
    return lambda q: index.search(q, BEST)[1]


def ours(approximate=None):
    def build(z):
        index = search.build_index(z, approximate=approximate)
        return lambda q: search.find(index, q, BEST).rows
    return build


WAYS = {"scikit-learn, brute force": sklearn_brute, "faiss, flat index": faiss_flat, "exact": ours(),
        **{f"lists, {p} probes": ours(search.lists(probes=p)) for p in (4, 16, 64)}}


def resident(key): # MiB; not `ru_maxrss`, which a process inherits from the one that started it
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in status if line.startswith(key))) / 1024


def once(way, folder): # In a process of its own
    import sklearn.neighbors # noqa: F401  libraries are loaded before anything is counted
    need("faiss", "cluster")
    z, q = np.load(folder / "z.npy"), np.load(folder / "q.npy")
    WAYS[way](z[:2000])(q[:10])
    before = resident("VmHWM:")
    clock = [(time.process_time(), time.perf_counter())]
    ask = WAYS[way](z)
    clock.append((time.process_time(), time.perf_counter()))
    rows = ask(q)
    clock.append((time.process_time(), time.perf_counter()))
    (build_cpu, build_s), (cpu, wall) = np.diff(clock, axis=0)
    right = np.mean([np.isin(t, r).mean() for t, r in zip(np.load(folder / "truth.npy"), rows)])
    print(json.dumps({"build_cpu_s": build_cpu, "build_wall_s": build_s, "query_cpu_s": cpu, "query_wall_s": wall,
                      "recall_at_10": right, "mib": resident("VmHWM:") - before}))


def compare(sizes, rounds, path=None):
    rows = []
    for kind, n in [("clumped", n) for n in sizes] + [("normal", sizes[0])]:
        with tempfile.TemporaryDirectory() as tmp:
            folder = Path(tmp)
            z = features(kind, n + N_QUERIES, np.random.default_rng(0))
            order = np.random.default_rng(1).permutation(len(z))[:N_QUERIES]
            q, z = z[order], np.delete(z, order, axis=0)
            for name, v in (("z", z), ("q", q), ("truth", truth(z, q[:200]))): np.save(folder / f"{name}.npy", v)
            del z
            for way in [w for _ in range(rounds) for w in WAYS]:
                command = [sys.executable, __file__, "once", way, tmp]
                done = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                rows.append({"features": kind, "N": n, "way": way, **json.loads(done)})
    table = pd.DataFrame(rows).groupby(["features", "N", "way"], sort=False).median()
    table = table.round({c: 3 if "recall" in c else 0 if c == "mib" else 2 for c in table})
    print(f"{table.to_string()}\n{N_QUERIES} queries, {rounds} round(s)")
    command = f"python benchmarks/search.py {','.join(map(str, sizes))} {rounds}"
    if path:
        write_json(path, {"protocol": " ".join(__doc__.split("3\n")[1].split()), "command": command, "version": __version__,
                          "queries": N_QUERIES, "columns": D, "table": table.reset_index().to_dict("records")})


if __name__ == "__main__":
    if sys.argv[1:2] == ["once"]: once(sys.argv[2], Path(sys.argv[3]))
    else:
        sizes, rounds, *path = (*sys.argv[1:], *("100000,1000000", "3")[len(sys.argv) - 1:])
        compare([int(n) for n in sizes.split(",")], int(rounds), *path)
