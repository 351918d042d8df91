"""Updates of the memories as the papers write them: explicit upsampling, loops over everything."""

import torch
from torch.nn import functional as F

IGNORE = 255


def random_batch(seed, size, label_size, batch=2, channels=6, classes=4, missing=()):
    """Features (float64), some of them negative, and labels in patches, with some void."""
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, channels, *size, generator=g, dtype=torch.float64) + 0.3
    labels = torch.randint(classes, (batch, *label_size), generator=g)
    for c in missing:
        labels[labels == c] = IGNORE
    labels[torch.rand(labels.shape, generator=g) < 0.1] = IGNORE
    return features, labels


def pixels_of(features, labels, c):
    """Vectors of the class' pixels, upsampled to the labels, image by image."""
    size = tuple(labels.shape[1:])
    upsampled = F.interpolate(features.double(), size, mode="bilinear", align_corners=False)
    return [
        upsampled[b, :, y, x]
        for b in range(len(labels))
        for y in range(size[0])
        for x in range(size[1])
        if labels[b, y, x] == c
    ]


def cosine(a, b):
    return float(a @ b) / (max(float(a.norm()), 1e-8) * max(float(b.norm()), 1e-8))


def moved(entry, pixels, momentum, strategy):
    """The entry after an update by these pixels (at least one)."""
    distance = [1 - cosine(pixel, entry) for pixel in pixels]
    if strategy == "mean" or sum(distance) < 1e-6:
        distance = [1.0] * len(pixels)
    new = sum(d / sum(distance) * pixel for d, pixel in zip(distance, pixels))
    return (1 - momentum) * entry + momentum * new


def naive_update(entries, features, labels, momentum, strategy="cosine"):
    """(C, K, D) entries after one update; rows of zeros are empty."""
    result = entries.double().clone()
    for c, of_class in enumerate(result):
        pixels = pixels_of(features, labels, c)
        if not pixels:
            continue
        empty = [k for k, entry in enumerate(of_class) if not entry.any()]
        if empty:
            of_class[empty[0]] = sum(pixels) / len(pixels)
            continue
        groups = [[] for _ in of_class]
        for pixel in pixels:
            similarity = [cosine(pixel, entry) for entry in of_class]
            groups[similarity.index(max(similarity))].append(pixel)
        for k, group in enumerate(groups):
            if group:
                of_class[k] = moved(of_class[k].clone(), group, momentum, strategy)
    return result


def naive_statistics(statistics, features, labels, momentum):
    """(C, 2) mean and standard deviation after one update of MCIBI++."""
    result = statistics.double().clone()
    for c in range(len(result)):
        pixels = pixels_of(features, labels, c)
        if pixels:
            numbers = (sum(pixels) / len(pixels)).tolist()
            mean = sum(numbers) / len(numbers)
            variance = sum((x - mean) ** 2 for x in numbers) / (len(numbers) - 1)
            new = torch.tensor([mean, variance**0.5], dtype=torch.float64)
            result[c] = (1 - momentum) * result[c] + momentum * new
    return result
