"""From the published trees to those that the registered datasets read."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, environment_folder
from dataset_scripts import run, script
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from d2_pixcontrast.data import read_label
from d2_pixcontrast.data.datasets import find_pairs


def save(path, array, palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(array, np.uint8))
    if palette:
        image.putpalette(list(range(256)) * 3)
    image.save(path)


def save_mat(path, **variables):
    io = pytest.importorskip("scipy.io")
    path.parent.mkdir(parents=True, exist_ok=True)
    io.savemat(path, variables)


def stamps(root):
    """Content and time of all files."""
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in root.rglob("*") if p.is_file()}


def real(tmp_path, folder):
    """A copy of real samples that may be written to."""
    source = environment_folder("DETECTRON2_DATASETS") / folder
    if not source.is_dir():
        pytest.skip(f"DETECTRON2_DATASETS has no {folder}")
    for path in source.rglob("*"):
        if path.is_file():
            target = tmp_path / folder / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return tmp_path / folder


def assert_mapped(source, target, expected_id):
    """Every pixel by the definition, in a plain loop over the ids that occur."""
    before, after = read_label(str(source)), read_label(str(target))
    assert before.shape == after.shape
    for label in np.unique(before).tolist():
        assert set(np.unique(after[before == label]).tolist()) == {expected_id(label)}, label


def test_cityscapes(tmp_path, capsys):
    folder = tmp_path / "cityscapes" / "gtFine" / "train" / "aachen"
    ids = [*range(34), 255]
    save(folder / "a_gtFine_labelIds.png", [ids])
    before = stamps(tmp_path)
    run("cityscapes", tmp_path)
    assert "1 files written, 0 skipped (up to date), 0 ignored" in capsys.readouterr().out
    trained = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    expected = [trained.index(number) if number in trained else 255 for number in ids]
    target = folder / "a_gtFine_labelTrainIds.png"
    np.testing.assert_array_equal(read_label(str(target)), [expected])
    after = stamps(tmp_path)
    assert before.items() <= after.items() and after.keys() - before.keys() == {target}


def test_real_cityscapes(tmp_path):
    folder = real(tmp_path, "cityscapes/gtFine/val")
    run("cityscapes", tmp_path)
    sources = sorted(folder.rglob("*_labelIds.png"))
    assert sources
    names = MetadataCatalog.get("cityscapes_fine_sem_seg_val").stuff_classes
    known = {7: "road", 8: "sidewalk", 11: "building", 21: "vegetation", 26: "car", 0: None}
    for source in sources:
        target = source.with_name(source.name.replace("labelIds", "labelTrainIds"))
        before, after = read_label(str(source)), read_label(str(target))
        for number, name in known.items():
            expected = 255 if name is None else names.index(name)
            assert (after[before == number] == expected).all()
        assert set(np.unique(after).tolist()) <= {*range(19), 255}


def test_ade20k(tmp_path, capsys):
    raw = tmp_path / "ADEChallengeData2016" / "annotations"
    save(raw / "training" / "a.png", [[0, 1, 150]])
    save(raw / "validation" / "b.png", [[2]])
    save(raw / "other" / "c.png", [[2]])
    run("ade20k", tmp_path)
    assert "2 files written, 0 skipped (up to date), 1 ignored" in capsys.readouterr().out
    out = raw.with_name("annotations_detectron2")
    assert read_label(str(out / "training" / "a.png")).tolist() == [[255, 0, 149]]
    assert read_label(str(out / "validation" / "b.png")).tolist() == [[1]]
    # Where detectron2 looks for them.
    expected = MetadataCatalog.get("ade20k_sem_seg_train").sem_seg_root
    assert expected.endswith(str((out / "training").relative_to(tmp_path)))


def test_real_ade20k(tmp_path):
    folder = real(tmp_path, "ADEChallengeData2016")
    run("ade20k", tmp_path)
    sources = sorted((folder / "annotations").rglob("*.png"))
    assert len(sources) == 3
    for source in sources:
        target = folder / "annotations_detectron2" / source.relative_to(folder / "annotations")
        assert_mapped(source, target, lambda label: (label - 1) % 256)


def test_coco_stuff_164k(tmp_path, monkeypatch):
    ids = [*range(182), 255]
    for split in ("train", "val"):
        save(tmp_path / "coco" / "stuffthingmaps" / f"{split}2017" / "a.png", [ids])
        save(tmp_path / "coco" / f"{split}2017" / "a.jpg", np.zeros((1, 183, 3)))
    run("coco_stuff164k", tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (record,) = DatasetCatalog.get("coco_2017_val_stuff_164k_sem_seg")
    out = read_label(record["sem_seg_file_name"])[0].tolist()
    names = MetadataCatalog.get("coco_2017_val_stuff_164k_sem_seg").stuff_classes
    gaps = [11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90]  # ids that the authors list as unused
    assert [i for i in range(183) if out[i] == 255] == [*gaps, 182]
    assert [label for label in out if label != 255] == list(range(171))
    assert names[out[0]] == "person" and names[out[181]] == "wood"


def test_real_coco_stuff_164k(tmp_path, monkeypatch):
    folder = real(tmp_path, "coco/stuffthingmaps/val2017")
    names = environment_folder("DETECTRON2_DATASETS") / "coco" / "stuff_labels.txt"
    listed = [line.partition(":")[2].strip() for line in names.read_text().splitlines()]
    names = [name for name in listed if name and name != "unlabeled"]  # ids one higher
    run("coco_stuff164k", tmp_path)
    classes = MetadataCatalog.get("coco_2017_val_stuff_164k_sem_seg").stuff_classes
    for source in sorted(folder.glob("*.png"))[:3]:
        target = tmp_path / "coco" / "stuffthingmaps_detectron2" / "val2017" / source.name
        assert_mapped(source, target, lambda i: 255 if i == 255 else classes.index(names[i]))


def test_coco_stuff_10k(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "coco" / "coco_stuff_10k"
    ids = [*range(183)]
    for name in ("a", "b", "unlisted"):
        save(folder / "images" / f"{name}.jpg", np.zeros((1, 183, 3)))
        save_mat(folder / "annotations" / f"{name}.mat", S=np.array([ids], np.uint8))
    (folder / "imageLists").mkdir()
    (folder / "imageLists" / "train.txt").write_text("a\n")
    (folder / "imageLists" / "test.txt").write_text("b\n")
    run("coco_stuff10k", tmp_path)
    # Two label files for each image, and a link to it.
    assert "6 files written, 0 skipped (up to date), 1 ignored" in capsys.readouterr().out
    run("coco_stuff10k", tmp_path)
    assert "0 files written, 6 skipped (up to date), 1 ignored" in capsys.readouterr().out
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for split, name in (("train", "a"), ("test", "b")):
        (record,) = DatasetCatalog.get(f"coco_2017_{split}_stuff_10k_sem_seg")
        assert record["image_id"] == name and Image.open(record["file_name"]).size == (183, 1)
        out = read_label(record["sem_seg_file_name"])[0].tolist()
        assert out[0] == 255 and out[1] == 0 and out[182] == 170 and out[12] == 255
        assert [label for label in out if label != 255] == list(range(171))
        (listed,) = DatasetCatalog.get(f"coco_2017_{split}_stuff_10k_182_sem_seg")
        assert listed["file_name"] == record["file_name"]
        assert read_label(listed["sem_seg_file_name"])[0].tolist() == [255, *range(182)]


def test_the_two_numberings_of_coco_stuff_10k_mean_the_same_classes(tmp_path, monkeypatch):
    folder = tmp_path / "coco" / "coco_stuff_10k"
    save(folder / "images" / "a.jpg", np.zeros((1, 183, 3)))
    save_mat(folder / "annotations" / "a.mat", S=np.array([range(183)], np.uint8))
    (folder / "imageLists").mkdir()
    for split in ("train", "test"):
        (folder / "imageLists" / f"{split}.txt").write_text("a\n")
    run("coco_stuff10k", tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    names = []
    for name in ("coco_2017_train_stuff_10k_sem_seg", "coco_2017_train_stuff_10k_182_sem_seg"):
        (record,) = DatasetCatalog.get(name)
        classes = [*MetadataCatalog.get(name).stuff_classes, *["void"] * 256]
        names.append([classes[i] for i in read_label(record["sem_seg_file_name"])[0]])
    gaps = [12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91]  # by the annotation's numbers
    differing = [i for i, pair in enumerate(zip(*names)) if pair[0] != pair[1]]
    assert differing == gaps and all(names[0][i] == "void" for i in gaps)


@pytest.mark.parametrize("count", [59, 60])
def test_pascal_context(tmp_path, monkeypatch, count):
    root = tmp_path / "VOCdevkit" / "VOC2010"
    for name in ("a", "b"):
        save(root / "JPEGImages" / f"{name}.jpg", np.zeros((1, 5, 3)))
        ids = np.array([[2, 9, 284, 1, 459]], np.uint16)
        save_mat(root / "trainval" / f"{name}.mat", LabelMap=ids)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    (root / "ImageSets" / "Main" / "val.txt").write_text("b\n")
    run("pascal_context", tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    name = f"pascal_context_{count}_sem_seg_val"
    (record,) = DatasetCatalog.get(name)
    assert record["image_id"] == "b"
    out = read_label(record["sem_seg_file_name"])[0].tolist()
    names = MetadataCatalog.get(name).stuff_classes
    assert [names[label] for label in out[:3]] == ["aeroplane", "bag", "person"]
    assert out[3:] == ([255, 255] if count == 59 else [0, 0])


def panoptic(tmp_path, segments, colors):
    content = {
        "categories": [
            {"id": 1, "isthing": 1},
            {"id": 200, "isthing": 0},
            {"id": 92, "isthing": 0},
        ],
        "annotations": [{"file_name": "a.png", "segments_info": segments}],
    }
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        path = tmp_path / "coco" / "annotations" / f"panoptic_{split}2017.json"
        path.write_text(json.dumps(content))
        save(tmp_path / "coco" / f"panoptic_{split}2017" / "a.png", colors)


def test_coco_panoptic_stuffonly(tmp_path):
    # A segment's id is R + 256 G + 65536 B.
    segments = [{"id": 5, "category_id": 1}, {"id": 256 * 3, "category_id": 92}]
    segments.append({"id": 65536 * 2 + 1, "category_id": 200})
    panoptic(tmp_path, segments, [[(0, 0, 0), (5, 0, 0), (0, 3, 0), (1, 0, 2)]])
    run("coco_panoptic_stuffonly", tmp_path)
    out = read_label(str(tmp_path / "coco" / "panoptic_stuff_val2017" / "a.png"))
    assert out.tolist() == [[255, 0, 1, 2]]


def test_stuff_is_numbered_as_detectron2s_metadata_says():
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    categories = [{"id": c["id"], "isthing": c["isthing"]} for c in COCO_CATEGORIES]
    classes = script("prepare_coco_panoptic_stuffonly").stuff_classes(categories)
    names = MetadataCatalog.get("coco_2017_val_panoptic_stuffonly").stuff_classes
    for category in COCO_CATEGORIES:
        expected = "things" if category["isthing"] else category["name"]
        expected = expected.replace("-other", "").replace("-merged", "")
        assert names[classes[category["id"]]] == expected


def test_unlisted_segment_is_named(tmp_path):
    panoptic(tmp_path, [], [[(5, 0, 0)]])
    with pytest.raises(SystemExit, match=r"a\.png has a segment that the JSON file does not list"):
        run("coco_panoptic_stuffonly", tmp_path)


def test_up_to_date_files_are_left_alone_and_stale_ones_are_not(tmp_path, capsys):
    raw = tmp_path / "ADEChallengeData2016" / "annotations" / "training"
    for name in ("a", "b"):
        save(raw / f"{name}.png", [[1]])
    run("ade20k", tmp_path)
    before = stamps(tmp_path)
    run("ade20k", tmp_path)
    assert "0 files written, 2 skipped" in capsys.readouterr().out and stamps(tmp_path) == before
    save(raw / "a.png", [[7]])
    later = (raw / "a.png").stat().st_mtime + 10
    os.utime(raw / "a.png", (later, later))
    run("ade20k", tmp_path)
    assert "1 files written, 1 skipped" in capsys.readouterr().out
    out = raw.parents[1] / "annotations_detectron2" / "training" / "a.png"
    assert read_label(str(out)).tolist() == [[6]]


def test_an_unknown_id_is_named_and_leaves_no_half_file(tmp_path):
    raw = tmp_path / "ADEChallengeData2016" / "annotations" / "training"
    save(raw / "a.png", [[1, 151, 200]])
    with pytest.raises(SystemExit, match=r"ade20k: label .*a\.png has the unknown id 151, 200"):
        run("ade20k", tmp_path)
    assert not [*(tmp_path / "ADEChallengeData2016" / "annotations_detectron2").rglob("*.*")]


def test_a_disk_that_is_full_leaves_no_half_file(tmp_path, monkeypatch):
    root = tmp_path / "ADEChallengeData2016"
    save(root / "annotations" / "training" / "a.png", [[1]])

    def half(self, path, **options):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(SystemExit, match="ade20k: .*No space left"):
        run("ade20k", tmp_path)
    assert not [path for path in (root / "annotations_detectron2").rglob("*") if path.is_file()]


def test_a_place_that_cannot_be_written_to_is_one_line(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    save(root / "annotations" / "training" / "a.png", [[1]])
    (root / "annotations_detectron2").touch()  # no folder: as impossible as a read-only one
    with pytest.raises(SystemExit, match=r"^ade20k: .*annotations_detectron2"):
        run("ade20k", tmp_path)


@pytest.mark.parametrize("damage", [b"", b"no image"])
def test_a_damaged_file_is_named(tmp_path, damage):
    raw = tmp_path / "ADEChallengeData2016" / "annotations" / "training"
    raw.mkdir(parents=True)
    (raw / "a.png").write_bytes(damage)
    with pytest.raises(SystemExit, match=r"a\.png cannot be read"):
        run("ade20k", tmp_path)


@pytest.mark.parametrize(
    "name",
    [p.stem.removeprefix("prepare_") for p in sorted((ROOT / "datasets").glob("prepare_*.py"))],
)
@pytest.mark.parametrize("root_given", [True, False])
def test_a_missing_tree_is_one_line_that_says_where_it_comes_from(
    tmp_path, monkeypatch, name, root_given
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(SystemExit) as error:
        run(name, tmp_path if root_given else None)
    text = str(error.value)
    assert text.startswith(f"{name}: {tmp_path}") and "does not exist" in text
    assert "http" in text and "\n" not in text
    assert ("DETECTRON2_DATASETS" in text) != root_given
    assert not any(tmp_path.iterdir())


def test_as_a_command_in_parallel(tmp_path):
    raw = tmp_path / "ADEChallengeData2016" / "annotations" / "validation"
    for number in range(5):
        save(raw / f"{number}.png", [[number]], palette=True)
    command = [sys.executable, "datasets/prepare_ade20k.py", "--workers", "2"]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "5 files written" in done.stdout and "5/5" in done.stderr  # the progress bar
    out = raw.parents[1] / "annotations_detectron2" / "validation"
    assert [read_label(str(out / f"{n}.png")).item() for n in range(5)] == [255, 0, 1, 2, 3]


def test_real_lip_is_read_as_it_is(tmp_path, monkeypatch):
    folder = real(tmp_path, "LIP")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for split in ("train", "val"):
        (record,) = DatasetCatalog.get(f"lip_sem_seg_{split}")
        label = read_label(record["sem_seg_file_name"])
        assert label.max() < 20 and label.shape[::-1] == Image.open(record["file_name"]).size
    shutil.rmtree(folder / "val_images")
    with pytest.raises(ValueError, match="val_images does not exist.*TrainVal_images.zip"):
        DatasetCatalog.get("lip_sem_seg_val")


def test_cityscapes_train_and_val_together(tmp_path):
    """As DATASETS.TRAIN: (..._train, ..._val); the builtin loaders know their folder at import."""
    from detectron2.data.datasets.cityscapes import load_cityscapes_semantic

    root = real(tmp_path, "cityscapes")
    run("cityscapes", tmp_path)
    counts = []
    for split in ("train", "val"):
        folders = [str(root / kind / split) for kind in ("leftImg8bit", "gtFine")]
        records = load_cityscapes_semantic(*folders)
        pairs = find_pairs(*folders, "_leftImg8bit.png", "_gtFine_labelTrainIds.png")
        assert not pairs.missing and len(pairs.dicts) == len(records)
        counts.append(len(records))
    assert counts == [4, 2]
