"""Pictures of boundary-aware negatives."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import INSTANT_TEST
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

from d2_pixcontrast.config import inference_config
from d2_pixcontrast.contrast import Bane
from d2_pixcontrast.data import SemSegMapper
from d2_pixcontrast.engine import SemSegCheckpointer, load_cfg
from d2_pixcontrast.visualization.anchor_similarity import similarity_by_distance
from d2_pixcontrast.visualization.bane import Viewer, main
from d2_pixcontrast.visualization.error_view import ErrorView, view_errors

CLASSES, IGNORE = 8, 255
TERMS = {
    "PixelContrast": ("MODEL.PIXEL_CONTRAST.IN_FEATURES", "['res2', 'res5']"),
    "Contextrast": ("MODEL.CONTEXTRAST.IN_FEATURES", "['res2', 'res5']"),
    "MultiScaleContrast": ("MODEL.MULTI_SCALE_CONTRAST.IN_FEATURES", "['res2', 'res5']"),
}
WEIGHTS = {
    "Contextrast": ("MODEL.CONTEXTRAST.LEVEL_WEIGHTS", "[0.5, 0.5]"),
    "MultiScaleContrast": (
        *("MODEL.MULTI_SCALE_CONTRAST.SCALE_WEIGHTS", "[0.5, 0.5]"),
        *("MODEL.MULTI_SCALE_CONTRAST.CROSS_FEATURES", "['res5']"),
    ),
}


def options(*terms):
    found = ["MODEL.SEM_SEG_HEAD.TERMS", str(list(terms))]
    for term in terms:
        found += [*TERMS[term], *WEIGHTS.get(term, ())]
    return found


@pytest.fixture
def checkpoint(tmp_path):
    """Writes the weights of a config's model and returns the file."""

    def save(opts, name="model", seed=0, **kwargs):
        torch.manual_seed(seed)
        model = build_model(load_cfg(str(INSTANT_TEST), opts))
        SemSegCheckpointer(model, str(tmp_path)).save(name, **kwargs)
        return str(tmp_path / f"{name}.pth")

    return save


def random_view(seed, size=(9, 12), dim=5, classes=3):
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, size, generator=g)
    label[torch.rand(size, generator=g) < 0.1] = IGNORE
    wrong = (torch.rand(size, generator=g) < 0.4) & (label != IGNORE)
    distance = (torch.rand(size, generator=g) * 6 + 1).where(wrong, 0)
    distance[wrong & (torch.rand(size, generator=g) < 0.1)] = torch.inf
    embeddings = torch.nn.functional.normalize(torch.randn(dim, *size, generator=g), dim=0)
    group = label.where(wrong, -1)
    return ErrorView(torch.zeros(1), label, label, group, distance, wrong, embeddings)


def test_similarity_by_distance_equals_a_loop():
    views = [random_view(seed) for seed in range(3)]
    views[1].label[views[1].group < 0] = IGNORE
    rows = [
        (
            int(view.label[i, j]),
            float(view.distance[i, j]),
            bool(view.group[i, j] >= 0),
            view.embeddings[:, i, j].double(),
        )
        for view in views
        for i in range(9)
        for j in range(12)
        if view.label[i, j] != IGNORE
    ]
    anchors = {}
    for c in range(3):
        mean = sum(z for label, _, _, z in rows if label == c)
        anchors[c] = mean / mean.norm()
    found = {k: [] for k in range(1, 5)}
    for label, distance, wrong, z in rows:
        if wrong:
            found[min(4, math.floor(distance) if distance < 99 else 4)].append(z @ anchors[label])
    curve = similarity_by_distance(iter(views), name="n", num_classes=3, max_distance=4)
    assert curve.count.tolist() == [len(values) for values in found.values()]
    expected = [float(sum(values) / len(values)) for values in found.values()]
    np.testing.assert_allclose(curve.mean, expected, rtol=1e-9)


