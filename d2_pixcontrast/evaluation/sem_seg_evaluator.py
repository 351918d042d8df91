"""Detectron2 evaluator of semantic segmentation."""

import json
import logging
import math
import os
from collections import OrderedDict

import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from tabulate import tabulate

from .boundary_iou import BoundaryCounter
from .class_map import class_map
from .confusion import ConfusionCounter, scores

logger = logging.getLogger(__name__)

RESULTS_FILE = "sem_seg_evaluation.json"
SUMMARY_KEYS = ("mIoU", "fwIoU", "mACC", "pACC", "mBIoU")


def missing_metadata(metadata) -> list[str]:
    """Names of what scores need and a data set's metadata lacks."""
    return [key for key in ("stuff_classes", "ignore_label") if metadata.get(key) is None]


class SemSegEvaluator(DatasetEvaluator):
    """mIoU, fwIoU, mACC, pACC and each class's IoU and accuracy over a data set; boundary IoU, too.

    IoU of a class is TP / (TP + FP + FN), counted over all pixels of the data set whose label is
    not the ignore value. mIoU is the mean over the classes that occur in the ground truth or in
    the predictions, as in Cityscapes' own script; a class that occurs in neither has the IoU NaN
    (null in the JSON file) and is left out. mACC is the mean over the classes in the ground truth.
    (:func:`~d2_pixcontrast.evaluation.scores` has all definitions. Detectron2's own evaluator is
    not used because 0.5 and main disagree on what a class absent from the ground truth does.)
    mBIoU and each class's boundary IoU are defined in
    :class:`~d2_pixcontrast.evaluation.BoundaryCounter`.

    Pixels are counted on the model's device; nothing waits for it before :meth:`evaluate`.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        *,
        distributed: bool = True,
        boundary_width: float | None = None,
    ):
        """
        Args:
            dataset_name: a registered data set whose metadata has ``stuff_classes`` and
                ``ignore_label``.
            output_dir: where ``sem_seg_evaluation.json`` is written; None = nowhere.
            distributed: add up the counts of all processes; otherwise each scores its own images.
            boundary_width: of the regions that boundary IoU looks at, below 1 as a share of the
                image's diagonal, from 1 on in pixels; None = no boundary IoU.

        Raises:
            ValueError: the metadata lacks one of the two, or the width is none.
        """
        metadata = MetadataCatalog.get(dataset_name)
        if missing := missing_metadata(metadata):
            raise ValueError(f"data set {dataset_name!r} has no {' and '.join(missing)} (metadata)")
        self._dataset_name = dataset_name
        self._output_dir = output_dir
        self._distributed = distributed
        self._class_names = list(metadata.stuff_classes)
        self._ignore_value = int(metadata.ignore_label)
        self._boundary_width = boundary_width
        self._new_counters("cpu")  # refuses a width that is none
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._counters = None  # made on the device of the first prediction
        self._num_images = 0

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Count the pixels of some images.

        Args:
            inputs: dicts of the data loader with "label", the (H, W) integer ground truth, or else
                "sem_seg_file_name", which is read.
            outputs: dicts of the model with "sem_seg", (C, H, W) scores.

        Raises:
            ValueError: the scores have another size than the label, or another number of
                classes than the data set; the message names the file.
        """
        for image, output in zip(inputs, outputs, strict=True):
            logits = output["sem_seg"].detach()
            label = self._label(image)
            self._check(image, label, logits)
            if self._counters is None:
                self._counters = self._new_counters(logits.device)
            label = label.to(logits.device, non_blocking=True)
            prediction = class_map(logits)
            for counter in self._counters:
                counter.update(label, prediction)
            self._num_images += 1

    def evaluate(self) -> OrderedDict | None:
        """Add up all processes and score.

        Returns:
            On the main process {"sem_seg": {name: percent}}, plain floats; elsewhere None.

        Raises:
            ValueError: a label was neither a class nor the ignore value, or a score of a labelled
                pixel was NaN (on all processes).
        """
        counters = self._counters or self._new_counters("cpu")
        num_images = self._num_images
        for counter in counters:
            counter.counts = counter.counts.cpu()
        if self._distributed:  # over gloo whatever the backend is: CPU tensors will do
            parts = comm.all_gather(([counter.counts for counter in counters], num_images))
            num_images = sum(number for _, number in parts)
            for index, counter in enumerate(counters):
                counter.counts = torch.stack([counts[index] for counts, _ in parts]).sum(dim=0)
        confusion = counters[0].matrix()
        if self._distributed and not comm.is_main_process():
            return None

        if num_images == 0:
            logger.warning("%s: no image was evaluated, all scores are NaN", self._dataset_name)
        elif absent := self._absent(confusion):
            logger.warning(
                "%s: no label shows %s; such a class has no IoU, or 0 where it is predicted",
                self._dataset_name,
                ", ".join(absent),
            )
        results = scores(confusion, self._class_names)
        for counter in counters[1:]:
            results |= counter.scores(self._class_names)
        if self._output_dir:
            self._write(results, confusion, num_images)
        logger.info(
            "%s, %d images, percent:\n%s", self._dataset_name, num_images, self._table(results)
        )
        return OrderedDict(sem_seg=results)

    def _absent(self, confusion: torch.Tensor) -> list[str]:
        """Names of the classes that are nowhere in the ground truth."""
        pixels = confusion.sum(dim=1).tolist()
        return [name for name, count in zip(self._class_names, pixels, strict=True) if not count]

    def _new_counters(self, device: torch.device | str) -> list[ConfusionCounter | BoundaryCounter]:
        """Confusion matrix first."""
        classes, void, width = len(self._class_names), self._ignore_value, self._boundary_width
        counters = [ConfusionCounter(classes, void, device)]
        if width is not None:
            counters.append(BoundaryCounter(classes, void, width, device))
        return counters

    def _label(self, image: dict) -> torch.Tensor:
        """The (H, W) label; checked by the data loader's worker, or else read and checked here."""
        if "label" in image:
            return torch.as_tensor(image["label"])
        from ..data.labels import check_label, read_label  # data needs more than scoring does

        path = image["sem_seg_file_name"]
        label = read_label(path)
        check_label(label, len(self._class_names), self._ignore_value, path)
        return torch.as_tensor(label)

    def _check(self, image: dict, label: torch.Tensor, logits: torch.Tensor) -> None:
        path = image.get("sem_seg_file_name") or image.get("file_name", "an image")
        if logits.shape[0] != len(self._class_names):
            raise ValueError(
                f"{path}: the model predicts {logits.shape[0]} classes, "
                f"{self._dataset_name} has {len(self._class_names)}"
            )
        if label.shape != logits.shape[-2:]:
            (height, width), (rows, columns) = label.shape, logits.shape[-2:]
            raise ValueError(
                f"{path}: the label is {height} x {width} (height x width), "
                f"the prediction {rows} x {columns}"
            )

    def _write(self, results: dict[str, float], confusion: torch.Tensor, num_images: int) -> None:
        content = {
            "dataset": self._dataset_name,
            "num_images": num_images,
            "boundary_width": self._boundary_width,
            "sem_seg": {key: None if math.isnan(x) else x for key, x in results.items()},
            "class_names": self._class_names,
            # Rows are the ground truth, columns the predictions; pixels.
            "confusion_matrix": confusion.tolist(),
        }
        PathManager.mkdirs(self._output_dir)
        with PathManager.open(os.path.join(self._output_dir, RESULTS_FILE), "w") as file:
            json.dump(content, file, indent=1, allow_nan=False)

    def _table(self, results: dict[str, float]) -> str:
        kinds = [
            kind for kind in ("IoU", "ACC", "BIoU") if f"{kind}-{self._class_names[0]}" in results
        ]
        rows = [
            [name, *(results[f"{kind}-{name}"] for kind in kinds)] for name in self._class_names
        ]
        style = {"floatfmt": ".2f", "tablefmt": "pipe"}
        summary = {key: results[key] for key in SUMMARY_KEYS if key in results}
        return (
            tabulate(rows, headers=["class", *map(self._header, kinds)], **style)
            + "\n\n"
            + tabulate(
                [list(summary.values())], headers=[self._header(key) for key in summary], **style
            )
        )

    def _header(self, kind: str) -> str:
        """Boundary IoU of different widths are different scores."""
        return f"{kind} (width {self._boundary_width:g})" if kind.endswith("BIoU") else kind
