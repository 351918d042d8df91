"""``python -m d2_pixcontrast.predict`` on made-up images, with an untrained network."""

import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from conftest import INSTANT_TEST, save_image
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import build_model
from PIL import Image

from d2_pixcontrast.engine import Trainer, evaluate, load_cfg
from d2_pixcontrast.predict import main
from d2_pixcontrast.prediction import Predictor
from d2_pixcontrast.prediction.video import VideoReader, VideoWriter


@pytest.fixture(scope="module")
def project(made_up_dataset):
    """A folder with a config, the weights of two networks, images and labels."""
    name, folder = made_up_dataset
    config = folder / "config.yaml"
    config.write_text(
        f"_BASE_: {INSTANT_TEST}\n"
        f"DATASETS: {{TRAIN: ['{name}'], TEST: ['{name}']}}\nOUTPUT_DIR: {folder / 'run'}\n"
        "TEST: {EXPECTED_RESULTS: [], SLIDING: {SIZE: [40, 48], STRIDE: [30, 31]},\n"
        "       AUG: {SCALES: [0.75, 1.0, 1.6]}}\n"
    )
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = build_model(load_cfg(str(config)))
        torch.nn.init.normal_(model.sem_seg_head.predictor.weight)  # so that classes differ
        model.train()(  # batch norm that fits the data
            [
                {
                    "image": torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8),
                    "sem_seg": torch.zeros(64, 64, dtype=torch.int64),
                }
            ]
            * 4
        )
        torch.save({"model": model.state_dict()}, folder / f"weights{seed}.pth")
    return folder


def predict(project, *arguments):
    main(
        ["--config-file", str(project / "config.yaml"), "--weights", str(project / "weights0.pth")]
        + [str(argument) for argument in arguments]
    )


def fails(capsys, project, *arguments):
    with pytest.raises(SystemExit) as exit:
        predict(project, *arguments)
    return str(exit.value)


class Recorder(DatasetEvaluator):
    def __init__(self):
        self.scores = {}

    def process(self, inputs, outputs):
        for image, output in zip(inputs, outputs):
            self.scores[image["file_name"]] = output["sem_seg"]


@pytest.mark.parametrize(
    "flags, opts",
    [
        ([], ["INPUT.MIN_SIZE_TEST", "0"]),
        ([], ["INPUT.MIN_SIZE_TEST", "80", "INPUT.FORMAT", "BGR"]),
        (["--tta"], ["INPUT.MIN_SIZE_TEST", "30", "INPUT.MAX_SIZE_TEST", "50"]),
        (["--sliding-window"], ["INPUT.MIN_SIZE_TEST", "60"]),
        (["--tta", "--sliding-window"], []),
    ],
)
def test_the_same_as_eval_only_to_the_bit(project, tmp_path, flags, opts):
    recorders = []

    class RecordingTrainer(Trainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name, folder=""):
            recorders.append(Recorder())
            return recorders[-1]

    keys = {"--tta": "TEST.AUG.ENABLED", "--sliding-window": "TEST.SLIDING.ENABLED"}
    all_opts = [*opts, *(part for flag in flags for part in (keys[flag], "True"))]
    cfg = load_cfg(str(project / "config.yaml"), all_opts)
    cfg.MODEL.WEIGHTS = str(project / "weights0.pth")
    evaluate(cfg, RecordingTrainer)
    assert len(recorders) == 1 + ("--tta" in flags)

    predict(project, "--input", project / "images", "--output", tmp_path, *flags, "--opts", *opts)
    predictor = Predictor(cfg)
    for index in range(3):
        path = project / "images" / f"{index}.png"
        scores = recorders[-1].scores[str(path)]
        assert torch.equal(predictor(np.asarray(Image.open(path))).scores, scores)
        written = np.asarray(Image.open(tmp_path / "label" / f"{index}.png"))
        assert written.dtype == np.uint8 and np.array_equal(written, scores.argmax(dim=0))
        assert len(np.unique(written)) > 1


def test_overlay_and_probabilities(project, tmp_path):
    predict(
        project, "--input", project / "images" / "1.png", "--output", tmp_path, "--probabilities"
    )
    picture = Image.open(tmp_path / "overlay" / "1.png")
    assert picture.width == 480 and picture.height > 480 * 64 / 40  # enlarged, and a legend
    probabilities = np.load(tmp_path / "probabilities" / "1.npz")["probabilities"]
    assert probabilities.dtype == np.float16 and probabilities.shape == (8, 64, 40)
    np.testing.assert_allclose(probabilities.astype(float).sum(axis=0), 1, atol=5e-3)
    label = np.asarray(Image.open(tmp_path / "label" / "1.png"))
    chosen = np.take_along_axis(probabilities, label[None].astype(int), axis=0)[0]
    assert (chosen == probabilities.max(axis=0)).all()