def test_without_errors_there_is_no_similarity():
    view = random_view(0)
    view = view._replace(group=torch.full_like(view.group, -1))
    curve = similarity_by_distance([view], name="n", num_classes=3, max_distance=2)
    assert curve.count.tolist() == [0, 0] and np.isnan(curve.mean).all()


class Constant(torch.nn.Module):
    """A model that predicts class 1 everywhere, on every other pixel of a padded image."""

    def __init__(self, multiple):
        super().__init__()
        self.multiple = multiple
        self.backbone = torch.nn.ModuleDict()
        self.backbone.forward = lambda x: {"res2": x[:, :, ::2, ::2]}
        self.sem_seg_head = torch.nn.Module()
        self.sem_seg_head.predictor = torch.nn.Conv2d(3, 3, 1)
        torch.nn.init.zeros_(self.sem_seg_head.predictor.weight)
        self.sem_seg_head.predictor.bias.data = torch.tensor([0.0, 1.0, 0.0])

    def forward(self, batch):
        image = batch[0]["image"].float()[None]
        height, width = (-(-n // self.multiple) * self.multiple for n in image.shape[-2:])
        pad = (0, width - image.shape[-1], 0, height - image.shape[-2])
        features = self.backbone(torch.nn.functional.pad(image, pad))
        return self.sem_seg_head.predictor(features["res2"])


@pytest.mark.parametrize("multiple", [2, 16])
def test_the_view_of_a_known_prediction(multiple):
    """Class 1 in the right half is right; the padding is neither an error nor a boundary."""
    label = torch.zeros(20, 24, dtype=torch.int64)
    label[:, 12:] = 1
    sample = {
        "image": torch.zeros(3, 20, 24, dtype=torch.uint8),
        "label": label,
        "file_name": "folder/known.png",
    }
    view = view_errors(
        Constant(multiple), sample, Bane(keep_percent=20.0), num_classes=3, ignore_value=IGNORE
    )
    assert view.image.shape == (20, 24, 3) and view.embeddings is None
    assert torch.equal(view.label, label[::2, ::2])
    assert view.prediction.shape == (10, 12) and torch.all(view.prediction == 1)
    assert torch.all(view.group[:, :6] == 0) and torch.all(view.group[:, 6:] == -1)
    row = torch.tensor([6, 5, 4, 3, 2, 1, 0, 0, 0, 0, 0, 0.0])
    assert torch.equal(view.distance, row.expand(10, 12))
    assert view.chosen.sum() == 12 and view.chosen[:, 5].all()


def test_a_label_of_another_size_is_brought_to_the_image():
    label = torch.zeros(40, 48, dtype=torch.int64)
    label[:, 24:] = 1
    image = torch.zeros(3, 20, 24, dtype=torch.uint8)
    sample = {"image": image, "label": label, "file_name": "a.png"}
    view = view_errors(Constant(16), sample, Bane(), num_classes=3, ignore_value=IGNORE)
    assert torch.equal(view.label, label[::4, ::4])
    with pytest.raises(ValueError, match="a.png has no label"):
        del sample["label"]
        view_errors(Constant(2), sample, Bane(), num_classes=3, ignore_value=IGNORE)


@pytest.mark.parametrize(
    "term, level",
    [
        ("PixelContrast", ""),  # its features are concatenated on one grid
        ("Contextrast", ""),
        ("Contextrast", "res5"),
        ("MultiScaleContrast", ""),
        ("MultiScaleContrast", "res5"),
    ],
)
def test_every_term_gives_its_own_embeddings(term, level, checkpoint):
    cfg = load_cfg(str(INSTANT_TEST), options(term))
    viewer = Viewer(cfg, term=term, level=level)
    viewer.load(checkpoint(options(term)))
    (view,) = viewer.views([2])
    sample = SemSegMapper(cfg, is_train=False)(DatasetCatalog.get(cfg.DATASETS.TEST[0])[2])
    stride = 16 if level else 4
    assert view.label.shape == tuple(-(-n // stride) for n in sample["image"].shape[-2:])
    norm = view.embeddings.norm(dim=0)
    torch.testing.assert_close(norm, torch.ones_like(norm))
    assert torch.equal(view.group >= 0, (view.label != view.prediction) & (view.label != IGNORE))
    if term != "PixelContrast":
        mean, std = viewer.model.pixel_mean.cpu(), viewer.model.pixel_std.cpu()
        with torch.no_grad():
            features = viewer.model.backbone((sample["image"].float() - mean)[None] / std)
            projectors = viewer.model.sem_seg_head.terms[term].projectors
            expected = projectors[1 if level else 0](features[level or "res2"])[0]
        torch.testing.assert_close(view.embeddings, expected)


def run(output, weights, *arguments):
    weights = [item for file in weights for item in ("--weights", file)]
    main(["--config-file", str(INSTANT_TEST), *weights, "--output", str(output), *arguments])


def test_pictures_of_checkpoints_are_drawn_the_same_twice(checkpoint, tmp_path, capsys):
    weights = [checkpoint([], "early", seed=0, iteration=1999), checkpoint([], "late", seed=1)]
    files = ["0000.png", "0001.png", "similarity.png", "similarity.json"]
    for name in ("one", "two"):
        run(tmp_path / name, weights, "--num-images", "2", "--curve-images", "3")
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == sorted(files)
        assert ", ".join(files) in capsys.readouterr().out
    for file in files:
        first = (tmp_path / "one" / file).read_bytes()
        assert first == (tmp_path / "two" / file).read_bytes()
        assert file.endswith("json") or (first.startswith(b"\x89PNG") and len(first) > 10_000)
    early, late = json.loads((tmp_path / "one" / "similarity.json").read_text())
    assert (early["name"], late["name"]) == ("iteration 2,000", "late")
    assert early["weights"] == weights[0] and early["mean"] != late["mean"]
    for curve in (early, late):
        assert len(curve["mean"]) == len(curve["count"]) == 10 and curve["count"][0] > 0
        assert all((m is None) == (n == 0) for m, n in zip(curve["mean"], curve["count"]))


def test_without_terms_the_panels_alone_are_drawn(checkpoint, tmp_path, capsys):
    """Of the images that are named, with a checkpoint of the plain model."""
    cfg = inference_config(load_cfg(str(INSTANT_TEST)))
    SemSegCheckpointer(build_model(cfg), str(tmp_path)).save("plain")
    arguments = ["--image", "0007", "--image", "0003.png", "MODEL.SEM_SEG_HEAD.TERMS", "[]"]
    arguments += ["MODEL.CONTEXTRAST.BANE.TARGET", "confused"]
    arguments += ["MODEL.SEM_SEG_HEAD.AUX.IN_FEATURES", "['res5']"]
    run(tmp_path / "out", [str(tmp_path / "plain.pth")], *arguments)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"0003.png", "0007.png"}


@pytest.mark.parametrize(
    "arguments, match",
    [
        (["--image", "nobody"], "--image nobody: shapes_sem_seg_val has no such file"),
        (["--term", "Contextrast"], r"--term Contextrast: .*TERMS is \['PixelContrast'\]"),
        (["--level", "res9"], r"--level res9: PixelContrast embeds \['decoder'\]"),
        (["--max-distance", "0"], "--max-distance has to be at least 1"),
        (["MODEL.PIXEL_CONTRAST.BANE.TARGET", "own"], "TARGET is 'own'; known are"),
        ([], "there is no file .*nowhere.pth"),
    ],
)
def test_bad_input_ends_in_one_line(arguments, match, tmp_path):
    with pytest.raises(SystemExit, match=match):
        run(tmp_path / "out", [str(tmp_path / "nowhere.pth")], *arguments)
