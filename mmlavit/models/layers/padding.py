"""Which pixels of a batch are padding (docs/paper_to_code.md, decision 10)."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from .tiles import is_eager

# What the configs have the data preprocessors fill with.
PAD_VALUE = -1e30
# No normalized pixel comes near it, float16 can hold it, and a padded pixel that a resized batch
# has blended with a real one is below it.
LIMIT = -1e4


def real_pixels(images: Tensor) -> Tensor | None:
    """Find the padding that a data preprocessor marked with :data:`PAD_VALUE`.

    A model that is compiled or transformed by ``torch.func`` cannot ask whether there is any, and
    takes every batch as padded. Exported
    models are for images without padding, and tensors on the meta device have no pixels.

    Args:
        images: Batch of shape ``(B, C, h, w)``.

    Returns:
        Booleans of shape ``(B, h, w)``, true where a pixel belongs to its image, or None where all
        do.
    """
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined]
    if images.is_meta or torch.compiler.is_exporting() or tracing:
        return None
    real = ~(images[:, 0] <= LIMIT)  # what is not a number is real, and shows
    if is_eager() and real.all():
        return None
    return real


def ceil_divide(side: int, step: int) -> int:
    """Count the windows or patches that cover a side.

    Args:
        side: Side of a map.
        step: Side of a window or a patch.
    """
    # ONNX divides integers toward zero, so that -(-side // step) would come out one too low
    return (side + step - 1) // step


def is_multiple(side: int, step: int) -> bool:
    """Tell whether a side needs no padding.

    Args:
        side: Side of a map. One that a compiled or exported graph leaves open is never a multiple:
            a graph that pads serves every size, by nothing where there is nothing to pad.
        step: Side of a window or a patch.
    """
    if torch.compiler.is_compiling():
        return statically_known_true(side % step == 0)
    return isinstance(side, int) and side % step == 0


def real_patches(real: Tensor, patch: int) -> Tensor:
    """Keep every patch that holds a real token.

    Args:
        real: Booleans of shape ``(B, h, w)``.
        patch: Side of a patch.

    Returns:
        Booleans of shape ``(B, ceil(h / patch), ceil(w / patch))``.
    """
    b, h, w = real.shape
    rows, cols = ceil_divide(h, patch), ceil_divide(w, patch)
    real = F.pad(real, (0, cols * patch - w, 0, rows * patch - h))
    return real.view(b, rows, patch, cols, patch).any(4).any(2)
