"A U-Net is what it says: counted, tiled, frozen, saved; and no loss touches a pixel without a label"
import statistics
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from planetlab.core import BadInput, Corrupt
from planetlab.models.losses import CrossEntropy, Dice, Focal, Jaccard, Lovasz, PixelLoss, Sum, label_weights
from planetlab.models.unet import UNet
from planetlab.predict import torch_predictor
from planetlab.predictor import check_shift, measure_radius
from planetlab.share import load_model, save_model
from planetlab.train import Recipe, fit
from planetlab.worlds.moon import HIGHLAND, moon_scene
from torch.utils.data import DataLoader, TensorDataset

few = settings(deadline=None, max_examples=12)
LOSSES = [CrossEntropy(), CrossEntropy((0.5, 2.0, 1.0)), Dice(), Jaccard(), Focal(), Focal(0.0), Lovasz(), Sum(), Sum((Focal(), Lovasz()), (0.3, 2.0))]
losses = pytest.mark.parametrize("loss", LOSSES, ids=repr)


def seeded(*args, **kwargs):
    torch.manual_seed(0)
    return UNet(*args, **kwargs)


def randomise(model):
    "Running statistics that are not those of the start"
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 2)
    return model.eval()


def counted(model): # As Keras counts: stored, learning
    stored = sum(p.numel() for p in model.parameters()) + sum(b.numel() for n, b in model.named_buffers() if "running" in n)
    return stored, sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_vgg16_has_the_count_of_the_seed():
    with torch.device("meta"): # Shapes without numbers
        model, x = UNet("vgg16", 3, 4, frozen=True), torch.rand(1, 3, 480, 480)
    assert counted(model) == (23_752_708, 9_033_988) and 23_752_708 - 9_033_988 == 14_718_720
    assert model.eval()(x).shape == (1, 4, 480, 480)


@pytest.mark.parametrize("name, bands, count", [("resnet18", 3, 14_328_209), ("resnet34", 3, 24_436_369), ("resnet50", 3, 32_521_105)])
def test_decoder_is_that_of_segmentation_models(name, bands, count):
    assert sum(p.numel() for p in UNet(name, bands, 1).parameters()) == count


@pytest.mark.parametrize("name, bands", [("plain", 1), ("plain", 5), ("resnet18", 2), ("mobilenetv3_small_050", 1), ("mobilenetv3_small_050", 4), ("convnext_atto", 3)])
def test_any_bands_any_size(name, bands):
    model = seeded(name, bands, 3).eval()
    for shape in ((1, 1), (37, 50), (64, 31)):
        with torch.no_grad(): y = model(torch.rand(2, bands, *shape))
        assert y.shape == (2, 3, *shape) and y.isfinite().all()


@few
@given(st.integers(1, 70), st.integers(1, 70), st.booleans())
def test_padding_is_replication_and_nothing_else(h, w, half):
    model, x = randomise(seeded(widths=(4, 6, 8), half=half)), torch.rand(1, 1, h, w)
    s = model.stride
    whole = F.pad(x, (0, -w % s, 0, -h % s), mode="replicate")
    with torch.no_grad(): torch.testing.assert_close(model(x), model(whole)[..., :h, :w], rtol=0, atol=0)


@pytest.mark.parametrize("widths, half", [((4, 4), False), ((4, 4), True), ((3, 5, 7), False), ((3, 5, 7), True), ((3, 4, 5, 6), False)])
def test_radius_is_exact_and_tiles_agree(widths, half):
    model = randomise(seeded(widths=widths, half=half))
    predict = torch_predictor(model, "ab")
    assert predict.stride == model.stride == 2 ** (len(widths) - 1) * (1 + half) and predict.radius == model.radius
    assert measure_radius(predict, 2 * model.radius + 2 * model.stride + 16, rng=np.random.default_rng(0), tries=3 * model.stride, tol=0) == model.radius
    assert check_shift(predict, 2 * model.radius + model.stride + 32, rng=np.random.default_rng(0)) < 1e-5


