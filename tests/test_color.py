"Colour on tensors, joint bins and the networks that say them: laws, published numbers, and what invalid pixels may not do"
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.color import lab2rgb, rgb2lab

from planetlab.color import color_errors, colorfulness, delta_e00, to_lab, to_rgb
from planetlab.color_frames import LabCrops, color_predictor, find_colorizer, frame_lab
from planetlab.core import BadInput, Corrupt, ModelMismatch
from planetlab.models.color_bins import annealed_mean, bin_prior, coverage, gamut_bins, rebalanced, soft_bins
from planetlab.models.colorizer import Colorizer, SeedColorizer, color_loss, half_size
from planetlab.share import save_model
from planetlab.train import Recipe, TrainState, fit

SMALL = {"encoder": "tu-test_resnet", "widths": [24, 16, 8]}
ALL = {step: gamut_bins(step) for step in (5.0, 10.0, 20.0)}
BINS = ALL[10.0]
seeds = st.integers(0, 2**31 - 1)
few = settings(deadline=None, max_examples=10)


def draw(seed, *shape): return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@few
@given(seeds, st.floats(0.01, 1))
def test_lab_is_that_of_scikit_image(seed, most):
    rgb = draw(seed, 1, 3, 9, 7) * most
    lab = to_lab(rgb)
    np.testing.assert_allclose(lab[0].movedim(0, -1), rgb2lab(rgb[0].movedim(0, -1).numpy()), atol=1e-3)
    np.testing.assert_allclose(to_rgb(lab)[0].movedim(0, -1), lab2rgb(lab[0].movedim(0, -1).double().numpy()), atol=1e-3)
    torch.testing.assert_close(to_rgb(lab), rgb, atol=2e-4, rtol=0)


@few
@given(seeds)
def test_lab_and_back_have_gradients(seed):
    x = (0.05 + 0.9 * draw(seed, 1, 3, 2, 2)).double().requires_grad_()
    assert torch.autograd.gradcheck(to_lab, x) and torch.autograd.gradcheck(lambda v: to_rgb(to_lab(v)), x)


@few
@given(seeds)
def test_a_colour_difference_is_nothing_symmetric_and_blind_to_gaps(seed):
    a, b = (to_lab(draw(seed + i, 2, 3, 16, 32)) for i in (0, 1))
    assert delta_e00(a, a).max() < 1e-4 and (delta_e00(a, b) >= 0).all()
    torch.testing.assert_close(delta_e00(a, b), delta_e00(b, a), atol=1e-3, rtol=0)
    valid = draw(seed + 2, 2, 16, 32) > 0.3
    valid[..., :16] = True # whole windows for SSIM
    spoiled = torch.where(valid[:, None], b, 77.0)
    said, again = color_errors(a, b, valid), color_errors(torch.where(valid[:, None], a, -9.0), spoiled, valid)
    for k, v in said.items(): torch.testing.assert_close(v, again[k])
    assert said["ssim"].isfinite().all()
    torch.testing.assert_close(colorfulness(b, valid), colorfulness(spoiled, valid))


@few
@given(seeds, st.sampled_from([*ALL]))
def test_every_colour_has_a_bin_and_its_shares_add_up(seed, step):
    bins = ALL[step]
    ab = to_lab(draw(seed, 1, 3, 8, 8))[0, 1:].flatten(1).T
    which, share = soft_bins(ab, bins)
    assert torch.cdist(ab, bins).amin(1).max() <= step * 0.7072 + 0.5 and len(bins.unique(dim=0)) == len(bins)
    torch.testing.assert_close(share.sum(1), torch.ones(len(ab)))
    assert (which[:, 0] == torch.cdist(ab, bins).argmin(1)).all() and (share[:, 0] >= share[:, 1:].amax(1) - 1e-6).all()


@few
@given(seeds, st.floats(0.01, 1))
def test_weights_have_mean_one_and_fall_with_what_is_common(seed, mix):
    prior = bin_prior(to_lab(draw(seed, 1, 3, 16, 16))[0, 1:].flatten(1).T, BINS)
    weights = rebalanced(prior, mix)
    torch.testing.assert_close((weights * prior).sum(), torch.tensor(1.0), atol=1e-4, rtol=0)
    assert (weights[prior.argsort()].diff() <= 1e-4 * weights.max()).all()


