"Photographs: procedural, published, your own, hostile and twice there"
import os
import struct
import warnings
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import DATA, real
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from planetlab.catalog import check_split, deal_split, join_groups, split_groups
from planetlab.core import BadInput, Corrupt, ModelMismatch
from planetlab.datasets import MSL_CLASSES, count_images, measure_set, parse_msl, read_dataset, read_hirise, read_images, read_msl, write_toy_msl
from planetlab.folders import image_table, read_folder
from planetlab.images import centre_crop, read_image, squeeze, to_8bit
from planetlab.twins import feature_twins, hash_twins, pair_cosines, perceptual_hash, thumbnails
from planetlab.worlds.rover import CLASSES, LOOKS, rover_images

FAST = settings(max_examples=20, deadline=None)


@pytest.fixture(scope="module")
def rover(): return rover_images(1000, np.random.default_rng(2))


@pytest.fixture
def photo(rover): return rover[0][0].transpose(1, 2, 0)


@pytest.fixture
def folder(tmp_path, rover):
    for i, img in enumerate(rover[0][:20]): Image.fromarray(img.transpose(1, 2, 0)).save(tmp_path / f"{i:02}.png")
    return tmp_path


# The rover world

@given(st.integers(1, 60), st.integers(0, 2**32 - 1), st.sampled_from([16, 33, 128]))
@settings(max_examples=4, deadline=None)
def test_one_seed_gives_one_mission(n, seed, size):
    (images, table), (again, same) = (rover_images(n, np.random.default_rng(seed), size) for _ in "ab")
    assert images.shape == (n, 3, size, size) and images.dtype == np.uint8
    assert np.array_equal(images, again) and table.equals(same)
    assert table.id.is_unique and (table.name == [CLASSES[i] for i in table.label]).all()
    assert (table.groupby("sequence")[["group", "name", "instrument"]].nunique() == 1).to_numpy().all()
    assert table.name.tolist() == [LOOKS[look][0] for look in table["look"]]


def test_the_rover_world_is_hard_in_the_way_real_archives_are(rover):
    images, table = rover
    check_split(table)
    assert set(table.name) == set(CLASSES) and set(table.instrument) == {"mastcam", "navcam"} and set(table["look"]) == set(LOOKS)
    assert set(table.name[table.split == "train"]) == set(CLASSES)
    pixels = PCA(50, random_state=0).fit_transform(images[:, :, ::2, ::2].reshape(len(images), -1) / 255.0)
    found = KMeans(5, n_init=3, random_state=0).fit_predict(pixels)
    purity = pd.crosstab(found, table.label).max(axis=1).sum() / len(table)
    assert 0.35 < purity < 0.8, purity # neither solved by colours, nor hopeless
    assert 0.45 < measure_set(table)["accuracy_of_group_alone"] < 0.9 # a random split leaks
    share = pd.crosstab(table.split, table.name, normalize="index")
    assert (share.max() - share.min()).max() > 0.1 # and the mix shifts
    grey = (images[:, 0] == images[:, 2]).all((1, 2))
    assert (grey == (table.instrument == "navcam")).all()


def test_frames_of_a_burst_are_near_copies(rover):
    images, table = rover
    z, number = thumbnails(images), pd.factorize(table.sequence)[0]
    following = np.flatnonzero(np.diff(number) == 0)
    within = pair_cosines(z, np.c_[following, following + 1])
    strangers = pair_cosines(z, np.c_[np.arange(500), np.arange(500) + 500])
    assert np.median(within) > 0.8 and np.median(strangers) < 0.5
    assert (images[following] != images[following + 1]).any((1, 2, 3)).all()


@pytest.mark.parametrize("n, size", [(0, 64), (5, 8)])
def test_no_rover_without_images(n, size):
    with pytest.raises(BadInput): rover_images(n, np.random.default_rng(0), size)


# Published sets

