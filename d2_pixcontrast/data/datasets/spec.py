"""What has to be known about a semantic segmentation dataset in folders of images and labels."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..labels import DataError
from .colors import Color
from .pairing import match_files

__all__ = ["ROOT_HINT", "SemSegDataset", "register", "registered"]

ROOT_HINT = "The environment variable DETECTRON2_DATASETS names the folder of all datasets."

_REGISTERED: dict[str, "SemSegDataset"] = {}


@dataclass(frozen=True)
class SemSegDataset:
    """A dataset with an image and a label file per sample, paired by their relative path.

    Attributes:
        name: under which it is registered.
        image_dir, label_dir: folders below ``$DETECTRON2_DATASETS`` (default ``./datasets``).
        image_suffix, label_suffix: what follows the part of the path that a pair has in common;
            "" = any usual image extension.
        classes: names of the ids 0..C-1.
        colors: (R, G, B) of each, 0..255.
        ignore_label: id of pixels without label.
        origin: how to get or to prepare it; for the message when it is not there.
        labels_choose: the image folder holds other splits too, and the labels say which images
            are this one's.
        split_file: the folders hold other splits too, and this list of image ids, below the same
            folder as the others, says which are this one's; "" = none.
        flip_pairs: ids that change places when an image is mirrored (left and right arm), for
            test-time augmentation.
        part: the dataset is this part of the pairs, which it is given in the order of their names;
            None = all of them.
    """

    name: str
    image_dir: str
    label_dir: str
    image_suffix: str
    label_suffix: str
    classes: tuple[str, ...]
    colors: tuple[Color, ...]
    ignore_label: int
    origin: str = field(compare=False)
    labels_choose: bool = False
    split_file: str = ""
    flip_pairs: tuple[tuple[int, int], ...] = ()
    part: Callable[[list[dict]], list[dict]] | None = None

    def root(self) -> str:
        """The folder that holds the dataset's; read when the dataset is, not at import."""
        return os.getenv("DETECTRON2_DATASETS", "datasets")

    def is_there(self) -> bool:
        """Whether the folder of the images exists."""
        return os.path.isdir(self.pairing()["image_root"])

    def differs_in_folders_alone(self, other: "SemSegDataset") -> bool:
        """Whether the two have the same pixels' meaning, and files of the same form."""
        moved = replace(other, image_dir=self.image_dir, label_dir=self.label_dir)
        return moved == self != other

    def pairing(self) -> dict:
        """The arguments of :func:`~.pairing.find_pairs` for this dataset."""
        root = self.root()
        return {
            "image_root": os.path.join(root, self.image_dir),
            "label_root": os.path.join(root, self.label_dir),
            "image_suffix": self.image_suffix,
            "label_suffix": self.label_suffix,
            "labels_choose": self.labels_choose,
            "split_file": self.split_file and os.path.join(root, self.split_file),
        }

    def load(self) -> list[dict]:
        """The dataset dicts: "file_name", "sem_seg_file_name", "image_id".

        Raises:
            DataError: a folder is missing or empty, or a file has no counterpart.
        """
        pairing = self.pairing()
        dicts = match_files(self.name, self.origin, **pairing)
        _replace(
            MetadataCatalog.get(self.name),
            image_root=pairing["image_root"],
            sem_seg_root=pairing["label_root"],
        )
        return dicts if self.part is None else self.part(dicts)


def register(dataset: SemSegDataset) -> None:
    """Add ``dataset`` to detectron2's catalogs; once more does no harm.

    Of two that differ in their folders alone the one whose images are there is kept: the config of
    a published model names folders of another machine.

    Raises:
        DataError: another dataset has this name.
    """
    if dataset.name in DatasetCatalog.list():
        before = _REGISTERED.get(dataset.name)
        alike = before is not None and before.differs_in_folders_alone(dataset)
        if before == dataset or (alike and not dataset.is_there()):
            return
        if not alike or before.is_there():
            folders = f" (images in {before.pairing()['image_root']})" if alike else ""
            raise DataError(
                f"there is another dataset {dataset.name} already{folders}; choose another name, "
                f"or in Python first DatasetCatalog.remove({dataset.name!r}) and "
                "MetadataCatalog.remove the same"
            )
        DatasetCatalog.remove(dataset.name)
    DatasetCatalog.register(dataset.name, dataset.load)
    _REGISTERED[dataset.name] = dataset
    _replace(
        MetadataCatalog.get(dataset.name),
        stuff_classes=list(dataset.classes),
        stuff_colors=list(dataset.colors),
        ignore_label=dataset.ignore_label,
        evaluator_type="sem_seg",
        flip_pairs=list(dataset.flip_pairs),
    )


def registered(name: str) -> SemSegDataset | None:
    """What :func:`register` was given under ``name``; None for detectron2's and users' own."""
    return _REGISTERED.get(name) if name in DatasetCatalog.list() else None


def _replace(metadata, **values) -> None:
    """Set attributes of a detectron2 Metadata, which refuses to change one that it has."""
    for key, value in values.items():
        if metadata.get(key) != value:
            metadata.__dict__.pop(key, None)
            metadata.set(**{key: value})
