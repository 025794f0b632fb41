"What no single chapter of representations can test: laws over shapes, groups, seeds and damaged folders"
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planetlab.backbones import MissingWeights, Pretrained, text_image
from planetlab.core import BadInput, Corrupt, ModelMismatch
from planetlab.models.contrastive import Change, ConvEncoder, Pairs, contrast, draw_views, gradients, redundancy
from planetlab.models.unpooled import Unpooled
from planetlab.models.autoencoder import preset
from planetlab.representations import (Combined, Contrastive, Histograms, LearnedAutoencoder, Pixels, RandomEncoder,
                                       RelevantComponents, load_representation, representations, resized, save_representation)

RNG = np.random.default_rng(0)
IMAGES = (np.kron(RNG.random((40, 3, 4, 4)), np.ones((8, 8))) * 255).astype("uint8")
GROUPS = np.repeat(np.arange(20), 2).astype(str)
SMALL = {"pixels": Pixels(16, 5), "histograms": Histograms(32, keep=6), "random": RandomEncoder(16, 7),
         "autoencoder": LearnedAutoencoder("rover_simple", epochs=1), "dense": LearnedAutoencoder("rover_dense", epochs=1),
         "VAE": LearnedAutoencoder("rover_vae16", epochs=1), "unpooled": LearnedAutoencoder("rover_paper", epochs=1, unpool=True),
         "contrastive": Contrastive(16, (8, 16), epochs=1, keep=4, change=Change(quarter=True)),
         "combined": Combined([Pixels(16, 5), Histograms(32, keep=6)]),
         "relevant": RelevantComponents(Combined([Pixels(16, 5), Histograms(32, keep=6)]), 4)}


@pytest.mark.parametrize("name", SMALL)
def test_one_interface(name, tmp_path):
    r = SMALL[name].fit(IMAGES, GROUPS)
    z = r.transform(IMAGES)
    assert z.dtype == np.float32 and z.ndim == 2 and len(z) == 40 and np.isfinite(z).all()
    np.testing.assert_allclose(r.transform(IMAGES[5:9]), z[5:9], atol=1e-3)
    save_representation(tmp_path / "r", r)
    np.testing.assert_allclose(load_representation(tmp_path / "r").transform(IMAGES), z, atol=1e-3)
    np.testing.assert_allclose(r.fit(IMAGES, GROUPS).transform(IMAGES), z, atol=1e-3)


def test_memory_maps_are_images_too(tmp_path):
    np.save(tmp_path / "x.npy", IMAGES)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_array_equal(Pixels(8, 3).fit(mapped).transform(mapped), Pixels(8, 3).fit(IMAGES).transform(IMAGES))
    Contrastive(16, (8, 16), epochs=1, keep=4).fit(mapped, GROUPS).transform(mapped)


def test_within_groups_nothing_is_left_of_what_varies_there():
    rng = np.random.default_rng(1)
    scene = np.repeat(rng.integers(60, 200, (20, 1, 1, 1)), 2, 0) * np.ones((40, 3, 16, 16))
    scene[:, :, 0, 0] = rng.integers(0, 255, (40, 1))     # one pixel that says nothing of the scene
    images = scene.astype("uint8")
    def ratio(z): return (z[::2] - z[1::2]).var() / z.var()
    assert ratio(RelevantComponents(Pixels(16, 10), 1, 0.01).fit(images, GROUPS).transform(images)) < 0.1 * ratio(Pixels(16, 10).fit(images).transform(images))