def test_a_toy_set_comes_back_with_its_25_ids(tmp_path):
    written = write_toy_msl(tmp_path, 900, rng=np.random.default_rng(0), size=16)
    with open(tmp_path / "val-calibrated-shuffled.txt", "a") as f: f.write(f"{written.file[0]} 22\n") # the class that has no image
    table = check_split(read_msl(tmp_path))
    back = table.set_index("id").loc[[Path(f).name for f in written.file]]
    assert [MSL_CLASSES[i] for i in written.class_id] == back.name.tolist() and back.split.tolist() == written.split.tolist()
    assert len(table) == 900 and (back.label == [i - (i > 22) for i in written.class_id]).all()
    assert set(written.class_id) <= set(range(25)) - {22} and len(set(written.class_id)) > 18 and table.label.max() == 23
    assert (table.sequence == table.id.str[:12]).all() and (table.sol == table.group.astype(int)).all()
    assert read_images(table[:5], 16).shape == (5, 3, 16, 16)


def lists(folder, counts):
    "The published form with empty images"
    names = iter(f"{i // 7 + 1:04}ML{i // 7:06}{i:010}E01_DRCL.JPG" for i in range(10**6))
    with zipfile.ZipFile(folder / "images.zip", "w") as z:
        for split, n in zip(("train", "val", "test"), counts):
            here = [f"calibrated/{next(names)}" for _ in range(n)]
            for f in here: z.writestr(f, b"")
            (folder / f"{split}-calibrated-shuffled.txt").write_text("".join(f"{f} {i % 22}\n" for i, f in enumerate(here)))
    (folder / "msl_synset_words-indexed.txt").write_text("".join(f"{i}                {c}\n" for i, c in enumerate(MSL_CLASSES)))


@pytest.mark.parametrize("counts, whole", [((3746, 1640, 1305), True), ((3746, 1639, 1305), False), ((30, 20, 10), True), ((0, 1640, 1305), False)])
def test_published_counts_are_insisted_on_for_the_published_set(tmp_path, counts, whole):
    lists(tmp_path, counts)
    if whole: assert tuple(read_msl(tmp_path).split.value_counts()[["train", "val", "test"]]) == counts
    else:
        with pytest.raises(Corrupt, match="one of them was cut"): read_msl(tmp_path)


@pytest.mark.parametrize("break_it, said", [
    (lambda f: (f / "test-calibrated-shuffled.txt").unlink(), "cannot read"),
    (lambda f: (f / "msl_synset_words-indexed.txt").write_text("0 apxs\n"), "names 1 classes"),
    (lambda f: (f / "val-calibrated-shuffled.txt").write_bytes(b"\xff\xfe\x00"), "cannot read"),
    (lambda f: (f / "val-calibrated-shuffled.txt").write_text("calibrated/0001ML0000000000000001E01_DRCL.JPG 25\n"), "class id 25"),
    (lambda f: (f / "images.zip").write_bytes(b"PK, and then the line went dead"), "should be a zip archive")])
def test_a_damaged_published_set_is_named(tmp_path, break_it, said):
    lists(tmp_path, (30, 20, 10))
    break_it(tmp_path)
    with pytest.raises(Corrupt, match=said): read_msl(tmp_path)


def test_curiosity_as_shared():
    table = check_split(read_msl(real("msl_curiosity_v1")))
    assert table.split.value_counts().to_dict() == {"train": 3745, "val": 1639}
    assert sorted(set(table.label)) == list(range(24)) and "sun" not in set(table.name)
    said = pd.read_csv(DATA / "msl_curiosity_v1" / "labels.csv").set_index("filename").loc[table.id]
    assert (said.sol.to_numpy() == table.sol).all() and (said.camera.to_numpy() == table.instrument).all() and (said.class_name.to_numpy() == table.name).all()
    images = read_images(table[::300], 32)
    assert images.shape == (18, 3, 32, 32) and images.std((1, 2, 3)).min() > 1
    assert 0.8 < measure_set(table)["accuracy_of_group_alone"] < 0.87 # a rule that reads only the sol


