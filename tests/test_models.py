"Autoencoders of any design and what they are asked for"
import json
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Normal, kl_divergence
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as reference

from planetlab.chips import Chips, Symmetry, Views
from planetlab.core import BadInput
from planetlab.models.autoencoder import FAMILIES, PRESETS, VAE, Autoencoder, kl_to_unit, preset, vae_loss, vector
from planetlab.models.objective import BETAS, OBJECTIVES, Objective, bce, cyclic, dissimilarity, held, l1, ms_ssim, mse, rising
from planetlab.share import load_model, save_model
from planetlab.train import Recipe, fit

some = settings(max_examples=12, deadline=None)
ends = st.sampled_from(("flatten", "pool", "spatial"))


def small(size=32, **design):
    torch.manual_seed(0)
    return Autoencoder(**{"size": size, "latent": 3, "widths": (8, 16), **design})


def holed(shape, seed=0):
    "Chips with a third of their pixels missing"
    g = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=g), torch.rand((shape[0], 1, *shape[2:]), generator=g) > 0.33


def by_hand(size, latent, width):
    "The layers of `VAE` in their order, one by one"
    def down(a, b): return nn.Sequential(nn.Conv2d(a, b, 4, 2, 1), nn.GroupNorm(8, b), nn.SiLU())
    def up(a, b): return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(a, b, 3, 1, 1), nn.GroupNorm(8, b), nn.SiLU())
    c = [1, *(width * min(1 << i, 4) for i in range(size.bit_length() - 3))]
    m = nn.Module()
    m.encoder = nn.Sequential(*map(down, c, c[1:]), nn.Flatten())
    m.mu, m.logvar = nn.Linear(c[-1] * 16, latent), nn.Linear(c[-1] * 16, latent)
    back = c[:0:-1]
    m.decoder = nn.Sequential(nn.Linear(latent, c[-1] * 16), nn.Unflatten(1, (c[-1], 4, 4)), *map(up, back, back[1:]),
                              nn.Upsample(scale_factor=2), nn.Conv2d(width, 1, 3, 1, 1))
    return m


@pytest.mark.parametrize("options", [(64, 16, 32), (32, 6, 16), (8, 4, 8)])
def test_the_same_seed_gives_the_same_vae_as_ever(options):
    torch.manual_seed(3)
    expected = by_hand(*options)
    torch.manual_seed(3)
    model = VAE(1, *options)
    assert list(expected.state_dict()) == list(model.state_dict())
    assert all(map(torch.equal, expected.state_dict().values(), model.state_dict().values()))
    x = torch.rand(2, 1, options[0], options[0])
    h = expected.encoder(x)
    torch.manual_seed(4)
    mu, logvar = expected.mu(h), expected.logvar(h)
    recon = expected.decoder(mu + torch.randn_like(mu) * (logvar / 2).exp())
    torch.manual_seed(4)
    assert torch.equal(model(x).recon, recon)


@some
@given(st.sampled_from(sorted(set(FAMILIES) - {"valid3", "valid5"})), ends, st.integers(33, 50), st.integers(33, 50), st.integers(1, 3))
def test_any_size_and_band_count_comes_back(family, end, h, w, bands):
    if end == "flatten": w = h
    m = small(h, channels=bands, family=family, bottleneck=end, bounded=True).eval()
    x = torch.rand(2, bands, h, w)
    with torch.no_grad():
        assert m(x).recon.shape == m.reconstruct(x).shape == x.shape and m.reconstruct(x).max() <= 1
        assert torch.equal(m.encode(x), m.encode(x)) and torch.equal(m.encode(x), m(x).mu)
        assert vector(m, x, x[:, :1] >= 0).shape == (2, 3)


def test_a_spatial_code_stays_where_its_ground_is():
    m = small(40, bottleneck="spatial", bounded=True, family="transposed").eval()
    x = torch.rand(1, 1, 80, 83)
    with torch.no_grad(): whole, part = m.reconstruct(x), m.reconstruct(x[..., :40, :43])
    assert torch.allclose(whole[..., :16, :16], part[..., :16, :16], atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"rover_resnet101", "rover_resnet152"})) # slow to build, built in the chapter
