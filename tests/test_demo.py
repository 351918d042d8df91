import json
import re
import sys

import pytest
import torch

from d2_pixcontrast import demo
from d2_pixcontrast.engine import Trainer


@pytest.fixture
def one_thread():
    """Several threads wait for each other where other processes want the cores too."""
    limits = pytest.importorskip("threadpoolctl").threadpool_limits(1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    limits.restore_original_limits()


def test_trains_two_models_and_writes_the_report(tmp_path, capsys, one_thread):
    pytest.importorskip("sklearn")
    demo.main(["--output", str(tmp_path), "--iterations", "6", "--seed", "3"])

    shown = capsys.readouterr().out
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert str(tmp_path / "report.html") in shown
    assert re.search(r"contrast +100 %", shown)
    for folder, (name, _) in demo.RUNS.items():
        scores = json.loads((tmp_path / folder / "sem_seg_evaluation.json").read_text())
        miou = f"{scores['sem_seg']['mIoU']:.1f}"
        assert re.search(rf"{name} +{miou} mIoU", shown)
        assert f"<b>{miou}</b>" in page and name in page
        lines = (tmp_path / folder / "metrics.json").read_text().splitlines()
        trained = [line for line in lines if "loss_sem_seg" in line]
        assert trained
        assert all(("loss_pixel_contrast" in x) == (folder == "contrast") for x in trained)
        assert "iter" in (tmp_path / folder / "log.txt").read_text()
    assert "t-SNE" in page and "prove nothing" in page
    assert not re.search(r"https?:", page)


def test_both_start_from_the_same_network_and_data(tmp_path):
    arguments = demo._parser().parse_args(["--iterations", "2"])
    configs = [demo._config(tmp_path / n, file, arguments) for n, (_, file) in demo.RUNS.items()]
    for name in demo.RUNS:
        (tmp_path / name).mkdir()
    plain, contrast = (Trainer(cfg) for cfg in configs)
    weights = contrast.model.state_dict()
    assert any(".terms." in key for key in weights)
    for key, value in plain.model.state_dict().items():
        assert value.equal(weights[key]), key
    batches = [next(iter(trainer.data_loader)) for trainer in (plain, contrast)]
    for one, other in zip(*batches, strict=True):
        assert one["image"].equal(other["image"]) and one["sem_seg"].equal(other["sem_seg"])


def test_what_would_fail_in_the_end_is_refused_in_the_beginning(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        demo.main(["--seed", "-1"])
    assert "--seed: has to be at least 0" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    monkeypatch.setattr(demo, "train", None)
    with pytest.raises(SystemExit, match="t-SNE needs scikit-learn"):
        demo.main([])
    monkeypatch.undo()
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="demo: OUTPUT_DIR .*file/baseline' cannot be made"):
        demo.main(["--output", str(tmp_path / "file")])
    monkeypatch.setenv("PIXCONTRAST_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(SystemExit, match="demo: .*PIXCONTRAST_CACHE"):
        demo.main(["--output", str(tmp_path / "demo")])


def test_iterations_must_be_positive():
    with pytest.raises(SystemExit):
        demo.main(["--iterations", "0"])