def test_hirise_as_shared():
    folder = real("hirise_landmarks")
    table, everything = read_hirise(folder), read_hirise(folder, copies=True)
    assert len(everything) == 1078 and len(table) == 1066 and (count_images(table).images["impact ejecta"], table.label.nunique()) == (1, 8)
    said = pd.read_csv(folder / "labels.csv").set_index("filename").loc[table.id]
    assert (said.observation.to_numpy() == table.group).all() and (said.augmentation == "none").all()
    split = split_groups(table.group, {"train": 0.6, "val": 0.4}, rng=np.random.default_rng(0))
    assert len(check_split(table.assign(split=split))) == 1066
    assert read_images(table[:3], 64).shape == (3, 3, 64, 64)


def test_names_of_curiosity():
    assert parse_msl("0003ML0000000110100031E01_DRCL.JPG") == {"sol": 3, "instrument": "Mastcam-Left", "sequence": "0003ML000000", "product": "0003ML0000000110100031"}


# Any folder

def test_folders_and_archives_give_the_same_table(folder, photo):
    (folder / "Größe ✓").mkdir()
    Image.fromarray(photo).save(folder / "Größe ✓" / "2013-02-01 火星.png")
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_text("nor this")
    with zipfile.ZipFile(folder.parent / f"{folder.name}.zip", "w") as z:
        for p in sorted(folder.rglob("*.*")): z.write(p, p.relative_to(folder))
        z.writestr("../out.png", (folder / "00.png").read_bytes())
    loose, packed = read_folder(folder, names=True), read_folder(folder.parent / f"{folder.name}.zip", names=True)
    assert len(loose) == 21 and loose.iloc[-1][["name", "group"]].tolist() == ["Größe ✓", "2013-02-01"]
    assert packed.id.tolist() == loose.id.tolist() and packed.group.tolist() == loose.group.tolist() # what climbs out is left out
    assert np.array_equal(read_images(loose, 24), read_images(packed, 24)) and not (folder.parent / "out.png").exists()


def put(folder, photo, *names):
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.roll(photo, i, 0)).save(folder / name)
    return folder


CAMERA = [f"{c}/{i}.png" for c in ("Stein ✓", "песок") for i in range(4)]


@pytest.mark.parametrize("names, kinds, splits, warned", [
    (CAMERA, {"Stein ✓", "песок"}, {""}, "read as 2 classes"),
    ([f"set/{n}" for n in CAMERA], {"Stein ✓", "песок"}, {""}, "read as 2 classes"),
    ([f"Train/{n}" for n in CAMERA] + [f"valid/{n}" for n in CAMERA], {"Stein ✓", "песок"}, {"train", "val"}, "read as 2 classes"),
    ([f"train/{i}.png" for i in range(4)] + [f"test/{i}.png" for i in range(4)], {""}, {"train", "test"}, None),
    ([f"{s}/2015-01-0{d}_{i}.png" for s in ("train", "val") for d in (1, 2) for i in range(2)], {""}, {""}, "share 2 of 2 groups"),
    ([f"sol {s}/{i}.png" for s in (7, 12) for i in range(4)], {""}, {""}, None),
    ([f"000{s}/{i}.png" for s in (7, 9) for i in range(4)], {""}, {""}, None),
    ([f"{i}/a.png" for i in "xyz"], {""}, {""}, None),
    (["1.png", "a/2.png", "a/3.png", "b/1.png", "b/2.png"], {""}, {""}, None)])
def test_what_folders_are_named_for(tmp_path, photo, names, kinds, splits, warned):
    put(tmp_path, photo[:8, :8], *names)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        table = read_dataset(tmp_path)
    assert [set(table.name), set(table.split), len(table)] == [kinds, splits, len(names)]
    assert len(told) == bool(warned) and (not warned or warned in str(told[0].message))
    if "sol" in names[0] or names[0][0] == "0": assert table.group.nunique() == 2
    assert check_split(deal_split(table, {"train": 0.5, "val": 0.5}, 1, rng=np.random.default_rng(0))).split.ne("").all() or splits != {""}
    with warnings.catch_warnings(action="ignore"): told_so, told_not = (read_folder(tmp_path, names=said) for said in (True, False))
    assert told_so.name.tolist() == [Path(i).parent.name for i in told_so.id] and set(told_not.name) == {""}


