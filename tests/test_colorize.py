"Colouring frames and files, judging them, and the pipeline: sizes, seams, bad files, intervals"
import json

import numpy as np
import pytest
import rasterio
import torch
from conftest import command_here, execute
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from planetlab.colorize import colorize, find_frames, iter_colorized, lightness
from planetlab.color_frames import color_predictor, color_product, find_colorizer
from planetlab.color_judged import METRICS, against, fit_baselines, judge_colors, score_frame
from planetlab.core import BadInput, EmptyTile, ModelMismatch
from planetlab.models.colorizer import Colorizer
from planetlab.models.sampling import is_synthetic
from planetlab.models.unet import UNet
from planetlab.predictor import Predictor
from planetlab.seams import MapPlan
from planetlab.share import save_model


def by_lightness(x): return np.concatenate([20 - x / 10, 30 - x / 10], 1).astype("float32")


RULE = Predictor(by_lightness, 1, ("a*", "b*"), radius=0, about={"model": "rule", "weights": "none"})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "A colorizer that has learned nothing, and has an opinion on everything"
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    net = Colorizer("tu-test_resnet", widths=[24, 16, 8]).eval()
    net.head.weight.data *= 1000 # of many minds, so that a seam would show
    save_model(folder, net, {"shrink": 4, "product": "raw"})
    return folder


