"""The backbones that learn photographs: LaViT-nano, its ablations, and peers of its size."""

from typing import Any, NamedTuple

from mmdet.models.backbones import PyramidVisionTransformerV2
from mmengine.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class TuplePVTv2(PyramidVisionTransformerV2):
    """Returns a tuple, which the necks of mmpretrain expect."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(super().forward(x))


class Model(NamedTuple):
    """A backbone, and how it is trained.

    Attributes:
        backbone: What to build.
        channels: Those of its four maps.
        diagonality: Options of the diagonality-preserving (DP) loss; None: there is none.
        rate_of: The model whose learning rate it takes; an empty name: it has a sweep of its own.
    """

    backbone: dict[str, Any]
    channels: tuple[int, int, int, int] = (32, 64, 128, 256)
    diagonality: dict[str, Any] | None = None
    rate_of: str = ''


HINGE = dict(form='hinge', loss_weight=0.01)
# the maps of a 64x64 image have 16, 8, 4 and 2 rows
WINDOWS = (8, 8, 4, 2)
NANO = dict(type='mmlavit.LaViT', arch='nano', window_size=WINDOWS)
# within 15 % of LaViT-nano's 1.47 M parameters, none with stochastic depth
PEERS = {
    'lavit': Model(NANO, diagonality=HINGE),
    'all-va': Model(dict(NANO, less_attention=False)),
    # in LaViT's windows it learns less: 51.9 % instead of 54.2 % on CIFAR-10
    'swin': Model(
        dict(
            type='mmpretrain.SwinTransformer',
            arch=dict(embed_dims=32, depths=[1, 2, 2, 1], num_heads=[1, 2, 4, 8]),
            pad_small_map=True,
            drop_path_rate=0.0,
        )
    ),
    # the depth and the ratios of B0, whose width of 32 has 3.4 M parameters
    'pvtv2-b0': Model(
        dict(
            type='TuplePVTv2',
            embed_dims=21,
            num_layers=[2, 2, 2, 2],
            num_heads=[1, 2, 5, 8],
            mlp_ratios=(8, 8, 4, 4),
            drop_path_rate=0.0,
        ),
        (21, 42, 105, 168),
    ),
    'resnet-18': Model(
        dict(type='mmpretrain.ResNet', depth=18, stem_channels=24, base_channels=24),
        (24, 48, 96, 192),
    ),
}
ABLATIONS = {
    'no-ar': Model(dict(NANO, attention_residual=False), diagonality=HINGE, rate_of='lavit'),
    'no-dp': Model(NANO, rate_of='lavit'),
    'dp-1': Model(NANO, diagonality=dict(HINGE, loss_weight=1.0), rate_of='lavit'),
    'dp-linear': Model(NANO, diagonality=dict(HINGE, form='linear'), rate_of='lavit'),
    'global': Model(dict(NANO, window_size=(16, 8, 4, 2)), diagonality=HINGE, rate_of='lavit'),
    'windows-of-7': Model(dict(NANO, window_size=7), diagonality=HINGE, rate_of='lavit'),
    # beside no-dp
    'xavier': Model(
        dict(NANO, init_cfg=dict(type='Xavier', layer='Linear', distribution='normal')),
        rate_of='lavit',
    ),
}
ALL = PEERS | ABLATIONS
