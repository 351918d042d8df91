"""One's own folders, by a call and by a config alone."""

import argparse
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from d2_pixcontrast.data import DataError, register_sem_seg_folder
from d2_pixcontrast.data.datasets.folders import read_classes
from d2_pixcontrast.engine import load_cfg

KEY = "DATASETS.SEM_SEG_FOLDERS"


@pytest.fixture(autouse=True)
def catalogs():
    """Forget what a test registers."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)


def save(path, values=((0, 1), (1, 255))):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(values, np.uint8)).save(path)


@pytest.fixture
def folders(tmp_path):
    """Nested folders, images of several formats."""
    for name in ("b.jpg", "a.PNG", "sub/b.bmp"):
        save(tmp_path / "images" / name)
        save((tmp_path / "labels" / name).with_suffix(".png"))
    return str(tmp_path / "images"), str(tmp_path / "labels")


def test_pairs_by_stem(folders):
    register_sem_seg_folder("mine", *folders, ["x", "y"], colors=[(1, 2, 3), (4, 5, 6)])
    dicts = DatasetCatalog.get("mine")
    assert [record["image_id"] for record in dicts] == ["a", "b", "sub/b"]
    assert dicts[0]["file_name"].endswith("images/a.PNG")
    assert dicts[2]["sem_seg_file_name"].endswith("labels/sub/b.png")
    metadata = MetadataCatalog.get("mine")
    assert metadata.stuff_classes == ["x", "y"] and metadata.ignore_label == 255
    assert metadata.stuff_colors == [(1, 2, 3), (4, 5, 6)]


def test_a_folder_is_the_same_however_it_is_spelled(folders, tmp_path, monkeypatch):
    register_sem_seg_folder("mine", *folders, ["x", "y"])
    monkeypatch.chdir(tmp_path)
    register_sem_seg_folder("mine", "images/", "./images/../labels", ["x", "y"])
    register_sem_seg_folder("relative", "images", "labels", ["x", "y"])
    monkeypatch.chdir("/")
    assert len(DatasetCatalog.get("relative")) == len(DatasetCatalog.get("mine")) == 3


def test_links_are_followed_but_not_round_in_circles(folders):
    images, labels = folders
    for folder in folders:
        os.symlink("..", f"{folder}/sub/up")
        os.symlink(folder, f"{folder}/again")
    register_sem_seg_folder("mine", images, labels, ["x", "y"])
    assert [record["image_id"] for record in DatasetCatalog.get("mine")] == ["a", "b", "sub/b"]
    os.rename(f"{images}/sub", f"{images}2")
    os.symlink(f"{images}2", f"{images}/sub")
    os.remove(f"{images}/sub/up")
    os.symlink(images, f"{images}/sub/up")  # leads back over the link
    assert [record["image_id"] for record in DatasetCatalog.get("mine")] == ["a", "b", "sub/b"]


def test_arrays_and_paths_will_do(folders, tmp_path):
    (tmp_path / "classes.txt").write_text("x\ny\n")
    register_sem_seg_folder(
        "mine",
        *map(Path, folders),
        tmp_path / "classes.txt",
        colors=np.array([[1, 2, 3], [4, 5, 6]], np.uint8),
        flip_pairs=np.array([[0, 1]]),
    )
    metadata = MetadataCatalog.get("mine")
    assert metadata.stuff_classes == ["x", "y"] and metadata.stuff_colors == [(1, 2, 3), (4, 5, 6)]
    assert metadata.flip_pairs == [(0, 1)]
    register_sem_seg_folder(
        "mine", *folders, ["x", "y"], colors=[(1, 2, 3), (4, 5, 6)], flip_pairs=[(0, 1)]
    )


def test_suffixes_tell_images_and_labels_of_one_folder_apart(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / f"{name}_rgb.png"), save(tmp_path / f"{name}_mask.png")
    folder = str(tmp_path)
    suffixes = {"image_suffix": "_rgb.png", "label_suffix": "_mask.png"}
    register_sem_seg_folder("mine", folder, folder, ["x", "y"], **suffixes)
    assert [record["image_id"] for record in DatasetCatalog.get("mine")] == ["a", "b"]


@pytest.mark.parametrize("image_suffix", ["", ".png"])
def test_a_suffix_of_the_labels_alone_is_enough_in_one_folder(tmp_path, image_suffix):
    for name in ("a", "sub/b"):
        save(tmp_path / f"{name}.png"), save(tmp_path / f"{name}_mask.png")
    suffixes = {"image_suffix": image_suffix, "label_suffix": "_mask.png"}
    register_sem_seg_folder("mine", str(tmp_path), str(tmp_path), ["x", "y"], **suffixes)
    dicts = DatasetCatalog.get("mine")
    assert [record["image_id"] for record in dicts] == ["a", "sub/b"]
    assert dicts[0]["sem_seg_file_name"] == str(tmp_path / "a_mask.png")
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"1 file is missing: .*/a\."):
        DatasetCatalog.get("mine")


@pytest.mark.parametrize("inner", ["labels", "images"])
def test_one_folder_may_lie_within_the_other(tmp_path, inner):
    for name in ("a", "sub/b"):
        save(tmp_path / f"{name}.png"), save(tmp_path / inner / f"{name}.png")
    folders = [str(tmp_path), str(tmp_path / inner)]
    register_sem_seg_folder("mine", *folders[:: 1 if inner == "labels" else -1], ["x", "y"])
    dicts = DatasetCatalog.get("mine")
    assert [record["image_id"] for record in dicts] == ["a", "sub/b"]
    assert all(f"/{inner}/" not in record["file_name"] for record in dicts) == (inner == "labels")


def test_a_file_of_classes_in_another_encoding_is_named(folders, tmp_path):
    (tmp_path / "classes.txt").write_bytes("Straße\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"classes\.txt is not UTF-8"):
        read_classes(str(tmp_path / "classes.txt"))


@pytest.mark.parametrize(
    ("gone", "shown"),
    [("labels/sub/b.png", r"labels/sub/b\.\*"), ("images/b.jpg", r"images/b\.\*")],
)
def test_a_file_without_counterpart_is_named(folders, tmp_path, gone, shown):
    register_sem_seg_folder("mine", *folders, ["x", "y"])
    (tmp_path / gone).unlink()
    with pytest.raises(DataError, match=f"dataset mine: 1 file is missing: .*{shown}$"):
        DatasetCatalog.get("mine")


def test_two_files_of_one_name_are_refused(folders, tmp_path):
    save(tmp_path / "images" / "b.png")
    register_sem_seg_folder("mine", *folders, ["x", "y"])
    with pytest.raises(DataError, match=r"b\..* and .*b\..* nothing but .*; IMAGE_SUFFIX"):
        DatasetCatalog.get("mine")


def test_a_missing_folder_is_named_without_a_word_about_other_roots(folders, tmp_path):
    register_sem_seg_folder("mine", str(tmp_path / "nowhere"), folders[1], ["x", "y"])
    with pytest.raises(DataError, match="nowhere does not exist") as error:
        DatasetCatalog.get("mine")
    assert "DETECTRON2_DATASETS" not in str(error.value)


def test_of_two_that_differ_in_their_folders_the_one_that_is_there_is_kept(folders, tmp_path):
    """A run's own config, and that of its published model, which names folders elsewhere."""
    published = (str(tmp_path / "images"), str(tmp_path / "labels"))
    for first, second in ((folders, published), (published, folders)):
        register_sem_seg_folder("mine", *first, ["x", "y"])
        register_sem_seg_folder("mine", *second, ["x", "y"])
        assert DatasetCatalog.get("mine")[0]["file_name"].startswith(str(folders[0]))
        DatasetCatalog.remove("mine"), MetadataCatalog.remove("mine")