def test_presets_are_rebuilt_from_json(name):
    with torch.device("meta"):
        m = preset(name)
        again = Autoencoder(**json.loads(json.dumps(m.args)))
    assert again.design == m.design
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in m.state_dict().items()}
    d = m.design
    out = m.eval()(torch.empty(2, d.channels, d.size, d.size, device="meta"))
    assert out.recon.shape == (2, d.channels, d.size, d.size) and out.mu.shape == (2, *m.code)
    assert (out.logvar is None) == (not d.variational)


def test_the_altimetry_decoder_is_the_published_one():
    m = preset("venus_topo").eval()
    torch.manual_seed(0)
    z = torch.randn(3, 16)
    h = m.decoder[:2](z)
    steps = [*m.decoder[2:5]]
    for step, extra in zip(steps, (1, 0, 0)):
        up = step[0]
        h = F.conv_transpose2d(h, up.weight, up.bias, 2, 1, extra)
        for layer in step[-2:]: h = layer(h)
    published = F.interpolate(m.decoder[5](h), (10, 10), mode="bilinear")
    assert h.shape[-1] == 13 and torch.allclose(m.decode(z), published, atol=1e-6)


@pytest.mark.parametrize("end", ["flatten", "pool", "spatial"])
def test_saved_models_say_the_same(end, tmp_path):
    m = small(bottleneck=end, family="resnet", layers=[1, 2]).eval().to(memory_format=torch.channels_last)
    save_model(tmp_path, m, {})
    x = torch.rand(2, 1, 32, 32)
    assert torch.equal(load_model(tmp_path)[0].encode(x), m.encode(x))


