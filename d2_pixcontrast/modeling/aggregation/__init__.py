"""What stands between decoder and classifier, in training and at inference: a data-set memory."""

from .attention import GridAttention
from .build import build_aggregation, build_joined_features, without_dropout
from .dataset_memory import AggregationOutput, DatasetMemoryAggregation
from .options import NetworkOptions, TrainingOptions
from .pixels import JoinedFeatures, PixelRepresentations

__all__ = [
    "AggregationOutput",
    "DatasetMemoryAggregation",
    "GridAttention",
    "JoinedFeatures",
    "NetworkOptions",
    "PixelRepresentations",
    "TrainingOptions",
    "build_aggregation",
    "build_joined_features",
    "without_dropout",
]
