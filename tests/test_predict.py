"Predictors: laws that hold for every shape, symmetry and batch"
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planetlab.core import BadInput, ModelMismatch
from planetlab.models.autoencoder import Autoencoder
from planetlab.models.dilated import Dilated
from planetlab.predict import Forward, predictor_of, reconstruction_predictor, torch_predictor, weights_hash
from planetlab.predictor import SQUARE, Predictor, averaged, box_mean, check_shift, ensemble, measure_radius, pad_to, roughness
from planetlab.share import save_model
from planetlab.stretch import Stretch, from_unit
from torch import nn

few = settings(deadline=None, max_examples=15)
side = st.integers(1, 40)


def noise(*shape, seed=0): return np.random.default_rng(seed).random(shape, "float32")


def small(seed=0, **args):
    torch.manual_seed(seed)
    return Dilated(**{"classes": 3, "width": 8, "dilations": (1, 2), **args})


def halves():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(4, 2, 3, padding=1))


@few
@given(side, side, st.integers(0, 6))
def test_box_mean_counts_only_what_exists(h, w, r):
    x = noise(h, w).astype(float)
    want = [[x[max(i - r, 0):i + r + 1, max(j - r, 0):j + r + 1].mean() for j in range(w)] for i in range(h)]
    np.testing.assert_allclose(box_mean(x, r), want, atol=1e-12)


@few
@given(side, side, st.integers(1, 9))
def test_padding_is_the_next_multiple_and_can_be_cropped(h, w, stride):
    x = noise(2, h, w)
    y = pad_to(x, stride)
    assert all(n % stride == 0 and 0 <= n - m < stride for n, m in zip(y.shape[1:], x.shape[1:]))
    np.testing.assert_array_equal(y[:, :h, :w], x)


@few
@given(side, side, st.sampled_from(SQUARE))
def test_turns_are_undone_and_commute_with_the_average(h, w, turn):
    x = noise(1, 1, h, w)
    np.testing.assert_array_equal(turn.undo(turn.apply(x)), x)
    predict = averaged(torch_predictor(small(), "abc"))
    np.testing.assert_allclose(turn.apply(predict(x)), predict(np.ascontiguousarray(turn.apply(x))), atol=1e-5)


@few
@given(st.integers(1, 7), st.permutations(range(7)), st.sampled_from([None, 1, 2, 5]), side, side)
def test_logits_do_not_depend_on_the_company_of_a_tile(n, order, micro_batch, h, w):
    predict, x = torch_predictor(small(), "abc", micro_batch=micro_batch), noise(7, 1, h, w)
    whole = predict(x)
    np.testing.assert_array_equal(np.concatenate([predict(x[i:i + n]) for i in range(0, 7, n)]), whole)
    np.testing.assert_array_equal(predict(x[list(order)]), whole[list(order)])


