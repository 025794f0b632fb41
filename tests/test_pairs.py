"Image and mask pairs: palettes, forms, defects, real sets"
import json
import warnings

import numpy as np
import pandas as pd
import pytest
from conftest import real
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from planetlab.catalog import check_split, deal_split
from planetlab.core import BadInput, Corrupt, ModelMismatch
from planetlab.masks import CLASSES, IGNORE, LUNAR_PALETTE, ROCK_ONLY, SEED_ORDER, decode_palette, decode_seed, encode_palette, remap_labels
from planetlab.instances import list_instances, to_metres
from planetlab.pairs import about_pairs, check_pairs, join_twins, read_boxes, read_pair, read_pairs, seed_split, write_pairs
from planetlab.worlds.rocks import MARTIAN, rock_frames, write_rocks

LAWS = settings(deadline=None, max_examples=30)
RAMP = np.arange(256)
some_labels = arrays("uint8", (5, 7), elements=st.sampled_from([0, 1, 2, 3, IGNORE]))


def intensities(k):
    "All 256 intensities of the colour of class `k`"
    return (np.array(LUNAR_PALETTE[k])[None, None] * RAMP[None, :, None] / 255).round().astype("uint8")


@pytest.fixture
def toy(tmp_path):
    "Six frames of noise with every class in them, and the truth"
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (6, 3, 40, 50), "uint8"), rng.integers(0, 4, (6, 40, 50)).astype("uint8")
    labels[:, 0, :3] = IGNORE
    write_pairs(tmp_path / "set", images, labels)
    return tmp_path / "set", images, labels


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("tolerance", [0, 1, 16, 127])
def test_every_intensity_of_every_colour(k, tolerance):
    "Full colour within the tolerance is its class, black within it is ground, all else is ignored"
    wanted = np.where(RAMP >= 255 - tolerance, k, np.where(RAMP <= tolerance, 0, IGNORE))
    assert (decode_palette(intensities(k), tolerance=tolerance)[0] == wanted).all()
    assert (decode_palette(intensities(k), tolerance=min(tolerance, 100), darkened=True)[0] == np.where(RAMP > min(tolerance, 100), k, 0)).all()