def test_group_norm_sees_the_whole_tile_and_says_so():
    model = seeded(widths=(8, 8), norm="group")
    assert model.radius is None and seeded("resnet18").radius is None
    assert check_shift(replace(torch_predictor(model, "ab"), radius=20), rng=np.random.default_rng(0)) > 1e-6
    a, b = torch.rand(2, 1, 16, 16)
    with torch.no_grad(): torch.testing.assert_close(model(torch.stack([a, b]))[:1], model(a[None]))


def test_normalises_inside():
    model = seeded("resnet18", 3).eval()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    seen, x = [], torch.rand(1, 3, 32, 32)
    model.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad(): model(x)
    torch.testing.assert_close(seen[0], (x - mean[:, None, None]) / std[:, None, None])
    gray, many = UNet("mobilenetv3_small_050", 1), UNet("mobilenetv3_small_050", 5)
    torch.testing.assert_close(gray.mean.flatten(), mean.mean(0, keepdim=True))
    torch.testing.assert_close(many.std.flatten(), std[[0, 1, 2, 0, 1]])
    plain = UNet(bands=2)
    assert plain.mean.unique().tolist() == [0.5] and plain.std.unique().tolist() == [1]


def test_frozen_encoder_stays_to_the_last_statistic():
    model = seeded("mobilenetv3_small_050", 1, frozen=True)
    data = TensorDataset(torch.rand(8, 1, 32, 32), torch.randint(0, 2, (8, 32, 32)))

    def step(): # What changed
        before = {k: v.clone() for k, v in model.state_dict().items()}
        for _ in fit(model, PixelLoss(), DataLoader(data, 4), DataLoader(data, 4), Recipe(1, precision="no")): pass
        return {k.split(".")[0] for k, v in model.state_dict().items() if not torch.equal(v, before[k])}

    assert step() == {"decoder"}
    assert not model.encoder.training and model.decoder.training is False
    model.freeze(False)
    assert step() == {"encoder", "decoder"} and model.args["frozen"] is False


@pytest.mark.parametrize("args", [{"widths": (4, 6, 8), "half": True, "bands": 2}, {"encoder": "mobilenetv3_small_050", "bands": 4, "frozen": True},
                                  {"widths": [8, 8], "norm": "group", "classes": 4}], ids=str)
def test_saved_and_loaded_gives_the_same_logits(args, tmp_path):
    model = randomise(seeded(**args)).to(memory_format=torch.channels_last)
    save_model(tmp_path, model, {"bands": model.args["bands"]})
    again, about = load_model(tmp_path, {"bands": model.args["bands"]})
    x = torch.rand(2, model.args["bands"], 40, 33)
    with torch.no_grad(): assert torch.equal(again(x), model(x))
    assert again.args == model.args and counted(again) == counted(model)


def test_absent_weights_are_named(monkeypatch):
    import socket
    monkeypatch.setattr(socket, "socket", None) # No network
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a: None)
    with pytest.raises(Corrupt, match="hf download timm/resnet18"): UNet("resnet18", 3, pretrained=True)


