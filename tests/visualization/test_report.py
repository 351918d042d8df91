import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from d2_pixcontrast.visualization import Embedding2D, RunResult, Sample, write_report
from d2_pixcontrast.visualization.sections import _history
from d2_pixcontrast.visualization.svg import Series, line_chart, ticks

NAMES = ["background", "<disc> & ring"]
COLORS = np.array([[60, 60, 70], [230, 80, 70]], dtype=np.uint8)
VOID_ELEMENTS = {"meta", "img"}


class Checker(HTMLParser):
    """Every element is closed in its place; collects tags, attributes and text."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def make_run(name, miou, samples, seed):
    rng = np.random.RandomState(seed)
    history = [
        {"iteration": 19, "total_loss": 1.5, "loss_sem_seg": 1.5},
        {"iteration": 39, "total_loss": 1.2, "loss_sem_seg": 1.0, "loss_pixel_contrast": 0.2},
        {"iteration": 40, "sem_seg/mIoU": miou},
    ]
    return RunResult(
        name,
        {"mIoU": miou, "IoU-background": 91.25, "IoU-<disc> & ring": math.nan},
        history,
        [np.where(s.label == 255, 0, s.label) for s in samples],
        Embedding2D(rng.rand(6, 2), np.repeat([0, 1], 3), 0.75, 0.125),
    )


def test_the_last_evaluation_belongs_to_the_last_step():
    (score,) = _history(make_run("x", 50.0, [], 0), "sem_seg/mIoU")
    assert score == (40, 50.0)
    run = make_run("x", 50.0, [], 0)
    run.history[:2] = []
    assert _history(run, "sem_seg/mIoU") == [(41, 50.0)]  # no step to tell by


@pytest.fixture
def page(tmp_path):
    rng = np.random.RandomState(0)
    label = np.array([[0, 1], [1, 255]]).repeat(8, axis=0).repeat(8, axis=1)
    image = rng.randint(0, 255, (16, 16, 3)).astype(np.uint8)
    samples = [Sample(image, label, "a.png"), Sample(image, label, "b.png")]
    runs = [make_run("Cross-entropy", 52.04, samples, 0), make_run("Contrast", 49.5, samples, 1)]
    path = tmp_path / "new" / "report.html"
    write_report(
        str(path),
        runs,
        class_names=NAMES,
        colors=COLORS,
        samples=samples,
        title="A <title>",
        caveat="One seed proves nothing.",
        setting={"Seed": "0"},
    )
    return path.read_text(encoding="utf-8")


def test_is_well_formed_and_self_contained(page):
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    assert "script" not in checker.tags and "link" not in checker.tags
    sources = [value for key, value in checker.attributes if key in ("src", "href", "srcset")]
    assert len(sources) == 8  # two rows: image, label, two predictions
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"https?:|url\(|@import", page)


def test_has_the_numbers(page):
    checker = Checker()
    checker.feed(page)
    text = " ".join(checker.text)
    for expected in ("52.0", "49.5", "−2.5", "91.2", "0.75", "0.12", "100.0 %"):  # noqa: RUF001
        assert expected in text
    assert "One seed proves nothing." in text and "A <title>" in text and "nan" not in text
    assert "Cross-entropy, iteration 20: 1.5" in text  # the hover title of a curve's point
    assert "<disc> & ring" in text and "<disc>" not in page


def test_sections_without_data_are_left_out(tmp_path):
    path = tmp_path / "bare.html"
    write_report(str(path), [RunResult("Only", {"mIoU": 1.0})], class_names=NAMES, colors=COLORS)
    checker = Checker()
    checker.feed(path.read_text(encoding="utf-8"))
    assert checker.tags.count("section") == 1 and "svg" not in checker.tags


def test_bad_input(tmp_path):
    path = str(tmp_path / "x.html")
    with pytest.raises(ValueError, match="one to four runs, got 0"):
        write_report(path, [], class_names=NAMES, colors=COLORS)
    sample = Sample(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4)), "a.png")
    with pytest.raises(ValueError, match="Only has 0 predictions for 1 samples"):
        write_report(
            path,
            [RunResult("Only", {"mIoU": 1.0})],
            class_names=NAMES,
            colors=COLORS,
            samples=[sample],
        )


@pytest.mark.parametrize("maximum", [1e-7, 0.03, 0.99, 1.0, 3.0, 57.3, 100, 800, 12345])
def test_ticks_cover_the_range_with_few_steps(maximum):
    values = ticks(maximum)
    assert values[0] == 0 and values[-1] >= maximum * (1 - 1e-6)
    assert 3 <= len(values) <= 7
    assert values[-2] < maximum


def test_chart_leaves_out_what_is_not_finite():
    chart = line_chart([Series("a", [(1, math.nan), (2, 0.5)], "run0")], label="x")
    assert "nan" not in chart
    assert "No values" in line_chart([Series("a", [(1, math.nan)], "run0")], label="x")
