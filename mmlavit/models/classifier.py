"""LaViT as a plain PyTorch module: a feature extractor and a classifier, with timm's methods."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .backbones import LaViT
from .backbones.arch import NUM_STAGES
from .layers import Stage

__all__ = ['ClassifierHead', 'FeatureInfo', 'LaViTClassifier', 'LaViTFeatures', 'TimmMethods']


class FeatureInfo:
    """What a feature extractor returns, asked as timm's class of this name is.

    Args:
        out_indices: Stages whose maps are returned.
        channels: Channels of each of the four stages.
    """

    def __init__(self, out_indices: Sequence[int], channels: Sequence[int]) -> None:
        self.out_indices = tuple(out_indices)
        self._channels = [channels[i] for i in self.out_indices]

    def channels(self) -> list[int]:
        """Channels of each map."""
        return list(self._channels)

    def reduction(self) -> list[int]:
        """Pixels of the image on a token's side, for each map."""
        return [4 * 2**i for i in self.out_indices]


class TimmMethods(nn.Module):
    """What timm's optimizers, data pipelines and training scripts ask a model for."""

    # how the ImageNet recipes prepare images
    default_cfg = pretrained_cfg = {
        'input_size': (3, 224, 224),
        'crop_pct': 224 / 256,
        'interpolation': 'bicubic',
        'mean': (0.485, 0.456, 0.406),
        'std': (0.229, 0.224, 0.225),
    }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Turn recomputing activations in the backward pass on or off."""
        for module in self.modules():
            if isinstance(module, Stage):
                module.with_cp = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns by which timm orders parameters from the image to the head.

        Args:
            coarse: Whether a stage is one group rather than each of its blocks. The groups of
                blocks are those of :meth:`LaViT.get_layer_depth`.
        """
        stage = r'^(?:backbone\.)?stages\.(\d+)\.'
        fine = [(stage + r'blocks\.(\d+)', None), (stage, (0,))]
        return {'stem': r'^(?:backbone\.)?stages\.0\.embed', 'blocks': stage if coarse else fine}

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that the recipes do not decay: biases, norms and scales."""
        return {name for name, parameter in self.named_parameters() if parameter.dim() < 2}


class LaViTFeatures(TimmMethods, LaViT):
    """The backbone, which tells what it returns. Arguments are those of :class:`LaViT`."""

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels and reduction of the maps."""
        return FeatureInfo(self.out_indices, self.arch.channels)


class ClassifierHead(nn.Module):
    """Global average pooling and a linear layer.

    Args:
        in_features: Channels of the map.
        num_classes: Classes; 0 for none, so that the pooled features come out.
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.fc: nn.Module = nn.Identity()
        if num_classes:
            linear = nn.Linear(in_features, num_classes)
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
            self.fc = linear

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Classify a map.

        Args:
            x: Map of shape ``(B, in_features, h, w)``.
            pre_logits: Whether to stop behind the pooling.

        Returns:
            Logits of shape ``(B, num_classes)``, or pooled features of shape ``(B, in_features)``.
        """
        x = x.mean((2, 3))
        return x if pre_logits else self.fc(x)


class LaViTClassifier(TimmMethods):
    """LaViT with a classifier; its keys are those of mmpretrain's checkpoints.

    Args:
        num_classes: Classes; 0 for none, so that the pooled features come out.
        **kwargs: Arguments of :class:`LaViT`, but for ``out_indices``.
    """

    def __init__(self, num_classes: int = 1000, **kwargs: Any) -> None:
        super().__init__()
        self.backbone = LaViT(out_indices=(NUM_STAGES - 1,), **kwargs)
        self.num_features = self.backbone.arch.channels[-1]
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier in the place of the present one.

        Args:
            num_classes: Classes; 0 for none.
            global_pool: ``'avg'``, or None for the present pooling, which is the same.

        Raises:
            ValueError: If ``num_classes`` is negative or no whole number, or the pooling another.
        """
        if not isinstance(num_classes, int) or num_classes < 0:
            raise ValueError(f'num_classes={num_classes!r}: expected a whole number of at least 0')
        if global_pool not in (None, 'avg'):
            raise ValueError(
                f"global_pool={global_pool!r}: expected 'avg'; forward_features gives the map that "
                'is not pooled'
            )
        self.num_classes = num_classes
        head = ClassifierHead(self.num_features, num_classes)
        weight = next(self.backbone.parameters())
        self.head = head.to(weight.device, weight.dtype)

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head.fc

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images ``(B, in_chans, h, w)`` to ``(B, num_features, h / 32, w / 32)``."""
        return self.backbone(x)[0]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Map images to the maps of several stages.

        Args:
            x: Images of shape ``(B, in_chans, h, w)``.
            indices: Stages (0 to 3, or -4 to -1), the count of last ones, or None for all.
            norm: Whether to normalize the last stage's map; the others have no norm here.
            stop_early: Whether to leave out the stages behind the last one of ``indices``.
            output_fmt: Must be ``'NCHW'``.
            intermediates_only: Whether to leave out the final map.

        Returns:
            What :meth:`forward_features` returns (of a pass that stops early: the last map), and
            the maps ``(B, channels, h / stride, w / stride)``; or these alone.

        Raises:
            ValueError: If ``indices`` or ``output_fmt`` is not allowed.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt={output_fmt!r}: expected 'NCHW'")
        wanted = _stages_of(indices)
        stages = self.backbone.stages[: max(wanted) + 1 if stop_early else NUM_STAGES]
        x, logits, windows = x.permute(0, 2, 3, 1), None, None
        maps = []
        for i, stage in enumerate(stages):
            x, logits, windows = stage(x, logits, windows)
            if i in wanted:
                maps.append(x.permute(0, 3, 1, 2).contiguous())
        is_whole = len(stages) == NUM_STAGES
        final = self.backbone.get_submodule(f'norm{NUM_STAGES - 1}')(x) if is_whole else maps[-1]
        if norm and NUM_STAGES - 1 in wanted:
            maps[-1] = final
        return maps if intermediates_only else (final, maps)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map what :meth:`forward_features` returns to logits ``(B, num_classes)``.

        Args:
            x: Map of shape ``(B, num_features, h, w)``.
            pre_logits: Whether to return the pooled features ``(B, num_features)`` instead.
        """
        return self.head(x, pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(B, in_chans, h, w)`` to logits ``(B, num_classes)``."""
        return self.forward_head(self.forward_features(x))


def _stages_of(indices: int | Sequence[int] | None) -> set[int]:
    """Stages as timm's ``indices`` name them; an int is a count of last ones."""
    named = NUM_STAGES if indices is None else indices
    named = range(-named, 0) if isinstance(named, int) else named
    if not named or not all(i in range(-NUM_STAGES, NUM_STAGES) for i in named):
        raise ValueError(
            f'indices={indices!r}: expected stages from -{NUM_STAGES} to {NUM_STAGES - 1}, '
            f'or a count from 1 to {NUM_STAGES}'
        )
    return {i % NUM_STAGES for i in named}
