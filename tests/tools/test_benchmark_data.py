"""tools/benchmark_data.py on tiny images."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import load_script
from PIL import Image

TOOL = Path(__file__).parents[2] / "tools" / "benchmark_data.py"


@pytest.fixture
def benchmark(monkeypatch, tmp_path):
    module = load_script(TOOL)
    monkeypatch.setattr(module, "CROP", (32, 64))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return module


def make_cityscapes(root, height, width):
    for kind, ending in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
        folder = root / "cityscapes" / kind / "train" / "aachen"
        folder.mkdir(parents=True)
        shape = (height, width, 3) if kind == "leftImg8bit" else (height, width)
        for name in ("a", "b"):
            pixels = np.random.RandomState(0).randint(0, 34, shape).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}_{ending}.png")


def test_result(benchmark, tmp_path, capsys):
    make_cityscapes(tmp_path, 64, 128)
    benchmark.main(["--rounds", "2", "--json", str(tmp_path / "out.json")])
    result = json.loads((tmp_path / "out.json").read_text())
    assert json.loads(capsys.readouterr().out) == result
    times = {name: result[name]["milliseconds"] for name in ("ours", "detectron2")}
    assert result["time_ratio"] == pytest.approx(times["detectron2"] / times["ours"])
    rate = result["ours"]["images_per_second_and_core"]
    assert rate == pytest.approx(1000 / times["ours"])
    assert result["images"] == "2 of 128x64" and result["crop"] == "64x32"


def test_both_mappers_vary_scale_place_and_colour(benchmark, tmp_path):
    make_cityscapes(tmp_path, 64, 128)
    (sample, _) = benchmark.find_samples(tmp_path)
    for mapper in (benchmark.our_mapper(), benchmark.detectron2_mapper(64, 128)):
        images = []
        for seed in range(4):
            with benchmark.seeded(seed, 0):
                images.append(mapper(sample)["image"])
        means = {round(image.float().mean().item(), 1) for image in images}
        assert all(image.shape == (3, 32, 64) for image in images) and len(means) > 2


def test_no_images_is_an_error(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark.main([])
    assert "has no Cityscapes images" in capsys.readouterr().err