@given(st.integers(4, 40), st.sampled_from([0.0, 1.0]), st.integers(0, 99))
@settings(max_examples=8, deadline=None)
def test_partners_share_a_group(n, other, seed):
    groups = RNG.integers(0, max(2, n // 2), n)
    groups[:2] = 0, 1
    flat = (np.arange(n) * 3 % 256)[:, None, None, None] * np.ones((n, 3, 8, 8))
    still = Change(area=1, turn_deg=0, left_right=False, light=0, tint=0)
    for a, b, ids in Pairs(flat.astype("uint8"), groups, 8, still, 8, other, generator=torch.Generator().manual_seed(seed)):
        first, second = ((v.mean((1, 2, 3)) * 255 / 3).round().int().numpy() for v in (a, b))
        assert (groups[first] == groups[second]).all() and (np.unique(groups, return_inverse=True)[1][first] == ids.numpy()).all()
        if not other: assert (first == second).all()


@given(st.integers(0, 99))
@settings(max_examples=5, deadline=None)
def test_views_stay_pictures(seed):
    x = torch.from_numpy(IMAGES[:4]).float() / 255
    for change in (Change(), Change(area=0.1, turn_deg=180, light=1, tint=1), Change(quarter=True)):
        v = draw_views(x, 24, change, generator=torch.Generator().manual_seed(seed))
        assert v.shape == (4, 3, 24, 24) and v.min() >= 0 and v.max() <= 1
    assert gradients(v, 6).isfinite().all() and gradients(torch.zeros(2, 3, 8, 8), 4)[:, :9].abs().max() == 0


def test_losses_do_not_mind_the_order_of_pairs_and_ignore_their_own_group():
    z, groups, order = torch.randn(16, 4), torch.tensor([0, 0, 1, 2, 3, 3, 4, 5]), torch.randperm(8)
    both = torch.cat([order, order + 8])
    for kind in (contrast, redundancy): torch.testing.assert_close(kind(z, groups), kind(z[both], groups[order]))
    moved = z.clone()
    moved[1] = moved[0]                     # a copy within the group of row 0 changes nothing for row 0's own competitors
    alone = contrast(z[[0, 8]], groups[:1])
    assert alone.abs() < 1e-6 and contrast(moved, groups).isfinite()


def test_unpooled_needs_what_it_encoded():
    torch.manual_seed(0)
    model = Unpooled(**preset("rover_paper").args).eval()
    x = torch.rand(3, 3, 32, 32)
    z = model.encode(x)
    assert model.positions == 1476 and not torch.equal(model.decode(0 * z), preset("rover_paper").eval().decode(0 * z))
    with pytest.raises(BadInput, match="encoded just before"): model.decode(z[:2])


@pytest.mark.parametrize("bad", [IMAGES / 255, IMAGES[:, :1], IMAGES[:0], IMAGES[0]], ids=["float", "grey", "empty", "one"])
def test_what_is_no_image(bad):
    with pytest.raises(BadInput, match="give"): resized(bad, 16)


def test_damaged_folders(tmp_path):
    with pytest.raises(Corrupt): load_representation(tmp_path)
    save_representation(tmp_path, Pixels(8, 3).fit(IMAGES))
    config = json.loads((tmp_path / "representation.json").read_text())
    for damage in ({"kind": "os.system"}, {"params": {"side": 3}}, {"arrays": ["mean_"]}):
        (tmp_path / "representation.json").write_text(json.dumps({**config, **damage}))
        with pytest.raises((ModelMismatch, Corrupt)): load_representation(tmp_path)
    (tmp_path / "representation.json").write_text(json.dumps(config))
    (tmp_path / "arrays.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelMismatch): load_representation(tmp_path)
    (tmp_path / "arrays.safetensors").unlink()
    with pytest.raises(ModelMismatch): load_representation(tmp_path)


def test_weights_that_are_not_here(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("went to the network"))
    with pytest.raises(MissingWeights, match="hf download nobody/has-this"): text_image("nobody/has-this")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    with pytest.raises(MissingWeights, match="hf download timm/vit_small_patch14_dinov2.lvd142m"): Pretrained().fit()
    assert Pretrained().licence == "apache-2.0"


def test_backbone_plumbing(tmp_path):
    r = Pretrained("resnet18.a1_in1k", 32, pretrained=False).fit()
    z = r.transform(IMAGES[:6])
    assert z.shape == (6, 512)
    save_representation(tmp_path, r)
    np.testing.assert_allclose(load_representation(tmp_path).transform(IMAGES[:6]), z, atol=1e-4)


def test_names_are_new_each_time():
    assert all(type(r) is type(representations()[k]) and r is not representations()[k] for k, r in representations().items())
    assert ConvEncoder(size=32, widths=[8, 16]).encode(torch.rand(2, 3, 32, 32)).norm(dim=1).allclose(torch.ones(2))