def test_twice_the_same_is_fine_and_another_is_not(folders):
    register_sem_seg_folder("mine", *folders, ["x", "y"])
    register_sem_seg_folder("mine", *folders, ["x", "y"])
    with pytest.raises(DataError, match="another dataset mine .*MetadataCatalog.remove"):
        register_sem_seg_folder("mine", *folders, ["x", "z"])
    with pytest.raises(DataError, match="another dataset coco_2017_train"):
        register_sem_seg_folder("coco_2017_train", *folders, ["x", "y"])
    with pytest.raises(DataError, match=f"another dataset mine already .images in {folders[0]}"):
        register_sem_seg_folder("mine", folders[1], folders[0], ["x", "y"])
    DatasetCatalog.remove("mine"), MetadataCatalog.remove("mine")
    register_sem_seg_folder("mine", *folders, ["x", "z"])
    assert MetadataCatalog.get("mine").stuff_classes == ["x", "z"]


@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        (["x", "x"], {}, "twice in the list: x"),
        ([], {}, "no classes"),
        (["x", "y"], {"colors": [(1, 2, 3)]}, "1 colours for 2 classes"),
        (["x", "y"], {"colors": [(1, 2, 3), (1, 2, 256)]}, r"not three numbers of 0\.\.255"),
        (["x", "y"], {"ignore_value": 1}, "ignore value 1 is the id of class 'y'"),
        (["x", "y"], {"flip_pairs": [(0, 2)]}, r"flip_pairs .* of mine .* classes 0\.\.1"),
        (["x", "y", "z"], {"flip_pairs": [(0, 1), (1, 2)]}, "each class in one pair at most"),
        ([False, True], {}, "a class is False; YAML reads .* put it in quotes"),
        ("nowhere.txt", {}, "nowhere.txt cannot be read"),
    ],
)
def test_what_does_not_fit_is_refused(folders, classes, options, message):
    with pytest.raises(DataError, match=message):
        register_sem_seg_folder("mine", *folders, classes, **options)
    assert "mine" not in DatasetCatalog.list()


