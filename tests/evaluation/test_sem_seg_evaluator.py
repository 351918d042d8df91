import json
import math
import re
import uuid

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from PIL import Image

from d2_pixcontrast.engine import launch
from d2_pixcontrast.evaluation import BoundaryCounter, SemSegEvaluator, confusion_matrix, scores

NAMES = ["road", "tree", "sky", "never"]
IGNORE = 255


def register(name):
    MetadataCatalog.get(name).set(stuff_classes=NAMES, ignore_label=IGNORE)
    return name


@pytest.fixture
def dataset():
    name = register(f"evaluator_{uuid.uuid4().hex}")
    yield name
    MetadataCatalog.remove(name)


def examples(number=4, seed=0):
    """Images of different sizes; the class "never" is neither labelled nor predicted."""
    generator = torch.Generator().manual_seed(seed)
    inputs, outputs = [], []
    for index in range(number):
        size = (6 + index, 9)
        label = torch.randint(3, size, generator=generator)
        label[0] = IGNORE
        logits = torch.randn(4, *size, generator=generator)
        logits[3] = -100.0
        inputs.append({"file_name": f"{index}.png", "label": label.to(torch.uint8)})
        outputs.append({"sem_seg": logits})
    return inputs, outputs


def expected_scores(inputs, outputs):
    confusion = sum(
        confusion_matrix(image["label"], output["sem_seg"].argmax(0), 4, IGNORE)
        for image, output in zip(inputs, outputs)
    )
    return confusion, scores(confusion, NAMES)


def test_scores_json_and_table(dataset, tmp_path, caplog):
    inputs, outputs = examples()
    evaluator = SemSegEvaluator(dataset, str(tmp_path / "new"))
    evaluator.reset()
    for image, output in zip(inputs, outputs):
        evaluator.process([image], [output])
    with caplog.at_level("INFO", logger="d2_pixcontrast"):
        results = evaluator.evaluate()["sem_seg"]

    confusion, expected = expected_scores(inputs, outputs)
    assert results == pytest.approx(expected, nan_ok=True)
    assert all(type(value) is float for value in results.values())
    assert math.isnan(results["IoU-never"]) and not math.isnan(results["mIoU"])
    assert f"{results['IoU-tree']:.2f}" in caplog.text and "mIoU" in caplog.text

    written = json.loads((tmp_path / "new" / "sem_seg_evaluation.json").read_text())
    assert written["sem_seg"]["IoU-never"] is None
    assert written["sem_seg"]["mIoU"] == results["mIoU"]
    assert written["confusion_matrix"] == confusion.tolist()
    assert written["class_names"] == NAMES
    assert written["num_images"] == 4
    assert "no label shows never; such a class has no IoU" in caplog.text


def test_reset_forgets(dataset):
    inputs, outputs = examples()
    evaluator = SemSegEvaluator(dataset)
    evaluator.process(inputs, outputs)
    evaluator.reset()
    evaluator.process(inputs[:2], outputs[:2])
    _, expected = expected_scores(inputs[:2], outputs[:2])
    assert evaluator.evaluate()["sem_seg"] == pytest.approx(expected, nan_ok=True)


def test_array_labels(dataset):
    inputs, outputs = examples()
    _, expected = expected_scores(inputs, outputs)
    for image, dtype in zip(inputs, (np.uint8, np.uint16, np.int32, np.int64)):
        image["label"] = image["label"].numpy().astype(dtype)
    evaluator = SemSegEvaluator(dataset)
    evaluator.process(inputs, outputs)
    assert evaluator.evaluate()["sem_seg"] == pytest.approx(expected, nan_ok=True)


def test_no_image(dataset, caplog):
    results = SemSegEvaluator(dataset).evaluate()["sem_seg"]
    assert math.isnan(results["mIoU"])
    assert "no image" in caplog.text


def test_size_mismatch_names_file_and_sizes(dataset):
    evaluator = SemSegEvaluator(dataset)
    label = torch.zeros(4, 6, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"street\.png: the label is 4 x 6 .*prediction 8 x 12"):
        evaluator.process(
            [{"sem_seg_file_name": "street.png", "label": label}],
            [{"sem_seg": torch.zeros(4, 8, 12)}],
        )


def test_number_of_classes_must_be_the_data_sets(dataset):
    evaluator = SemSegEvaluator(dataset)
    label = torch.zeros(4, 6, dtype=torch.uint8)
    with pytest.raises(ValueError, match="predicts 19 classes.* has 4"):
        evaluator.process([{"label": label}], [{"sem_seg": torch.zeros(19, 4, 6)}])