@given(rows=st.lists(st.tuples(st.sampled_from(["Krater", "дюна", "a,b", ""]), st.sampled_from(["7", "12", "2015-01-02", ""])), min_size=1, max_size=8),
       form=st.sampled_from([("label", ".csv"), ("class", ".tsv"), ("name", ".parquet")]))
@FAST
def test_a_table_of_your_own_comes_back(tmp_path_factory, rows, form):
    folder = tmp_path_factory.mktemp("own")
    files = [f"фото/{i}.png" for i in range(len(rows))]
    put(folder, np.zeros((4, 4, 3), "uint8"), *files)
    given_ = pd.DataFrame({"filename": [f.replace("/", "\\") for f in files], form[0]: [n or None for n, _ in rows], "sol": [g or None for _, g in rows], "note": "x"})
    if form[1] == ".parquet": given_.to_parquet(folder / "labels.parquet")
    else: given_.to_csv(folder / f"labels{form[1]}", index=False, sep="\t" if form[1] == ".tsv" else ",", encoding="utf-8-sig")
    table = read_dataset(folder / f"labels{form[1]}")
    assert table.id.tolist() == files and table.name.tolist() == [n for n, _ in rows]
    assert table.group.tolist() == [g or f for f, (_, g) in zip(files, rows)] and (table.label >= 0).tolist() == [bool(n) for n, _ in rows]
    assert (table.groupby("name").label.nunique() == 1).all() and "note" in table and all(Path(p).is_file() for p in table.path)
    if form[1] == ".csv": assert read_dataset(folder).equals(table)


def test_a_set_of_stamps_alone(tmp_path, photo):
    stamps = [f"2014-11-0{d}T12:0{i}:00Z" for d in (3, 4) for i in range(3)]
    put(tmp_path, photo, *(f"images/{i}.jpg" for i in range(6)))
    (tmp_path / "labels.csv").write_text("image,timestamp,label\n" + "".join(f"{i}.jpg,{t},{i % 2 if i else ''}\n" for i, t in enumerate(stamps)))
    table = read_dataset(tmp_path)
    assert table.group.tolist() == ["2014-11-03"] * 3 + ["2014-11-04"] * 3 and table.label.tolist() == [-1, 1, 0, 1, 0, 1] and table.name[:2].tolist() == ["", "class 1"]
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as z:
        for i in range(6): z.write(tmp_path / "images" / f"{i}.jpg", f"{i}.jpg")
    assert np.array_equal(read_images(read_dataset(tmp_path), 16), read_images(table, 16))


@pytest.mark.parametrize("text, error, said", [
    ("", Corrupt, "should be a table"), ("path,label\n", BadInput, "0 rows"), ("photo,label\n0.png,1\n", BadInput, "wanted `path`"), ("path,label\n,1\n", BadInput, "wanted `path`"),
    ("path,label\nno.png,1\n", Corrupt, "correct the list"), ("path,label\n0.png,1\n0.png,1\n", BadInput, "ids repeat"), ("path,label,class\n0.png,1,a\n1.png,1,b\n", BadInput, "one number, one name"),
    (b"\xff\xfe\x00\x01", Corrupt, "should be a table")])
