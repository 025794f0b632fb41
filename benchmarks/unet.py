"""A step of a U-Net, as bare loops take it, as `train.fit` does, and as segmentation_models_pytorch's network: `python benchmarks/unet.py`

Forward, backward and AdamW on 8 chips of 128 px, one band, four classes, one thread; the plain encoder at full resolution, and
ResNet-18 against the same encoder under segmentation_models_pytorch's decoder. Then a frame of 1200 x 1648 px answered: by a naive loop over tiles
of 256 px without overlap (edges filled with zeros, answers cut to the frame), and whole, as `segment.frame_probs` does. The ways take turns, round after round. Seconds are of CPU, user and
system, per step, the median over rounds; `ratio` is over the first way of the same network. Writes `benchmarks/unet.json`."""
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from planetlab.models.losses import PixelLoss
from planetlab.models.unet import UNet
from planetlab.predict import torch_predictor
from planetlab.segment import WholeFrame, frame_probs
from planetlab.stretch import Stretch
from planetlab.train import Recipe, fit, keep_memory
from turns import cpu_s, take_turns

WIDTHS = (16, 32, 64, 96)
WAYS = {"plain, bare loop": ("plain", "bare", "no", False), "plain, bare loop, kept memory": ("plain", "bare", "no", True),
        "plain, bare loop, kept memory, channels last": ("plain", "channels last", "no", True), "plain, train.fit": ("plain", "fit", "no", True),
        "plain, train.fit, bfloat16": ("plain", "fit", "bf16", True), "plain, train.fit, auto": ("plain", "fit", "auto", True),
        "resnet18, smp, bare loop, kept memory": ("smp", "bare", "no", True), "resnet18, ours, bare loop, kept memory": ("resnet18", "bare", "no", True),
        "frame, naive loop of tiles": ("plain", "tiles", "no", True), "frame, whole": ("plain", "whole", "no", True)}
FRAME = 1200, 1648 # px


def network(kind):
    torch.manual_seed(0)
    if kind == "smp": return smp.Unet("tu-resnet18", encoder_weights=None, in_channels=1, classes=4)
    return UNet(kind, 1, 4, WIDTHS if kind == "plain" else None)


def bare(model, how, batches):
    "What anybody would write"
    if how == "channels last": model.to(memory_format=torch.channels_last)
    opt = torch.optim.AdamW(model.parameters(), 1e-3)
    model.train()
    for x, y in batches:
        x = x.contiguous(memory_format=torch.channels_last) if how == "channels last" else x
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y, ignore_index=255)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()


@torch.inference_mode()
def by_tiles(model, img, side=256):
    "What anybody would write"
    model.eval()
    out = torch.zeros(4, *img.shape[1:])
    for y in range(0, img.shape[1], side):
        for x in range(0, img.shape[2], side):
            part = torch.from_numpy(img[:, y:y + side, x:x + side] / 255).float()
            h, w = part.shape[1:]
            out[:, y:y + h, x:x + w] = model(F.pad(part, (0, side - w, 0, side - h))[None]).softmax(1)[0, :, :h, :w]
    return out.numpy()


def measure(way, steps):
    "CPU seconds of a step, or of a frame"
    kind, how, precision, kept = WAYS[way]
    torch.set_num_threads(1)
    if kept: keep_memory()
    model, gen = network(kind), torch.Generator().manual_seed(0)
    batch = torch.rand(8, 1, 128, 128, generator=gen), torch.randint(0, 4, (8, 128, 128), generator=gen)

    img = torch.randint(0, 256, (1, *FRAME), generator=gen).numpy().astype("uint8")
    whole = torch_predictor(WholeFrame(model, 1, False), list("abcd"), 1, stretch=Stretch((0.0,), (255.0,), unit="uncalibrated"))

    def run(n):
        if how in ("tiles", "whole"):
            for _ in range(n): by_tiles(model, img) if how == "tiles" else frame_probs(whole, img, mirror=False)
            return
        if how != "fit": return bare(model, how, [batch] * n)
        tiny = [tuple(t[:1, ..., :16, :16] for t in batch)]
        for _ in fit(model, PixelLoss(), [batch] * n, tiny, Recipe(1, lr=1e-3, precision=precision)): pass

    run(1)
    return cpu_s(lambda: run(steps)) / steps


if __name__ == "__main__":
    first = {net: next(w for w in WAYS if w.startswith(net)) for net in ("plain", "resnet18", "frame")}
    take_turns(__file__, __doc__, measure, WAYS, lambda way: first[way.split(",")[0]], steps=6)
