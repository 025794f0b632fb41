"Dunes end to end: the pipeline on its own desert and on crops of Mars, the controls, real embeddings"
import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import rasterio
from conftest import execute, real
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score
from sklearn.model_selection import StratifiedKFold, cross_val_score

from planetlab.confusion import Judged, count_images
from planetlab.core import BadInput
from planetlab.dune_classes import CLASSES, COLORS
from planetlab.embeddings import open_embeddings
from planetlab.maps import map_scene
from planetlab.masks import IGNORE
from planetlab.models.segformer import Design, SegFormer
from planetlab.seams import MapPlan
from planetlab.text_controls import (Study, controls, found_unseen, judge_on, labelled_vectors, learn, linear_pixels, region_only, region_table, shuffled,
                                     summary, vector_predictor)
from planetlab.train import Recipe

BANDS = [f"A{i:02}" for i in range(64)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "The smoke preset on its own desert, and on a small field of crops that overlap by half"
    rng, mars = np.random.default_rng(0), tmp_path_factory.mktemp("mars")
    is_dune = gaussian_filter(rng.normal(size=(256, 512)), 20) > 0
    grey = np.where(is_dune, 128 + 60 * np.sin(np.arange(512) / 4), 128 + 20 * rng.normal(size=(256, 512))).clip(0, 255)
    for c in range(7):
        for r in range(3):
            for kind, img in (("images", grey), ("masks", 255 * is_dune)):
                (mars / kind).mkdir(exist_ok=True)
                Image.fromarray(img[r * 64:r * 64 + 128, c * 64:c * 64 + 128].astype("uint8")).save(mars / kind / f"{c}{r}.png")
    out = tmp_path_factory.mktemp("dunes") / "run"
    return out, execute("dunes_smoke", out, mars_dir=str(mars), mars_step_px=64, mars_shrink=2, test_dir=str(mars), mars_folds=2, held=[], text_seeds=1)


def test_the_pipeline_writes_its_record(run):
    out, metrics = run
    assert set(metrics["scores"]) == {"network", "oracle", "linear, averaged", "linear, per pixel", "commonest class"}
    assert metrics["n"]["judged"] == 8 and metrics["n"]["regions"] == 5 and metrics["n"]["mars chips"] == 8
    order = [metrics["scores"][w]["OA"]["value"] for w in ("commonest class", "linear, per pixel", "oracle")]
    assert order == sorted(order) and order[-1] > 0.9
    assert set(metrics["mars"]) == {*(f"{w}{t}" for w in ("from nothing", "from covered patches", "from the Earth", "all dune") for t in ("", ", test_dir")), "trees"}
    assert set(metrics["texts"]["trained and tested alike, mIoU"]["0"]) == {"true", "shuffled", "orthogonal"}


def test_the_map_keeps_the_ground_its_gaps_and_its_names(run):
    out, metrics = run
    for folder in (out / "maps").iterdir():
        source = next((out / "world").glob(f"*/{folder.name}.tif"))
        with rasterio.open(source) as a, rasterio.open(folder / "classes.tif") as b:
            assert (a.crs, a.transform, a.shape) == (b.crs, b.transform, b.shape)
            assert ((a.read(1) == -128) == (b.read(1) == b.nodata)).all() and b.nodata == IGNORE
            assert json.loads(b.tags(1)["classes"]) == list(CLASSES)
            assert "#{:02X}{:02X}{:02X}".format(*b.colormap(1)[3]) == COLORS["barchan"]
            counted = (b.read(1) != IGNORE).sum()
        assert sum(metrics["km2"][folder.name].values()) == pytest.approx(counted * 1e-4, rel=2e-3)


def some(seed=0, n=4, size=32, k=10):
    "Chips whose first bands say the class"
    rng, found = np.random.default_rng(seed), []
    for i in range(n):
        labels = np.kron(rng.integers(0, k, (4, 4)), np.ones((size // 4, size // 4))).astype("uint8")
        x = 3 * np.eye(64)[labels].transpose(2, 0, 1) + rng.normal(0, 0.1, (64, size, size))
        found.append(SimpleNamespace(pixels=(x / np.linalg.norm(x, axis=0)).astype("float32"), valid=np.ones((size, size), bool), labels=labels, region=f"r{i % 2}"))
    return found


def test_a_study_learns_judges_and_repeats(tmp_path):
    tiny = vars(Design((8, 16, 24, 32), (1, 1, 1, 1), (1, 1, 1, 2), 32))
    chips = some(n=3)
    study = Study(partial(SegFormer, text="prototypes", text_size=16, **tiny), chips[:2], chips[:1], chips[2:], CLASSES, Recipe(1, lr=1e-2, precision="no"), 32, 2, 3, states=tmp_path)
    texts = np.eye(10, 16, dtype="float32")
    (a, first), (b, again) = learn(study, texts, 0), learn(study, texts, 0)
    assert first == again and len(list(tmp_path.glob("*.pt"))) == 1 # the second was read back
    assert (judge_on(study, a).pixels == judge_on(study, b).pixels).all()
    hidden = int(np.bincount(chips[0].labels.ravel()).argmax())
    assert hidden not in study.frames(study.train, hidden)[0][1] and len(list(tmp_path.glob("*.pt"))) == 1
    learn(study, texts, 0, hidden)
    assert len(list(tmp_path.glob("*.pt"))) == 2
    assert vector_predictor(a, CLASSES).bands == 64


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 15), st.integers(0, 2**31))
def test_controls(k, seed):
    texts = np.random.default_rng(seed).normal(size=(k, 20)).astype("float32")
    given = controls(texts, rng=np.random.default_rng(seed))
    assert (given["shuffled"] != texts).any(1).all() and {tuple(r) for r in given["shuffled"]} == {tuple(r) for r in texts}
    np.testing.assert_allclose(given["orthogonal"] @ given["orthogonal"].T, np.eye(k), atol=1e-5)
    assert (shuffled(texts, rng=np.random.default_rng(seed)) == given["shuffled"]).all()


def test_scores_by_region_and_together():
    chips = some(1, 4)
    counts = count_images((Judged(str(i), c.region, c.labels, np.where(c.labels == 2, 3, c.labels), c.valid) for i, c in enumerate(chips)), CLASSES, tolerance_px=None)
    truth = np.concatenate([c.labels.ravel() for c in chips])
    assert summary(counts)["Kappa"] == pytest.approx(cohen_kappa_score(truth, np.where(truth == 2, 3, truth)))
    table = region_table(counts)
    assert list(table.columns) == ["r0", "r1"] and (table.loc["dome dune"].dropna() == 0).all() and (table.loc["star dune"].dropna() == 1).all()
    two = count_images([Judged("a", "r", np.array([[0, 1]]), np.array([[0, 1]]))], CLASSES, tolerance_px=None)
    assert summary(two) == {"OA": 1, "Kappa": 1, "mIoU": 1, "mF1": 1, "classes": 2} # absent classes are not zeros
    guess = list(region_only([("r", np.array([[3, 3, 255]])), ("q", np.array([[1, 1, 1]]))], [Judged("a", g, np.array([[3]]), None) for g in ("r", "q", "new")]))
    assert [int(g.predicted[0, 0]) for g in guess] == [3, 1, 1]


def test_an_unseen_class_is_ranked():
    logits, labels = np.random.default_rng(0).normal(size=(3, 4000)), np.random.default_rng(1).integers(0, 3, 4000)
    assert found_unseen(logits, labels, 1)["AUC"] == pytest.approx(0.5, abs=0.05)
    logits[1] += np.where(labels == 1, 9, -9)
    assert found_unseen(logits, labels, 1) == {"AUC": pytest.approx(1, abs=1e-3), "IoU": pytest.approx(1, abs=0.01)}
    with pytest.raises(BadInput): found_unseen(logits, np.full(4000, IGNORE), 1)


def test_real_embeddings_map_alike_in_bytes_and_in_floats(tmp_path):
    folder, rng = real("aef_wisconsin"), np.random.default_rng(0)
    with rasterio.open(folder / "aef64_exact_10m_float32.tif") as src: exact = src.read()
    y = (exact[0] > np.median(exact[0])).astype("uint8") + (exact[7] > np.median(exact[7])) # any three classes will do
    predict = linear_pixels(*labelled_vectors([0], lambda _: (exact, y), 3000, rng=rng), ("a", "b", "c"))
    for name, kind in (("float32", "aef64_exact_10m_float32"), ("int8", "aef64_exact_1m_int8")):
        for _ in map_scene(open_embeddings(folder / f"{kind}.tif"), tmp_path / name, predict, plan=MapPlan(size=64, margin=0, ramp=0)): pass
    with rasterio.open(tmp_path / "int8" / "classes.tif") as fine, rasterio.open(tmp_path / "float32" / "classes.tif") as coarse:
        a, b = fine.read(1), coarse.read(1)
    np.testing.assert_array_equal(a[5::10, 5::10], b) # the float cells lie at the middle of their blocks
    assert (b == y).mean() > np.bincount(y.ravel()).max() / y.size # more than the commonest of them


def test_real_labelled_vectors_by_region():
    table = pd.read_csv(real("aef_points") / "samples.csv")
    x, y = table[BANDS].to_numpy("float32"), table.dw_label.to_numpy()
    predict = linear_pixels(x, y, [str(i) for i in range(9)])
    assert (predict(x.T[None, :, :, None])[0, :, :, 0].argmax(0) == y).mean() > 0.75 # it has seen them
    within = cross_val_score(LogisticRegression(C=100, max_iter=300), x, y, cv=StratifiedKFold(4, shuffle=True, random_state=0)).mean()
    by_region = [np.mean(linear_pixels(x[t], y[t], [str(i) for i in range(9)])(x[~t].T[None, :, :, None])[0, :, :, 0].argmax(0) == y[~t])
                 for r in table.region.unique() for t in [(table.region != r).to_numpy()]]
    print(f"random folds {within:.3f}; region held out {np.mean(by_region):.3f} ({', '.join(f'{v:.3f}' for v in by_region)}), n = {len(y)}, chance {1 / 9:.3f}")
    assert 1 / 9 < np.mean(by_region) < within
