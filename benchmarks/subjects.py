"""The backbones that are measured: LaViT and those of the installed packages."""

from importlib.util import find_spec
from typing import Any

import torch
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from torch import Tensor, nn

LAVIT, REFERENCE = 'LaViT', 'Swin-T'
CHECKPOINTED = 'LaViT, activation checkpointing'

# Nobody drops paths: it would cost each as much as its implementation of it.
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    'swin': (REFERENCE, dict(type='mmdet.SwinTransformer', drop_path_rate=0.0)),
    'pvtv2': (
        'PVTv2-B2',
        dict(
            type='mmdet.PyramidVisionTransformerV2',
            embed_dims=64,
            num_layers=[3, 4, 6, 3],
            drop_path_rate=0.0,
        ),
    ),
    'convnext': (
        'ConvNeXt-T',
        dict(
            type='mmpretrain.ConvNeXt',
            arch='tiny',
            out_indices=(0, 1, 2, 3),
            gap_before_final_norm=False,
        ),
    ),
    'resnet': ('ResNet-50', dict(type='mmdet.ResNet', depth=50)),
    'all-va': ('LaViT, all VA', dict(type='mmlavit.LaViT', less_attention=False)),
}


def missing_toolbox(names: list[str], detectors: bool) -> str | None:
    """Name a toolbox that is needed and not installed, if there is one."""
    needed = {PEERS[name][1]['type'].partition('.')[0] for name in ['swin', *names]}
    if detectors:
        needed |= {'mmdet', 'mmseg'}
    return next((toolbox for toolbox in sorted(needed) if find_spec(toolbox) is None), None)


def backbone_configs(arch: str, peers: list[str]) -> dict[str, dict[str, Any]]:
    """Collect the backbones, by the name that a table gives them.

    Args:
        arch: That of LaViT and of its all-VA variant.
        peers: Keys of :data:`PEERS`.
    """
    configs: dict[str, dict[str, Any]] = {LAVIT: dict(type='mmlavit.LaViT')}
    configs.update(PEERS[name] for name in dict.fromkeys(['swin', *peers]))
    configs[CHECKPOINTED] = dict(type='mmlavit.LaViT', with_cp=True)
    return {
        name: {**config, 'arch': arch} if config['type'] == 'mmlavit.LaViT' else config
        for name, config in configs.items()
    }


def build_backbone(config: dict[str, Any], device: torch.device) -> nn.Module:
    """Build a backbone with its own start values."""
    MMLogger.get_current_instance().setLevel('ERROR')  # that there is no checkpoint is no news
    model = MODELS.build(dict(config))
    model.init_weights()
    return model.to(device)


def images_of(batch: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """Draw normalized images of shape ``(batch, 3, h, w)``."""
    return torch.randn(batch, 3, *size, device=device)