def test_probabilities_are_those_of_the_scores(project):
    cfg = load_cfg(str(project / "config.yaml"))
    image = np.asarray(Image.open(project / "images" / "0.png"))
    plain = Predictor(cfg, str(project / "weights0.pth"))(image)
    torch.testing.assert_close(plain.probabilities, plain.scores.softmax(dim=0))
    cfg.TEST.AUG.ENABLED = True
    augmented = Predictor(cfg, str(project / "weights0.pth"))(image)
    assert torch.equal(augmented.probabilities, augmented.scores)
    torch.testing.assert_close(augmented.scores.sum(dim=0), torch.ones(37, 53))


def test_no_file_overwrites_another(project, tmp_path):
    root = tmp_path / "zwei Wörter"
    for place in ("a/x.png", "b ü/x.png", "b ü/x.jpg"):
        save_image(root / place, (32, 48))
    predict(project, "--input", root / "a", root / "b ü", "--output", tmp_path / "out put")
    written = {
        p.relative_to(tmp_path / "out put" / "label").as_posix()
        for p in (tmp_path / "out put" / "label").rglob("*.png")
    }
    assert written == {"a/x.png", "b ü/x_png.png", "b ü/x_jpg.png"}


def test_earlier_results_within_the_folder_of_images_are_no_images(project, tmp_path):
    save_image(tmp_path / "in" / "a.png", (32, 48))
    for output in (tmp_path / "in", tmp_path / "in" / "results"):
        for _ in range(2):
            predict(project, "--input", tmp_path / "in", "--output", output)
        assert [p.name for p in (output / "label").rglob("*.png")] == ["a.png"]
        shutil.rmtree(output / "label"), shutil.rmtree(output / "overlay")
    save_image(tmp_path / "in" / "label" / "b.png", (32, 48))  # of another output: an image
    predict(project, "--input", tmp_path / "in", "--output", tmp_path / "out")
    assert len([*(tmp_path / "out" / "label").rglob("*.png")]) == 2


def test_an_unreadable_image(project, tmp_path, capsys):
    save_image(tmp_path / "in" / "a.png", (32, 48))
    (tmp_path / "in" / "b.png").write_bytes(b"no image")
    save_image(tmp_path / "in" / "c.png", (32, 48))
    arguments = ("--input", tmp_path / "in", "--output", tmp_path / "out")
    message = fails(capsys, project, *arguments)
    assert "b.png cannot be read" in message and len(message.splitlines()) == 1
    message = fails(capsys, project, *arguments, "--skip-errors")
    assert "1 skipped" in message and "b.png cannot be read" in message
    assert "2 images" in capsys.readouterr().out
    assert (tmp_path / "out" / "label" / "c.png").is_file()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--input", "nowhere"], "no file or folder nowhere"),
        (["--dataset", "nothing"], "nothing.*is not registered"),
        (
            ["--dataset", "camvid_sem_seg_vall"],
            "did you mean camvid_sem_seg_val",
        ),
        (
            ["--input", "{images}", "--cityscapes-submission"],
            "Cityscapes' 19 classes; this one has 8",
        ),
        (["--input", "{images}", "--labels", "x"], "--labels is for --compare"),
        (["--input", "{images}", "--opts", "TEST.AUGG", "1"], "TEST.AUGG"),
        (["--input", "clip.mp4", "--probabilities"], "of a video only the overlay"),
        (["--input", "clip.mp4"], "video clip.mp4 cannot be read"),
        (["--input", "{images}", "--compare", "w.pth"], "no --weights"),
    ],
)
def test_bad_arguments_end_in_one_line(project, tmp_path, capsys, arguments, message):
    arguments = [argument.format(images=project / "images") for argument in arguments]
    options = arguments[arguments.index("--opts") :] if "--opts" in arguments else []
    arguments = arguments[: len(arguments) - len(options)]
    text = fails(capsys, project, *arguments, "--output", tmp_path, *options)
    assert re.search(message, text) and len(text.splitlines()) == 1