def frame(h, w, seed=0): return (np.random.default_rng(seed).random((1, h // 8 + 1, w // 8 + 1)).repeat(8, 1).repeat(8, 2)[:, :h, :w] * 255).astype("uint8")


def test_a_full_frame_keeps_its_size_and_has_no_seams(model):
    "968 x 1296 px, not a multiple of 16 nor of the stride; whole and in tiles"
    predict, _ = find_colorizer(model)
    img, valid = frame(968, 1296), np.ones((968, 1296), bool)
    whole, tiled = (colorize(img, valid, predict, MapPlan(size=s, margin=128, ramp=64)) for s in (1300, 640))
    assert whole.shape == tiled.shape == (968, 1296, 3)
    a, b = (rgb2lab(v[::2, ::2]) for v in (whole, tiled))
    cut = rgb2lab(colorize(img, valid, predict, MapPlan(size=640, margin=0, ramp=0))[::2, ::2])
    assert (a[..., 1:].std((0, 1)) > 3).all() and deltaE_ciede2000(a, b).max() < 0.5 and deltaE_ciede2000(a, cut).max() > 10


@pytest.mark.parametrize("shape", [(1, 1), (2, 300), (63, 65), (130, 41)])
def test_any_shape_whole_or_tiled(shape):
    img, valid = frame(*shape), np.ones(shape, bool)
    whole, tiled = (colorize(img, valid, RULE, p) for p in (MapPlan(), MapPlan(size=48, margin=8, ramp=8)))
    assert whole.shape == (*shape, 3) and np.abs(whole.astype(int) - tiled).max() <= 1


def test_what_is_not_valid_has_no_say_and_no_colour(model):
    predict, _ = find_colorizer(model)
    img, valid = frame(70, 90), np.random.default_rng(1).random((70, 90)) > 0.2
    spoiled = np.where(valid, img, 255 - img)
    assert (colorize(img, valid, predict) == colorize(spoiled, valid, predict)).all() and not colorize(img, valid, predict)[~valid].any()
    assert not lightness(img, valid)[~valid].any()
    with pytest.raises(EmptyTile): colorize(img, ~valid & valid, predict)


def test_what_was_not_received_darkens_no_block(model):
    "A block half received looks to the network as one that was received whole, as it did while learning"
    predict, _ = find_colorizer(model)
    img, valid = np.full((1, 64, 64), 150, "uint8"), np.ones((64, 64), bool)
    holed = valid.copy()
    holed[:, 1::2] = False
    whole, half = (colorize(img, v, predict) for v in (valid, holed))
    assert (whole[holed] == half[holed]).all()
    assert np.abs(whole[holed].astype(int) - colorize(np.where(holed, img, 0), valid, predict)[holed]).max() > 3 # black pixels do


def test_a_frame_in_colour_is_known_by_its_valid_pixels(tmp_path):
    "12 bits, three bands, nodata 65535 over most of it"
    rng = np.random.default_rng(0)
    img = rng.integers(1000, 3000, (3, 40, 40)).astype("uint16")
    img[:, :30] = 65535
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", width=40, height=40, count=3, dtype="uint16", nodata=65535) as dst: dst.write(img)
    done, = iter_colorized([tmp_path / "a.tif"], tmp_path / "out", RULE)
    assert done.out is None and "in colour already" in done.note


def test_what_was_coloured_here_is_not_taken_for_a_frame(tmp_path):
    Image.fromarray(frame(9, 9)[0]).save(tmp_path / "a_colored.png") # somebody's name for a photograph
    (tmp_path / "cut.png").write_bytes(b"")
    frames = find_frames([tmp_path])
    done = list(iter_colorized(frames, tmp_path / "out", RULE))
    assert [d.failed for d in done] == [False, True] and done[0].out.exists() and find_frames([tmp_path]) == frames
    with pytest.raises(BadInput, match="no picture.*synthetic"): find_frames([tmp_path / "out"])


def test_depth_alpha_and_channels_change_nothing(tmp_path):
    img, alpha = frame(40, 50)[0], np.where(np.arange(50) < 20, 0, 255).astype("uint8")[None].repeat(40, 0)
    kinds = {"grey": img, "deep": img.astype("uint16") * 257, "three": np.dstack([img] * 3), "rgba": np.dstack([img, img, img, alpha]), "la": np.dstack([img, alpha])}
    for name, pixels in kinds.items(): Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    done = {d.path.stem: d for d in iter_colorized(find_frames([tmp_path]), tmp_path / "out", RULE)}
    seen = {name: np.asarray(Image.open(d.out)) for name, d in done.items()}
    for name in ("deep", "three"): assert (seen[name] == seen["grey"]).all()
    for name in ("rgba", "la"): assert (seen[name][:, 20:, :3] == seen["grey"][:, 20:]).all() and (seen[name][..., 3] == alpha).all()
    assert all("not measured" in Image.open(d.out).text["Description"] and is_synthetic(d.out) for d in done.values())


def test_a_batch_goes_on_past_what_it_cannot_do(tmp_path, model):
    good, colour = tmp_path / "good.png", tmp_path / "colour.png"
    Image.fromarray(frame(30, 40)[0]).save(good)
    Image.fromarray(np.dstack([frame(30, 40, i)[0] for i in range(3)])).save(colour)
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:60])
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.tif").write_bytes(b"")
    Image.fromarray(np.zeros((5, 5, 4), "uint8")).save(tmp_path / "clear.png")
    (tmp_path / "sub").mkdir()
    Image.fromarray(frame(1, 1)[0]).save(tmp_path / "sub" / "good.png")
    said = command_here("colorize", tmp_path, "--model", model, "--out", tmp_path / "out", cwd=tmp_path)
    assert said.returncode == 1 and "2 of 7 frames coloured" in said.stdout and "1 left alone, 4 could not be read" in said.stdout
    for name in ("cut.png", "text.jpg", "empty.tif", "clear.png"): assert name in said.stderr
    assert "colour.png" in said.stdout and "in colour already" in said.stdout
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["good_2_colored.png", "good_colored.png"]
    again = command_here("colorize", good, colour, "--model", model, "--out", tmp_path / "out", "--recolor", cwd=tmp_path)
    assert again.returncode == 0 and "replaced" in again.stdout and (tmp_path / "out" / "colour_colored.png").exists()


def test_what_cannot_be_begun_is_refused_in_words(tmp_path, model):
    Image.fromarray(frame(9, 9)[0]).save(tmp_path / "a.png")
    save_model(tmp_path / "unet", UNet(widths=[8, 16]), {"classes": ["sand", "rock"]})
    for args, code, word in (((tmp_path / "b.png", "--model", model), 2, "no such file"), ((tmp_path / "a.png", "--model", tmp_path / "none"), 2, "no such file or folder"),
                             ((tmp_path / "a.png", "--model", tmp_path / "unet"), 1, "says no colours"),
                             ((tmp_path / "a.png", "--model", model, "--product", "white-balanced"), 1, "'raw'")):
        said = command_here("colorize", *args, cwd=tmp_path)
        assert said.returncode == code and word in said.stderr and "Traceback" not in said.stderr
    with pytest.raises(ModelMismatch, match="says no colours"): color_predictor(UNet(widths=[8, 16]))
    with pytest.raises(ModelMismatch, match="says a"): colorize(frame(9, 9), np.ones((9, 9), bool), Predictor(by_lightness, 3, ("a", "b")))


def test_names_tell_what_was_done_to_colours():
    stem = "0003ML0000000110100031E01"
    found = {s: color_product(f"sub/{stem}{s}.JPG") for s in ("", "_DXXX", "_DRXX", "_DRLX", "_DRCX", "_DRCL")}
    assert list(found.values()) == ["raw", "raw", "calibrated", "calibrated", "white-balanced", "white-balanced"]
    assert color_product("ZL0_0038_0670307360_057ECM_N0031392ZCAM08007_1100LUJ.png") == "raw" and color_product("rock.png") == ""


def lab_frames(n, seed=0):
    "Frames whose colour follows the side they lie on, which lightness and row do not tell"
    rng = np.random.default_rng(seed)
    for _ in range(n):
        lab = torch.from_numpy(rng.uniform(30, 70, (3, 12, 16)).astype("float32"))
        lab[1], lab[2] = 20 * torch.sign(torch.arange(16) - 7.5), 10
        yield lab, torch.ones(12, 16, dtype=torch.bool)


def test_judgement_is_paired_by_sol_and_knows_the_better():
    train, test, rows = list(lab_frames(6)), list(lab_frames(12, 1)), []
    baselines = fit_baselines(train)
    assert list(baselines) == ["grey copy", "mean chroma", "by lightness and row", "nearest frame"]
    for i, (lab, valid) in enumerate(test):
        answers = {"right": lab[1:].numpy(), "off": lab[1:].numpy() + 3, **{n: say(lab[0].numpy(), valid.numpy()) for n, say in baselines.items()}}
        rows += score_frame(lab, valid, answers, f"frame {i}", f"sol {i // 3}")
    judged, versus = judge_colors(rows, 200, rng=np.random.default_rng(0)), against(rows, "right", draws=200, rng=np.random.default_rng(0))
    assert judged.value["right", "de00"] < 1e-3 and judged.value["right", "chroma_gap"] == 0 and (versus.high < 0).all() and (versus.lower == 1).all()
    assert judged.value["grey copy", "colorfulness"] < judged.value["right", "colorfulness"] == judged.value["off", "colorfulness_true"]
    assert (judged.n == judged.value.notna() * 12).all() and (judged.n_groups == 4).all() and set(judged.index.get_level_values(1)) == {*METRICS, "chroma_gap"}
    for by, r in versus.iterrows(): assert abs(r.difference - (judged.value["right", "de00"] - judged.value[by, "de00"])) < 1e-4
    assert judge_colors(rows, 200, rng=np.random.default_rng(0)).equals(judged)


def test_a_frame_without_valid_pixels_counts_nowhere():
    lab, valid = next(lab_frames(1))
    rows = score_frame(lab, valid, {"a": lab[1:].numpy() + 2}, "1", "x") + score_frame(lab, ~valid, {"a": lab[1:].numpy() + 50}, "2", "y")
    assert judge_colors(rows, 20, rng=np.random.default_rng(0)).value["a", "de00"] == pytest.approx(rows[0]["de00"], rel=1e-5)
    judged = judge_colors(score_frame(lab, ~valid, {"a": lab[1:].numpy()}, "1", "x"), 20, rng=np.random.default_rng(0))
    assert judged.value.isna().all() and (judged.n == 0).all() # not the best score there is
    with pytest.raises(BadInput, match="check the split"): fit_baselines([(lab, ~valid)])


def test_an_interval_holds_its_value_and_a_metric_nobody_has_is_told():
    rows = [r for i, (lab, valid) in enumerate(lab_frames(12, 1))
            for r in score_frame(lab, valid, {"a": lab[1:].numpy() + 2 * (i % 3), "b": lab[1:].numpy()}, f"frame {i}", f"sol {i // 3}")]
    judged = judge_colors(rows, 300, rng=np.random.default_rng(0)).dropna()
    assert judged.value.between(judged.low - 1e-6, judged.high + 1e-6).all()
    with pytest.raises(BadInput, match="no metric 'chroma'.*de00"): against(rows, "a", "chroma", rng=np.random.default_rng(0))
    assert against([r | {"lpips": np.nan} for r in rows], "a", "lpips", rng=np.random.default_rng(0)).empty


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "The smoke run, once"
    out = tmp_path_factory.mktemp("colorize") / "run"
    return out, execute("colorize_smoke", out)


def test_the_pipeline_judges_beside_four_baselines(made):
    out, metrics = made
    assert set(metrics["against"]["de00"]) == {"seed regression", "grey copy", "mean chroma", "by lightness and row", "nearest frame"}
    assert metrics["parameters of the models"]["seed regression"] == {"parameters": 3_674_804}
    assert {"de00", "lab_rmse", "psnr", "ssim", "colorfulness", "chroma_gap"} <= set(metrics["scores"]["bins"]) and metrics["coverage"]
    assert all({"value", "low", "high", "n"} <= set(v) for v in metrics["scores"]["bins"].values()) and metrics["n"]["sols"] >= 2
    assert metrics["elsewhere"] == {} and "white-balanced products" in metrics["summary"]
    assert {"examples.png", "de00.png", "against.png"} <= {p.name for p in out.iterdir()} and list((out / "colored").glob("*.png"))
    predict, about = find_colorizer(out / "model", product="white-balanced", head="bins")
    assert about["task"] == "colorize" and json.loads((out / "model" / "config.json").read_text())["args"]["temperature"] == float(min((tried := metrics["temperature on val"]), key=lambda k: tried[k]["de00"]))


def test_products_are_never_mixed(made, tmp_path):
    (tmp_path / "in").mkdir()
    for i, path in enumerate(sorted((next(made[0].glob("world_*")) / "calibrated").glob("*M[LR]*.JPG"))[:40]):
        (tmp_path / "in" / (path.name.replace("DRCL", "DXXX") if i % 2 else path.name)).write_bytes(path.read_bytes())
    with pytest.raises(BadInput, match="mixes .* frames, .* frames, which show one rock in different colours"): execute("colorize_smoke", tmp_path / "run", data_dir=str(tmp_path / "in"))


@pytest.mark.parametrize("given, word", [({"models": ["bin"]}, "did you mean 'bins'"), ({"wanted": "mast"}, "there are"), ({"shares": [1.0]}, "three above 0"), ({"crop": 2}, "8 or more")])
def test_parameters_that_make_no_sense_are_refused(tmp_path, given, word):
    with pytest.raises(BadInput, match=word): execute("colorize_smoke", tmp_path / "run", **given)
