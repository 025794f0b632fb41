"Measures against plain arithmetic and other libraries, the seed's five decisions against a transcript, and laws that no image breaks"
import io
import zipfile

import numpy as np
import pandas as pd
import pytest
from conftest import real
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from skimage.measure import blur_effect, shannon_entropy

from planetlab.quality import (MEASURES, OURS, SEED, Limit, OneOf, apply_limits, blur, chroma, content_windows, entropy_bits, grey_of, measure, near_copies, quality_limits, seed_limits,
                               seed_measures, sharpness, tally_limits)

few = settings(max_examples=12, deadline=None)
NUMBERS = list(MEASURES[4:])


def scene(rng, h=48, w=64, bands=3):
    "Smooth structure with grain, bright enough to be no border"
    img = ndimage.gaussian_filter(rng.normal(0, 1, (bands, h, w)), (0, 3, 3)) * 200 + 120 + rng.normal(0, 6, (bands, h, w))
    return img.clip(15, 255).astype("uint8")


@given(st.integers(0, 999), st.sampled_from((1, 3)))
@few
def test_what_is_not_valid_is_never_looked_at(seed, bands):
    rng = np.random.default_rng(seed)
    images, valid = np.stack([scene(rng, bands=bands) for _ in range(2)]), np.ones((2, 48, 64), bool)
    for v in valid: v[rng.integers(0, 20):rng.integers(20, 48), rng.integers(0, 30):rng.integers(30, 64)] = False
    poisoned = [np.where(valid[:, None], images, p) for p in (np.uint8(0), np.uint8(255), rng.integers(0, 256, images.shape, "uint8"))]
    a, *others = (measure(p, valid) for p in poisoned)
    for b in others: pd.testing.assert_frame_equal(a, b)
    nan = np.where(valid[:, None], images.astype("float64"), np.nan)
    assert np.isfinite(measure(nan).entropy_bits).all()


@given(st.integers(0, 999))
@few
def test_an_image_is_measured_by_itself_and_mirrors_change_nothing(seed):
    rng = np.random.default_rng(seed)
    images = np.stack([scene(rng) for _ in range(3)])
    alone = pd.concat([measure(i[None]) for i in images], ignore_index=True)
    pd.testing.assert_frame_equal(measure(images), alone)
    np.testing.assert_allclose(measure(images[..., ::-1, :])[NUMBERS[:3]], alone[NUMBERS[:3]], rtol=1e-5)
    np.testing.assert_allclose(measure(images.astype("uint16") * 257)[NUMBERS], alone[NUMBERS], rtol=1e-6)


@given(st.integers(0, 999), *[st.integers(0, 12)] * 4)
@few
def test_the_box_is_the_picture_to_its_last_row_and_column(seed, top, bottom, left, right):
    img = scene(np.random.default_rng(seed))
    framed = np.pad(img, ((0, 0), (top, bottom), (left, right)))[None]
    assert content_windows(framed, np.ones((1, *framed.shape[2:]), bool)).tolist() == [[top, left, 48, 64]]
    hidden = np.ones((1, *framed.shape[2:]), bool)
    hidden[:, :top] = False
    assert content_windows(np.where(hidden[:, None], framed, 255), hidden)[0, 0] == top


def test_measures_agree_with_other_libraries():
    img = scene(np.random.default_rng(0))[None]
    grey, valid = grey_of(img), np.ones((1, 48, 64), bool)
    assert entropy_bits(grey, valid)[0] == pytest.approx(shannon_entropy(grey[0]), abs=1e-6)
    assert blur(grey, valid)[0] == pytest.approx(blur_effect(grey[0]), abs=1e-4)
    soft = grey_of(ndimage.gaussian_filter(img.astype("float32"), (0, 0, 3, 3)).astype("uint8"))
    assert blur(soft, valid)[0] > blur(grey, valid)[0] and sharpness(soft, valid)[0] < sharpness(grey, valid)[0]
    turned = img[:, [2, 0, 1]]
    assert chroma(turned, valid)[0] > 3 and chroma(img[:, :1].repeat(3, 1), valid)[0] < 0.01


def seed_decides(img, colour, side):
    "The seed's questions as its description has them, one image at a time"
    top = img.max(0).astype(float)
    rows, cols = (np.flatnonzero(top.mean(1 - a) > 80) for a in (0, 1))
    if not len(rows) or not len(cols): return "border"
    img = img[:, rows[0]:rows[-1], cols[0]:cols[-1]].astype(float)
    if min(img.shape[1:]) <= 16: return "border"
    if colour and ((img[0] - img[1]).mean() + (img[1] - img[2]).mean()) / 2 <= 3: return "colour"
    if min(img.shape[1:]) < side: return "side"
    grey = np.rint(0.299 * img[0] + 0.587 * img[1] + 0.114 * img[2])
    if shannon_entropy(grey) < 4.75: return "entropy"
    x = np.exp(-np.arange(-4, 5) ** 2 / (2 * 1.7**2))
    around = lambda a: ndimage.correlate(a, np.outer(x, x) / x.sum() ** 2, mode="mirror")
    return "sharpness" if np.median(around(grey**2) - around(grey) ** 2) < 15 else ""


