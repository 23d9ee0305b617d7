"""What a model takes for an image."""

from typing import Any

from mmlavit.models import LaViT

__all__ = ['channels_of']


def channels_of(model: Any) -> int:
    """Channels of the images that a model takes.

    Args:
        model: A model with a backbone. Of other backbones than LaViT, which have no common name for
            it, 3 is assumed.
    """
    backbone = model.backbone
    return backbone.in_channels if isinstance(backbone, LaViT) else 3