@few
@given(st.integers(8, 60), st.integers(8, 60), st.data())
def test_a_tile_with_its_margin_equals_the_whole(h, w, data):
    for predict in (torch_predictor(small(), "abc"), torch_predictor(halves(), "ab", stride=2, radius=4), averaged(torch_predictor(halves(), "ab", stride=2, radius=4))):
        r, s, x = predict.radius, predict.stride, noise(1, 1, h, w)
        top, left = (data.draw(st.integers(0, (n - 1) // s)) * s for n in (h, w))
        bottom, right = (min(a + data.draw(st.integers(1, 20)) * s, n) for a, n in ((top, h), (left, w)))
        y = predict(np.ascontiguousarray(x[..., top:bottom, left:right]))
        a, b = (0 if n == 0 else r for n in (top, left))
        c, d = (None if end == n else -r for end, n in ((bottom, h), (right, w)))
        want = predict(x)[..., top:bottom, left:right]
        np.testing.assert_allclose(y[..., a:c, b:d], want[..., a:c, b:d], atol=1e-5)


def test_measured_radius_is_the_declared_one():
    rng = np.random.default_rng(0)
    for dilations in ((1,), (3,), (1, 2, 4)):
        predict = torch_predictor(small(dilations=dilations), "abc")
        assert measure_radius(predict, 64, rng=rng) == predict.radius == sum(dilations)
    assert measure_radius(Predictor(lambda x: x + x.mean((2, 3), keepdims=True), 1, ("a",)), 32, rng=rng) is None
    assert measure_radius(Predictor(np.zeros_like, 1, ("a",)), 32, rng=rng) == 0
    assert check_shift(torch_predictor(halves(), "ab", stride=2, radius=4), rng=rng) < 1e-5
    assert check_shift(torch_predictor(halves(), "ab", stride=1, radius=4), rng=rng) > 1e-4


def test_same_seed_same_measurement():
    predict = replace(roughness(0.1), radius=2)
    assert check_shift(predict, rng=np.random.default_rng(5)) == check_shift(predict, rng=np.random.default_rng(5)) > 0


def test_spread_is_the_deviation_of_probabilities():
    members = [torch_predictor(small(seed), "abc") for seed in range(4)]
    x = noise(2, 1, 20, 30)
    logits = np.stack([p(x) for p in members])
    p = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)
    y = ensemble(members, spread=True)(x)
    np.testing.assert_allclose(y[:, :3], logits.mean(0), atol=1e-6)
    np.testing.assert_allclose(y[:, 3], np.sqrt(p.var(0).mean(1)), atol=1e-6)


def test_identity_changes_with_everything_that_changes_the_result():
    model, other = small(), small(dilations=(2, 1))
    other.load_state_dict(model.state_dict())
    assert weights_hash(model) == weights_hash(other)
    made = [torch_predictor(m, "abc", **how) for m in (model, other) for how in ({}, {"precision": "bfloat16"}, {"micro_batch": 2})]
    made += [torch_predictor(small(1), "abc"), torch_predictor(model, "abc", stretch=Stretch((0,), (9,)))]
    made += [averaged(made[0]), averaged(made[0], SQUARE[:2]), ensemble(made[:2]), ensemble(made[:2], spread=True)]
    assert len({repr(p.about) for p in made}) == len(made)


def test_a_predictor_is_a_copy_that_travels():
    model = small().train()
    predict = torch_predictor(model, "abc", stretch=Stretch((0,), (255,)))
    before, x = predict(noise(1, 1, 9, 9)), noise(1, 1, 9, 9)
    with torch.no_grad(): model.layers[0].weight.zero_()
    assert model.training
    for p in (predict, pickle.loads(pickle.dumps(averaged(ensemble([predict]), SQUARE[:1])))): np.testing.assert_array_equal(p(x), before)
    copy = pickle.loads(pickle.dumps(predict))
    assert copy.about == predict.about and copy.scale == predict.scale


def test_saved_models_come_back_with_what_they_were_made_for(tmp_path):
    model, stretch = small(), Stretch((10,), (200,))
    save_model(tmp_path / "a", model, {"classes": ["a", "b", "c"], "stretch": vars(stretch), "body": "Mars", "res_m": 6, "stride": 2})
    p = predictor_of(tmp_path / "a", {"body": "Mars"}, micro_batch=2)
    assert (p.classes, p.body, p.res_m, p.stride, p.radius, p.bands) == (("a", "b", "c"), "Mars", 6, 2, 3, 1)
    assert p.scale(np.full((1, 1, 2), 105), np.array([[True, False]])).tolist() == [[[0.5, 0.5]]]
    with pytest.raises(ModelMismatch, match="made for body 'Mars'"): predictor_of(tmp_path / "a", {"body": "Moon"})


@few
@given(st.integers(1, 24), st.integers(1, 24), st.sampled_from(["flatten", "pool", "spatial"]))
def test_reconstruction_covers_every_size(h, w, bottleneck):
    torch.manual_seed(0)
    model = Autoencoder(channels=2, size=24, latent=3, widths=(4, 8), bottleneck=bottleneck).eval()
    stretch = Stretch((0, 100), (10, 300))
    predict, x = reconstruction_predictor(model, stretch), noise(2, 2, h, w)
    y = predict(x)
    assert y.shape == x.shape and np.isfinite(y).all()
    whole = np.pad(x, ((0, 0), (0, 0), (0, 24 - h), (0, 24 - w)), "edge") if bottleneck != "spatial" else x
    with torch.no_grad(): want = model.reconstruct(torch.tensor(whole)).numpy()[..., :h, :w]
    np.testing.assert_allclose(y, np.stack([from_unit(one, stretch) for one in want]), atol=1e-2)


class Boxed(nn.Module):
    def forward(self, x): return {"out": x}


@pytest.mark.parametrize("make, message", [
    (lambda x: torch_predictor(Boxed(), "a")(x), "a dict"),
    (lambda x: torch_predictor(nn.MaxPool2d(2), "a", stride=2)(x), "wanted logits of shape"),
    (lambda x: torch_predictor(nn.Sequential(nn.MaxPool2d(2)), "a"), "say stride=32"),
    (lambda x: Predictor(lambda x: x.astype(int), 1, ("a",))(x), "gave int64"),
    (lambda x: Predictor(np.abs, 1, ("a",))(torch.tensor(x)), "got a Tensor"),
    (lambda x: Predictor(np.abs, 1, ("a",))(x[:, :, :0]), "none of them 0"),
    (lambda x: Predictor("model.pt", 1, ("a",)), "give a function"),
    (lambda x: Forward(micro_batch=0), "use 1 or more"),
    (lambda x: Forward(threads=-1), "use 1 or more"),
    (lambda x: ensemble([roughness(1), roughness(1, bands=2)]), "bands 2 beside 1"),
    (lambda x: ensemble([]), "at least one"),
    (lambda x: averaged(roughness(1), []), "SQUARE")])
def test_bad_input_is_refused_in_words(make, message):
    with pytest.raises((BadInput, ModelMismatch), match=message): make(noise(1, 1, 8, 8))


def test_the_pixel_side_needs_no_torch():
    code = "import sys, planetlab.predictor; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
