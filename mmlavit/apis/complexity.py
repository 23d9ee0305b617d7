"""Count parameters and multiply-adds of a model, part by part."""

from collections import defaultdict
from collections.abc import Container
from typing import Any, NamedTuple

import torch
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmlavit.apis.images import channels_of
from mmlavit.errors import UserError
from mmlavit.models.layers import (
    AttentionResidual,
    ConvFFN,
    LessAttention,
    PatchEmbed,
    VanillaAttention,
)

__all__ = ['Count', 'assumed_rois', 'count_complexity', 'multiply_adds']

# A layer is of one kind; what is left of the backbone is 'backbone, other'.
LAYERS: dict[str, type[nn.Module]] = {
    'embedding': PatchEmbed,
    'vanilla attention (VA)': VanillaAttention,
    'less attention (LA)': LessAttention,
    'attention residual (AR)': AttentionResidual,
    'FFN': ConvFFN,
    'norms': nn.LayerNorm,
}


class Count(NamedTuple):
    """Learned values of a part, and its multiply-adds for one image."""

    parameters: int
    macs: int


class Inference(nn.Module):
    """What a model computes for an image, as far as it does not depend on what is in it."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> None:
        """Run everything whose cost counts, on images ``(1, C, h, w)``."""
        model = self.model
        extract = model.extract_feat if hasattr(model, 'extract_feat') else model.forward_features
        features = extract(x)
        for name in ('head', 'decode_head', 'rpn_head', 'bbox_head'):
            for head in _as_list(getattr(model, name, None)):
                head(features)
        for kind, count in zip(('bbox', 'mask'), assumed_rois(model) or (), strict=False):
            extractors = _as_list(getattr(model.roi_head, f'{kind}_roi_extractor', None))
            heads = _as_list(getattr(model.roi_head, f'{kind}_head', None))
            for extractor, head in zip(extractors, heads, strict=True):
                side = extractor.roi_layers[0].output_size
                head(x.new_empty(count, extractor.out_channels, *side))


def assumed_rois(model: Any) -> tuple[int, int] | None:
    """How many regions a two-stage detector's box heads and mask heads are counted for.

    Those are the most that its config lets through; None for a model without RoI heads.

    Raises:
        UserError: If the config does not say.
    """
    roi_head = getattr(model, 'roi_head', None)
    if roi_head is None:
        return None
    counts: list[Any] = [(model.test_cfg.get(k) or {}).get('max_per_img') for k in ('rpn', 'rcnn')]
    if None in counts:
        raise UserError(
            'model.test_cfg: rpn.max_per_img and rcnn.max_per_img must be set, which say how many '
            'regions are counted'
        )
    return counts[0], counts[1] if roi_head.with_mask else 0


def multiply_adds(model: nn.Module, shape: tuple[int, int], in_channels: int = 3) -> dict[str, int]:
    """Count the multiply-adds of one image.

    Matrix products and convolutions are counted, those inside fused attention and of padded tokens
    included; norms, activations, interpolation and pooling are not, as in the papers' figures.
    Nothing is computed: the model moves to the meta device, and is of no use afterwards.

    Args:
        model: Takes images ``(1, in_channels, h, w)``.
        shape: Height and width of the image in pixels.
        in_channels: Of the image.

    Returns:
        The count of the model, under the empty name, and of every module within that has any.
    """
    image = torch.empty(1, in_channels, *shape, device='meta')
    model.to('meta')
    model.eval()  # returns None in backbones of mmdet
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    root = type(model).__name__ + '.'
    within = {
        name.removeprefix(root): sum(operators.values()) // 2
        for name, operators in counter.get_flop_counts().items()
        if name.startswith(root)
    }
    return {'': counter.get_total_flops() // 2} | within


def count_complexity(model: nn.Module, shape: tuple[int, int]) -> dict[str, Count]:
    """Count a model of mmpretrain, mmdet or mmseg, or a LaViTClassifier, for one image.

    What counts is said at :func:`multiply_adds`; the model is of no use afterwards.

    Args:
        model: Any such model.
        shape: Height and width of the image in pixels.

    Returns:
        The cost of each part, in the order of the data; an auxiliary head, which only training
        has a use for, has no multiply-adds.

    Raises:
        UserError: If the model has parts whose cost is not known, or cannot run on such an image.
    """
    kind = type(model).__name__
    model = revert_sync_batchnorm(model)
    try:
        found = multiply_adds(Inference(model), shape, channels_of(model))
    except UserError:
        raise
    except Exception as error:  # of whatever a model does with an image, or a head with maps
        reason = f'{type(error).__name__}: {error}'.splitlines()[0]
        raise UserError(
            f'a {kind} cannot be counted on an image of {shape[0]}x{shape[1]}: {reason}'
        ) from error
    parts = _parts(model)
    counts = defaultdict(lambda: [0, 0], {part: [0, 0] for part in (*LAYERS, *parts.values())})
    for name, parameter in model.named_parameters():
        counts[_part_of(name, parts)][0] += parameter.numel()
    macs = {n.removeprefix('model.'): value for n, value in found.items() if n.startswith('model.')}
    for name, value in macs.items():
        counts[_part_of(name, parts)][1] += value
        outer = _enclosing(name, macs)
        if outer:  # whose count holds this one
            counts[_part_of(outer, parts)][1] -= value
    assert sum(macs for _, macs in counts.values()) == found[''], 'a part is missing'
    unknown = [
        part
        for part, (parameters, macs) in counts.items()
        if parameters and not macs and part not in ('norms', 'auxiliary_head')
    ]
    if unknown:
        raise UserError(
            f'a {kind} cannot be counted: it is not known what {", ".join(unknown)} costs'
        )
    return {part: Count(*count) for part, count in counts.items() if any(count)}


def _parts(model: Any) -> dict[str, str]:
    """The part that the module of a name belongs to; a name stands for all below it."""
    parts = {'backbone': 'backbone, other'}
    for name, module in model.backbone.named_modules(prefix='backbone'):
        part = next((part for part, kind in LAYERS.items() if isinstance(module, kind)), None)
        if part is not None:
            parts[name] = part
    for name, child in model.named_children():
        if name == 'roi_head':
            parts |= {f'{name}.{inner}': f'{name}.{inner}' for inner, _ in child.named_children()}
        elif name != 'backbone':
            parts[name] = name
    return parts


def _part_of(name: str, parts: dict[str, str]) -> str:
    """The part of a module or parameter; one that the model itself holds is a part of its own."""
    return parts.get(name if name in parts else _enclosing(name, parts), name)


def _enclosing(name: str, names: Container[str]) -> str:
    """The innermost of the names that holds a module or parameter, empty for none."""
    while name:
        name = name.rpartition('.')[0]
        if name in names:
            break
    return name


def _as_list(modules: nn.Module | None) -> list[Any]:
    if modules is None:
        return []
    return list(modules) if isinstance(modules, nn.ModuleList) else [modules]