@pytest.fixture
def own_data_config(project):
    """A config with a data set of its own, which nothing has registered yet."""
    name, config = "of_this_config_alone", project / "own.yaml"
    folders = {"IMAGES": str(project / "images"), "LABELS": str(project / "labels")}
    node = {name: {**folders, "CLASSES": [*"abcdefgh"]}}
    datasets = {"TRAIN": [name], "TEST": [name], "SEM_SEG_FOLDERS": node}
    config.write_text(yaml.safe_dump({"_BASE_": "config.yaml", "DATASETS": datasets}))
    assert name not in DatasetCatalog.list()
    yield name, config
    DatasetCatalog.remove(name), MetadataCatalog.remove(name)


@pytest.mark.parametrize("how", ["predict", "compare", "pairs"])
def test_a_data_set_of_the_config_itself(project, tmp_path, own_data_config, how):
    name, config = own_data_config
    weights = project / "weights0.pth"
    arguments = {
        "predict": ["--config-file", config, "--weights", weights],
        "compare": ["--config-file", config, "--compare", weights],
        "pairs": ["--compare", f"{config}:{weights}"],
    }[how]
    main([str(argument) for argument in [*arguments, "--dataset", name, "--output", tmp_path]])
    written = tmp_path / ("overlay" if how == "predict" else "compare")
    assert sorted(path.name for path in written.iterdir()) == ["0.png", "1.png", "2.png"]


def test_without_a_config(tmp_path):
    for arguments in (["--weights", "w.pth"], ["--compare", "w.pth"]):
        with pytest.raises(SystemExit, match="--config-file is missing"):
            main([*arguments, "--input", "x.png", "--output", str(tmp_path)])


def test_video(project, tmp_path):
    import cv2

    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 5, (64, 48))
    frames = np.random.RandomState(0).randint(0, 256, (3, 48, 64, 3), np.uint8)
    for frame in frames:
        writer.write(frame)
    writer.release()
    predict(project, "--input", path, "--output", tmp_path / "out")
    (written,) = (tmp_path / "out" / "overlay").iterdir()
    capture = cv2.VideoCapture(str(written))
    assert capture.get(cv2.CAP_PROP_FPS) == 5
    there, frame = capture.read()
    assert there and frame.shape[1] == 512 and frame.shape[0] > 384
    assert capture.read()[0] and capture.read()[0] and not capture.read()[0]


def test_videos_are_rgb(tmp_path):
    color = np.array([200, 90, 30], np.uint8)
    writer = VideoWriter(tmp_path / "clip", 5)
    for _ in range(2):
        writer.write(np.broadcast_to(color, (48, 64, 3)))
    writer.close()
    frame, _ = VideoReader(str(writer.path))
    assert abs(frame[8:-8, 8:-8].astype(int) - color).max() < 12  # codecs are not exact
    import cv2

    there, frame = cv2.VideoCapture(str(writer.path)).read()  # BGR
    assert there and abs(frame[8:-8, 8:-8, ::-1].astype(int) - color).max() < 12


def test_compare(project, tmp_path):
    weights = [project / "weights0.pth", f"{project / 'config.yaml'}:{project / 'weights1.pth'}"]
    common = ["--config-file", str(project / "config.yaml"), "--compare", *map(str, weights)]
    main([*common, "--input", str(project / "images"), "--output", str(tmp_path / "plain")])
    labels = ["--labels", str(project / "labels")]
    main([*common, "--input", str(project / "images"), *labels, "--output", str(tmp_path / "with")])
    plain = Image.open(tmp_path / "plain" / "compare" / "0.png")
    with_label = Image.open(tmp_path / "with" / "compare" / "0.png")
    panel = 53 * 7  # the smallest whole factor with 320 pixels
    assert plain.width == 3 * (panel + 8) + 8 and with_label.width == 4 * (panel + 8) + 8
    (name,) = load_cfg(str(project / "config.yaml")).DATASETS.TEST
    main([*common, "--dataset", name, "--output", str(tmp_path / "set")])
    from_set = Image.open(tmp_path / "set" / "compare" / "0.png")
    assert np.array_equal(np.asarray(from_set), np.asarray(with_label))
    with pytest.raises(SystemExit, match="has no label"):
        (project / "labels" / "2.png").rename(project / "labels" / "2.away")
        try:
            main([*common, "--input", str(project / "images"), *labels, "--output", str(tmp_path)])
        finally:
            (project / "labels" / "2.away").rename(project / "labels" / "2.png")
