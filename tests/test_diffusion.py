"Diffusion: schedules against closed forms, samplers against a network that knows the answer, training that resumes, marks that stay"
import math

import numpy as np
import pytest
import torch
from conftest import execute
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from planetlab.batches import Batches
from planetlab.chips import Chips
from planetlab.core import BadInput, Corrupt, ModelMismatch
from planetlab.models.diffusion import (DENOISERS, SCHEDULES, TARGETS, WEIGHTS, Denoiser, DenoisingLoss, add_noise, as_velocity, by_signal,
                                        cosine_schedule, denoiser, linear_schedule, sigmoid_schedule)
from planetlab.models.sampling import SAMPLERS, inpaint, is_synthetic, make_sampler, sample, write_synthetic
from planetlab.share import load_model, save_model
from planetlab.train import Recipe, fit


class Oracle(nn.Module):
    "A network that has seen one picture and forgotten nothing"
    def __init__(self, truth, schedule, target):
        super().__init__()
        self.truth = nn.Parameter(truth, requires_grad=False)
        self.channels, self.size, self.classes, self.target = len(truth), truth.shape[-1], 0, target
        self.alpha_bar = SCHEDULES[schedule]().alpha_bar.float()

    def forward(self, x, t, label=None):
        left = self.alpha_bar[t].view(-1, 1, 1, 1)
        return TARGETS[self.target](self.truth, (x - left.sqrt() * self.truth) / (1 - left).sqrt(), left)


@pytest.fixture(scope="module")
def truth(): return (torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1).mul(127.5).round().div(127.5)


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return Denoiser(1, 8, (8, 8), patch=2, classes=3, target="sample").eval()


