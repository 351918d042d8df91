"""Terms from outside of this package, in a process of their own."""

import os
import subprocess
import sys

import pytest
from conftest import INSTANT_TEST, ROOT

from d2_pixcontrast.engine import load_cfg

PLUGIN = """
import torch
from detectron2.config import CfgNode
from d2_pixcontrast.modeling import TERM_REGISTRY, Term


def add_config(cfg):
    cfg.MODEL.NORM_TERM = CfgNode({"LOSS_WEIGHT": 0.1, "WARMUP": 0.0})


@TERM_REGISTRY.register()
class NormTerm(Term):
    loss_names = ("loss_norm",)

    def __init__(self, cfg, shapes):
        super().__init__(cfg.MODEL.NORM_TERM.WARMUP)
        self.weight = cfg.MODEL.NORM_TERM.LOSS_WEIGHT

    def compute(self, inputs):
        return {"loss_norm": self.weight * inputs.features["decoder"].square().mean()}, {}
"""


def command(tmp_path, *arguments, plugin="my_terms"):
    (tmp_path / "my_terms.py").write_text(PLUGIN)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "PIXCONTRAST_PLUGINS": plugin,
    }
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True
    )


def test_a_term_of_another_package_trains_on_two_ranks_and_predicts(tmp_path):
    opts = ["MODEL.SEM_SEG_HEAD.TERMS", "['NormTerm']", "MODEL.NORM_TERM.LOSS_WEIGHT", "0.2"]
    opts += ["SOLVER.MAX_ITER", "2", "OUTPUT_DIR", str(tmp_path / "run")]
    run = [str(ROOT / "train_net.py"), "--config-file", str(INSTANT_TEST), "--num-gpus", "2"]
    done = command(tmp_path, *run, "--dist-url", "auto", *opts)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "loss_norm" in (tmp_path / "run" / "metrics.json").read_text()
    predict = ["-m", "d2_pixcontrast.predict", "--dataset", "shapes_sem_seg_val"]
    predict += ["--config-file", str(tmp_path / "run" / "config.yaml")]
    predict += ["--weights", str(tmp_path / "run" / "model_final.pth")]
    done = command(tmp_path, *predict, "--output", str(tmp_path / "pictures"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert any((tmp_path / "pictures" / "label").iterdir())


@pytest.mark.parametrize(
    "names, message",
    [
        ("no_such_module", "no_such_module cannot be imported: .*; the folder .* in PYTHONPATH"),
        ("os, no_such_package.terms", "no_such_package.terms cannot .* in PYTHONPATH"),
        ("my_terms.py", "my_terms cannot|my_terms.py cannot"),
        ("terms/mine.py", "'terms/mine.py' is no name of a module"),
        (".x", "'.x' is no name of a module"),
        ("needs_more", "needs_more cannot be imported: No module named 'no_such_module'$"),
    ],
)
def test_plugins_that_cannot_be_imported_are_named(monkeypatch, tmp_path, names, message):
    (tmp_path / "needs_more.py").write_text("import no_such_module")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PIXCONTRAST_PLUGINS", names)
    with pytest.raises(ValueError, match=f"PIXCONTRAST_PLUGINS: .*{message}"):
        load_cfg(str(INSTANT_TEST))
