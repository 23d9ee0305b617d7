"""Export a module to ONNX, and prove the graph with onnxruntime before anybody gets it."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mmlavit.errors import UserError

__all__ = ['ExportError', 'OnnxExport', 'check_packages', 'export_onnx']

PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')
TOLERANCE = 1e-4


class ExportError(Exception):
    """The module cannot be exported, or the graph computes something else."""


class OnnxExport(NamedTuple):
    """A proven graph, with the shapes of the images that it was compared on.

    ``difference`` is the largest deviation from PyTorch, in units of the largest output or of 1; of
    whole numbers, the share that differs.
    """

    content: bytes
    difference: float
    shapes: list[tuple[int, ...]]


def check_packages() -> None:
    """Raise a ``UserError`` that says how to install what exporting needs, if it is missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(
            f'exporting needs {", ".join(missing)}: install the extra `export`, as with '
            "`pip install 'mmlavit[export]'`"
        )


def export_onnx(
    module: nn.Module,
    shape: Sequence[int],
    output_names: Sequence[str],
    *,
    dynamic_batch: bool = False,
    dynamic_size: bool = False,
    metadata: dict[str, str] | None = None,
) -> OnnxExport:
    """Export a module that maps images to one tensor or several, and compare the graph with it.

    Args:
        module: Takes images of shape ``(B, C, h, w)``; put into evaluation mode.
        shape: ``(C, h, w)`` of an image; where sizes are dynamic, of an example.
        output_names: What the graph calls its outputs.
        dynamic_batch: Whether the graph takes any number of images, and not only one.
        dynamic_size: Whether the graph takes images of any size.
        metadata: Texts that the file carries along.

    Raises:
        UserError: If a package is missing.
        ExportError: If the module cannot be exported, or the graph deviates.
    """
    check_packages()
    import onnx

    module, (channels, height, width) = module.eval(), shape
    axes = {0: 'batch'} if dynamic_batch else {}
    axes |= {2: 'height', 3: 'width'} if dynamic_size else {}
    # an example of one image would make a graph for one image
    batch = 2 if dynamic_batch else 1
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                module, (torch.randn(batch, *shape),), dynamo=True, verbose=False,
                input_names=['image'], output_names=list(output_names),
                dynamic_shapes=(axes,) if axes else None,
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        cause = error.__cause__ or error
        reason = (str(cause) or type(cause).__name__).splitlines()[0]
        raise ExportError(f'torch cannot export it: {reason}') from error
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, metadata or {})
    onnx.checker.check_model(model)
    content = model.SerializeToString()
    shapes: list[tuple[int, ...]] = [(1, *shape), *([(3, *shape)] if dynamic_batch else [])]
    if dynamic_size:
        # larger and smaller, and multiples of nothing
        shapes += [(batch, channels, height + 61, width + 35), (batch, channels, 33, 65)]
    return OnnxExport(content, max(_difference(module, content, size) for size in shapes), shapes)


def _difference(module: nn.Module, content: bytes, shape: tuple[int, ...]) -> float:
    import onnxruntime

    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    size = 'x'.join(map(str, shape))
    with torch.no_grad():
        outputs = module(images)
    expected = [outputs] if isinstance(outputs, Tensor) else outputs
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(content, options, providers=['CPUExecutionProvider'])
        found = session.run(None, {'image': images.numpy()})
    except Exception as error:  # onnxruntime has no base class of its own for its errors
        reason = str(error).splitlines()[0]
        raise ExportError(f'onnxruntime fails on images of {size}: {reason}') from error
    largest = 0.0
    for theirs, ours in zip(found, (output.numpy() for output in expected), strict=True):
        if theirs.shape != ours.shape:
            raise ExportError(f'images of {size} give {theirs.shape}, PyTorch {ours.shape}')
        if np.issubdtype(ours.dtype, np.integer):
            difference = (theirs != ours).mean()
        else:
            difference = np.abs(theirs - ours).max() / max(1.0, np.abs(ours).max())
        # not ``max``, which would drop a difference that is not a number
        largest = float(np.maximum(largest, difference))
    if not largest <= TOLERANCE:
        raise ExportError(
            f'on images of {size}, onnxruntime deviates by {largest:.1e} from PyTorch, more than '
            f'{TOLERANCE:.0e}'
        )
    return largest
