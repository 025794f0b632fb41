"""How well a compact autoencoder redraws radar images of Venus that it has not seen, beside codes of the same length.

    python benchmarks/compact_vae.py [--jartool FOLDER] [--out benchmarks/compact_vae.json]

Ground: a procedural Venus at 1.5 km/px, trained on its western part and judged on its eastern part, one
window apart; with --jartool also Magellan images at 75 m/px (Burl et al. 1998), split by image. Grey level 0
is no data and counts nowhere. Scores on two scales: grey levels over 255, as published, where a picture of
low contrast scores high whatever is drawn; and stretched to [0, 1] between percentiles 0.5 and 99.5 of the
training part. Procedural ground is also judged against its own picture without speckle, which no drawing
has seen. Published, on other images: MS-SSIM 0.397 and PSNR 20.66 dB over 255, with 204 606 433 parameters.
"""
import argparse
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.fft import dctn, idctn
from sklearn.decomposition import PCA

from planetlab import __version__
from planetlab.chips import Chips, Symmetry, Views, make_chips
from planetlab.core import write_json
from planetlab.models.autoencoder import preset
from planetlab.models.objective import OBJECTIVES, ms_ssim, mse
from planetlab.stretch import Stretch, fit_stretch, to_unit
from planetlab.train import Recipe, fit
from planetlab.worlds.venus import make_venus

SIDE, TRAIN_SIDE = 512, 256


def cut(image, side): # (H, W) -> (N, 1, side, side), windows at least half covered
    rows, cols = (range(0, n - side + 1, side) for n in image.shape)
    windows = np.stack([image[r:r + side, c:c + side] for r in rows for c in cols])[:, None]
    return windows[(windows > 0).mean((1, 2, 3)) > 0.5]


class Data(NamedTuple):
    train: Chips
    test: Chips
    clean: torch.Tensor | None # Like `test.x`, without speckle
    groups: np.ndarray         # Of the test windows, resampled as one
    stretch: Stretch


def gate(train, test, groups, clean=None): # DN windows -> data
    pairs = [[(w.astype("float32"), w[0] > 0) for w in part] for part in (train, test)]
    stretch = fit_stretch(pairs[0], (0.5, 99.5))
    train, test = (make_chips(p, stretch, p[0][0].shape[-1]) for p in pairs)
    if clean is not None: clean = torch.from_numpy(np.stack([to_unit(w.astype("float32"), w[0] > 0, stretch) for w in clean]))
    return Data(train, test, clean, groups, stretch)


def procedural(n, seed):
    dn, clean = (make_venus(n, looks=looks, rng=np.random.default_rng(seed)).sar_dn for looks in (6, 1e5))
    edge = int(0.6 * dn.shape[1])
    both = np.minimum(dn[:, edge + SIDE:], clean[:, edge + SIDE:]) > 0 # gaps are drawn anew with the speckle
    test, clean = (cut(np.where(both, d[:, edge + SIDE:], 0), SIDE) for d in (dn, clean))
    return gate(cut(dn[:, :edge], TRAIN_SIDE), test, np.arange(len(test)), clean)


def magellan(folder):
    images = [np.asarray(Image.open(p)) for p in sorted(Path(folder, "images").glob("*.png"))]
    order = np.random.default_rng(0).permutation(len(images))
    train, test = ([cut(images[i], side) for i in part] for part, side in ((order[8:], TRAIN_SIDE), (order[:8], SIDE)))
    return gate(np.concatenate(train), np.concatenate(test), np.repeat(np.arange(8), [len(w) for w in test]))


def low_frequencies(x, n): # The n lowest cosine coefficients of each window
    h = torch.arange(SIDE)
    keep = (h[:, None] + h).flatten().argsort(stable=True)[:n]
    kept = torch.zeros(SIDE * SIDE, dtype=torch.bool).index_fill(0, keep, True).view(SIDE, SIDE).numpy()
    return torch.from_numpy(idctn(dctn(x.numpy(), axes=(2, 3), norm="ortho") * kept, axes=(2, 3), norm="ortho"))


def principal_parts(train, x, step, n): # n principal components of each step x step block, fitted on `train`
    def blocks(t): return F.unfold(t, step, stride=step).transpose(1, 2)
    flat = blocks(train).flatten(0, 1).numpy()
    pca = PCA(n, random_state=0).fit(flat[np.random.default_rng(0).choice(len(flat), min(len(flat), 40_000), replace=False)])
    seen = blocks(x)
    again = pca.inverse_transform(pca.transform(seen.flatten(0, 1).numpy())).astype("float32")
    return F.fold(torch.from_numpy(again).view_as(seen).transpose(1, 2), x.shape[2:], step, stride=step)