@few
@given(seeds)
def test_the_annealed_mean_lies_between_mean_and_mode(seed):
    logits = 3 * torch.randn(1, len(BINS), 2, 2, generator=torch.Generator().manual_seed(seed))
    mean = torch.einsum("bkhw,kc->bchw", logits.softmax(1), BINS)
    torch.testing.assert_close(annealed_mean(logits, BINS, 1.0), mean, atol=1e-3, rtol=0)
    torch.testing.assert_close(annealed_mean(logits, BINS, 1e-4), BINS[logits.argmax(1)].movedim(-1, 1), atol=0.1, rtol=0)
    torch.testing.assert_close(annealed_mean(logits + 5, BINS), annealed_mean(logits, BINS), atol=1e-2, rtol=0)


def test_coverage_is_that_of_the_distribution():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(3000, 40, generator=g)
    true = torch.multinomial(logits.softmax(1), 1, generator=g)[:, 0]
    assert (coverage(logits, true) - torch.tensor([0.5, 0.8, 0.95])).abs().max() < 0.05
    assert coverage(logits, logits.argmax(1)).min() == 1


@pytest.mark.parametrize("head, n, out", [("regression", 3_674_804, 2), ("classification", 18_514_175, 512)])
def test_the_seeds_networks_number_for_number(head, n, out):
    model = SeedColorizer(head)
    assert sum(p.numel() for p in model.parameters()) == n
    assert model.head.out_channels == out and [b[0].dilation[0] for b in model.middle] == [2, 2] and len(model.down) == len(model.up) == 4
    assert {t.device.type for t in model.to("meta").parameters()} == {"meta"} # nothing is tied to one kind of device


def test_the_seeds_bins_are_rounded():
    model = SeedColorizer("classification")
    for value, wanted in ((-0.6, -1.0), (0.4, 0.0), (12.5, 12.0), (-127.0, -127.0), (99.9, 100.0)):
        ab = torch.full((1, 2, 4, 4), value)
        model.forward = lambda x, ab=ab: torch.cat([30.0 * torch.nn.functional.one_hot((half.round() + 127).long(), 256).movedim(-1, 1) for half in ab.unbind(1)], 1)
        assert model.chroma(ab[:, :1]).unique().tolist() == [wanted]
        assert model.loss(ab[:, :1], ab, torch.ones(1, 4, 4, dtype=torch.bool)) < 1e-3


@pytest.mark.parametrize("model", [Colorizer(**SMALL), Colorizer(**SMALL, head="regression"), SeedColorizer()], ids=["bins", "regression", "seed"])
def test_any_size_and_no_word_from_what_is_not_valid(model):
    model.eval()
    for h, w in ((1, 1), (5, 70), (33, 17)): assert model.chroma(100 * draw(0, 2, 1, h, w)).shape == (2, 2, h, w)
    x, ab, valid = 100 * draw(1, 2, 1, 32, 32), 40 * draw(2, 2, 2, 32, 32), draw(3, 2, 32, 32) > 0.5
    spoiled = torch.where(valid[:, None], ab, torch.inf)
    for k, v in color_loss(model, x, ab, valid).items(): torch.testing.assert_close(v, color_loss(model, x, spoiled, valid)[k])
    assert color_loss(model, x, spoiled, ~valid & False)["loss"] == 0


def test_half_size_means_only_what_is_valid():
    ab, valid = draw(0, 1, 2, 5, 7), draw(1, 1, 5, 7) > 0.4
    half, seen = half_size(torch.where(valid[:, None], ab, torch.nan), valid)
    torch.testing.assert_close(half[0, :, 0, 0], ab[0, :, :2, :2][:, valid[0, :2, :2]].mean(1))
    assert half.shape == (1, 2, 3, 4) and seen[0, 0, 0] == valid[0, :2, :2].any() and half.isfinite().all()


class Frames:
    "Two halves of one colour each, by lightness"
    def __len__(self): return 6

    def __getitem__(self, i):
        light = 30 + 40 * (torch.arange(40) > 12 + i).float().expand(30, 40) + 5 * draw(i, 30, 40)
        return torch.stack([light, (light - 50) / 2, 40 - light / 2]), torch.ones(30, 40, dtype=torch.bool)