@given(st.integers(0, 9999), st.floats(0.2, 1.6), st.integers(-12, 30), st.integers(0, 24), st.sampled_from((1.0, 0.4, 0.02)))
@settings(max_examples=40, deadline=None)
def test_the_seed_decides_as_it_is_described(seed, gain, red, border, contrast):
    img = scene(np.random.default_rng(seed)).astype(float)
    img = (img - img.mean()) * contrast + img.mean() * gain + np.array([red, 0, -red])[:, None, None] / 2
    img = np.pad(img.clip(0, 255).astype("uint8"), ((0, 0), (border, 0), (0, border)))
    for colour in (False, True):
        assert apply_limits(seed_measures(img[None]), seed_limits(colour, 32)).failed[0] == seed_decides(img, colour, 32)


def test_the_seeds_two_mistakes_and_what_we_say():
    img = scene(np.random.default_rng(3), 160, 160)
    dark, blue = (img * 0.25).astype("uint8"), np.stack([img[0] // 2, img[0] // 2 + 30, (img[0] // 2 + 60)]).astype("uint8")
    for frame, why in ((dark, "border"), (blue, "colour")):
        assert apply_limits(SEED.measure(frame[None]), SEED.limits(True, 128)).failed[0] == why
        assert apply_limits(OURS.measure(frame[None]), OURS.limits(False, 128)).kept[0]
    assert OURS.measure(blue[None]).chroma[0] > 1


@given(st.lists(st.tuples(st.floats(0, 10) | st.just(np.nan), st.sampled_from(["full", "thumbnail", "", None])), min_size=1, max_size=20))
@few
def test_kept_means_no_reason_and_counts_add_up(rows):
    t = pd.DataFrame(rows, columns=["x", "sample"])
    limits = (Limit("x", "x", 2, 8, "px"), OneOf("sample", "sample", ("full",)))
    judged, tally = apply_limits(t, limits), tally_limits(t, limits)
    assert ((judged.reason == "") == judged.kept).all() and ((judged.failed == "") == judged.kept).all()
    assert judged.kept.tolist() == [2 <= x <= 8 and s == "full" for x, s in rows]
    assert tally["first"].sum() == (~judged.kept).sum() and (tally.alone <= tally.fails).all() and (tally.n == len(t)).all()
    lifted = apply_limits(t, limits[1:])
    assert lifted.kept.sum() - judged.kept.sum() == tally.alone["x"]


@given(st.integers(0, 999))
@few
def test_of_copies_the_best_stays_and_none_remain(seed):
    rng = np.random.default_rng(seed)
    thumbs = rng.normal(0, 1, (8, 16))[rng.integers(0, 8, 60)] + rng.normal(0, 0.12, (60, 16))
    rank = rng.random(60)
    of = near_copies(thumbs, rank, 0.95)
    stays = of < 0
    unit = thumbs / np.linalg.norm(thumbs, axis=1, keepdims=True)
    alike = unit[stays] @ unit[stays].T
    assert (alike[~np.eye(len(alike), dtype=bool)] < 0.95).all() and stays[of[~stays]].all() and rank.argmax() in np.flatnonzero(stays)


def test_sixteen_bits_empty_batches_and_single_pixels_do_not_break():
    assert measure(np.zeros((0, 3, 20, 20), "uint8")).empty and seed_measures(np.zeros((0, 1, 20, 20), "uint8")).empty
    tiny = measure(np.full((1, 3, 1, 1), 200, "uint8"))
    assert tiny.side_px[0] == 1 and np.isnan(tiny.chroma[0]) and not apply_limits(tiny, quality_limits(True, 1)).kept[0]
    nothing = measure(np.full((1, 3, 30, 30), 200, "uint8"), np.zeros((1, 30, 30), bool))
    assert nothing.side_px[0] == 0 and nothing[NUMBERS[1:]].isna().all(axis=None)


def test_real_frames_have_colour_or_have_none():
    with zipfile.ZipFile(real("msl_curiosity_v1") / "images.zip") as z:
        for name in z.namelist()[::160]:
            img = np.asarray(Image.open(io.BytesIO(z.read(name))))
            found = measure(np.atleast_3d(img).transpose(2, 0, 1)[None]).iloc[0]
            assert found.chroma == 0 if img.ndim == 2 else found.chroma > 1, name
            assert found.side_px >= 0.9 * min(img.shape[:2])