def test_samples_follow_their_generator():
    for end in ("flatten", "spatial"):
        m = small(bottleneck=end).eval()
        a, b, c = (m.sample(2, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
        assert torch.equal(a, b) and not torch.equal(a, c) and a.shape == (2, 1, 32, 32)


@some
@given(st.sampled_from((1, 2, 3, 5)), st.integers(1, 3), st.integers(0, 30), st.integers(0, 30), st.floats(0, 1))
def test_similarity_is_that_of_torchmetrics(scales, bands, more_h, more_w, share):
    torch.manual_seed(more_h)
    x = torch.rand(2, bands, (11 << scales - 1) + more_h, (11 << scales - 1) + more_w, dtype=torch.float64) # roots of what is nearly 0 need digits
    recon = share * x + (1 - share) * torch.rand_like(x)
    everywhere = torch.ones_like(x[:, :1], dtype=torch.bool)
    expected = reference(recon, x, data_range=1.0, betas=BETAS[:scales], reduction="none")
    assert torch.allclose(ms_ssim(recon, x, everywhere, BETAS[:scales]), expected, atol=1e-7)


@some
@given(st.integers(1, 5), st.integers(1, 200))
def test_similarity_refuses_small_chips_and_only_those(scales, side):
    x = torch.rand(1, 1, side, 220)
    valid = torch.ones_like(x, dtype=torch.bool)
    if side < 11 << scales - 1:
        with pytest.raises(BadInput, match=f"{side} px are too few"): ms_ssim(x, x, valid, BETAS[:scales])
    else: assert ms_ssim(x, x, valid, BETAS[:scales]).item() == pytest.approx(1, abs=1e-5)


def test_terms_are_those_of_torch():
    x, valid = holed((3, 2, 20, 20))
    recon = torch.rand_like(x)
    kept = valid.expand_as(x)
    for term, f in ((mse, F.mse_loss), (l1, F.l1_loss), (bce, F.binary_cross_entropy)):
        expected = sum(f(r[k], t[k]) for r, t, k in zip(recon, x, kept)) / 3
        assert term(recon, x, valid).item() == pytest.approx(expected.item(), abs=1e-5)
    mu, logvar = torch.randn(2, 4, 3, 5, 5)
    expected = kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(0.0, 1.0)).sum((1, 2, 3))
    assert torch.allclose(kl_to_unit(mu, logvar), expected, rtol=1e-5)


@some
@given(ends, st.sampled_from((0.0, 9.0, -1e30, float("nan"), float("inf"))), st.sampled_from(("batch", "group")))
def test_invalid_pixels_change_no_loss_and_no_gradient(end, poison, kind):
    x, valid = holed((3, 1, 48, 48))
    valid[0] = False # a chip without any data

    def learned(loss, x):
        m = small(48, bottleneck=end, family={"batch": "transposed", "group": "strided"}[kind], bounded=True)
        out = loss(m, x, valid)
        out["loss"].backward()
        return [*(v.detach() for v in out.values()), *(p.grad for p in m.parameters())]

    every = Objective({mse: 0.5, l1: 0.1, bce: 0.1, partial(dissimilarity, betas=BETAS[:3]): 0.3}, kl=1e-3)
    for loss in (every, vae_loss):
        clean, poisoned = learned(loss, x), learned(loss, torch.where(valid, x, poison))
        assert all(map(torch.equal, clean, poisoned)) and all(v.isfinite().all() for v in clean)


def test_gradients_of_contradiction_are_finite():
    x = torch.rand(2, 1, 44, 44, generator=torch.Generator().manual_seed(0))
    recon = (1 - x).requires_grad_()
    value = dissimilarity(recon, x, x >= 0, BETAS[:3])
    value.backward()
    assert value.item() == 1 and recon.grad.isfinite().all()


def test_sixteen_bits_do_not_reach_the_terms():
    x, valid = holed((2, 1, 48, 48))
    exact = ms_ssim(x.sqrt(), x, valid, BETAS[:3])
    with torch.autocast("cpu", torch.bfloat16): assert torch.equal(ms_ssim(x.sqrt(), x, valid, BETAS[:3]), exact)


@some
@given(st.integers(0, 10**6), st.integers(1, 10**4))
def test_schedules_never_charge_nothing(step, steps):
    for share in (held(step), rising(step, steps), cyclic(step, steps)): assert 0 < share <= 1
    assert rising(step, steps) <= rising(step + 1, steps) and rising(steps + step, steps) == 1


def test_a_rising_price_survives_interruption(tmp_path):
    x = torch.rand(24, 1, 16, 16, generator=torch.Generator().manual_seed(0))

    def run(state=None, stop=None):
        m, rows = small(16, bottleneck="spatial"), []
        views = [Views(Chips(x, x >= 0, 16), Symmetry(), 8, i > 0, generator=torch.Generator().manual_seed(i)) for i in range(2)]
        for row in fit(m, Objective({mse: 1}, 1e-3, partial(rising, steps=9)), *views, Recipe(4), state):
            rows.append(row)
            if len(rows) == stop: break
        return m, rows

    whole, rows = run()
    run(tmp_path / "s.pt", stop=2)
    resumed, again = run(tmp_path / "s.pt")
    assert again == rows and all(map(torch.equal, whole.state_dict().values(), resumed.state_dict().values()))
    prices = [r["train_price"] for r in rows]
    assert prices == sorted(prices) and prices[0] < prices[1] < prices[2] and rows[-1]["val_price"] == pytest.approx(1e-3)
    assert whole.steps == 12


def test_models_and_objectives_that_do_not_fit_are_refused():
    x, valid = holed((2, 1, 32, 32))
    plain = small(variational=False, bottleneck="spatial")
    assert set(Objective({mse: 1})(plain, x, valid)) == {"loss", "mse"}
    for call, said in ((lambda: Objective({mse: 1}, 1e-4)(plain, x, valid), "use kl=0"),
                       (lambda: vae_loss(plain, x, valid), "variational=True"),
                       (lambda: Objective({mse: 1}, 1, partial(rising, steps=3))(VAE(size=32, width=8), x, valid), "does not count"),
                       (lambda: Objective({bce: 1})(small(), 3 * x, valid), "bounded=True"),
                       (lambda: OBJECTIVES["venus_sar"](small(), x, valid), "too few for 5 scales"),
                       (lambda: small()(x[..., :30]), "wants"), (lambda: small(channels=2)(x), "wants"),
                       (lambda: small(latent=0), "count from 1"), (lambda: small(back=(1, 2, 3)), "give 1 or none")):
        with pytest.raises(BadInput, match=said): call()
