"""``export onnx``: one ``.onnx`` file with the weights inside."""

import json
from pathlib import Path

import torch


def write_onnx(
    program: torch.export.ExportedProgram, path: Path, class_names: list[str], evaluated_at: str
) -> None:
    """Write a network with input "image" (1, 3, height, width) and output "logits" (1, C, height,
    width).

    Args:
        program: see :func:`~d2_pixcontrast.export.trace`.
        path: of the file.
        class_names: stored as the metadata "classes", a JSON list.
        evaluated_at: stored as the metadata of this name, see
            :func:`~d2_pixcontrast.export.evaluated_at`.

    Raises:
        ImportError: onnx or onnxscript is missing.
    """
    try:
        import onnx_ir
        import onnxscript  # noqa: F401  (torch imports it late, with a less helpful message)
    except ImportError as error:
        raise ImportError(
            f'ONNX export needs a package ({error}): pip install "d2_pixcontrast[export]"'
        ) from error
    written = torch.onnx.export(
        program, dynamo=True, input_names=["image"], output_names=["logits"], verbose=False
    )
    model = written.model
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = onnx_ir.Shape([*value.shape[:2], "height", "width"])
    model.metadata_props["classes"] = json.dumps(class_names)
    model.metadata_props["evaluated_at"] = evaluated_at
    written.save(path, external_data=False)


def run_onnx(path: Path, image: torch.Tensor) -> torch.Tensor:
    """Logits of a (1, 3, H, W) image, by onnxruntime on the CPU.

    Raises:
        ImportError: onnxruntime is missing.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": image.numpy()})
    return torch.from_numpy(logits)
