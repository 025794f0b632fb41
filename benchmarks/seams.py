"""How many pixels of a U-Net's map change their class because it was made in tiles

    python benchmarks/seams.py

A U-Net is trained for some seconds on a procedural Moon, a scene it never saw is answered whole, and then mapped in tiles of 512 px. Peers
measured elsewhere on models of their own change 0.1 to 2.4 % of the pixels at an overlap of 128 px. Writes benchmarks/seams.json.
"""
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio import Affine
from torch.utils.data import DataLoader, TensorDataset

from planetlab.grid import Grid
from planetlab.maps import map_scene
from planetlab.models.losses import Sum
from planetlab.models.unet import UNet
from planetlab.outputs import class_map
from planetlab.predict import torch_predictor
from planetlab.scene import scene_of
from planetlab.seams import MapPlan
from planetlab.segment import SegmentLoss
from planetlab.stretch import Stretch
from planetlab.train import Recipe, fit
from planetlab.worlds.moon import CLASSES, MARE, moon_scene


def learn(norm):
    field, chips, labels = replace(MARE, rock_density=2e-3, rock_slope=1.8), [], []
    for seed in range(6):
        m = moon_scene((256, 256), field, rng=np.random.default_rng(seed))
        chips += [m.pixels[r:r + 128, c:c + 128] / 255 for r in (0, 128) for c in (0, 128)]
        labels += [np.where(m.labels < 0, 255, m.labels)[r:r + 128, c:c + 128] for r in (0, 128) for c in (0, 128)]
    data = TensorDataset(torch.tensor(np.stack(chips), dtype=torch.float32)[:, None], torch.tensor(np.stack(labels), dtype=torch.int64))
    torch.manual_seed(0)
    net = UNet(bands=1, classes=len(CLASSES), widths=(16, 32, 64, 128), norm=norm)
    loader = DataLoader(data, 8, shuffle=True, generator=torch.Generator().manual_seed(0))
    for row in fit(net, SegmentLoss(Sum()), loader, DataLoader(data, 8), Recipe(12, lr=3e-3)): pass
    return net.eval(), row


def main():
    scene, rows = moon_scene((1536, 1536), replace(MARE, rock_density=2e-3, rock_slope=1.8), rng=np.random.default_rng(99)), []
    for norm in ("batch", "group"):
        net, last = learn(norm)
        predict = torch_predictor(net, CLASSES, stretch=Stretch((0.0,), (255.0,)))
        with torch.inference_mode(): whole = net(torch.tensor(scene.pixels / 255, dtype=torch.float32)[None, None])[0].numpy().argmax(0)
        for margin, ramp in ((0, 0), (0, 128), (32, 64), (64, 0), (112, 32)):
            with tempfile.TemporaryDirectory() as out:
                raster = scene_of(scene.pixels[None], grid=Grid(1536, 1536, Affine(1, 0, 0, 0, -1, 0)))
                for _ in map_scene(raster, out, predict, [class_map(CLASSES)], plan=MapPlan(512, margin, ramp)): pass
                with rasterio.open(Path(out) / "classes.tif") as src: changed = float((src.read(1) != whole).mean())
            rows.append({"norm": norm, "margin": margin, "ramp": ramp, "overlap": 2 * margin + ramp, "radius": net.radius, "changed": round(changed, 6), "n": whole.size})
            print(rows[-1], flush=True)
    Path(__file__).with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__": main()
