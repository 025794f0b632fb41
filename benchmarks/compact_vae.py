"""How well a compact autoencoder redraws radar images of Venus that it has not seen, beside codes of the same length.

    python benchmarks/compact_vae.py [--jartool FOLDER] [--out results/compact_vae.json]

Ground: a procedural Venus at 1.5 km/px, trained on its western part and judged on its eastern part, one
window apart; with --jartool also Magellan images at 75 m/px (Burl et al. 1998), split by image. Pixels are
grey levels over 255, no stretch, as published; level 0 is no data and counts nowhere. Published, on
other images: MS-SSIM 0.397 and PSNR 20.66 dB with 204 606 433 parameters and 512 numbers per window.
"""
import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.fft import dctn, idctn
from sklearn.decomposition import PCA

from planetlab import __version__
from planetlab.chips import Chips, Symmetry, Views
from planetlab.core import write_json
from planetlab.models.autoencoder import filled, preset
from planetlab.models.objective import OBJECTIVES, ms_ssim, mse
from planetlab.train import Recipe, fit
from planetlab.worlds.venus import make_venus

SIDE, TRAIN_SIDE = 512, 256


def cut(image, side): # (H, W) -> (N, 1, side, side), windows at least half covered
    rows, cols = (range(0, n - side + 1, side) for n in image.shape)
    windows = np.stack([image[r:r + side, c:c + side] for r in rows for c in cols])[:, None]
    return windows[(windows > 0).mean((1, 2, 3)) > 0.5]


def chips(windows): # DN -> chips
    dn = torch.from_numpy(np.concatenate(windows))
    return Chips(filled(dn.float() / 255, dn > 0), dn > 0, dn.shape[-1])


def procedural(n, seed):
    dn = (np.load("/tmp/models_dn.npy") if __import__("os").path.exists("/tmp/models_dn.npy") else make_venus(n, rng=np.random.default_rng(seed)).sar_dn)
    edge = int(0.6 * dn.shape[1])
    test = cut(dn[:, edge + SIDE:], SIDE)
    return chips([cut(dn[:, :edge], TRAIN_SIDE)]), chips([test]), np.arange(len(test))


def magellan(folder):
    images = [np.asarray(Image.open(p)) for p in sorted(Path(folder, "images").glob("*.png"))]
    order = np.random.default_rng(0).permutation(len(images))
    train, test = ([images[i] for i in part] for part in (order[8:], order[:8]))
    windows = [cut(i, SIDE) for i in test]
    return chips([cut(i, TRAIN_SIDE) for i in train]), chips(windows), np.repeat(np.arange(8), [len(w) for w in windows])


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


def judged(recon, test, groups): # Mean and interval of both scores
    one = [slice(i, i + 1) for i in range(len(recon))]
    similar = np.array([ms_ssim(recon[i].clamp(0, 1), test.x[i], test.valid[i]).item() for i in one])
    db = np.array([-10 * mse(recon[i].clamp(0, 1), test.x[i], test.valid[i]).log10().item() for i in one])
    rng = np.random.default_rng(0)
    return {name: {"value": round(float(v.mean()), 3), "interval": interval(v, groups, rng)}
            for name, v in (("ms_ssim", similar), ("psnr_db", db))}


def trained(train, epochs):
    torch.manual_seed(0)
    model = preset("venus_sar_compact")
    views = [Views(train, Symmetry(upside_down=True), 8, generator=torch.Generator().manual_seed(0)),
             Views(Chips(train.x[:8], train.valid[:8], TRAIN_SIDE), Symmetry(), 8, generator=torch.Generator().manual_seed(0))]
    for row in fit(model, OBJECTIVES["venus_sar_compact"], *views, Recipe(epochs)):
        if row["epoch"] % 5 == 0: print({k: round(v, 4) for k, v in row.items()}, flush=True)
    return model


def compare(name, train, test, groups, epochs):
    clock, cpu = time.perf_counter(), time.process_time()
    model = trained(train, epochs)
    spent = {"wall_s": round(time.perf_counter() - clock), "cpu_s": round(time.process_time() - cpu)}
    with torch.no_grad(): recon = torch.cat([model.reconstruct(x) for x in test.x.split(4)])
    d = model.design
    code = d.latent * (SIDE // model.step)**2
    mean = torch.where(test.valid, test.x, 0).sum((1, 2, 3), keepdim=True) / test.valid.sum((1, 2, 3), keepdim=True)
    baseline = {"mean of the window": mean.expand_as(test.x), "lowest cosine coefficients": low_frequencies(test.x, code),
                f"PCA of {model.step} px blocks": principal_parts(train.x, test.x, model.step, d.latent)}
    row = {"n": {"train": len(train.x), "test": len(test.x), "test_groups": len(set(groups))}, **spent, "epochs": epochs,
           "parameters": sum(p.numel() for p in model.parameters()), "numbers_per_window": code,
           "model": judged(recon, test, groups), "baseline": {k: judged(v, test, groups) for k, v in baseline.items()}}
    print(f"\n{name}: {row['n']}, {spent}\n{'':28}{'MS-SSIM':>24}{'PSNR, dB':>28}")
    for k, v in {"model": row["model"], **row["baseline"]}.items():
        print(f"{k:28}" + "".join(f"{v[s]['value']:10.3f} {v[s]['interval']}" for s in ("ms_ssim", "psnr_db")))
    return row


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--jartool", help="folder of the Magellan images, `images/*.png`")
    parser.add_argument("--out", help="JSON to write")
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = {"procedural": compare("procedural", *procedural(270, 0), args.epochs)}
    if args.jartool: found["magellan"] = compare("magellan", *magellan(args.jartool), args.epochs)
    if args.out: write_json(args.out, found)
