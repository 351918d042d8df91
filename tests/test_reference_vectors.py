"""The project's code against numbers computed with published implementations, at 1e-6 relative."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import reference_adapter

VARIABLE = "PIXCONTRAST_REFERENCE_DIR"
FOLDER = os.environ.get(VARIABLE)
FILES = sorted(Path(FOLDER).glob("*.npz")) if FOLDER else []
SCALARS = ("kind", "note")
OUTPUTS = ("loss", "grad_anchors", "memory_after", "distances")


@pytest.mark.skipif(not FOLDER, reason=f"{VARIABLE} is not set")
def test_there_are_vectors():
    assert FILES, f"no .npz in {FOLDER}"


@pytest.mark.skipif(not FILES, reason=f"{VARIABLE} names no vectors")
@pytest.mark.parametrize("path", FILES or [None], ids=lambda path: path and path.stem)
def test_reference_vector(path):
    arrays = dict(np.load(path, allow_pickle=False))
    meta = json.loads(str(arrays.pop("meta")))
    function = getattr(reference_adapter, meta["kind"])
    outputs = {k: arrays.pop(k) for k in list(arrays) if k in OUTPUTS}
    assert outputs
    scalars = {k: v for k, v in meta.items() if k not in SCALARS}
    results = function(**arrays, **scalars)
    for name, expected in outputs.items():
        scale = np.abs(expected).max()
        np.testing.assert_allclose(results[name], expected, rtol=1e-6, atol=1e-6 * scale)
