"Asking about crops: what is chosen, what is kept, what is taken back, and a desk worked without a screen"
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planetlab.asking import correct_crops
from planetlab.core import BadInput, CannotWrite, Corrupt, ModelMismatch
from planetlab.correct import (Photo, Regions, at_random, choose_crops, false_rock, find_regions, label_regions, least_sure, read_corrections,
                               undo_correction, write_correction)
from planetlab.pairs import IGNORE, read_pair
from planetlab.predictor import Predictor

NAMES = ("ground", "rock")
BRIGHT = Predictor(lambda x: np.concatenate([0.5 - x, x - 0.5], 1) * 8, 1, NAMES, radius=0) # rock where above 0.5
WHERE = ["row", "col", "height", "width"]


def photos(n=4, shape=(60, 80), seed=0):
    "Blocks of light and dark; doubtful where grey"
    rng = np.random.default_rng(seed)
    return [Photo(f"p{i}", f"sol {i // 2}", rng.choice([0, 0.4, 0.6, 1], (1, shape[0] // 10, shape[1] // 10)).repeat(10, 1).repeat(10, 2).astype("float32"),
                  rng.integers(0, 2, shape).astype("uint8")) for i in range(n)]


def chosen(n=5, size=24, of=None, score=None, **kwargs): return choose_crops(of or photos(), score or least_sure(BRIGHT), n, size, **kwargs)
def overlap(a, b): return a.row < b.row + b.height and b.row < a.row + a.height and a.col < b.col + b.width and b.col < a.col + a.width
def part(c): return slice(c.row, c.row + c.height), slice(c.col, c.col + c.width)


def answer(folder, crops, value=1, of=None):
    by = {p.id: p for p in of or photos()}
    return [write_correction(folder, by[c.id], c, np.full((c.height, c.width), value, "uint8"), NAMES) for c in crops.itertuples()]


@settings(deadline=None, max_examples=12)
@given(st.integers(1, 12), st.integers(1, 90), st.integers(1, 4), st.integers(0, 99))
def test_crops_do_not_overlap_and_come_in_order(n, size, most, seed):
    of = photos(3, (40, 50), seed)
    crops = chosen(n, size, of, most=most)
    assert len(crops) <= n and crops.score.is_monotonic_decreasing and (crops.id.value_counts() <= most).all()
    for c in crops.itertuples():
        p = {p.id: p for p in of}[c.id]
        assert c.row >= 0 <= c.col and c.row + c.height <= 40 and c.col + c.width <= 50 and c.group == p.group
        np.testing.assert_allclose(c.score, least_sure(BRIGHT)(p)[part(c)].mean(), rtol=1e-6)
    rows = list(crops.itertuples())
    assert not any(a.id == b.id and overlap(a, b) for i, a in enumerate(rows) for b in rows[:i])
    assert chosen(n, size, of, most=most).equals(crops)
    fewer = chosen(max(n // 2, 1), size, of, most=most)
    assert fewer.equals(crops[:len(fewer)]), "the first of many are the few"


def test_photos_are_taken_one_at_a_time():
    alive = []

    def stream():
        for p in photos(6):
            alive.append(p.id)
            yield p
    seen = []
    def score(p):
        seen.append(p.id)
        assert alive == seen
        return np.ones((60, 80))
    assert len(chosen(2, of=stream(), score=score)) == 2 and len(seen) == 6


def test_the_best_window_is_found():
    doubt = np.zeros((60, 80))
    doubt[24:48, 36:60] = 1
    c = chosen(1, of=photos(1), score=lambda p: doubt).iloc[0]
    assert (c.row, c.col, c.score) == (24, 36, 1)


def test_what_is_not_valid_is_neither_scored_nor_chosen():
    p = photos(1)[0]
    valid = np.zeros((60, 80), bool)
    valid[:, :30] = True
    poisoned = np.where(valid, p.img, np.nan).astype("float32")
    crops = chosen(99, of=[p._replace(img=poisoned, valid=valid)], most=99)
    assert len(crops) and (crops.col + crops.width / 2 <= 30).all() and np.isfinite(crops.score).all()
    for score in (least_sure(BRIGHT, "margin"), at_random(rng=np.random.default_rng(0))): assert np.isnan(score(p._replace(valid=valid))[:, 30:]).all()


def test_hard_negatives_are_confident_labelled_and_wrong():
    p = photos(1)[0]
    score = false_rock(BRIGHT, (1,), sure=0.9)(p._replace(labels=np.where(np.arange(80) < 20, IGNORE, p.labels)))
    assert np.isnan(score[:, :20]).all() and (score[:, 20:][(p.labels[:, 20:] == 1) | (p.img[0, :, 20:] < 1)] == 0).all() and score[:, 20:].max() > 0.9
    assert chosen(of=[p._replace(labels=None)], score=false_rock(BRIGHT, (1,))).empty
    assert chosen(of=[p._replace(labels=np.ones_like(p.labels))], score=false_rock(BRIGHT, (1,))).empty, "rock is no false rock"


def test_random_crops_are_a_matter_of_the_seed():
    a, b, c = (chosen(score=at_random(rng=np.random.default_rng(s))) for s in (0, 0, 1))
    assert a.equals(b) and not a.equals(c)


def test_what_cannot_be_chosen_from_is_refused():
    with pytest.raises(BadInput, match="two photos are called"): chosen(of=photos(1) * 2)
    with pytest.raises(BadInput, match="use 1 or more"): chosen(0)
    with pytest.raises(BadInput, match="entropy"): least_sure(BRIGHT, "doubt")


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 99), st.integers(1, 30), st.integers(1, 9))
def test_regions_have_one_class_and_numbers_without_gaps(seed, least_px, most):
    crop = chosen(1, 40, photos(2, seed=seed))
    if crop.empty: return
    c, p = crop.iloc[0], {p.id: p for p in photos(2, seed=seed)}[crop.id[0]]
    found = find_regions(BRIGHT, p, c, least_px=least_px, most=most)
    assert set(np.unique(found.ids)) - {0} == {*range(1, len(found.p) + 1)} and len(found.p) <= most
    for k, kind in enumerate(found.classes, 1):
        assert (found.ids == k).sum() >= least_px and ((p.img[0][part(c)] > 0.5)[found.ids == k] == kind).all()
    labels = label_regions(found, found.classes)
    assert ((labels == IGNORE) == (found.ids == 0)).all()


def test_answers_are_one_for_each_region():
    with pytest.raises(BadInput, match="give one each"): label_regions(Regions(np.zeros((2, 2), int), np.array([], int), np.array([])), [1])


@pytest.mark.parametrize("img", [np.zeros((1, 60, 80), "uint8"), np.zeros((3, 60, 80), "uint8") + 9, np.arange(4800, dtype="uint16").reshape(1, 60, 80), np.full((4, 60, 80), 700, "uint16")],
                         ids=lambda i: f"{i.dtype}-{len(i)}")
def test_answers_come_back_as_pairs(img, tmp_path):
    valid = np.arange(80) + np.zeros((60, 1)) < 30
    p, c = Photo("sol.12", "sol 12", img, valid=valid), pd.Series({"id": "sol.12", "row": 10, "col": 20, "height": 24, "width": 24})
    said = np.random.default_rng(0).choice([0, 1, IGNORE], (24, 24)).astype("uint8")
    name = write_correction(tmp_path, p, c, said, NAMES)
    table = read_corrections(tmp_path)
    pair = read_pair(table.iloc[0])
    assert list(table.id) == [name] and table.split[0] == "train" and table.group[0] == "sol 12" and table.frame[0] == "sol.12"
    assert (pair.img == img).all() and pair.img.dtype == img.dtype
    expected = np.full((60, 80), IGNORE)
    expected[10:34, 20:44] = said
    assert (pair.labels == np.where(valid, expected, IGNORE)).all()


def tidy():
    return [p._replace(img=(p.img * 255).astype("uint8")) for p in photos()]


SEES = replace(BRIGHT, fn=lambda x: BRIGHT.fn(x / 255))


def test_undo_takes_back_the_last_and_resume_goes_on(tmp_path):
    crops = choose_crops(tidy(), least_sure(SEES), 5, 24)
    assert undo_correction(tmp_path / "none") is None and read_corrections(tmp_path / "none").empty
    names = answer(tmp_path, crops, of=tidy())
    assert list(read_corrections(tmp_path).id) == names
    rest = choose_crops(tidy(), least_sure(SEES), 99, 24, 9, done=read_corrections(tmp_path))
    assert not any(a.id == b.id and overlap(a, b) for a in rest.itertuples() for b in crops.itertuples())
    for n in range(len(names), 0, -1):
        assert undo_correction(tmp_path) == names[n - 1] and list(read_corrections(tmp_path).id) == names[:n - 1]
    assert undo_correction(tmp_path) is None and not [*(tmp_path / "masks").glob("*.png"), *(tmp_path / "images").glob("*.png")]


def test_the_same_crop_answered_again_counts_once(tmp_path):
    crops = choose_crops(tidy(), least_sure(SEES), 2, 24)
    answer(tmp_path, crops, 1, tidy())
    answer(tmp_path, crops[:1], 0, tidy())
    table = read_corrections(tmp_path)
    assert len(table) == 2 and table.frame.iloc[-1] == crops.id[0] and read_pair(table.iloc[-1]).labels[part(crops.iloc[0])].max() == 0


def test_half_an_answer_is_none(tmp_path):
    crops = choose_crops(tidy(), least_sure(SEES), 2, 24)
    names = answer(tmp_path, crops, of=tidy())
    (tmp_path / "masks" / f"{names[1]}.png").unlink() # as if the machine had stopped before its last step
    assert list(read_corrections(tmp_path).id) == names[:1]
    assert answer(tmp_path, crops[1:], of=tidy()) == names[1:] and list(read_corrections(tmp_path).id) == names


def test_what_does_not_belong_is_refused(tmp_path):
    one, other = tidy()[:2]
    c = choose_crops([one], least_sure(SEES), 1, 24).iloc[0]
    nothing = np.zeros((24, 24), "uint8")
    for wrong, photo, crop, labels in (("another image", one, pd.Series({**c, "row": 50}), nothing), ("chosen from", other, c, nothing),
                                       ("wanted 0 to 1", one, c, nothing + 2), ("give each pixel one", one, c, nothing[1:]),
                                       ("without /", one._replace(id="../x"), pd.Series({**c, "id": "../x"}), nothing)):
        with pytest.raises(BadInput, match=wrong): write_correction(tmp_path, photo, crop, labels, NAMES)
    assert not [*tmp_path.iterdir()]
    write_correction(tmp_path, one, c, nothing, NAMES)
    with pytest.raises(BadInput, match="another image called"): write_correction(tmp_path, one._replace(img=255 - one.img), c, nothing, NAMES)
    with pytest.raises(ModelMismatch, match="use another folder"): write_correction(tmp_path, one, c, nothing, ("ground", "sky"))
    (tmp_path / "index.csv").write_text("name\n")
    with pytest.raises(Corrupt): read_corrections(tmp_path)


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite): answer(tmp_path / "file", choose_crops(tidy(), least_sure(SEES), 1, 24), of=tidy())


def desk(folder, n=3, read=None):
    pytest.importorskip("ipywidgets")
    box = correct_crops(choose_crops(tidy(), least_sure(SEES), n, 24), read or {p.id: p for p in tidy()}.get, SEES, folder, rock=(1,))
    return box.children[0], *box.children[1].children, {b.description: b for b in box.children[2].children}


def test_a_desk_keeps_what_is_said_and_goes_on_tomorrow(tmp_path):
    told, picture, menus, buttons = desk(tmp_path)
    assert "crop 1 of 3" in told.value and bytes(picture.value).startswith(b"\x89PNG")
    before = bytes(picture.value)
    for m in menus.children: m.value = IGNORE
    menus.children[0].value = 1
    assert bytes(picture.value) != before
    buttons["save"].click()
    assert "crop 2 of 3</b>, 1 answered" in told.value and set(np.unique(read_pair(read_corrections(tmp_path).iloc[0]).labels)) == {1, IGNORE}
    buttons["nothing here"].click()
    assert all(m.value == 0 for m in menus.children)
    buttons["next"].click()
    assert "crop 3 of 3" in told.value and len(read_corrections(tmp_path)) == 1
    assert "crop 2 of 3" in desk(tmp_path)[0].value
    buttons["undo"].click()
    assert "crop 1 of 3</b>, 0 answered" in told.value and read_corrections(tmp_path).empty


def test_a_desk_ends_and_comes_back(tmp_path):
    told, picture, menus, buttons = desk(tmp_path, 2)
    for _ in range(2): buttons["save"].click()
    assert "no crop left" in told.value and not menus.children and buttons["save"].disabled and not buttons["undo"].disabled
    buttons["undo"].click()
    assert "crop 2 of 2" in told.value and menus.children and not buttons["save"].disabled
    assert "crop 2 of 2" in desk(tmp_path, 2)[0].value


def test_a_desk_tells_what_went_wrong_and_loses_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    told, _, menus, buttons = desk(tmp_path / "file")
    n = len(menus.children)
    buttons["save"].click()
    assert "cannot write" in told.value and len(menus.children) == n
    with pytest.raises(BadInput, match="chosen from|by its id"): desk(tmp_path / "new", read=lambda id: tidy()[0]._replace(id="x"))