def interval(values, groups, rng): # 95 % of the means of resampled groups
    names = np.unique(groups)
    means = [np.concatenate([values[groups == g] for g in rng.choice(names, len(names))]).mean() for _ in range(1000)]
    return np.round(np.percentile(means, [2.5, 97.5]), 3).tolist()


def scores(recon, truth, valid, groups): # Mean and interval of both scores
    one = [slice(i, i + 1) for i in range(len(recon))]
    similar = np.array([ms_ssim(recon[i], truth[i], valid[i]).item() for i in one])
    db = np.array([-10 * mse(recon[i], truth[i], valid[i]).log10().item() for i in one])
    return {name: {"value": round(float(v.mean()), 3), "interval": interval(v, groups, np.random.default_rng(0))}
            for name, v in (("ms_ssim", similar), ("psnr_db", db))}


def judged(recon, data): # Against what was seen, on both scales, and without speckle
    recon, x, valid, s = recon.clamp(0, 1), data.test.x, data.test.valid, data.stretch
    low, high = float(s.low[0]), float(s.high[0])
    grey = [(low + t * (high - low)) / 255 for t in (recon, x)]
    out = {"over_255": scores(*grey, valid, data.groups), "stretched": scores(recon, x, valid, data.groups)}
    return out if data.clean is None else {**out, "without_speckle": scores(recon, data.clean, valid, data.groups)}


def trained(train, epochs):
    torch.manual_seed(0)
    model = preset("venus_sar_compact")
    few = Chips(train.x[:8], train.valid[:8], TRAIN_SIDE)
    views = [Views(part, Symmetry(True, shift=0, zoom=0), 4, generator=torch.Generator().manual_seed(0)) for part in (train, few)]
    for row in fit(model, OBJECTIVES["venus_sar_compact"], *views, Recipe(epochs)):
        if row["epoch"] % 5 == 4: print({k: round(v, 4) for k, v in row.items() if k.startswith("train")}, flush=True)
    return model


def compare(name, data, epochs):
    clock, cpu = time.perf_counter(), time.process_time()
    model, test = trained(data.train, epochs), data.test
    spent = {"wall_s": round(time.perf_counter() - clock), "cpu_s": round(time.process_time() - cpu)}
    with torch.no_grad(): recon = torch.cat([model.reconstruct(x) for x in test.x.split(4)])
    code = model.design.latent * (SIDE // model.step)**2
    mean = torch.where(test.valid, test.x, 0).sum((1, 2, 3), keepdim=True) / test.valid.sum((1, 2, 3), keepdim=True)
    drawn = {"compact model": recon, "mean of the window": mean.expand_as(test.x),
             "lowest cosine coefficients": low_frequencies(test.x, code),
             f"PCA of {model.step} px blocks": principal_parts(data.train.x, test.x, model.step, model.design.latent)}
    found = {k: judged(v, data) for k, v in drawn.items()}
    n = {"train": len(data.train.x), "test": len(test.x), "test_groups": len(set(data.groups))}
    print(f"\n{name}: {n}, {spent}, {code} numbers per window")
    for scale in found["compact model"]:
        print(f"{scale:30}{'MS-SSIM':>26}{'PSNR, dB':>28}")
        for k, v in found.items():
            print(f"  {k:28}" + "".join(f"{v[scale][s]['value']:10.3f} {str(v[scale][s]['interval']):17}" for s in ("ms_ssim", "psnr_db")))
    return {"n": n, **spent, "epochs": epochs, "parameters": sum(p.numel() for p in model.parameters()),
            "numbers_per_window": code, "value": found.pop("compact model"), "baseline": found}


def only(tree, key): # {"a": {"value": 1, "interval": 2}} -> {"a": 1}
    return tree[key] if key in tree else {k: only(v, key) for k, v in tree.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--jartool", help="folder of the Magellan images, `images/*.png`")
    parser.add_argument("--out", help="JSON to write")
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = {"procedural": compare("procedural", procedural(270, 0), args.epochs)}
    if args.jartool: found["magellan"] = compare("magellan", magellan(args.jartool), args.epochs)
    if args.out:
        by = {k: {ground: f.pop(k) for ground, f in found.items()} for k in ("n", "value", "baseline")}
        command = f"python benchmarks/compact_vae.py --epochs {args.epochs}" + (" --jartool FOLDER" if args.jartool else "")
        write_json(args.out, {"protocol": " ".join(__doc__.split("Ground: ")[1].split()), "command": command, "version": __version__,
                              "n": by["n"], "value": only(by["value"], "value"), "interval": only(by["value"], "interval"),
                              "baseline": by["baseline"], "training": found})