def test_file_of_classes(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("# a comment\nroad\n\ntraffic light\n", encoding="utf-8-sig")
    assert read_classes(str(path)) == (["road", "traffic light"], None)
    path.write_text("road 1 2 3\ntraffic light  4 5 6\nlane 2 7 8 9\n")
    names, colors = read_classes(str(path))
    assert names == ["road", "traffic light", "lane 2"]
    assert colors == [(1, 2, 3), (4, 5, 6), (7, 8, 9)]
    path.write_text("road 1 2 3\ntraffic light\n")
    with pytest.raises(DataError, match="line 'traffic light' has no colour"):
        read_classes(str(path))


@pytest.fixture
def config_file(folders, tmp_path):
    path = tmp_path / "mine.yaml"
    node = {"IMAGES": folders[0], "LABELS": folders[1], "CLASSES": ["x", "y"]}
    content = {"DATASETS": {"SEM_SEG_FOLDERS": {"mine_train": node}}, "VERSION": 2}
    path.write_text(yaml.safe_dump(content))
    return path


def test_by_config_file_and_command_line(config_file, folders, tmp_path):
    (tmp_path / "classes.txt").write_text("x 1 2 3\ny 4 5 6\n")
    options = [f"{KEY}.mine_train.IGNORE_VALUE", "7", f"{KEY}.mine_val.IMAGES", folders[0]]
    options += [f"{KEY}.mine_val.LABELS", folders[1]]
    options += [f"{KEY}.mine_val.CLASSES", str(tmp_path / "classes.txt")]
    cfg = load_cfg(str(config_file), options)
    assert MetadataCatalog.get("mine_train").ignore_label == 7
    assert MetadataCatalog.get("mine_val").stuff_colors == [(1, 2, 3), (4, 5, 6)]
    assert len(DatasetCatalog.get("mine_train")) == len(DatasetCatalog.get("mine_val")) == 3
    # What a run writes into its output folder can be loaded again.
    (tmp_path / "dumped.yaml").write_text(cfg.dump())
    again = load_cfg(str(tmp_path / "dumped.yaml"))
    assert again.DATASETS.SEM_SEG_FOLDERS == cfg.DATASETS.SEM_SEG_FOLDERS


def test_a_file_of_classes_on_the_command_line_replaces_a_list(config_file, tmp_path):
    (tmp_path / "classes.txt").write_text("stone\nmoss\n")
    load_cfg(str(config_file), [f"{KEY}.mine_train.CLASSES", str(tmp_path / "classes.txt")])
    assert MetadataCatalog.get("mine_train").stuff_classes == ["stone", "moss"]


def test_a_missing_folder_is_named_with_its_key(config_file, folders):
    options = [f"{KEY}.mine_train.LABELS", "nowhere"]
    load_cfg(str(config_file), options)
    with pytest.raises(DataError, match=rf"nowhere does not exist.*{KEY}.mine_train.LABELS"):
        DatasetCatalog.get("mine_train")
    # The same data set by a call is no other one.
    register_sem_seg_folder("mine_train", folders[0], "nowhere", ["x", "y"])


def test_processes_that_get_a_config_register_its_folders(config_file, monkeypatch):
    """Those that launch() starts have not loaded the config themselves."""
    from d2_pixcontrast.engine import setup

    cfg = load_cfg(str(config_file))
    DatasetCatalog.remove("mine_train"), MetadataCatalog.remove("mine_train")
    monkeypatch.setattr(setup, "default_setup", lambda cfg, args: None)
    monkeypatch.setattr(setup, "setup_logger", lambda *args, **kwargs: None)
    setup.prepare(pickle.loads(pickle.dumps(cfg)), argparse.Namespace(eval_only=False))
    assert len(DatasetCatalog.get("mine_train")) == 3


def test_a_config_without_folders_registers_none():
    before = DatasetCatalog.list()
    assert load_cfg("").DATASETS.SEM_SEG_FOLDERS == {}
    assert DatasetCatalog.list() == before


@pytest.mark.parametrize(
    ("node", "options", "message"),
    [
        (
            {"IMAGE": "a"},
            [],
            r"mine.yaml: DATASETS.SEM_SEG_FOLDERS.mine: .*IMAGE; its keys are IMAGES",
        ),
        ({"IMAGES": 3}, [], r"SEM_SEG_FOLDERS.mine: .*IMAGES"),
        ("a/folder", [], r"SEM_SEG_FOLDERS.mine.*its keys are IMAGES"),
        ({"IMAGES": "a", "LABELS": "b"}, [], r"SEM_SEG_FOLDERS.mine lacks CLASSES"),
        (
            {"IMAGES": "a", "LABELS": "b", "CLASSES": ["x", "x"]},
            [],
            r"SEM_SEG_FOLDERS.mine: .*twice",
        ),
        ({}, [f"{KEY}.other.IMAGES", "a"], r"SEM_SEG_FOLDERS.other lacks LABELS and CLASSES"),
        ({}, [f"{KEY}.other.IMAGE", "a"], r"SEM_SEG_FOLDERS.other.IMAGE"),
    ],
)
def test_what_is_wrong_in_a_config_is_named(tmp_path, node, options, message):
    path = tmp_path / "mine.yaml"
    content = {"SEM_SEG_FOLDERS": {"mine": node} if node else {}}
    path.write_text(yaml.safe_dump({"DATASETS": content, "VERSION": 2}))
    with pytest.raises(ValueError, match=message):
        load_cfg(str(path), options)


def test_the_document_holds_to_the_letter(tmp_path, monkeypatch):
    """docs/own-data.md: its commands, with a shorter and smaller training."""
    text = (ROOT / "docs" / "own-data.md").read_text()
    block = re.search(r"```bash\n(.*?)```", text, re.DOTALL)[1]
    assert len(block.splitlines()) <= 25
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "datasets").symlink_to(ROOT / "datasets")
    (tmp_path / "train_net.py").symlink_to(ROOT / "train_net.py")
    rng = np.random.RandomState(0)
    for split in ("train", "val"):
        for number in range(4):
            label = np.kron(rng.randint(0, 3, (4, 5)), np.ones((16, 16), int))
            save(tmp_path / "mine" / split / "images" / f"{number}.jpg", 80 * label)
            save(tmp_path / "mine" / split / "labels" / f"{number}.png", label)
    small = "MODEL.DEVICE cpu MODEL.WEIGHTS '' SOLVER.MAX_ITER 2 SOLVER.IMS_PER_BATCH 2 "
    small += "SOLVER.CHECKPOINT_PERIOD 2 INPUT.CROP.SIZE 64,64 DATALOADER.NUM_WORKERS 0 "
    small += "TEST.EVAL_PERIOD 2"
    block = re.sub(r"(train_net.py --config-file mine.yaml)", r"\1 OPTIONS", block)
    block = block.replace("OPTIONS --eval-only", "--eval-only OPTIONS").replace("OPTIONS", small)
    block = block.replace("python ", f"{sys.executable} ")
    done = subprocess.run(
        ["bash", "-ec", block],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "mine_train: 4 pairs of image and label" in done.stdout
    assert done.stdout.count("mine_val, 4 images") >= 2  # after training, and alone
    assert (tmp_path / "output" / "mine" / "model_final.pth").is_file()


def document_block(language):
    text = (ROOT / "docs" / "own-data.md").read_text()
    return re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)[1]


def test_the_documents_keys_for_a_gpu_fit_its_base(tmp_path):
    base = re.search(r"^_BASE_: (.*)$", document_block("bash"), re.MULTILINE)[1]
    path = tmp_path / "gpu.yaml"
    path.write_text(f"_BASE_: {ROOT / base}\n{document_block('yaml')}")
    cfg, plain = load_cfg(str(path)), load_cfg(str(ROOT / base))
    assert cfg.MODEL.DEVICE == "cuda" and list(cfg.INPUT.CROP.SIZE) == [512, 512]
    # The same share of the decoder's grid as in the base.
    shares = [c.MODEL.PIXEL_CONTRAST.MAX_VIEWS / np.prod(c.INPUT.CROP.SIZE) for c in (cfg, plain)]
    assert shares[0] == pytest.approx(shares[1], rel=0.1)


def test_the_document_turns_void_zero_into_255(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "mine" / "raw" / "a.png", ((0, 1), (2, 3)))
    (tmp_path / "mine" / "labels").mkdir()
    exec(document_block("python"), {})
    ids = np.array(Image.open("mine/labels/a.png"))
    assert ids.tolist() == [[255, 0], [1, 2]]
