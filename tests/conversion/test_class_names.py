"""Class names of a file beside those of a dataset."""

import pytest
from detectron2.data import MetadataCatalog

from d2_pixcontrast.conversion.class_names import spelled_otherwise

ADE20K = MetadataCatalog.get("ade20k_sem_seg_val").stuff_classes
# The places of ADE20K's classes that mmsegmentation names otherwise altogether.
MMSEG = {
    8: "windowpane", 37: "bathtub", 38: "railing", 87: "streetlight", 89: "television receiver",
    90: "airplane", 92: "apparel", 109: "swimming pool", 113: "waterfall", 138: "ashcan",
}  # fmt: skip


def test_case_spaces_and_synonyms_do_not_matter():
    theirs, ours = ["Road", "traffic-light", "-"], ["road, route", "traffic light", "-"]
    assert spelled_otherwise(theirs, ours) == []


def test_mmsegmentation_names_of_ade20k_are_ours():
    theirs = [MMSEG.get(i, name.split(",")[0].strip()) for i, name in enumerate(ADE20K)]
    assert spelled_otherwise(theirs, ADE20K) == [(MMSEG[i], ADE20K[i]) for i in MMSEG]


@pytest.mark.parametrize(
    "theirs, message",
    [
        (["road", "tree", "car", "sky"], "class 1 is 'tree' there and 'sky' here"),
        (["road", "sky", "car", "road"], "class 3 is 'road' there and 'tree' here"),
        (["road", "sky", "car", "person"], "class 3 is 'person' there and 'tree' here"),
        (["road", "sky", "car"], "it names 3 classes, not 4"),
    ],
)
def test_other_classes_are_refused(theirs, message):
    with pytest.raises(ValueError, match=message):
        spelled_otherwise(theirs, ["road", "sky", "car", "tree"])
