"Segmentation: image and labels move as one, ignored pixels never count, a stopped training goes on as if it never stopped"
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import real
from planetlab.chips import Symmetry
from planetlab.models.dilated import Dilated
from planetlab.models.losses import CrossEntropy, Sum
from planetlab.models.unet import UNet
from planetlab.pairs import IGNORE, read_pair, read_pairs
from planetlab.pixels import fit_pixels, pixel_features, sample_pixels
from planetlab.predict import predictor_of, torch_predictor
import rasterio
from planetlab.core import ModelMismatch
from planetlab.maps import map_scene
from planetlab.outputs import values
from planetlab.predictor import averaged, ensemble
from planetlab.scene import scene_of
from planetlab.seams import MapPlan
from planetlab.share import load_model, save_model
from planetlab.segment import Crops, Frames, Jitter, SegmentLoss, WholeFrame, fit_segmenter, frame_probs, shrink_labels
from planetlab.stretch import Stretch
from planetlab.train import Recipe, TrainState

STILL = Jitter(light=0, contrast=0, colour=0)
SYMMETRIES = (Symmetry(left_right=True, shift=0, zoom=0.35), Symmetry(upside_down=True, turn=True, left_right=True), Symmetry(exact=True, turn=True),
              Symmetry(shift=0.3, zoom=0, left_right=True))


