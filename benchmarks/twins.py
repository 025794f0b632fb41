"""Near-copies among 50 000 photographs: seconds and memory; and how many of the labelled Curiosity images have one

    python benchmarks/twins.py [N] [MSL_FOLDER]

Hashes and thumbnails are compared with all others, block by block. Half of the rows are copies of the other half with noise, so
that the share found (recall) is known. The Curiosity set is read from ../shared/data/msl_curiosity_v1 if it is there; its
keepers state 0.62 above 0.98, with thumbnails of a size that they do not give.
"""
import resource
import sys
import time
from pathlib import Path

import numpy as np

from planetlab.datasets import read_images, read_msl
from planetlab.twins import feature_twins, hash_twins, pair_cosines, perceptual_hash, thumbnails


def timed(what, fn):
    wall, cpu = time.perf_counter(), time.process_time()
    out = fn()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    spent = f"{time.perf_counter() - wall:7.1f} s wall {time.process_time() - cpu:7.1f} s CPU"
    print(f"{what:38s} {spent}   peak so far {peak:6.0f} MB   {len(out)} rows", flush=True)
    return out


def recall(pairs, half): return np.mean(np.isin(np.arange(half) * (half + 1) + half, pairs[:, 0] * half + pairs[:, 1]))


if __name__ == "__main__":
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parents[2] / "shared" / "data" / "msl_curiosity_v1"
    rng, half = np.random.default_rng(0), n // 2
    hashes = rng.integers(0, 2**64, half, dtype="uint64")
    hashes = np.r_[hashes, hashes ^ (np.uint64(1) << rng.integers(0, 64, half, dtype="uint64"))]
    z = rng.standard_normal((half, 256), dtype="float32")
    z = np.r_[z, z + 0.15 * rng.standard_normal((half, 256), dtype="float32")]
    jobs = {f"hash_twins, {n}": lambda: hash_twins(hashes), f"feature_twins, {n} x 256": lambda: feature_twins(z, 0.95)}
    for what, fn in jobs.items():
        print(f"{'':38s} recall {recall(timed(what, fn), half):.3f}")
    if folder.is_dir():
        table = read_msl(folder)
        images = timed("Curiosity: read_images at 64 px", lambda: read_images(table, 64))
        thumbs = timed("Curiosity: thumbnails", lambda: thumbnails(images))
        for side in (4, 8, 32):
            some = np.unique(feature_twins(thumbnails(images, side), 0.98))
            print(f"with a twin above 0.98 at {side} x {side}: {len(some) / len(table):.3f}")
        for alike in (0.95, 0.98, 0.99):
            pairs = feature_twins(thumbs, alike)
            same = (table.sequence.to_numpy()[pairs[:, 0]] == table.sequence.to_numpy()[pairs[:, 1]]).mean()
            print(f"with a twin above {alike}: {len(np.unique(pairs)) / len(table):.3f}; pairs of one sequence {same:.3f}")
        proposed = hash_twins(perceptual_hash(images))
        near = pair_cosines(thumbs, proposed) >= 0.98
        have, alike = (len(np.unique(p)) / len(table) for p in (proposed, proposed[near]))
        print(f"hash: {have:.3f} have a proposed twin, {alike:.3f} one that correlates above 0.98")
    else: print(f"no {folder}: the share of twins in the real set is not measured")
