"What no single chapter of representations can test: laws over shapes, groups, seeds and damaged folders"
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planetlab.backbones import MissingWeights, Pretrained, text_image
from planetlab.core import BadInput, Corrupt, ModelMismatch, digest
from planetlab.encoders import load_representation, save_representation
from planetlab.models.contrastive import Change, ConvEncoder, Pairs, contrast, draw_views, gradients
from planetlab.models.unpooled import Unpooled
from planetlab.models.autoencoder import preset
from planetlab.naming import score_names
from planetlab.relevant import relevant_axes, share_within
from planetlab.representations import (Combined, Contrastive, Histograms, LearnedAutoencoder, Pixels, RandomEncoder,
                                       RelevantComponents, representations, resized)
from planetlab.scale import FastKMeans
from planetlab.worlds.rover import rover_images

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
    torch.testing.assert_close(contrast(z, groups), contrast(z[both], groups[order]))
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


@pytest.mark.parametrize("name", representations())
def test_every_constructor_comes_back(name, tmp_path):
    r = representations()[name]
    for key in r.get_params():
        if key.rpartition("__")[2] == "epochs": r.set_params(**{key: 1})
        if key.rpartition("__")[2] == "widths": r.set_params(**{key: (8, 16)})
    z = r.fit(IMAGES, GROUPS).transform(IMAGES[:9])
    said = save_representation(tmp_path, r)
    back = load_representation(tmp_path)
    np.testing.assert_allclose(back.transform(IMAGES[:9]), z, rtol=1e-3, atol=1e-3)
    assert save_representation(tmp_path / "again", back) == said and type(back) is type(r)
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".pkl", ".pt", ".joblib", ".npy")]


def test_damaged_folders(tmp_path):
    with pytest.raises(Corrupt): load_representation(tmp_path)
    save_representation(tmp_path, Combined([Pixels(8, 3), Pixels(4, 2)]).fit(IMAGES))
    about, arrays = tmp_path / "representation.json", tmp_path / "parts1" / "arrays.safetensors"
    whole, numbers = about.read_text(), arrays.read_bytes()
    config = json.loads(whole)
    plain = {k: v for k, v in config.items() if k not in ("name", "planetlab")}
    for damage in ({"kind": "os.system"}, {"params": {"side": 3}}, {"arrays": ["axes_"]}, {"members": {}}):
        for changed in (config | damage, plain | damage | {"name": digest(plain | damage, 16)}): # by accident, and with a name that fits
            about.write_text(json.dumps(changed))
            with pytest.raises((ModelMismatch, Corrupt)): load_representation(tmp_path).transform(IMAGES)
    about.write_text(whole)
    for damage in (numbers[:-1], numbers[:-1] + bytes([numbers[-1] ^ 1]), b"nothing"):
        arrays.write_bytes(damage)
        with pytest.raises(Corrupt, match="not what was saved"): load_representation(tmp_path)
    arrays.unlink()
    with pytest.raises(Corrupt): load_representation(tmp_path)
    save_representation(tmp_path / "parts1", Pixels(4, 1).fit(IMAGES))
    with pytest.raises(Corrupt, match="parts1"): load_representation(tmp_path)  # whole in itself, and another's


def test_an_encoder_comes_back_where_there_is_no_gpu(tmp_path):
    r = Contrastive(16, (8, 16), epochs=1, keep=4).fit(IMAGES, GROUPS)
    save_representation(tmp_path, r.set_params(device="cuda:7"))
    back = load_representation(tmp_path)
    assert back.device == "cpu" and back.transform(IMAGES[:2]).shape == (2, 4)


def test_other_weights_of_a_backbone_are_refused(tmp_path):
    r = Pretrained("resnet18.a1_in1k", 32, pretrained=False).fit()
    r.weights_ = "0" * 64
    save_representation(tmp_path, r)
    with pytest.raises(Corrupt, match="resnet18.a1_in1k on this machine"): load_representation(tmp_path)


def test_whole_groups_are_drawn(monkeypatch):
    monkeypatch.setattr("planetlab.representations.MOST", 10)                # far fewer than the images: bursts must stay whole
    z = RelevantComponents(Pixels(8, 5), 3).fit(IMAGES, GROUPS).transform(IMAGES)
    assert z.shape == (40, 3) and np.isfinite(z).all()


@given(st.integers(2, 30), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_relevant_axes_ask_nothing_but_what_varies_within(n, d, seed):
    rng = np.random.default_rng(seed)
    groups = np.r_[0, 0, rng.integers(1, 1 + n // 2, n)]
    z, order = rng.normal(size=(len(groups), d)) + 5 * groups[:, None], rng.permutation(len(groups))
    if len(set(groups)) == len(groups): return
    axes, again = relevant_axes(z, groups), relevant_axes((z - 9 * groups[:, None])[order], groups[order].astype(str))
    np.testing.assert_allclose(again @ again.T, axes @ axes.T, rtol=1e-6, atol=1e-9)   # the same measure of distance
    assert 0 <= share_within(z, groups) <= 1
    assert share_within(z @ axes, groups) == pytest.approx(share_within(z @ axes @ np.linalg.qr(rng.normal(size=(d, d)))[0], groups))


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


def test_vgg_learns_something_in_an_epoch():
    first, *_, last = LearnedAutoencoder("rover_vgg11", 32, epochs=3).fit(IMAGES).history_
    assert last["val_loss"] < first["val_loss"]


def test_a_synthetic_rover_is_sorted():
    images, table = rover_images(800, np.random.default_rng(0), 48)
    learn, k = (table.split == "train").to_numpy(), 100
    r = RelevantComponents(Histograms(48, keep=150), 50).fit(images[learn], table.sequence[learn].to_numpy())
    c = FastKMeans(k, n_init=3).fit(r.transform(images[learn])).predict(r.transform(images))
    mine, new = (score_names(table.label[m], c[m], k=k, rng=np.random.default_rng(0))["purity"] for m in (learn, ~learn))
    assert mine.value >= 0.9 and mine.random < 0.6                                   # in sample; on new sols it is less
    assert new.value > new.random + 0.25
