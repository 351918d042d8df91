"""What has to be known about a semantic segmentation dataset in folders of images and labels."""

import os
from dataclasses import dataclass

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..labels import DataError

__all__ = ["SemSegDataset", "match_files", "register"]


@dataclass(frozen=True)
class SemSegDataset:
    """A dataset with an image and a label file per sample, paired by their relative path.

    Attributes:
        name: under which it is registered.
        image_dir, label_dir: folders below ``$DETECTRON2_DATASETS`` (default ``./datasets``).
        image_suffix, label_suffix: what follows the part of the path that a pair has in common.
        classes: names of the ids 0..C-1.
        colors: (R, G, B) of each, 0..255.
        ignore_label: id of pixels without label.
        origin: how to get or to prepare it; for the message when it is not there.
        labels_choose: the image folder holds other splits too, and the labels say which images
            are this one's.
    """

    name: str
    image_dir: str
    label_dir: str
    image_suffix: str
    label_suffix: str
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    ignore_label: int
    origin: str
    labels_choose: bool = False

    def root(self) -> str:
        """The folder that holds the dataset's; read when the dataset is, not at import."""
        return os.getenv("DETECTRON2_DATASETS", "datasets")

    def load(self) -> list[dict]:
        """The dataset dicts: "file_name", "sem_seg_file_name", "image_id".

        Raises:
            DataError: a folder is missing or empty, or a file has no counterpart.
        """
        image_root = os.path.join(self.root(), self.image_dir)
        label_root = os.path.join(self.root(), self.label_dir)
        suffixes = self.image_suffix, self.label_suffix
        dicts = match_files(
            self.name, image_root, label_root, *suffixes, self.origin, self.labels_choose
        )
        _replace(MetadataCatalog.get(self.name), image_root=image_root, sem_seg_root=label_root)
        return dicts


def register(dataset: SemSegDataset) -> None:
    """Add ``dataset`` to detectron2's catalogs."""
    DatasetCatalog.register(dataset.name, dataset.load)
    MetadataCatalog.get(dataset.name).set(
        stuff_classes=list(dataset.classes),
        stuff_colors=list(dataset.colors),
        ignore_label=dataset.ignore_label,
        evaluator_type="sem_seg",
    )


def match_files(
    name: str,
    image_root: str,
    label_root: str,
    image_suffix: str,
    label_suffix: str,
    origin: str,
    labels_choose: bool = False,
) -> list[dict]:
    """Pair all images below one folder with all labels below another, subfolders included.

    With ``labels_choose`` images without a label are left out.

    Returns:
        dicts with "file_name", "sem_seg_file_name" and "image_id", in the order of the latter.

    Raises:
        DataError: a folder is missing or has no such file, or a file has no counterpart.
    """
    images = _ids_below(name, image_root, image_suffix, origin)
    labels = _ids_below(name, label_root, label_suffix, origin)
    if labels_choose:
        images &= labels
    for there, missing, root, suffix in (
        (images, labels, label_root, label_suffix),
        (labels, images, image_root, image_suffix),
    ):
        lonely = sorted(there - missing)
        if lonely:
            shown = ", ".join(os.path.join(root, file + suffix) for file in lonely[:5])
            more = f" and {len(lonely) - 5} more" if len(lonely) > 5 else ""
            files = "1 file is" if len(lonely) == 1 else f"{len(lonely)} files are"
            raise DataError(f"dataset {name}: {files} missing: {shown}{more}")
    return [
        {
            "file_name": os.path.join(image_root, file + image_suffix),
            "sem_seg_file_name": os.path.join(label_root, file + label_suffix),
            "image_id": file,
        }
        for file in sorted(images)
    ]


def _ids_below(name: str, root: str, suffix: str, origin: str) -> set[str]:
    ids = {
        os.path.relpath(os.path.join(folder, file), root)[: -len(suffix)]
        for folder, _, files in os.walk(root, followlinks=True)
        for file in files
        if file.endswith(suffix) and not file.startswith(".")
    }
    if not ids:
        state = f"has no file *{suffix}" if os.path.isdir(root) else "does not exist"
        raise DataError(
            f"dataset {name}: the folder {os.path.abspath(root)} {state}. {origin} "
            "The environment variable DETECTRON2_DATASETS names the folder of all datasets."
        )
    return ids


def _replace(metadata, **values) -> None:
    """Set attributes of a detectron2 Metadata, which refuses to change one that it has."""
    for key, value in values.items():
        if metadata.get(key) != value:
            metadata.__dict__.pop(key, None)
            metadata.set(**{key: value})
