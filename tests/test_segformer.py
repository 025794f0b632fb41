"SegFormer: the published sizes, texts, weights, schedules"
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planetlab.core import BadInput, ModelMismatch
from planetlab.dune_classes import CLASSES, embed_texts
from planetlab.models.masked import MaskedLoss, cover
from planetlab.models.segformer import BASELINE, FIRST, LAST, SEED, SMALL, Design, Polynomial, SegFormer, set_texts, start_from
from planetlab.predict import predictor_of
from planetlab.predictor import check_shift
from planetlab.share import load_model, save_model
from planetlab.text_controls import STRETCH, vector_predictor

TINY = vars(Design((8, 16, 24, 32), (1, 1, 1, 1), (1, 1, 1, 2), 32))


def made(seed=0, **how):
    torch.manual_seed(seed)
    return SegFormer(**{"bands": 4, "classes": 10, "text_size": 16, **TINY, **how}).eval()


def test_the_published_network_answers_and_has_the_published_size():
    torch.manual_seed(0)
    model = SegFormer(text="set", **vars(SEED)).eval()
    assert sum(p.numel() for p in model.parameters()) == 22_021_834
    assert sum(p.numel() for p in model.read.parameters()) == 1_051_648
    x, texts = torch.rand(1, 64, 64, 64), torch.from_numpy(embed_texts().vectors)
    with torch.no_grad():
        first, mixed = set_texts(model, texts)(x), set_texts(model, texts.flip(0))(x)
    assert first.shape == (1, 10, 64, 64)
    torch.testing.assert_close(first, mixed, atol=1e-4, rtol=1e-4) # a set has no order


def test_the_baseline_has_the_published_size():
    with torch.device("meta"): assert sum(p.numel() for p in SegFormer(**vars(BASELINE)).parameters()) == 3_811_082


@settings(deadline=None, max_examples=10)
@given(st.permutations(range(10)), st.integers(0, 1000))
def test_permuting_texts_permutes_prototype_logits_and_leaves_a_set_alone(order, seed):
    texts, x = torch.randn(10, 16, generator=torch.Generator().manual_seed(seed)), torch.rand(1, 4, 32, 32)
    for text, index in (("prototypes", order), ("set", list(range(10)))):
        model = made(seed, text=text)
        with torch.no_grad(): a, b = set_texts(model, texts)(x), set_texts(model, texts[order])(x)
        torch.testing.assert_close(b, a[:, index], atol=1e-4, rtol=1e-4)


@settings(deadline=None, max_examples=12)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 5))
def test_the_answer_is_as_large_as_the_question(h, w, bands):
    with torch.no_grad(): assert made(bands=bands, classes=3)(torch.rand(1, bands, h, w)).shape == (1, 3, h, w)


def test_drop_path_acts_only_while_learning():
    model = made(depths=(2, 2, 2, 2), drop_path=0.5, dropout=0.0)
    for p in model.parameters(): p.data *= 3
    x = torch.rand(2, 4, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x), model(x))
        model.train()
        for m in model.modules():
            if isinstance(m, torch.nn.BatchNorm2d): m.eval()
        assert len({float(model(x).sum()) for _ in range(6)}) > 1


def test_a_frozen_encoder_does_not_move():
    model = made(frozen=True).train()
    before = {k: v.clone() for k, v in model.encoder.state_dict().items()}
    opt = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.1)
    model(torch.rand(2, 4, 32, 32)).square().sum().backward()
    opt.step()
    assert all(torch.equal(v, before[k]) for k, v in model.encoder.state_dict().items())


def test_other_weights_are_refused(tmp_path):
    model = made(text="prototypes")
    save_model(tmp_path / "m", model, {"classes": list(CLASSES), "stretch": None})
    again, about = load_model(tmp_path / "m", {"bands": 4})
    x = torch.rand(1, 4, 40, 40)
    with torch.no_grad(): torch.testing.assert_close(again(x), model(x))
    assert predictor_of(tmp_path / "m").classes == CLASSES
    with pytest.raises(ModelMismatch): load_model(tmp_path / "m", {"bands": 64})
    with pytest.raises(RuntimeError): made(text="none").load_state_dict(model.state_dict())
    with pytest.raises(ModelMismatch, match="nothing was copied"): start_from(made(bands=1), model.state_dict())
    other = made(1, bands=1, classes=2)
    start_from(other, model.state_dict(), (FIRST, LAST))
    assert torch.equal(other.encoder[3].blocks[0].mlp.fc1.weight, model.encoder[3].blocks[0].mlp.fc1.weight)
    with pytest.raises(ModelMismatch): set_texts(model, torch.zeros(10, 17))
    with pytest.raises(BadInput): SegFormer(text="shuffled")


def test_a_predictor_is_equal_wherever_its_tile_begins():
    check = vector_predictor(made(bands=64), CLASSES)
    x = np.random.default_rng(0).normal(size=(64, 40, 40)).astype("float32")
    x /= np.linalg.norm(x, axis=0)
    scaled = check.scale(x, np.ones((40, 40), bool))
    assert check.stride == 32 and check(scaled[None]).shape == (1, 10, 40, 40)
    np.testing.assert_allclose(scaled, (x - STRETCH.low[0]) / 2, atol=1e-6)
    with pytest.raises(BadInput): check.scale(3 * x, np.ones((40, 40), bool))


@settings(deadline=None, max_examples=20)
@given(st.floats(0.2, 3), st.floats(0, 0.9), st.integers(1, 30))
def test_polynomial_rises_and_falls_to_nothing(power, rise, epochs):
    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    schedule, rates = Polynomial(power, rise)(opt, epochs, 5), []
    for _ in range(5 * epochs):
        rates.append(schedule.get_last_lr()[0])
        opt.step()
        schedule.step()
    top = int(np.argmax(rates))
    assert schedule.get_last_lr()[0] == pytest.approx(0, abs=1e-12) and 0 < max(rates) <= 1 + 1e-9
    assert (np.diff(rates[:top + 1]) >= 0).all() and (np.diff(rates[top:]) <= 0).all()


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(2, 20), st.floats(0.05, 0.95), st.integers(0, 1000))
def test_cover_hides_its_share_and_nothing_else(h, w, patch, share, seed):
    x = torch.rand(3, 2, h, w)
    seen, hidden = cover(x, patch, share, generator=torch.Generator().manual_seed(seed))
    assert hidden.shape == (3, 1, h, w) and torch.equal(torch.where(hidden, 0.5, x), seen)
    if h % patch == w % patch == 0: assert (hidden.float().mean((1, 2, 3)) - round(share * h * w / patch**2) * patch**2 / (h * w)).abs().max() < 1e-6


class Knows(torch.nn.Module):
    "Draws the truth where it cannot see, and nonsense elsewhere"
    def __init__(self, truth):
        super().__init__()
        self.truth = truth

    def forward(self, seen): return torch.where(seen == 0.5, self.truth, 77.0) - 0.5


def test_the_masked_loss_looks_only_at_what_was_covered():
    x = torch.rand(2, 1, 32, 32)
    assert float(MaskedLoss(8, 0.5)(Knows(x).eval(), x)["loss"]) == 0
    assert float(MaskedLoss(8, 0.5)(Knows(x + 0.25).eval(), x)["loss"]) == pytest.approx(0.25, abs=1e-5)


def test_a_chip_of_nothing_has_a_finite_slope():
    torch.manual_seed(0)
    model, x = SegFormer(1, 2, text="none", **vars(SMALL)), torch.rand(3, 1, 64, 64)
    x[0] = 0.5 # as invalid pixels are
    model(x).abs().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