def test_weights_of_the_cache_are_used(monkeypatch, tmp_path):
    import timm
    from safetensors.torch import save_file
    torch.manual_seed(1)
    source = timm.create_model("resnet18", pretrained=False)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a: str(tmp_path / "model.safetensors"))
    model = UNet("resnet18", 1, pretrained=True)
    torch.testing.assert_close(model.encoder.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
    torch.testing.assert_close(model.encoder.conv1.weight, source.conv1.weight.sum(1, keepdim=True))


@pytest.mark.parametrize("args, message", [
    ({"encoder": "nix"}, "timm.list_models"), ({"encoder": "vit_small_patch14_dinov2"}, "powers of two"), ({"bands": 0}, "count from 1"),
    ({"widths": (8,)}, "two widths"), ({"encoder": "resnet18", "widths": (8, 8)}, "halves 5 times"), ({"norm": "layer"}, "group"),
    ({"pretrained": True}, "no weights")], ids=str)
def test_refuses_in_words(args, message):
    with pytest.raises(BadInput, match=message): UNet(**args)


def ground(n, seed, size=32):
    s, rng = moon_scene((256, 256), replace(HIGHLAND, rock_density=3e-3, rock_slope=2.2), rng=np.random.default_rng(seed)), np.random.default_rng(seed)
    cut = [(slice(r, r + size), slice(c, c + size)) for r, c in rng.integers(0, 256 - size, (n, 2))]
    x, y = np.stack([s.pixels[w] for w in cut]) / np.float32(255), np.stack([s.labels[w] > 0 for w in cut]).astype("int64")
    return torch.tensor(x[:, None]), torch.tensor(y)


class Rival(torch.nn.Module):
    "segmentation_models_pytorch's network over the same encoder, with the weights of ours"
    def __init__(self, ours):
        super().__init__()
        smp = pytest.importorskip("segmentation_models_pytorch")
        self.net = smp.Unet(f"tu-{ours.args['encoder']}", encoder_weights=None, in_channels=ours.args["bands"], classes=ours.args["classes"])
        self.mean, self.std = ours.mean, ours.std
        weights = [v for k, v in ours.state_dict().items() if k not in ("mean", "std")]
        with torch.no_grad():
            for mine, other in zip(self.net.state_dict().values(), weights, strict=True): mine.copy_(other)

    def forward(self, x): return self.net((x - self.mean) / self.std)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050"])
def test_is_the_network_of_segmentation_models(name):
    ours = seeded(name, 2, 3)
    rival, x = Rival(ours), torch.rand(2, 2, 64, 64)
    torch.testing.assert_close(ours(x), rival(x), rtol=1e-4, atol=1e-4)
    with torch.no_grad(): torch.testing.assert_close(ours.eval()(x), rival.eval()(x), rtol=1e-4, atol=1e-4)


def test_learns_as_well_as_segmentation_models():
    (x, y), (xv, yv) = ground(16, 0), ground(16, 1)
    ours, iou = seeded("resnet18", 1, 2), {}
    for name, model in {"smp": Rival(ours), "ours": ours}.items():
        opt = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        for i in range(16):
            opt.zero_grad()
            F.cross_entropy(model(x[i % 4 * 4:i % 4 * 4 + 4]), y[i % 4 * 4:i % 4 * 4 + 4]).backward()
            opt.step()
        with torch.no_grad(): found = model(xv).argmax(1)
        iou[name] = ((found & yv).sum() / (found | yv).sum()).item()
    assert iou["ours"] > 0.2 and abs(iou["ours"] - iou["smp"]) < 0.1, iou


def test_steps_as_fast_as_segmentation_models():
    x, y = ground(2, 0, 64)
    ours = seeded("resnet18", 1, 2)
    nets, took = {"ours": ours, "smp": Rival(ours)}, {"ours": [], "smp": []}
    for i in range(8):
        for name in sorted(nets, reverse=i % 2):
            start = time.process_time()
            F.cross_entropy(nets[name](x), y).backward()
            if i: took[name].append(time.process_time() - start)
    ratio = statistics.median(took["ours"]) / statistics.median(took["smp"])
    assert ratio < 1.3, ratio


def case(seed, k=3, shape=(2, 7, 6)):
    gen = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, k, shape, generator=gen)
    labels[torch.rand(shape, generator=gen) < 0.3] = 255
    return 3 * torch.randn(shape[0], k, *shape[1:], generator=gen), labels


@losses
@few
@given(st.integers(0, 999), st.sampled_from([torch.uint8, torch.int16, torch.int64]))
def test_unlabelled_pixels_do_not_count(loss, seed, dtype):
    logits, labels = case(seed)
    wild = torch.where((labels == 255)[:, None], torch.tensor([np.inf, np.nan, 1e30])[:, None, None], logits).requires_grad_()
    value = loss(wild, labels.to(dtype))
    value.backward()
    torch.testing.assert_close(value, loss(logits, labels))
    assert value.isfinite() and wild.grad.isfinite().all() and not wild.grad.movedim(1, -1)[labels == 255].any()
    assert wild.grad.any() or not (labels != 255).any()


@losses
def test_nothing_labelled_is_zero(loss):
    logits = torch.full((2, 3, 4, 4), torch.nan, requires_grad=True)
    value = loss(logits, torch.full((2, 4, 4), 255, dtype=torch.uint8))
    value.backward()
    assert value.shape == () and value.item() == 0 and not logits.grad.any()