def test_schedules_are_their_closed_forms():
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(linear_schedule().beta, 1e-4 + (0.02 - 1e-4) * (torch.arange(1000, dtype=torch.float64) / 999))
    cosine = ((t + 0.008) / 1.008 * math.pi / 2).cos().square() / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(cosine_schedule().alpha_bar[:990], cosine[:990])
    ends = torch.tensor([-3.0, 3.0], dtype=torch.float64).sigmoid()
    sigmoid = (ends[1] - (6 * t - 3).sigmoid()) / (ends[1] - ends[0])
    found = sigmoid_schedule()
    torch.testing.assert_close(found.alpha_bar[:999], sigmoid[:999])
    assert float(f"{found.beta[0]:.2e}") == 3.00e-4 and float(f"{found.beta[500]:.2e}") == 3.31e-3
    assert found.beta[-1] == 0.999 and round(float(found.alpha_bar[500]), 3) == 0.498


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(sorted(SCHEDULES)), st.integers(0, 999), st.integers(0, 99))
def test_every_target_gives_the_picture_back(schedule, t, seed):
    x, noise = torch.randn(2, 1, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    left = SCHEDULES[schedule]().alpha_bar[t]
    noisy = add_noise(x, noise, left[None])
    v = TARGETS["v_prediction"](x, noise, left)
    torch.testing.assert_close(left.sqrt() * noisy - (1 - left).sqrt() * v, x)
    torch.testing.assert_close(noisy - (1 - left).sqrt() * TARGETS["epsilon"](x, noise, left), left.sqrt() * TARGETS["sample"](x, noise, left))


def test_weights_of_the_three_targets_agree():
    left = torch.linspace(0.01, 0.89, 9)
    x_error = torch.rand(9)
    v_error = x_error / (1 - left) # v = (sqrt(left) noisy - x) / sqrt(1 - left)
    torch.testing.assert_close(as_velocity(left) * x_error, v_error)
    snr = left / (1 - left)
    torch.testing.assert_close(by_signal(left), snr / (snr + 1))
    assert as_velocity(torch.tensor([1.0])) == 10 and set(WEIGHTS) == {"even", "by_signal", "as_velocity"}


def test_presets_have_as_many_parameters_as_stated():
    with torch.device("meta"): counts = {name: sum(p.numel() for p in denoiser(name).parameters()) for name in DENOISERS}
    assert counts == {"small": 3_788_812, "rover64": 14_706_380, "seed": 61_832_835}
    seed = DENOISERS["seed"]
    assert (seed["size"], seed["widths"], seed["layers"], seed["patch"], seed["schedule"]) == (64, (64, 128, 256, 512), 2, 1, "sigmoid")


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_samplers_find_the_only_picture(truth, schedule, target, kind):
    model = Oracle(truth, schedule, target)
    found = sample(model, [-1, -1], make_sampler(model, 20, kind), generator=torch.Generator().manual_seed(1))
    assert np.abs(found.astype(int) - ((truth.numpy() + 1) * 127.5).round()).max() <= 1


@pytest.mark.parametrize("target", TARGETS)
def test_fillings_fit_and_stay_invalid(truth, target):
    x = (truth[None].expand(2, -1, -1, -1) + 1) / 2
    valid = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.4
    found = inpaint(Oracle(truth, "cosine", target), Chips(torch.where(valid, x, torch.nan), valid, 8), steps=8, again=2, generator=torch.Generator())
    assert torch.equal(found.valid, valid) and torch.equal(found.x[valid.expand_as(x)], x[valid.expand_as(x)])
    torch.testing.assert_close(found.x, x, atol=0.01, rtol=0)


def test_ddim_is_decided_by_its_noise(tiny):
    way = make_sampler(tiny, 4)
    one, again, other = (sample(tiny, [0, 1, -1], way, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    loud = sample(tiny, [0, 1, -1], way, eta=1.0, generator=torch.Generator().manual_seed(0))
    assert not np.array_equal(one, loud)


def test_guidance_of_nothing_follows_nothing(tiny):
    def drawn(labels, guidance): return sample(tiny, labels, make_sampler(tiny, 3), guidance, generator=torch.Generator().manual_seed(0)).astype(int)
    assert np.abs(drawn([1, 2], 0.0) - drawn([-1, -1], 1.0)).max() <= 1
    assert np.abs(drawn([1, 2], 4.0) - drawn([1, 2], 1.0)).max() > 1


def test_a_saved_denoiser_draws_the_same(tiny, tmp_path):
    save_model(tmp_path, tiny, {"product": "test"})
    model, _ = load_model(tmp_path, expect={"bands": 1})
    a, b = (sample(m, [0, -1], make_sampler(m, 3, "DDPM"), generator=torch.Generator().manual_seed(0)) for m in (tiny, model))
    assert np.array_equal(a, b) and (model.target, model.classes) == ("sample", 3)
    with pytest.raises(ModelMismatch, match="bands"): load_model(tmp_path, expect={"bands": 3})


def test_training_resumes_to_the_last_bit_with_its_running_mean(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8), dtype="uint8")

    def run(state=None, stop=None):
        torch.manual_seed(0)
        model, rows = Denoiser(1, 8, (8, 8), patch=2, classes=2), []
        loaders = [Batches(images, np.arange(20) % 2, batch=8, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
        for row in fit(model, DenoisingLoss(), *loaders, Recipe(3, ema=0.9), state):
            rows.append(row)
            if len(rows) == stop: break
        return model.state_dict(), rows

    whole, rows = run()
    run(tmp_path / "state.pt", stop=1)
    torch.rand(7)
    resumed, again = run(tmp_path / "state.pt")
    assert rows == again and all(torch.equal(a, b) for a, b in zip(whole.values(), resumed.values()))


def test_what_is_missing_never_reaches_loss_or_gradient(tiny):
    x, valid = torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8) > 0.5
    found = []
    for poison in (0.0, torch.nan):
        torch.manual_seed(0)
        tiny.zero_grad()
        loss = DenoisingLoss(as_velocity)(tiny, torch.where(valid, x, poison), valid, torch.tensor([0, 1, 2, -1]))["loss"]
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in tiny.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(*found))


@pytest.mark.parametrize("shape", [(1, 9, 40), (3, 16, 16), (3, 128, 64)])
@pytest.mark.parametrize("visible", [False, True])
def test_marks_stay_and_touch_no_pixel(tmp_path, shape, visible):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype="uint8")
    write_synthetic(tmp_path / "a.png", image, "a test", visible)
    assert is_synthetic(tmp_path / "a.png")
    kept = np.asarray(Image.open(tmp_path / "a.png"))
    assert np.array_equal(kept[:shape[1]].transpose(2, 0, 1), np.broadcast_to(image, (3, *shape[1:]))) and (len(kept) > shape[1]) == visible


def test_what_is_no_picture_is_said_so(tmp_path):
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(Corrupt, match="no picture"): is_synthetic(tmp_path / "cut.png")
    with pytest.raises(BadInput, match="uint8"): write_synthetic(tmp_path / "b.png", np.zeros((3, 4, 4)))


def test_the_pipeline_draws_marks_and_judges(tmp_path):
    found = execute("diffuse_smoke", tmp_path, n_images=200, curve=[1], steps=1, visible=True)
    drawn = sorted((tmp_path / "samples").glob("*.png"))
    assert len(drawn) == 50 and all(map(is_synthetic, drawn))
    rows = found["distance"]["histograms"]["train"]
    assert {"diffusion", "Gaussian pixels", "untrained network", "noise"} < set(rows) and all(r["n"] == rows["noise"]["n"] for r in rows.values())
    assert found["copies"]["diffusion, 5 % copies planted"]["copies"] >= 1 and "copies" in found["summary"]
    assert load_model(tmp_path / "model")[1]["synthetic"] is True
