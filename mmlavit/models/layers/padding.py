"""Images of several sizes in one batch: which pixels are padding (docs/paper_to_code.md, 10)."""

import torch.nn.functional as F
from torch import Tensor

from .tiles import is_eager

# What the configs have the data preprocessors fill with. No normalized pixel comes near it.
PAD_VALUE = -1e30


def real_pixels(images: Tensor) -> Tensor | None:
    """Find the padding that a data preprocessor marked with :data:`PAD_VALUE`.

    Padding lies at the bottom and on the right, so the last pixel of an image tells whether there
    is any. Compiled and exported models are for images of one size and do not look, and tensors
    on the meta device have no pixels.

    Args:
        images: Batch of shape ``(B, C, h, w)``.

    Returns:
        Booleans of shape ``(B, h, w)``, true where a pixel belongs to its image, or None where all
        do.
    """
    if images.is_meta or not is_eager():
        return None
    limit = PAD_VALUE / 2
    if not (images[:, 0, -1, -1] < limit).any():
        return None
    return images[:, 0] >= limit


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
        side: Side of a map. One that an export leaves open is never a multiple: a graph that pads
            serves every size, by nothing where there is nothing to pad.
        step: Side of a window or a patch.
    """
    return isinstance(side, int) and side % step == 0


def real_patches(real: Tensor, patch: int) -> Tensor:
    """Keep every patch that holds a real token.

    Args:
        real: Booleans of shape ``(B, h, w)``.
        patch: Side of a patch.

    Returns:
        Booleans of shape ``(B, ceil(h / patch), ceil(w / patch))``.
    """
    return F.max_pool2d(real.float(), patch, ceil_mode=True) > 0