@losses
@pytest.mark.parametrize("only", [0, 2])
def test_absent_classes_and_sure_logits_are_finite(loss, only):
    for size in (0.0, 1.0, 200.0):
        for sign in (1, -1):
            logits = torch.full((1, 3, 5, 5), -sign * size)
            logits[:, only] = sign * size
            logits.requires_grad_()
            value = loss(logits, torch.full((1, 5, 5), only))
            value.backward()
            assert value.isfinite() and value >= 0 and logits.grad.isfinite().all()
            if size == 200 and sign > 0: assert value < 1e-3


@losses
def test_going_down_the_slope_finds_the_labels(loss):
    _, labels = case(0)
    logits = torch.zeros(2, 3, 7, 6, requires_grad=True)
    opt = torch.optim.Adam([logits], 0.3)
    for _ in range(60):
        opt.zero_grad()
        loss(logits, labels).backward()
        opt.step()
    assert (logits.argmax(1) == labels)[labels != 255].float().mean() > 0.97


@few
@given(st.integers(0, 999))
def test_losses_are_what_their_names_say(seed):
    logits, labels = case(seed)
    known = labels != 255
    p, ids = logits.softmax(1).movedim(1, -1)[known].double(), labels[known]
    truth = F.one_hot(ids, 3).double()
    inside, areas, here = (p * truth).sum(0), p.sum(0) + truth.sum(0), truth.sum(0) > 0
    q = logits.movedim(1, -1)[known].double()
    right = torch.where(truth > 0, q.sigmoid(), 1 - q.sigmoid())
    w = torch.tensor([0.5, 2.0, 1.0]).double()[ids]
    for loss, want in {Dice(): (1 - 2 * inside / areas)[here].mean(), Jaccard(): (1 - inside / (areas - inside))[here].mean(),
                       Focal(): (-(1 - right) ** 2 * right.log()).mean(), CrossEntropy(): -(p * truth).sum(1).log().mean(),
                       CrossEntropy((0.5, 2.0, 1.0)): -(w * (p * truth).sum(1).log()).sum() / w.sum()}.items():
        torch.testing.assert_close(loss(logits, labels).double(), want, rtol=1e-4, atol=1e-5)


@few
@given(st.integers(0, 999))
def test_lovasz_of_hard_answers_is_one_minus_iou(seed):
    _, labels = case(seed)
    answer = torch.randint(0, 3, labels.shape, generator=torch.Generator().manual_seed(seed))
    known = labels != 255
    iou = [((answer == k) & (labels == k)).sum() / (((answer == k) | (labels == k)) & known).sum() for k in labels[known].unique()]
    torch.testing.assert_close(Lovasz()(200.0 * F.one_hot(answer, 3).movedim(-1, 1), labels), 1 - torch.stack(iou).mean(), rtol=1e-4, atol=1e-5)


@few
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=6).filter(any), st.sampled_from([0, 0.5, 1]))
def test_label_weights(counts, power):
    weights = np.array(label_weights(counts, power))
    counts = np.array(counts)
    np.testing.assert_allclose((weights * counts).sum() / counts.sum(), 1)
    assert ((weights == 0) == (counts == 0)).all()
    if power == 1: np.testing.assert_allclose((weights * counts)[counts > 0], counts.sum() / (counts > 0).sum())


@pytest.mark.parametrize("labels, message", [
    (torch.full((2, 4, 4), 3), "labels from 3 to 3 for 3 classes"), (torch.full((2, 4, 4), -1), "255 is no label"), (torch.zeros(2, 4, 4), "integer"),
    (torch.zeros(2, 4, 5, dtype=torch.int64), "integer"), (torch.zeros(2, 1, 4, 4, dtype=torch.int64), "integer")], ids=str)
def test_wrong_labels_are_refused(labels, message):
    for loss in LOSSES:
        with pytest.raises(BadInput, match=message): loss(torch.rand(2, 3, 4, 4), labels)


def test_pixel_loss_counts_labelled_pixels():
    logits, labels = case(1)
    row = PixelLoss(Sum())(torch.nn.Identity(), logits, labels)
    known = labels != 255
    assert row["loss"] == Sum()(logits, labels) and row["accuracy"] == (logits.argmax(1) == labels)[known].float().mean()
    assert "0x" not in repr(PixelLoss(Sum((CrossEntropy((1.0, 2.0)), Dice()), (1.0, 0.5)))) # Its repr names a training