def test_tables_that_cannot_be_read(tmp_path, photo, text, error, said):
    put(tmp_path, photo, "0.png", "1.png")
    (tmp_path / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(error, match=said): read_dataset(tmp_path)


def test_sets_that_lie_deeper_are_found(tmp_path):
    write_toy_msl(tmp_path / "msl-images" / "msl-images", 40, rng=np.random.default_rng(0), size=16)
    (tmp_path / "msl-images.zip").touch() # what it was unpacked from
    (tmp_path / ".msl-images.partial").mkdir()
    (tmp_path / ".msl-images.partial" / "labels.csv").touch() # a kill's remains are not looked at
    assert len(read_dataset(tmp_path)) == 40 and read_dataset(tmp_path).sol.min() >= 0
    (tmp_path / "labels.csv").write_text("path\nmsl-images.zip\n")
    assert len(read_dataset(tmp_path)) == 1 # what lies nearest wins


def test_a_folder_of_one_day_is_dealt_with_a_warning(tmp_path, photo):
    table = read_folder(put(tmp_path, photo, *(f"2014-11-03T{i:04}.png" for i in range(60))))
    with pytest.warns(UserWarning, match="1 group.*'2014-11-03', with 60.*runs of neighbouring names.*labels.csv"): dealt = deal_split(table, {"train": 0.7, "val": 0.3}, rng=np.random.default_rng(0))
    check_split(dealt)
    assert abs((dealt.split == "train").mean() - 0.7) < 0.1 and (dealt.split != dealt.split.shift()).sum() <= 20 # runs, not single images
    assert dealt.drop(columns=["split", "group"]).equals(table.drop(columns=["split", "group"]))
    bursts = table.assign(sequence=[f"b{i // 4}" for i in range(60)])
    with pytest.warns(UserWarning, match="Dealt by bursts"): dealt = deal_split(bursts, {"train": 0.7, "val": 0.3}, rng=np.random.default_rng(0))
    assert (dealt.groupby("sequence").split.nunique() == 1).all()
    with pytest.raises(BadInput, match="1 group.*finer groups"): deal_split(table[:1], {"train": 0.7, "val": 0.3}, rng=np.random.default_rng(0))


@given(st.lists(st.integers(0, 30), min_size=1, max_size=80), st.sampled_from([0.0, 0.5, 1.0]), st.integers(0, 9))
@FAST
def test_any_table_is_dealt_whole_or_refused(groups, published, seed):
    rng = np.random.default_rng(seed)
    kept = {g: rng.choice(["train", "val", "test"]) if rng.random() < published else "" for g in set(groups)}
    table = pd.DataFrame({"id": [f"{i:03}" for i in range(len(groups))], "group": [str(g) for g in groups], "split": [kept[g] for g in groups]})
    with warnings.catch_warnings(action="ignore"):
        try: dealt = deal_split(table, {"train": 0.7, "val": 0.3}, rng=np.random.default_rng(0))
        except BadInput: return
        again = deal_split(table, {"train": 0.7, "val": 0.3}, rng=np.random.default_rng(0))
    check_split(dealt)
    assert dealt.equals(again) and set(dealt.split) <= {"train", "val", "test"} and (dealt.split == table.split)[table.split != ""].all()


def test_one_image_and_none(tmp_path, photo):
    with pytest.raises(BadInput, match="no images"): read_folder(tmp_path)
    with pytest.raises(Corrupt): read_folder(tmp_path / "nowhere")
    Image.fromarray(photo).save(tmp_path / "one.png")
    table = read_folder(tmp_path)
    images = read_images(table, 64)
    assert np.array_equal(images[0].transpose(1, 2, 0), photo) and measure_set(table)["images"] == 1
    assert len(feature_twins(thumbnails(images))) == 0
    with pytest.raises(BadInput): split_groups(table.group, {"train": 0.6, "val": 0.4}, rng=np.random.default_rng(0))
    with pytest.raises(BadInput): image_table(pd.DataFrame({"path": []}))
    with pytest.raises(BadInput): read_images(table[:0], 64)


def test_identical_images_are_one(photo):
    images = np.repeat(photo.transpose(2, 0, 1)[None], 3000, 0)
    for pairs in (hash_twins(perceptual_hash(images)), feature_twins(thumbnails(images))):
        assert len(pairs) < 32 * 3000 and join_groups(range(3000), pairs).max() == 0
    with pytest.raises(BadInput): split_groups(join_groups(range(3000), pairs), {"train": 0.6, "val": 0.4}, rng=np.random.default_rng(0))


# Pixels

FORMATS = {"png": "1 L P LA RGB RGBA I;16", "tif": "1 L P LA RGB RGBA CMYK YCbCr I F I;16", "jpg": "1 L RGB CMYK YCbCr", "webp": "L RGB RGBA",
           "bmp": "1 L P RGB RGBA", "gif": "1 L P RGB"}


@pytest.mark.parametrize("suffix, mode", [(s, m) for s, modes in FORMATS.items() for m in modes.split()])
def test_every_mode_shows_the_same_picture(tmp_path, photo, suffix, mode):
    pic = Image.fromarray(photo)
    img = Image.fromarray(np.asarray(pic.convert("L")).astype("uint16") * 257) if mode == "I;16" else pic.quantize(200) if mode == "P" else pic.convert(mode)
    img.save(tmp_path / f"x.{suffix}")
    back = read_image(tmp_path / f"x.{suffix}")
    assert back.shape == photo.shape and back.dtype == np.uint8
    grey = np.asarray(img.convert("L") if mode == "1" else pic.convert("L"), float)
    assert np.corrcoef(back.mean(2).ravel(), grey.ravel())[0, 1] > 0.97


@given(arrays(st.sampled_from(["uint8", "uint16", "int16", "int32", "float32", "bool"]), (4, 5)))
@FAST
def test_8_bits_keep_the_order_of_counts(counts):
    out, finite = to_8bit(counts), np.isfinite(counts.astype(float))
    assert out.dtype == np.uint8 and (out[~finite] == 0).all()
    order = np.argsort(counts[finite].astype(float), kind="stable")
    assert (np.diff(out[finite][order].astype(int)) >= 0).all() # nothing wraps


@pytest.mark.parametrize("make", ["png", "jpg", "gif", "tif", "webp", "bmp"])
@given(cut=st.floats(0, 1), flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=3))
@FAST
def test_damage_is_corrupt_or_an_image(tmp_path_factory, make, cut, flips):
    path = tmp_path_factory.getbasetemp() / f"damaged.{make}"
    buffer = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 20, 3), "uint8")).save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(make, make.upper()))
    raw = bytearray(buffer.getvalue())
    for at, value in flips: raw[int(at * (len(raw) - 1))] = value
    path.write_bytes(raw[:int(cut * len(raw))] if cut < 0.9 else raw)
    with warnings.catch_warnings(action="ignore"):
        try: img = read_image(path, most_px=10**6)
        except Corrupt as e: assert "damaged" in str(e)
        else: assert img.ndim == 3 and img.shape[2] == 3 and img.dtype == np.uint8


