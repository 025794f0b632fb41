"""Sampling steps per second, ours against the bare pipeline of diffusers: `python benchmarks/diffusion.py`

The U-Net of the `small` preset, untrained, 32 pictures of 32 px, DDIM in 10 steps, one thread. `bare` is diffusers' own DDIMPipeline on the very same network (its pictures are the
twelve-band squares that ours makes of 2 x 2 px); `ours` is `sampling.sample` with the same weights, once in 32 bits and once as it comes (bfloat16 where the
processor computes it). The ways take turns, round after round; `ratio` is the median over rounds of CPU seconds over those of `bare` in the same round. What few steps cost in
quality is in the `steps` of `results/diffuse_*.json`. Writes `benchmarks/diffusion.json`."""
import argparse
import json
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from diffusers import DDIMPipeline
from planetlab.models import sampling
from planetlab.models.diffusion import denoiser
from planetlab.train import has_bf16, keep_memory

N, STEPS = 32, 10


def bare(model):
    "What anybody would write"
    pipe = DDIMPipeline(model.net, sampling.make_sampler(model, STEPS))
    pipe.set_progress_bar_config(disable=True)
    return lambda: pipe(batch_size=N, num_inference_steps=STEPS, output_type="np", generator=torch.Generator().manual_seed(0))


def ours(model, precise):
    way = sampling.make_sampler(model, STEPS)
    def run():
        sampling.has_bf16 = (lambda device: False) if precise else has_bf16
        return sampling.sample(model, [-1] * N, way, generator=torch.Generator().manual_seed(0))
    return run


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--rounds", type=int, default=5)
    rounds = args.parse_args().rounds
    torch.set_num_threads(1)
    keep_memory()
    torch.manual_seed(0)
    model = denoiser("small").eval()
    ways = {"bare diffusers pipeline": bare(model), "ours, float32": ours(model, True), "ours": ours(model, False)}
    cpu = {name: [] for name in ways}
    for way in ways.values(): way()
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.process_time()
            way()
            cpu[name].append(time.process_time() - start)
    first = cpu["bare diffusers pipeline"]
    rows = {name: {"CPU s": round(statistics.median(s), 3), "picture steps per CPU s": round(N * STEPS / statistics.median(s), 1),
                   "ratio": round(statistics.median(a / b for a, b in zip(s, first)), 3)} for name, s in cpu.items()}
    found = {"pictures": N, "size, px": 32, "steps": STEPS, "rounds": rounds, "bfloat16": has_bf16(torch.device("cpu")), "torch": torch.__version__, "ways": rows}
    Path(__file__).with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__": main()
