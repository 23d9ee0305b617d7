"""Count parameters and multiply-adds of a model, part by part."""

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

__all__ = ['Count', 'count_complexity', 'multiply_adds']

# A layer is of one kind; what is left of the backbone is 'backbone, other'.
LAYERS: dict[str, type[nn.Module]] = {
    'embedding': PatchEmbed,
    'vanilla attention (VA)': VanillaAttention,
    'less attention (LA)': LessAttention,
    'attention residual (AR)': AttentionResidual,
    'FFN': ConvFFN,
    'norms': nn.LayerNorm,
}
# Containers whose children are listed one by one.
CONTAINERS = ('roi_head',)
# No image passes these after training.
TRAINING_ONLY = {'auxiliary_head'}


class Count(NamedTuple):
    """Cost of a part.

    Attributes:
        parameters: Learned values.
        macs: Multiply-adds of one image.
    """

    parameters: int
    macs: int


class Inference(nn.Module):
    """What a model computes for an image, as far as it does not depend on what is in it.

    Args:
        model: Classifier, detector or segmentor of the toolboxes, or a classifier of our own.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> None:
        """Run everything whose cost counts, on images ``(1, C, h, w)``."""
        model = self.model
        extract = model.extract_feat if hasattr(model, 'extract_feat') else model.forward_features
        features = extract(x)
        for name in ('head', 'decode_head', 'rpn_head', 'bbox_head'):
            head = getattr(model, name, None)
            if head is not None:
                head(features)
        roi_head, rois = getattr(model, 'roi_head', None), assumed_rois(model)
        if rois is None:
            return
        boxes, masks = rois
        for kind, count in (('bbox', boxes), ('mask', masks)):
            extractors = _as_list(getattr(roi_head, f'{kind}_roi_extractor', None))
            heads = _as_list(getattr(roi_head, f'{kind}_head', None))
            for extractor, head in zip(extractors, heads, strict=True):
                side = extractor.roi_layers[0].output_size
                head(x.new_empty(count, extractor.out_channels, *side))


def assumed_rois(model: Any) -> tuple[int, int] | None:
    """How many regions a two-stage detector's heads are counted for.

    Args:
        model: A model of the toolboxes.

    Returns:
        The most that its config lets through to the box heads and to the mask heads, if any, None
        for a model without RoI heads.

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
        in_channels: Channels of the image.

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
        model: The model.
        shape: Height and width of the image in pixels.

    Returns:
        The cost of each part, in the order of the data; parts that an image does not pass, such as
        an auxiliary head, have no multiply-adds.

    Raises:
        UserError: If the model has parts whose cost is not known, or cannot run on such an image.
    """
    model = revert_sync_batchnorm(model)
    parts = _parts(model)
    found = _probe(model, shape, set(parts.values()))
    counts = {part: [0, 0] for part in (*LAYERS, *parts.values())}
    for name, parameter in model.named_parameters():
        counts[_part_of(name, parts)][0] += parameter.numel()
    inner = 'model.'
    macs = {name.removeprefix(inner): n for name, n in found.items() if name.startswith(inner)}
    for name, value in macs.items():
        counts[_part_of(name, parts)][1] += value
        outer = _enclosing(name, macs)
        if outer:  # whose count holds this one
            counts[_part_of(outer, parts)][1] -= value
    assert sum(macs for _, macs in counts.values()) == found[''], 'a part is missing'
    return {part: Count(*count) for part, count in counts.items() if any(count)}


def _probe(model: Any, shape: tuple[int, int], parts: set[str]) -> dict[str, int]:
    """Count a model module by module, and see to it that all parts of it have been entered."""
    kind, entered = type(model).__name__, set()
    handles = [
        module.register_forward_pre_hook(lambda module, args: entered.add(module))
        for module in model.modules()
    ]
    try:
        found = multiply_adds(Inference(model), shape, channels_of(model))
    except UserError:
        raise
    except Exception as error:  # of whatever a model does with an image, or a head with maps
        reason = f'{type(error).__name__}: {error}'.splitlines()[0]
        raise UserError(
            f'a {kind} cannot be counted on an image of {shape[0]}x{shape[1]}: {reason}'
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    unknown = [name for name, _ in model.named_parameters(recurse=False)]
    for name, module in model.named_modules():
        # the layers inside are the part's own affair
        used = not entered.isdisjoint(module.modules())
        if name in parts - TRAINING_ONLY and not used and any(True for _ in module.parameters()):
            unknown.append(name)
    if unknown:
        raise UserError(
            f'a {kind} cannot be counted: it is not known what {", ".join(unknown)} costs'
        )
    return found


def _parts(model: Any) -> dict[str, str]:
    """The part that the module of a name belongs to; a name stands for all below it."""
    parts: dict[str, str] = {}
    for name, child in model.named_children():
        if name in CONTAINERS:
            parts |= {f'{name}.{inner}': f'{name}.{inner}' for inner, _ in child.named_children()}
        elif name != 'backbone':
            parts[name] = name
    layers: dict[str, str] = {}
    for name, module in model.backbone.named_modules(prefix='backbone'):
        part = next((part for part, kind in LAYERS.items() if isinstance(module, kind)), None)
        if part is not None:
            layers[name] = part
    return {'backbone': 'backbone, other'} | layers | parts


def _part_of(name: str, parts: dict[str, str]) -> str:
    return parts[name if name in parts else _enclosing(name, parts)]


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
