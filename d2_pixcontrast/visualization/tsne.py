"""Embeddings in two dimensions: t-SNE (van der Maaten and Hinton, JMLR 2008)."""

from typing import NamedTuple

import numpy as np


class Embedding2D(NamedTuple):
    """Points to draw, and two numbers that do not depend on how t-SNE arranged them.

    Attributes:
        coordinates: (N, 2) float64, the cloud in the middle of the unit square.
        classes: (N,) int64.
        within: mean cosine between embeddings of the same class, all classes weighted equally.
        between: mean cosine between embeddings of different classes.
    """

    coordinates: np.ndarray
    classes: np.ndarray
    within: float
    between: float


def project(
    embeddings: np.ndarray, classes: np.ndarray, *, seed: int = 0, perplexity: float = 30.0
) -> Embedding2D:
    """L2-normalise, reduce to 50 dimensions by PCA, then t-SNE; the same result for the same input.

    Args:
        embeddings: (N, D) with N >= 4.
        classes: (N,) integers.
        seed: of t-SNE.
        perplexity: of t-SNE, lowered where N is small.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: fewer than 4 embeddings, or some are not finite.
    """
    PCA, TSNE = scikit_learn()
    if len(embeddings) < 4:
        raise ValueError(f"t-SNE needs at least 4 embeddings, there are {len(embeddings)}")
    if not np.isfinite(embeddings).all():
        raise ValueError("some embeddings are not finite; did the training diverge?")
    unit = np.asarray(embeddings, dtype=np.float64)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True).clip(min=1e-12)
    within, between = class_cosines(unit, classes)
    if unit.shape[1] > 50:
        components = min(50, len(unit))
        unit = PCA(components, svd_solver="full").fit_transform(unit)
    method = TSNE(
        perplexity=min(perplexity, (len(unit) - 1) / 3),
        init="pca" if unit.std() > 0 else "random",
        random_state=seed,
    )
    points = method.fit_transform(unit).astype(np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    points = 0.5 + (points - (low + high) / 2) / ((high - low).max() or 1.0)
    return Embedding2D(points, np.asarray(classes), within, between)


def scikit_learn() -> tuple[type, type]:
    """Scikit-learn's PCA and TSNE. Callers that train first ask for them before that.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ImportError('t-SNE needs scikit-learn: pip install "d2_pixcontrast[vis]"') from error
    return PCA, TSNE


def class_cosines(unit: np.ndarray, classes: np.ndarray) -> tuple[float, float]:
    """Mean cosine of pairs within a class and of pairs across classes, from (N, D) unit vectors.

    Classes count equally; a pair is two different pixels. NaN where there is no such pair.
    """
    groups = [unit[classes == c] for c in np.unique(classes)]
    means = np.stack([group.mean(axis=0) for group in groups])
    within = [
        (len(g) ** 2 * mean @ mean - (g * g).sum()) / (len(g) * (len(g) - 1))
        for g, mean in zip(groups, means)
        if len(g) > 1
    ]
    cosines = means @ means.T
    across = cosines[~np.eye(len(groups), dtype=bool)]
    return (
        float(np.mean(within)) if within else float("nan"),
        float(across.mean()) if across.size else float("nan"),
    )