def bomb(side):
    "A PNG whose header promises a picture that would fill the memory"
    def chunk(kind, data): return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def test_bombs_are_refused_before_they_are_decoded(tmp_path):
    for side in (10_000, 100_000):
        (tmp_path / "bomb.png").write_bytes(bomb(side))
        with warnings.catch_warnings(action="error"), pytest.raises(Corrupt): read_image(tmp_path / "bomb.png")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as z: z.writestr("zeros.png", b"\0" * 10**7)
    with pytest.raises(Corrupt, match="10000000 bytes"): read_image(tmp_path / "bomb.zip", "zeros.png", most_px=1000)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_colour_in_16_bits(tmp_path, photo, suffix):
    with rasterio.open(tmp_path / f"x.{suffix}", "w", driver={"png": "PNG", "tif": "GTiff"}[suffix], height=photo.shape[0], width=photo.shape[1], count=3, dtype="uint16", photometric="RGB" if suffix == "tif" else None) as dst:
        dst.write(photo.transpose(2, 0, 1).astype("uint16") * 257)
    assert np.abs(read_image(tmp_path / f"x.{suffix}").astype(int) - photo).max() <= 1


def test_a_heap_of_everything_is_read_or_named(tmp_path, photo):
    "Sizes, modes, links, animations and ruins in one folder, as a person would hand it over"
    pic = Image.fromarray(photo)
    good = {"big.jpg": pic.resize((300, 200)), "tiny.png": pic.resize((3, 2)), "cmyk.tif": pic.convert("CMYK"), "grey16.png": Image.fromarray(photo[..., 0].astype("uint16") * 257), "火星/é.webp": pic}
    for name, img in good.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        img.save(tmp_path / name)
    pic.save(tmp_path / "moving.gif", save_all=True, append_images=[pic.rotate(90)])
    ruins = {"zero.jpg": b"", "cut.png": (tmp_path / "tiny.png").read_bytes()[:20], "page.png": b"<html>404</html>"}
    for name, raw in ruins.items(): (tmp_path / name).write_bytes(raw)
    os.symlink(tmp_path / "gone.png", tmp_path / "dangling.png")
    os.symlink(tmp_path, tmp_path / "loop")
    table, problems = read_folder(tmp_path), []
    with pytest.warns(UserWarning, match="2 frames"): images = read_images(table, 16, problems=problems)
    assert {table.id[i] for i, _ in problems} == set(ruins) and set(table.id) == {*good, *ruins, "moving.gif"} and images.shape == (len(good) + 1, 3, 16, 16)
    assert {Path(why.split("'")[1]).name for _, why in problems} == set(ruins)