def crops(steps=8): return LabCrops(Frames(), 16, 6, steps, generator=torch.Generator().manual_seed(0))
def val(): return [(lab[None, :1], lab[None, 1:], valid[None]) for lab, valid in (Frames()[i] for i in (4, 5))]


def learned(recipe, state=None, stop=None):
    torch.manual_seed(0)
    model = Colorizer(**SMALL)
    model.weights = rebalanced(bin_prior(Frames()[0][0][1:].flatten(1).T, model.bins))
    rows = []
    for row in fit(model, color_loss, crops(), val(), recipe, state):
        rows.append(row)
        if len(rows) == stop: break
    return model, rows


def test_learning_lowers_the_loss_and_a_stopped_one_resumes_to_the_bit(tmp_path):
    recipe = Recipe(3, lr=5e-3, precision="no", ema=0.9)
    model, rows = learned(recipe)
    assert rows[-1]["train_loss"] < 0.8 * rows[0]["train_loss"]
    learned(recipe, TrainState(tmp_path / "state.pt"), stop=1)
    again, more = learned(recipe, TrainState(tmp_path / "state.pt"))
    assert more == rows
    for a, b in zip(model.state_dict().values(), again.state_dict().values()): assert torch.equal(a, b)


def test_a_model_of_the_other_head_is_refused(tmp_path):
    bins, plain = Colorizer(**SMALL), Colorizer(**SMALL, head="regression")
    save_model(tmp_path / "bins", bins, {"shrink": 2, "product": "raw"})
    save_model(tmp_path / "plain", plain, {"shrink": 2, "product": "raw"})
    assert find_colorizer(tmp_path / "bins", product="raw")[0].classes == ("a*", "b*")
    with pytest.raises(ModelMismatch, match="'raw'"): find_colorizer(tmp_path / "bins", product="calibrated")
    weights = (tmp_path / "plain" / "model.safetensors").read_bytes()
    (tmp_path / "bins" / "model.safetensors").write_bytes(weights)
    with pytest.raises(Corrupt, match="not those"): find_colorizer(tmp_path / "bins")
    ours, theirs = (json.loads((tmp_path / n / "config.json").read_text()) for n in ("bins", "plain"))
    (tmp_path / "bins" / "config.json").write_text(json.dumps({**ours, "sha256": theirs["sha256"]}))
    with pytest.raises(ModelMismatch, match="size mismatch"): find_colorizer(tmp_path / "bins")


def test_a_colorizer_answers_at_the_size_of_the_question_and_the_temperature_asked():
    torch.manual_seed(0)
    model = Colorizer(**SMALL).eval()
    predict = color_predictor(model, 3)
    x = 100 * draw(0, 1, 1, 50, 41).numpy()
    assert predict(x).shape == (1, 2, 50, 41) and predict.stride == 3 * model.stride
    spread = [np.abs(color_predictor(model.cooled(t), 3)(x) - BINS.mean(0).numpy()[:, None, None]).mean() for t in (1e3, 0.3)]
    assert spread[0] < 0.5 < spread[1] and Colorizer(**model.args).args["temperature"] == 0.3


@few
@given(seeds, st.sampled_from([1, 2, 5]))
def test_a_shrunk_frame_is_the_mean_of_what_is_valid(seed, shrink):
    rng = np.random.default_rng(seed)
    img, valid = rng.integers(0, 256, (3, 11, 13)).astype("uint8"), rng.random((11, 13)) > 0.4
    lab, seen = frame_lab(img, valid, shrink)
    noise, _ = frame_lab(np.where(valid, img, rng.integers(0, 256)).astype("uint8"), valid, shrink)
    assert torch.equal(lab, noise) and seen.shape == (-(-11 // shrink), -(-13 // shrink))
    full = rgb2lab(np.moveaxis(img, 0, -1))[:shrink, :shrink][valid[:shrink, :shrink]]
    if len(full): np.testing.assert_allclose(lab[:, 0, 0], full.mean(0), atol=1e-2)
    with pytest.raises(BadInput): frame_lab(img[:2], valid)
