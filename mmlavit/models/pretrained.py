"""Strict, explained transfer of a checkpoint into a backbone."""

import logging
import re
from pathlib import Path

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmlavit.checkpoints import load_checkpoint, state_dict_of
from mmlavit.errors import UserError

from .key_differences import key_differences, listing

FIRST_WEIGHT = 'stages.0.embed.proj.weight'


def load_pretrained(
    backbone: nn.Module,
    checkpoint: str,
    prefix: str | None = None,
    map_location: str = 'cpu',
    adapt_channels: bool = False,
) -> None:
    """Load the backbone part of a checkpoint, or stop.

    Window transforms of another window size are resized. Output norms that only one side has are
    left alone, since each task norms the stages it uses; so are stages behind the last one that
    ``backbone`` builds. The log names what was loaded, resized, left out and new. Whatever else is
    missing, unexpected or of another shape stops the run.

    Args:
        backbone: Module to load into.
        checkpoint: File or URL, as mmengine's loader takes it.
        prefix: What the backbone's keys start with in the file, as ``'backbone.'``. If None, that
            is ``'backbone.'`` where any key starts so, and nothing otherwise.
        map_location: Where tensors are put while loading.
        adapt_channels: Whether to fit the first convolution to images of another number of
            channels, as timm does: summed for one channel, else repeated and scaled.

    Raises:
        UserError: If the file does not exist, holds no state dict or more than data, or the keys do
            not match; the message lists them.
    """
    source = _read_state_dict(checkpoint, map_location)
    if prefix is None:
        prefix = 'backbone.' if any(k.startswith('backbone.') for k in source) else ''
    elif prefix and not prefix.endswith('.'):
        prefix += '.'
    found = {k.removeprefix(prefix): v for k, v in source.items() if k.startswith(prefix)}
    if not found:
        raise UserError(
            f'{checkpoint}: no key starts with {prefix!r}'
            + _paragraph('keys in the file', sorted(source))
        )
    target = backbone.state_dict()
    weight, channels = found.get(FIRST_WEIGHT), target[FIRST_WEIGHT].shape[1]
    other_images = weight is not None and weight.ndim == 4 and weight.shape[1] != channels
    if other_images and adapt_channels:
        found[FIRST_WEIGHT] = _adapt(found[FIRST_WEIGHT], channels)
    parts, found_parts = {_part(k) for k in target}, {_part(k) for k in found}
    unused = [k for k in found if _part(k) and _part(k) not in parts]
    new = [k for k in target if _is_norm(k) and _part(k) not in found_parts]
    kept = {k: v for k, v in found.items() if k not in unused}
    differences = key_differences(kept, {k: v for k, v in target.items() if k not in new})
    if differences:
        if other_images and not adapt_channels:
            differences.append('  other images: adapt_channels=True in init_cfg fits the weights')
        raise UserError(
            f'{checkpoint} does not fit {type(backbone).__name__}:\n' + '\n'.join(differences)
        )
    common = [k for k in target if k in found]
    resized = [k for k in common if found[k].numel() != target[k].numel()]
    backbone.load_state_dict({k: found[k] for k in common}, strict=False)

    outside = [k for k in source if not k.startswith(prefix)] + [prefix + k for k in unused]
    print_log(
        f'loaded {len(common)}/{len(found)} backbone tensors from {checkpoint}'
        + _paragraph('left out, not part of this backbone', outside)
        + _paragraph('new, not in the file', new)
        + _paragraph('resized to another window', resized)
        + _paragraph(f'adapted to {channels} channels', [FIRST_WEIGHT] * other_images),
        logger='current',
        level=logging.INFO,
    )


def _read_state_dict(checkpoint: str, map_location: str) -> dict[str, Tensor]:
    if '://' not in checkpoint and not Path(checkpoint).expanduser().is_file():
        raise UserError(
            f'{checkpoint} does not exist, seen from {Path.cwd()}: pre-train first, name another '
            'file as model.backbone.init_cfg.checkpoint, or set model.backbone.init_cfg=None to '
            'train from scratch'
        )
    state = state_dict_of(load_checkpoint(checkpoint, map_location))
    if not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(
            f'{checkpoint}: found a dict that is no state dict'
            + _paragraph('keys in the file', sorted(state))
        )
    return state


def _adapt(weight: Tensor, channels: int) -> Tensor:
    found = weight.shape[1]
    if channels == 1:
        return weight.sum(1, keepdim=True)
    index = torch.arange(channels) % found
    return weight[:, index] * (found / channels)


def _is_norm(key: str) -> bool:
    return re.match(r'norm\d\.', key) is not None


def _part(key: str) -> str:
    """``'stages.2'`` or ``'norm2'`` for any key of those, ``''`` for any other."""
    match = re.match(r'stages\.\d+|norm\d(?=\.)', key)
    return match[0] if match else ''


def _paragraph(title: str, keys: list[str]) -> str:
    return f'\n  {title}: {listing(keys)}' if keys else ''