def test_seed_on_every_intensity():
    "The compatibility decoder, against the arithmetic written out pixel by pixel, and the failures that L4 lists"
    for k in (1, 2, 3):
        for v, got in zip(RAMP, decode_seed(intensities(k))[0]):
            step = int((0, 0.7154, 0.0721, 0.2125)[k] * (v / 255) // 0.07)
            assert got == {3: 2, 10: 3}.get(step, step)
    blue, green, red = (decode_seed(intensities(k))[0] for k in (2, 1, 3))
    assert (blue[:248] == 0).all() and (blue[248:] == 1).all()
    assert (red[85:168] == 1).all() and (red[:84] == 0).all()
    assert set(green[25:100]) == {1, 2} and set(green[100:250]) == {4, 5, 6, 7, 8, 9} and (green[250:] == 3).all()


def test_seed_ids_on_exact_colours():
    exact = np.array([LUNAR_PALETTE], "uint8")
    assert decode_seed(exact)[0].tolist() == [0, 3, 1, 2] # ground 0, small 3, large 1, sky 2
    assert remap_labels(decode_seed(exact), SEED_ORDER)[0].tolist() == [0, 1, 2, 3]


@LAWS
@given(some_labels)
def test_paint_and_read_back(labels):
    assert (decode_palette(encode_palette(labels)) == labels).all()
    assert (remap_labels(remap_labels(labels, np.argsort(SEED_ORDER)), SEED_ORDER) == labels).all()
    assert ((remap_labels(labels, ROCK_ONLY) == 1) == np.isin(labels, (1, 2))).all()


@LAWS
@given(arrays("uint8", (4, 6, 3)), st.integers(0, 127))
def test_decoding_is_the_nearest_colour(colours, tolerance):
    away = np.abs(colours[:, :, None].astype(int) - np.array(LUNAR_PALETTE)).max(-1)
    wanted = np.where(away.min(-1) <= tolerance, away.argmin(-1), IGNORE)
    assert (decode_palette(colours, tolerance=tolerance) == wanted).all()


@LAWS
@given(st.lists(some_labels, min_size=1, max_size=3))
def test_written_form_reads_back(tmp_path_factory, labels):
    here = tmp_path_factory.mktemp("law")
    images = [np.arange(35, dtype="uint8").reshape(1, 5, 7) + i for i in range(len(labels))]
    write_pairs(here, images, labels, darken=0.5)
    for masks in ("clean", "ground"):
        for row, img, ids in zip(read_pairs(here, masks).itertuples(), images, labels):
            pair = read_pair(row)
            assert (pair.img == img).all() and (pair.labels == ids).all()


def test_pairs_go_by_number_and_orphans_are_named(toy):
    folder, images, labels = toy
    (folder / "images/clean/clean0002.png").unlink()
    (folder / "images/render/render0005.png").unlink()
    (folder / "images/render/thumbnail.png").write_bytes((folder / "images/render/render0001.png").read_bytes())
    (folder / "images/render/notes.txt").touch()
    with pytest.warns(UserWarning, match="render0002.png has no mask"): table = read_pairs(folder)
    problems = []
    with warnings.catch_warnings(action="error"): read_pairs(folder, problems=problems)
    assert sorted(problems) == [("clean0005.png", "has no image"), ("render0002.png", "has no mask"), ("thumbnail.png", "has no number in its name")]
    assert table.number.tolist() == [1, 3, 4, 6]
    for row in table.itertuples():
        pair = read_pair(row)
        assert (pair.img == images[row.number - 1]).all() and (pair.labels == labels[row.number - 1]).all()


def test_nothing_left_is_an_error(toy):
    folder = toy[0]
    for p in (folder / "images/clean").iterdir(): p.unlink()
    with pytest.raises(BadInput, match="not one image"): read_pairs(folder)


def test_real_photographs_are_apart(toy):
    folder, images, labels = toy
    (folder / "real_moon_images").mkdir()
    for name in ("PCAM1", "TCAM12"):
        Image.fromarray(images[0].transpose(1, 2, 0)).save(folder / f"real_moon_images/{name}.png")
        Image.fromarray(encode_palette(labels[0])).save(folder / f"real_moon_images/g_{name}.png")
    (folder / "real_moon_images/g_TCAM12.png").rename(folder / "real_moon_images/g_TCAM13.png")
    problems = []
    table = read_pairs(folder, "ground", problems=problems)
    assert table.id[table.split == "real"].tolist() == ["PCAM1"] and len(problems) == 2
    assert (read_pair(table.iloc[-1]).labels == labels[0]).all()
    dealt = deal_split(table.assign(group=table.id), {"train": 0.5, "val": 0.5}, rng=np.random.default_rng(0))
    assert dealt.split.iloc[-1] == "real" and seed_split(table, 3, 2).split.tolist() == ["train"] * 3 + ["val"] * 2 + ["test", "real"]


def test_seed_split_of_the_whole_set():
    numbers = pd.DataFrame({"number": np.arange(1, 9767), "split": ""})
    assert seed_split(numbers).split.value_counts().to_dict() == {"train": 8000, "val": 1762, "test": 4}
    assert (seed_split(numbers[::2]).split == seed_split(numbers).split[::2]).all() # an incomplete copy has the same frames on each side


def test_splits_keep_groups_whole(toy):
    table = pd.DataFrame({"id": [f"render{n:04}" for n in range(1000)], "split": "", "number": range(1000)})
    for group in (table.id, (table.number // 100).astype(str)):
        t, again = (deal_split(table.assign(group=group), {"train": 0.8, "val": 0.1, "test": 0.1}, rng=np.random.default_rng(3)) for _ in range(2))
        check_split(t)
        assert (t.split == again.split).all() and abs((t.split == "train").mean() - 0.8) < 0.05


def test_near_copies_share_a_group(toy):
    folder = toy[0]
    for k in ("render", "clean"): (folder / f"images/{k}/{k}0006.png").write_bytes((folder / f"images/{k}/{k}0001.png").read_bytes())
    (folder / "images/render/render0003.png").write_bytes(b"gone")
    table = read_pairs(folder)
    joined = join_twins(table.assign(group=table.id))
    assert joined.group.tolist() == ["render0001", *table.id[1:5], "render0001"]


def test_check_names_every_bad_file_and_goes_on(toy):
    folder, images, labels = toy
    clean, render = folder / "images/clean", folder / "images/render"
    Image.fromarray(encode_palette(labels[0][:30])).save(clean / "clean0001.png")
    (clean / "clean0002.png").write_bytes((clean / "clean0002.png").read_bytes()[:200])
    (render / "render0003.png").write_bytes(b"")
    Image.fromarray(np.full((40, 50, 3), (90, 60, 30), "uint8")).save(clean / "clean0004.png")
    Image.fromarray(encode_palette(labels[0] * 0)).save(clean / "clean0005.png") # no rock: legal
    rows = pd.DataFrame(check_pairs(read_pairs(folder)))
    assert [p == "" for p in rows.problem] == [False] * 4 + [True] * 2
    for problem, said in zip(rows.problem, (r"clean0001.png is 50 x 30 px, its image render0001.png 50 x 40", "cannot read .*clean0002.png", "cannot read .*render0003.png",
                                            r"clean0004.png: 100.0% of its pixels .*\(90, 60, 30\) in 100.0%")):
        pytest.raises(ValueError, lambda p=problem: (_ for _ in ()).throw(ValueError(p))).match(said)
    assert rows.ground[4] == 1 and rows.ignored[5] == pytest.approx(3 / 2000)
    with pytest.raises(Corrupt): read_pair(read_pairs(folder).iloc[1])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("bands", [1, 3, 4])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_images_keep_their_counts(tmp_path, suffix, bands, dtype):
    import rasterio
    img = np.random.default_rng(0).integers(1, np.iinfo(dtype).max, (bands, 12, 9)).astype(dtype)
    if bands == 4: img[3, :2] = 0
    for k in ("images", "labels"): (tmp_path / k).mkdir()
    with warnings.catch_warnings(action="ignore"), rasterio.open(tmp_path / f"images/a{suffix}", "w", driver={".png": "PNG", ".tif": "GTiff"}[suffix], width=9, height=12, count=bands, dtype=dtype,
                                                                 **({"photometric": "RGB", "alpha": "YES"} if suffix == ".tif" and bands == 4 else {})) as dst: dst.write(img)
    Image.fromarray(np.eye(12, 9, dtype="uint8")).save(tmp_path / "labels/a.png")
    table = read_pairs(tmp_path, classes=("ground", "rock"))
    got = read_pair(table.iloc[0])
    assert got.img.dtype == dtype and (got.img == img[:3]).all() and table.form[0] == "ids"
    assert got.img.flags.writeable and got.img.flags.c_contiguous and got.labels.flags.writeable
    assert (got.labels == np.where(img[3] > 0, np.eye(12, 9), IGNORE) if bands == 4 else got.labels == np.eye(12, 9)).all()


def test_masks_in_other_dress(tmp_path):
    "One truth as ids, palette indices, 0 and 1, 0 and 255, black and yellow, JPEG"
    truth = np.kron(np.eye(6, 5, dtype="uint8"), np.ones((8, 8), "uint8"))
    for k in ("images", "masks"): (tmp_path / k).mkdir()
    Image.fromarray(truth).save(tmp_path / "images/a.png")
    indexed = Image.new("P", truth.shape[::-1])
    indexed.putpalette([9, 9, 9, 200, 0, 0])
    indexed.putdata(truth.ravel().tolist())
    yellow = truth[..., None] * np.uint8([255, 255, 0])
    dresses = {"ids": Image.fromarray(truth), "indexed": indexed, "bits": Image.fromarray(truth.astype(bool)), "binary": Image.fromarray(truth * np.uint8(255)), "grey": Image.fromarray(np.dstack([truth * np.uint8(255)] * 3))}
    for name, mask in dresses.items():
        mask.save(tmp_path / "masks/a.png")
        assert (read_pair(read_pairs(tmp_path, classes=("ground", "rock")).iloc[0]).labels == truth).all(), name
    Image.fromarray(yellow).save(tmp_path / "masks/a.png")
    for form in ("binary", "palette #000000 #ffff00"):
        assert (read_pair(read_pairs(tmp_path, classes=("ground", "rock"), form=form).iloc[0]).labels == truth).all()
    Image.fromarray(truth * np.uint8(255)).save(tmp_path / "masks/a.jpg", quality=60)
    (tmp_path / "masks/a.png").unlink()
    labels = read_pair(read_pairs(tmp_path, classes=("ground", "rock")).iloc[0], stray=0.5).labels
    assert (labels[labels != IGNORE] == truth[labels != IGNORE]).all() and (labels == IGNORE).mean() < 0.5
    with pytest.raises(BadInput, match="wanted ids, binary"): read_pair(read_pairs(tmp_path, classes=("ground", "rock"), form="coloured").iloc[0])
    Image.fromarray(truth.astype("float32")).save(tmp_path / "images/a.tif")
    (tmp_path / "images/a.png").unlink()
    with pytest.raises(BadInput, match="holds float32"): read_pair(read_pairs(tmp_path, classes=("ground", "rock")).iloc[0])


def test_an_index_tells_groups_and_splits(tmp_path):
    for k in ("images", "masks"): (tmp_path / k).mkdir()
    for n in "abc":
        for k in ("images", "masks"): Image.fromarray(np.zeros((8, 8), "uint8")).save(tmp_path / f"{k}/{n}.png")
    (tmp_path / "index.csv").write_text("name,group,split,site\na,east,train,1\nb,east,train,2\nz,west,test,3\n")
    problems = []
    t = read_pairs(tmp_path, classes=("ground", "rock"), problems=problems)
    assert problems == [("z", "is listed in index.csv and has no image")]
    assert t.group.tolist() == ["east", "east", "c"] and t.split.tolist() == ["train", "train", ""] and t.site.tolist()[:2] == ["1", "2"]


def test_the_mark_travels_into_a_saved_model(tmp_path, toy):
    from planetlab.models.dilated import Dilated
    from planetlab.share import load_model, save_model
    folder = toy[0]
    free = read_pairs(folder)
    (folder / "about.json").unlink()
    bound = read_pairs(folder)
    assert not about_pairs(free)["non_commercial"] and about_pairs(bound)["non_commercial"]
    mixed = about_pairs(pd.concat([free, bound[:1]]))
    save_model(tmp_path / "model", Dilated(1, 4, width=2), mixed)
    assert load_model(tmp_path / "model")[1]["licence"] == ["CC BY-NC-SA 4.0", "procedural, free to use"]
    with pytest.raises(ModelMismatch, match="non_commercial True"): load_model(tmp_path / "model", expect={"non_commercial": False})
    assert json.dumps(mixed)


def test_boxes_by_name(tmp_path):
    boxes = pd.DataFrame({"number": [3, 4], "left": [1.0, 2], "top": [5.0, 6], "width": [7.0, 8], "height": [9.0, 10]})
    write_pairs(tmp_path, [np.zeros((1, 8, 8), "uint8")], [np.zeros((8, 8), "uint8")], boxes=boxes[["top", "number", "height", "width", "left"]])
    pd.testing.assert_frame_equal(read_boxes(tmp_path / "bounding_boxes.csv"), boxes, check_dtype=False)
    (tmp_path / "b.csv").write_text("Frame,TopLeftCornerX,TopLeftCornerY,Length,Height\n1,2,3,4,\n")
    with pytest.raises(Corrupt, match="row 2"): read_boxes(tmp_path / "b.csv")


def test_mars_rocks():
    "The real Curiosity pairs, by sol"
    folder = real("mars_rocks_marsdata")
    table, index = read_pairs(folder), pd.read_csv(folder / "index.csv").set_index("name")
    assert len(table) == 85 and set(table.classes) == {"ground, rock"} and not about_pairs(table)["non_commercial"]
    assert (table.set_index("id").sol.astype(int) == index.sol.loc[table.id]).all() and (table.group == table.sol).all()
    rows = pd.DataFrame(check_pairs(table)).set_index("id")
    assert (rows.problem == "").all() and set(zip(rows.bands, rows.height, rows.width)) == {(3, 500, 560)}
    np.testing.assert_allclose(rows.rock, index.rock_fraction.loc[rows.index], atol=2e-4)
    dealt = check_split(deal_split(table, {"train": 0.8, "val": 0.2}, rng=np.random.default_rng(0)))
    assert 0.1 < (dealt.split == "val").mean() < 0.3


def test_lunar_rocks():
    "The real pairs cut from figures: ids, and one photograph of the real Moon"
    folder = real("lunar_rocks")
    table, index = read_pairs(folder), pd.read_csv(folder / "index.csv").set_index("name")
    assert len(table) == 25 and set(table.classes) == {", ".join(CLASSES)} and about_pairs(table)["non_commercial"]
    assert table.id[table.split == "real"].tolist() == ["real_PCAM5"]
    rows = pd.DataFrame(check_pairs(table)).set_index("id")
    assert (rows.problem == "").all()
    for ours, theirs in zip(CLASSES, ("background", "small_rock", "large_rock", "sky")):
        np.testing.assert_allclose(rows[ours], index[f"frac_{theirs}"].loc[rows.index], atol=2e-4)


def test_a_procedural_set_reads_itself(tmp_path):
    frames = [*rock_frames(3, MARTIAN, poses=2, size=(60, 90), rng=np.random.default_rng(4))]
    write_rocks(tmp_path, frames, "mars")
    table = read_pairs(tmp_path)
    assert table.group.tolist() == ["mars-0000", "mars-0000", "mars-0001"] and table.id.tolist() == ["mars00000", "mars00001", "mars00002"]
    assert set(table.classes) == {", ".join(CLASSES)} and not about_pairs(table)["non_commercial"]
    for row, f in zip(table.itertuples(), frames):
        img, labels = read_pair(row)
        assert (labels == f.labels).all() and (img == f.img).all()
        with Image.open(row.instances) as i, Image.open(row.ranges) as r: ids, range_m = np.asarray(i), np.asarray(r) / 100
        assert (ids == f.instances).all() and row.focal_px == f.camera.focal_px
        t = to_metres(list_instances(ids, labels), range_m=range_m, focal_px=row.focal_px).table
        assert len(t) == len(f.rocks) and (t.diameter_m > 0).all()
    with pytest.raises(BadInput, match="name the classes"):
        (tmp_path / "about.json").unlink()
        read_pairs(tmp_path)
    (tmp_path / "index.csv").write_text("file\nx\n")
    with pytest.raises(Corrupt, match="name or id"): read_pairs(tmp_path, classes=CLASSES)