def test_a_link_in_an_archive_is_not_followed(tmp_path, photo):
    Image.fromarray(photo).save(tmp_path / "secret.png")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as z:
        z.write(tmp_path / "secret.png", "a.png")
        link = zipfile.ZipInfo("b.png")
        link.external_attr = 0o120777 << 16
        z.writestr(link, "a.png")
        z.writestr("../c.png", (tmp_path / "secret.png").read_bytes())
    problems = []
    table = read_dataset(tmp_path / "x.zip")
    assert table.id.tolist() == ["a.png", "b.png"] and len(read_images(table, 16, problems=problems)) == 1 and problems[0][0] == 1


def test_animations_tell_and_notes_of_the_camera_are_followed(tmp_path, photo):
    pic = Image.fromarray(photo)
    pic.save(tmp_path / "a.png", save_all=True, append_images=[pic.rotate(180)] * 2)
    with pytest.warns(UserWarning, match="3 frames; the first"): assert np.array_equal(read_image(tmp_path / "a.png"), photo)
    exif = Image.Exif()
    exif[0x0112] = 3
    pic.rotate(180).save(tmp_path / "b.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "b.png"), photo)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(0, 255))
@FAST
def test_a_flat_image_stays_flat_at_any_size(h, w, size, grey):
    img = np.full((h, w, 3), grey, "uint8")
    for frame in (squeeze, centre_crop): assert (frame(img, size) == grey).all() and frame(img, size).shape == (size, size, 3)


# Many

def test_bad_files_are_listed_or_stop_everything(folder):
    (folder / "03.png").write_bytes(b"")
    (folder / "11.png").write_bytes((folder / "12.png").read_bytes()[:300])
    table, problems, others = read_folder(folder), [], []
    with pytest.raises(Corrupt, match="2 of 20 images"): read_images(table, 16)
    images = read_images(table, 16, problems=problems, batch=3)
    assert [i for i, _ in problems] == [3, 11] and "03.png" in problems[0][1] and len(images) == 18
    good = table.drop(index=[3, 11])
    assert np.array_equal(images, read_images(good, 16)) and np.array_equal(images, read_images(table, 16, problems=others, out=folder / "i.npy", batch=3))
    assert others == problems
    for p in folder.glob("*.png"): p.write_bytes(b"")
    with pytest.raises(Corrupt, match="20 of 20"): read_images(table, 16, problems=[])


def test_a_killed_reading_goes_on_where_it_was(folder):
    table, seen = read_folder(folder), []

    def slow(img, size):
        seen.append(1)
        if len(seen) == 10: raise KeyboardInterrupt
        return squeeze(img, size)

    slow.__name__ = "squeeze"
    with pytest.raises(KeyboardInterrupt): read_images(table, 16, frame=slow, out=folder / "i.npy", batch=4, workers=1)
    assert not (folder / "i.npy").exists()
    again = []
    images = read_images(table, 16, frame=lambda i, s: again.append(1) or squeeze(i, s), batch=4) # another way, in memory
    stored = read_images(table, 16, out=folder / "i.npy", batch=4)
    assert np.array_equal(images, stored) and len(again) == 20 and isinstance(stored, np.memmap)
    Image.fromarray(np.zeros((9, 9, 3), "uint8")).save(folder / "05.png")
    with pytest.raises(ModelMismatch): read_images(table, 16, out=folder / "i.npy")
    np.save(folder / "mine.npy", np.zeros(3))
    with pytest.raises(BadInput, match="nothing says what it holds"): read_images(table, 16, out=folder / "mine.npy")
    assert np.load(folder / "mine.npy").shape == (3,)


# Twins

@given(arrays("uint64", st.integers(0, 60), elements=st.integers(0, 2**12)), st.integers(0, 8), st.integers(1, 70))
@FAST
def test_hash_twins_are_those_that_counting_finds(hashes, reach, block):
    found = {tuple(p) for p in hash_twins(hashes, reach, most=100, block=block).tolist()}
    assert found == {(i, j) for i in range(len(hashes)) for j in range(i + 1, len(hashes)) if (int(hashes[i]) ^ int(hashes[j])).bit_count() <= reach}


def test_twins_of_a_known_kind_are_found_and_no_split_parts_them(rover):
    images, table = rover
    some = images[:200]
    brighter = (some[:100] * 0.8 + 30).astype("uint8")
    both = np.concatenate([some, brighter])
    proposed = hash_twins(perceptual_hash(both))
    assert np.isin(np.arange(100) * 1000 + 200 + np.arange(100), proposed[:, 0] * 1000 + proposed[:, 1]).mean() > 0.9
    pairs = feature_twins(thumbnails(both), 0.97)
    groups = join_groups([*table.group[:200], *(f"again{i}" for i in range(100))], pairs)
    assert np.mean(groups[:100] == groups[200:]) > 0.95
    parted = pd.DataFrame({"id": range(300), "group": groups}).assign(split=np.where(groups % 2, "train", "val"))
    check_split(parted)
    with pytest.raises(BadInput, match="several splits"): check_split(parted.assign(split=np.resize(["train", "val"], 300)))


def test_short_forms_do_not_depend_on_the_batch(rover):
    images = rover[0][:50]
    assert np.array_equal(perceptual_hash(images, batch=7), perceptual_hash(images)) and np.allclose(thumbnails(images, batch=7), thumbnails(images), atol=1e-5)


def test_twins_with_holes_and_of_any_unit():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(32, 1, 40, 60)).cumsum(2).cumsum(3)
    images[30], images[31] = images[3] * 0.2 + 7, images[11] + rng.normal(size=(40, 60))
    valid = np.ones((32, 40, 60), bool)
    assert feature_twins(thumbnails(images), 0.95).tolist() == [[3, 30], [11, 31]]
    valid[30, :10] = False
    holed = thumbnails(np.where(valid[:, None], images, -1e9), valid=valid)
    assert feature_twins(holed, 0.95, holes=True).tolist() == [[3, 30], [11, 31]]
    assert (holed[30].reshape(16, 16)[:4] == 0).all() and (holed[30].reshape(16, 16)[4:] != 0).all()
    assert not thumbnails(np.full((2, 1, 20, 20), 1e6)).any() and not thumbnails(images[:1], valid=np.zeros((1, 40, 60), bool)).any()


@given(arrays("float32", (6, 9), elements=st.sampled_from([0, 0.25, -0.5, 1, 2])))
@FAST
def test_without_holes_masks_change_nothing(features):
    features[:, 0], centred = 3, features + 0.125 # no zeros
    centred = centred - centred.mean(1, keepdims=True) + 0.0
    if (centred == 0).any(): return
    assert feature_twins(centred, 0.9, holes=True).tolist() == feature_twins(centred, 0.9).tolist()