def test_label_outside_the_classes_raises_in_the_end(dataset):
    evaluator = SemSegEvaluator(dataset)
    label = torch.full((4, 6), 7, dtype=torch.uint8)
    evaluator.process([{"label": label}], [{"sem_seg": torch.zeros(4, 4, 6)}])
    with pytest.raises(ValueError, match="24 pixels .* outside the 4 classes"):
        evaluator.evaluate()


def test_a_network_of_nan_has_no_scores(dataset):
    evaluator = SemSegEvaluator(dataset, boundary_width=1)
    logits = torch.zeros(4, 4, 6)
    logits[2, :2] = math.nan
    label = torch.zeros(4, 6, dtype=torch.uint8)
    evaluator.process([{"label": label}], [{"sem_seg": logits}])
    with pytest.raises(ValueError, match="12 pixels .* where scores are NaN"):
        evaluator.evaluate()


def test_reads_the_label_file(dataset, tmp_path):
    inputs, outputs = examples()
    _, expected = expected_scores(inputs, outputs)
    files = []
    for index, image in enumerate(inputs):
        files.append({"sem_seg_file_name": str(tmp_path / f"{index}.png")})
        Image.fromarray(image["label"].numpy()).save(files[-1]["sem_seg_file_name"])
    evaluator = SemSegEvaluator(dataset)
    evaluator.process(files, outputs)
    assert evaluator.evaluate()["sem_seg"] == pytest.approx(expected, nan_ok=True)

    Image.fromarray(np.full((6, 9), 9, dtype=np.uint8)).save(tmp_path / "0.png")
    with pytest.raises(ValueError, match=r"0\.png has value 9 .*0\.\.3"):
        evaluator.process(files[:1], outputs[:1])


def test_metadata_must_be_complete():
    with pytest.raises(ValueError, match="stuff_classes and ignore_label"):
        SemSegEvaluator(f"nothing_{uuid.uuid4().hex}")


def test_boundary_iou_is_in_results_json_and_table(dataset, tmp_path, caplog):
    inputs, outputs = examples()
    evaluator = SemSegEvaluator(dataset, str(tmp_path), boundary_width=1)
    evaluator.process(inputs, outputs)
    with caplog.at_level("INFO", logger="d2_pixcontrast"):
        results = evaluator.evaluate()["sem_seg"]
    counter = BoundaryCounter(4, IGNORE, 1)
    for image, output in zip(inputs, outputs):
        counter.update(image["label"], output["sem_seg"].argmax(0))
    expected = counter.scores(NAMES)
    assert {key: results[key] for key in expected} == pytest.approx(expected, nan_ok=True)
    written = json.loads((tmp_path / "sem_seg_evaluation.json").read_text())
    assert written["boundary_width"] == 1 and written["sem_seg"]["mBIoU"] == results["mBIoU"]
    assert set(written["sem_seg"]) == set(results)
    assert f"{results['BIoU-tree']:.2f}" in caplog.text and "| mBIoU (width 1) |" in re.sub(
        " +", " ", caplog.text
    )
    with pytest.raises(ValueError, match="TEST.BOUNDARY_IOU.WIDTH"):
        SemSegEvaluator(dataset, boundary_width=-1)


def evaluate_share(folder, number):
    register("evaluator_two_ranks")
    inputs, outputs = examples(number)
    evaluator = SemSegEvaluator("evaluator_two_ranks", folder, boundary_width=1)
    share = slice(comm.get_rank(), None, 2)
    evaluator.process(inputs[share], outputs[share])
    results = evaluator.evaluate()
    assert (results is None) == (comm.get_rank() == 1)


def evaluate_a_bad_label():
    register("evaluator_bad_label")
    inputs, outputs = examples(2)
    inputs[0]["label"][3, 3] = 77  # of rank 0
    evaluator = SemSegEvaluator("evaluator_bad_label")
    share = slice(comm.get_rank(), None, 2)
    evaluator.process(inputs[share], outputs[share])
    with pytest.raises(ValueError, match="label"):
        evaluator.evaluate()


def test_a_bad_label_of_one_rank_ends_all_of_them():
    launch(evaluate_a_bad_label, 2, device="cpu")


@pytest.mark.parametrize("number", [5, 1])  # with one image, the second rank has none
def test_two_ranks_equal_one_process(number, tmp_path):
    launch(evaluate_share, 2, args=(str(tmp_path), number), device="cpu")
    written = json.loads((tmp_path / "sem_seg_evaluation.json").read_text())
    confusion, expected = expected_scores(*examples(number))
    assert written["confusion_matrix"] == confusion.tolist()
    assert written["num_images"] == number
    assert written["sem_seg"]["mIoU"] == expected["mIoU"]
    counter = BoundaryCounter(4, IGNORE, 1)
    for image, output in zip(*examples(number)):
        counter.update(image["label"], output["sem_seg"].argmax(0))
    assert written["sem_seg"]["mBIoU"] == counter.scores()["mBIoU"]
