"Ten classes and their texts: order, length, files"
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planetlab.core import BadInput, ModelMismatch
from planetlab.dune_classes import CLASSES, COLORS, DUNES, Texts, centred, embed_texts, hashed_words, read_texts, write_texts


def unit(v): return v / np.linalg.norm(v, axis=1, keepdims=True)


def test_the_order_of_classes_is_frozen():
    assert CLASSES == ("plain", "sand sheet", "dome dune", "barchan", "barchanoid ridge", "transverse ridge", "linear dune", "reversing dune", "star dune", "parabolic dune")
    assert list(COLORS) == list(CLASSES) and all(d.text.endswith(".") for d in DUNES)


@settings(deadline=None, max_examples=15)
@given(st.permutations(range(10)))
def test_a_file_in_any_order_comes_back_in_the_order_of_the_classes(tmp_path_factory, order):
    path, texts = tmp_path_factory.mktemp("t") / "t.npz", embed_texts()
    write_texts(path, texts.order([CLASSES[i] for i in order]))
    back = read_texts(path)
    assert back.names == CLASSES and (back.vectors == texts.vectors).all() and back.encoder == "hashed words"


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**31), st.integers(3, 12), st.floats(0, 20))
def test_whitening_leaves_who_is_who_and_centring_takes_the_common_part(seed, k, common):
    rng = np.random.default_rng(seed)
    texts = Texts([f"c{i}" for i in range(k)], "drawn", unit(rng.normal(size=(k, 40)) + common * rng.normal(size=40)))
    off = ~np.eye(k, dtype=bool)
    np.testing.assert_allclose(centred(texts, whiten=True).cosines[off], -1 / (k - 1), atol=2e-2)
    assert centred(texts).cosines[off].mean() <= texts.cosines[off].mean() + 1e-5
    np.testing.assert_allclose(np.linalg.norm(centred(texts).vectors, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("vectors, why", [(np.ones((10, 8)), "length"), (np.eye(9, 16), "(9, 16)"), (np.full((10, 8), np.nan), "NaN"), (np.ones(10), "(10,)")])
def test_wrong_matrices_are_refused(vectors, why):
    with pytest.raises(BadInput, match=why.replace("(", r"\(").replace(")", r"\)")): Texts(CLASSES, "wrong", vectors)


def test_other_classes_are_refused(tmp_path):
    write_texts(tmp_path / "t.npz", Texts(("a", "b"), "x", np.eye(2, 4)))
    with pytest.raises(ModelMismatch, match="embed descriptions"): read_texts(tmp_path / "t.npz")


def test_any_encoder_will_do():
    texts = embed_texts(lambda t: 7 * hashed_words(t, 64), "seven times as long")
    assert texts.vectors.shape == (10, 64) and texts.encoder == "seven times as long"
    np.testing.assert_allclose(np.linalg.norm(texts.vectors, axis=1), 1, atol=1e-5)