def maps(shape=(90, 130), block=10, seed=0, classes=2):
    "A map of squares"
    few = np.random.default_rng(seed).integers(0, classes, [-(-n // block) for n in shape])
    return few.repeat(block, 0).repeat(block, 1)[:shape[0], :shape[1]].astype("uint8")


def frames(n=3, row=False, shrink=1, classes=2, **kwargs):
    "Frames that are their own label maps"
    pairs = [(m[None], m) for m in (maps(seed=i, classes=classes) for i in range(n))]
    return Frames(pairs, tuple, Stretch((0.0,), (classes - 1.0,)), shrink, row, **kwargs)


def draw(seed): return torch.Generator().manual_seed(seed)


@settings(max_examples=24, deadline=None)
@given(st.sampled_from(SYMMETRIES), st.integers(0, 99), st.sampled_from((33, 64, 120)))
def test_labels_move_exactly_as_the_image(symmetry, seed, size):
    for x, labels in Crops(frames(), size, 4, 1, symmetry, STILL, generator=draw(seed)):
        pure = (labels != IGNORE) & ((x[:, 0] - x[:, 0].round()).abs() < 1e-3)
        assert pure.float().mean() > 0.2
        assert (x[:, 0].round().long() == labels)[pure].all()
        assert ((x[:, 0] - 0.5).abs()[labels == IGNORE] < 1e-6).all() # beyond the frame: grey


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_a_label_is_never_mixed(symmetry):
    many = maps(classes=2) * 7
    crops = Crops(Frames([(many[None], many)], tuple, Stretch((0.0,), (7.0,)), 1, False), 64, 8, 2, symmetry, generator=draw(0))
    assert {int(k) for _, labels in crops for k in labels.unique()} <= {0, 7, IGNORE}


def test_the_row_moves_with_the_image():
    rows = np.repeat(np.arange(100, dtype="float32")[:, None], 140, 1)
    twin = Frames([(rows[None], np.zeros((100, 140), "uint8"))], tuple, Stretch((-0.5,), (99.5,)), 1, True)
    for x, labels in Crops(twin, 48, 8, 2, SYMMETRIES[0], STILL, generator=draw(1)):
        inside = labels != IGNORE
        assert inside.float().mean() > 0.5 and (x[:, 0] - x[:, 1]).abs()[inside].max() < 1e-4
    changed = Crops(twin, 48, 8, 1, SYMMETRIES[0], Jitter(light=0.2), generator=draw(1))
    x, labels = next(iter(changed))
    still = next(iter(Crops(twin, 48, 8, 1, SYMMETRIES[0], STILL, generator=draw(1))))[0]
    assert x[:, 1].sub(still[:, 1]).abs().max() < 1e-6 and x[:, 0].sub(still[:, 0]).abs().max() > 0.05 # light changes bands, never the row


def test_every_frame_is_drawn_as_often_and_by_seed():
    class Counted(Frames):
        def __getitem__(self, i):
            seen.append(i)
            return super().__getitem__(i)
    seen, few = [], frames(5)
    counted = Counted(few.items, tuple, few.stretch, 1, False)
    a, b = (list(Crops(counted, 32, 5, 4, generator=draw(3))) for _ in "ab")
    assert sorted(seen) == sorted(list(range(5)) * 8) and len(a) == 4
    assert all(torch.equal(v, w) for one, two in zip(a, b) for v, w in zip(one, two))
    assert not torch.equal(a[0][0], next(iter(Crops(counted, 32, 5, 4, generator=draw(4))))[0])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 17), st.integers(1, 17), st.integers(0, 99))
def test_shrunk_labels_are_the_commonest(shrink, h, w, seed):
    labels = np.random.default_rng(seed).choice([0, 1, 3, IGNORE], (h, w)).astype("uint8")
    found = shrink_labels(labels, shrink)
    assert found.shape == (-(-h // shrink), -(-w // shrink)) and found.dtype == labels.dtype
    full = labels[:h // shrink * shrink, :w // shrink * shrink]
    for i in range(full.shape[0] // shrink):
        for j in range(full.shape[1] // shrink):
            block = full[i * shrink:(i + 1) * shrink, j * shrink:(j + 1) * shrink]
            assert (block == found[i, j]).sum() == max((block == k).sum() for k in (0, 1, 3, IGNORE))


def test_frames_kept_and_read_again_are_alike():
    kept, read = frames(shrink=3, row=True), frames(shrink=3, row=True, keep=False)
    for _ in range(2):
        for (x, a), (y, b) in zip(kept, read): assert torch.equal(x, y) and torch.equal(a, b)
    assert len(kept.kept) == 3 and read.kept is None and x.shape[0] == 2


def test_invalid_pixels_are_ignored_and_grey():
    m = maps()
    valid = np.ones(m.shape, bool)
    valid[20:50, 30:70] = False
    x, labels = Frames([(np.where(valid, m, 250)[None], m, valid)], tuple, Stretch((0.0,), (1.0,)), 1, False)[0]
    assert (labels.numpy() == np.where(valid, m, IGNORE)).all() and (x[0].numpy()[~valid] == 0.5).all()
    for x, labels in Crops(Frames([(m[None], m, valid)], tuple, Stretch((0.0,), (1.0,)), 1, False), 64, 6, 1, SYMMETRIES[0], STILL, generator=draw(0)):
        pure = (labels != IGNORE) & ((x[:, 0] - x[:, 0].round()).abs() < 1e-3)
        assert (x[:, 0].round().long() == labels)[pure].all()


@pytest.mark.parametrize("loss", [CrossEntropy(), Sum()])
def test_ignored_pixels_never_count(loss):
    labels = torch.from_numpy(maps((40, 60)))[None]
    labels[:, 10:20] = IGNORE
    logits = torch.randn(1, 2, 40, 60, generator=draw(0))
    other = torch.where(labels[:, None] == IGNORE, torch.randn(1, 2, 40, 60, generator=draw(1)) * 50, logits)
    one, two = (SegmentLoss(loss)(lambda x: x, v, labels) for v in (logits, other))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert float(one["either 0"] + one["either 1"] - one["both 0"] - one["both 1"]) <= 2 * 1800


def train(model_seed=0, epochs=4, state=None, row=False):
    torch.manual_seed(model_seed)
    model = Dilated(1 + row, 3, 6, (1, 2))
    crops = Crops(frames(classes=3, row=row), 32, 4, 3, SYMMETRIES[0], generator=draw(5))
    rows = fit_segmenter(model, Sum(), crops, frames(2, classes=3, row=row), ("a", "b", "large rock"),
                         Recipe(epochs=epochs, lr=1e-2, ema=0.9), state)
    return model, rows


def test_a_stopped_training_goes_on_exactly(tmp_path):
    whole, rows = train()
    rows = list(rows)
    _, first = train(state=TrainState(tmp_path / "state.pt"))
    for _, _ in zip(range(2), first): pass
    again, rest = train(state=TrainState(tmp_path / "state.pt"))
    assert list(rest) == rows
    for a, b in zip(whole.state_dict().values(), again.state_dict().values()): assert torch.equal(a, b)
    other, _ = train(model_seed=1)
    assert not torch.equal(next(other.parameters()), next(whole.parameters()))


def test_rows_are_pooled_over_whole_frames():
    model, rows = train()
    last, val = list(rows)[-1], frames(2, classes=3)
    with torch.no_grad(): found = [model(x[None]).argmax(1)[0] for x, _ in val]
    for k, name in enumerate(("a", "b", "large_rock")):
        both = sum(int(((f == k) & (labels == k)).sum()) for f, (_, labels) in zip(found, val))
        either = sum(int(((f == k) | (labels == k)).sum()) for f, (_, labels) in zip(found, val))
        assert either and abs(both / either - last[f"val_iou_{name}"]) < 0.02 # bf16 in training
    assert not [k for k in last if " " in k]


def test_a_class_that_never_occurs_has_no_iou():
    model = Dilated(1, 3, 4, (1,))
    with torch.no_grad(): model.layers[-1].bias += torch.tensor([0.0, 0.0, -99.0])
    crops = Crops(frames(), 32, 2, 1, generator=draw(0))
    row = next(iter(fit_segmenter(model, CrossEntropy(), crops, frames(1), ("a", "b", "never"), Recipe(epochs=1, lr=1e-9))))
    assert math.isnan(row["val_iou_never"]) and not math.isnan(row["val_iou_a"])


@pytest.mark.parametrize("shape", [(64, 96), (61, 99), (5, 7), (33, 130)])
@pytest.mark.parametrize("shrink,row", [(1, False), (2, True), (3, True), (4, False)])
def test_the_predictor_is_the_model_on_the_whole_frame(shape, shrink, row):
    model = UNet(bands=1 + row, classes=3, widths=(4, 6, 8)).eval()
    whole = WholeFrame(model, shrink, row).eval()
    img = np.random.default_rng(0).integers(0, 256, (1, *shape)).astype("uint8")
    predict = torch_predictor(whole, ("a", "b", "c"), stretch=Stretch((0.0,), (255.0,)))
    p = frame_probs(predict, img, mirror=False)
    assert p.shape == (3, *shape) and np.allclose(p.sum(0), 1, atol=1e-5)
    pad = [(0, -n % predict.stride) for n in shape]
    x = torch.from_numpy(np.pad(img[0] / np.float32(255), pad, "edge"))[None, None]
    with torch.no_grad(): y = whole(x)[0].softmax(0)[:, :shape[0], :shape[1]]
    assert np.allclose(p, y, atol=1e-4)
    mirrored = frame_probs(predict, img[..., ::-1].copy())
    if shape[1] % (predict.stride * shrink) == 0: assert np.allclose(frame_probs(predict, img), mirrored[..., ::-1], atol=1e-4)


def test_what_is_learnt_at_a_quarter_is_answered_at_full_size():
    "A model that says what it sees: blocks as large as the shrink come back where they were"
    class Says(torch.nn.Module):
        def forward(self, x): return torch.cat([1 - x[:, :1], x[:, :1]], 1)
    m = maps((80, 120), block=8)
    found = frame_probs(torch_predictor(WholeFrame(Says(), 4, row=True), ("a", "b")), m[None].astype("float32"), mirror=False).argmax(0)
    assert (found == m).mean() > 0.93 # rounded corners


def test_bad_input_is_named():
    from planetlab.core import BadInput
    with pytest.raises(BadInput, match="shrink 0"): frames(shrink=0)
    with pytest.raises(BadInput, match="steps 0"): Crops(frames(), steps=0, generator=draw(0))
    with pytest.raises(BadInput, match="frame 0 holds NaN"):
        Frames([(np.full((1, 8, 8), np.nan, "float32"), np.zeros((8, 8), "uint8"))], tuple, Stretch((0.0,), (1.0,)), 1, False)[0]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.booleans(), st.integers(0, 99))
def test_features_never_look_at_invalid_pixels(bands, row, seed):
    rng = np.random.default_rng(seed)
    img, valid = rng.integers(0, 65536, (bands, 24, 37)), rng.random((24, 37)) > 0.3
    one, two = (pixel_features(np.where(valid, img, fill), valid, (1, 3), row) for fill in (0, 65535))
    assert list(one) == list(two) and len(set(one)) == len(one)
    for k in one: np.testing.assert_array_equal(one[k][valid], two[k][valid])


def test_trees_answer_only_classes_they_saw():
    m = maps(classes=2)
    samples = list(sample_pixels([(m[None] * 100, m)], tuple, 400, (1, 2), rng=np.random.default_rng(0)))
    trees = fit_pixels(samples, ("a", "b", "never"), scales=(1, 2), rounds=10, rng=np.random.default_rng(0))
    p = frame_probs(trees, m[None] * 100)
    assert (p.argmax(0) == m).mean() > 0.97 and p[2].max() < 1e-5
    y = np.where(np.arange(130) < 60, IGNORE, m).astype("uint8")
    assert not (np.concatenate([k for _, k in sample_pixels([(m[None], y)], tuple, 4000, (1,), rng=np.random.default_rng(0))]) == IGNORE).any()


def test_real_frames_become_crops():
    t = read_pairs(real("mars_rocks_marsdata"), problems=[])
    f = Frames([*t.head(3).itertuples()], read_pair, Stretch((0.0,) * 3, (255.0,) * 3))
    x, labels = next(iter(Crops(f, 64, 4, 1, generator=draw(0))))
    assert x.shape == (4, 4, 64, 64) and set(labels.unique().tolist()) <= {0, 1, IGNORE} and f[0][0].shape == (4, 125, 140)


@pytest.mark.parametrize("row", [True, False])
def test_a_saved_segmenter_is_a_predictor(tmp_path, row):
    torch.manual_seed(0)
    model, frame = Dilated(3 + row, 2, 4, (1, 2)).eval(), {"shrink": 2, "row": row}
    save_model(tmp_path / "m", model, {"classes": ("ground", "rock"), "frame": frame})
    again = predictor_of(tmp_path / "m")
    here = torch_predictor(WholeFrame(model, **frame), ("ground", "rock"), 3)
    x = np.random.default_rng(0).random((1, 3, 37, 50), dtype="float32")
    assert (again(x) == here(x)).all() and (again.bands, again.classes, again.whole) == (3, ("ground", "rock"), row)
    assert ensemble([again, here]).whole == averaged(again).whole == row
    assert load_model(tmp_path / "m", {"bands": 3})[1]["frame"] == frame
    img = np.random.default_rng(1).random((3, 90, 130), dtype="float32")
    scene, plan = scene_of(img), MapPlan(64, margin=again.radius or 8, ramp=4)
    if row:
        with pytest.raises(ModelMismatch, match="whole images only"): [*map_scene(scene, tmp_path / "map", again, plan=plan)]
        plan = MapPlan(256)
    for _ in map_scene(scene, tmp_path / "map", again, [values(again.classes)], plan=plan): pass
    with rasterio.open(tmp_path / "map" / "values.tif") as src: mapped = src.read()
    np.testing.assert_allclose(mapped, again(img[None])[0], atol=1e-5)
