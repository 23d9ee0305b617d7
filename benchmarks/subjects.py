"""The backbones that are measured: LaViT and those of the installed packages."""

from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from torch import Tensor, nn

LAVIT, BASELINE, REFERENCE = 'LaViT', 'LaViT, all-VA baseline', 'Swin-T'


class Subject(NamedTuple):
    """A backbone to measure.

    Attributes:
        config: What to build.
        diagonality: Whether it trains with the diagonality-preserving (DP) loss.
        predicts: Whether its forward pass differs from all others'.
    """

    config: dict[str, Any]
    diagonality: bool = False
    predicts: bool = True


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
    'all-va': (BASELINE, dict(type='mmlavit.LaViT', less_attention=False)),
}
_TIMM = dict(type='mmpretrain.TIMMBackbone', features_only=True, drop_path_rate=0.0)
# What is tuned for GPUs is measured there.
GPU_PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    'timm-swin': (
        'Swin-T of timm',
        dict(_TIMM, model_name='swin_tiny_patch4_window7_224', strict_img_size=False),
    ),
    'timm-vit': (
        'ViT-S/16 of timm',
        dict(_TIMM, model_name='vit_small_patch16_224', dynamic_img_size=True),
    ),
}


def default_peers(device: torch.device) -> list[str]:
    """The peers that a run has where nobody says which."""
    gpu = device.type == 'cuda' and find_spec('timm') is not None
    return [*PEERS, *GPU_PEERS] if gpu else list(PEERS)


def missing_package(names: list[str]) -> str | None:
    """Name a package that is needed and not installed, if there is one."""
    peers = PEERS | GPU_PEERS
    needed = {peers[name][1]['type'].partition('.')[0] for name in ['swin', *names]}
    needed |= {'timm'} if set(names) & set(GPU_PEERS) else set()
    return next((package for package in sorted(needed) if find_spec(package) is None), None)


def subjects_of(arch: str, peers: list[str]) -> dict[str, Subject]:
    """Collect what is measured, by the name that a table gives it."""
    lavit = dict(type='mmlavit.LaViT', arch=arch)
    subjects = {LAVIT: Subject(lavit, diagonality=True)}
    for peer in dict.fromkeys(['swin', *peers]):
        name, config = (PEERS | GPU_PEERS)[peer]
        subjects[name] = Subject(lavit | config if config['type'] == lavit['type'] else config)
    subjects['LaViT, no DP loss'] = Subject(lavit, predicts=False)
    subjects['LaViT, activation checkpointing'] = Subject(
        lavit | dict(with_cp=True), diagonality=True, predicts=False
    )
    return subjects


def build_backbone(config: dict[str, Any], device: torch.device) -> nn.Module:
    """Build a backbone with its own start values."""
    MMLogger.get_current_instance().setLevel('ERROR')  # that there is no checkpoint is no news
    model = MODELS.build(dict(config))
    model.init_weights()
    return model.to(device)


def images_of(batch: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """Draw normalized images of shape ``(batch, 3, h, w)``."""
    return torch.randn(batch, 3, *size, device=device)
