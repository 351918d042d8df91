"""CamVid's train in two parts: the end of each drive is held out, and nothing is in both."""

import random

import pytest
from conftest import save_image
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from d2_pixcontrast.data.datasets.holdout import drive_ends, without_drive_ends
from d2_pixcontrast.data.survey import named_source

DRIVES = {"0001TP": 25, "0006R0": 10, "0016E5": 33, "Seq05VD": 2}


def frames(drives=DRIVES):
    """Dataset dicts in the order of their names; numbers as long as CamVid's."""
    return [
        {"file_name": f"/data/camvid_sets/train/{drive}_{30 * i + 6900:05d}.png", "image_id": i}
        for drive, count in drives.items()
        for i in range(count)
    ]


def test_the_parts_are_disjoint_and_together_all():
    fit, held = without_drive_ends(frames()), drive_ends(frames())
    names = [[sample["file_name"] for sample in part] for part in (fit, held)]
    assert not set(names[0]) & set(names[1])
    assert sorted(names[0] + names[1]) == [sample["file_name"] for sample in frames()]
    assert all(part == sorted(part) for part in names)


def test_the_last_fifth_of_each_drive_is_held_out():
    held = drive_ends(frames())
    for drive, count in DRIVES.items():
        own = [s["image_id"] for s in held if f"/{drive}_" in s["file_name"]]
        assert own == list(range(count - round(count / 5), count)), drive


def test_each_drive_counts_for_itself():
    """What is held out of one does not depend on the others."""
    names = list(DRIVES)
    random.Random(0).shuffle(names)
    for name in names:
        alone = frames({name: DRIVES[name]})
        together = [s for s in drive_ends(frames()) if f"/{name}_" in s["file_name"]]
        assert drive_ends(alone) == together


def test_no_images_are_no_error():
    assert drive_ends([]) == without_drive_ends([]) == []


def test_the_registered_parts_read_trains_folder(tmp_path, monkeypatch):
    for i in range(10):
        name = f"0001TP_{i:06d}.png"
        save_image(tmp_path / "camvid" / "train" / name, (3, 4), i)
        (tmp_path / "camvid" / "trainannot").mkdir(exist_ok=True)
        Image.new("L", (4, 3)).save(tmp_path / "camvid" / "trainannot" / name)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    whole = DatasetCatalog.get("camvid_sem_seg_train")
    assert DatasetCatalog.get("camvid_sem_seg_trainfit") == whole[:8]
    assert DatasetCatalog.get("camvid_sem_seg_trainheld") == whole[8:]
    assert named_source("camvid_sem_seg_trainheld").dicts == whole[8:]  # of the report, too
    for part in ("trainfit", "trainheld"):
        ours, theirs = (MetadataCatalog.get(f"camvid_sem_seg_{name}") for name in (part, "train"))
        assert ours.stuff_classes == theirs.stuff_classes
        assert ours.stuff_colors == theirs.stuff_colors and ours.ignore_label == 11


def test_the_real_parts(camvid_root):
    whole, fit, held = (
        [s["file_name"] for s in DatasetCatalog.get(f"camvid_sem_seg_{name}")]
        for name in ("train", "trainfit", "trainheld")
    )
    assert (len(whole), len(fit), len(held)) == (367, 294, 73)
    assert set(fit) | set(held) == set(whole)
    drives = {name.rsplit("/", 1)[1].split("_")[0] for name in whole}
    assert len(drives) > 1
    for drive in drives:  # each ends with what is held out
        own = [name for name in whole if f"/{drive}_" in name]
        assert own[-1] in held and own[0] in fit
        assert max(n for n in fit if f"/{drive}_" in n) < min(n for n in held if f"/{drive}_" in n)


@pytest.mark.parametrize("count, held", [(1, 0), (2, 0), (3, 1), (5, 1), (8, 2), (367, 73)])
def test_how_many_are_held_out_of_a_drive(count, held):
    assert len(drive_ends(frames({"0001TP": count}))) == held
