import numpy as np
import pytest
import torch
from conftest import INSTANT_TEST
from detectron2.modeling import build_model

from d2_pixcontrast.engine import SemSegCheckpointer
from d2_pixcontrast.visualization import PixelSample
from d2_pixcontrast.visualization.embeddings import class_similarity, main


def test_class_similarity_equals_naive_loops():
    rng = np.random.RandomState(0)
    embeddings = rng.randn(12, 5).astype(np.float32)
    classes = np.array([0, 0, 0, 1, 1, 3, 0, 1, 1, 0, 0, 0])
    matrix = class_similarity(PixelSample(embeddings, classes), 4)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    for a in range(4):
        for b in range(4):
            cosines = [
                unit[i] @ unit[j]
                for i in range(12)
                for j in range(12)
                if i != j and classes[i] == a and classes[j] == b
            ]
            expected = np.mean(cosines) if cosines else np.nan
            np.testing.assert_allclose(matrix[a, b], expected, rtol=1e-5, atol=1e-6)


def test_pictures_of_a_checkpoint_are_drawn_the_same_twice(small_cfg, tmp_path, capsys):
    pytest.importorskip("sklearn")
    torch.manual_seed(0)
    SemSegCheckpointer(build_model(small_cfg), str(tmp_path)).save("model")
    for name in ("one", "two"):
        arguments = ["--config-file", INSTANT_TEST, "--weights", tmp_path / "model.pth"]
        arguments += ["--num-images", "4", "--per-class", "12", "--output", tmp_path / name]
        main([str(argument) for argument in arguments])
    for picture in ("tsne.png", "similarity.png"):
        first = (tmp_path / "one" / picture).read_bytes()
        assert first.startswith(b"\x89PNG") and len(first) > 10_000
        assert first == (tmp_path / "two" / picture).read_bytes()


def test_bad_input_ends_in_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"there is no file .*nowhere.pth"):
        main(["--config-file", str(INSTANT_TEST), "--weights", str(tmp_path / "nowhere.pth")])
    with pytest.raises(SystemExit, match="--num-images"):
        main(["--config-file", str(INSTANT_TEST), "--weights", "x.pth", "--num-images", "0"])
