"""LaViT as a plain PyTorch module, by name: the habits of timm, and no config file."""

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatch
from typing import Any

from torch import Tensor, nn

from mmlavit.checkpoints import check_checkpoint, load_checkpoint, state_dict_of
from mmlavit.errors import UserError

from .backbones import LaViT
from .backbones.arch import ARCHS, NUM_STAGES
from .pretrained import load_pretrained

__all__ = ['FeatureInfo', 'LaViTClassifier', 'LaViTFeatures', 'create_model', 'list_models']

PREFIX = 'lavit_'
HEAD = 'head.fc.'
# Arguments of LaViT that mean something to a config only, or have another name here.
REPLACED = {
    'arch': 'model_name names it; LaViTFeatures and LaViTClassifier take one of your own',
    'in_channels': 'the argument is called in_chans',
    'init_cfg': 'name the file as checkpoint_path',
}


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


class LaViTFeatures(LaViT):
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


class LaViTClassifier(nn.Module):
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

    def reset_classifier(self, num_classes: int) -> None:
        """Put a new classifier in the place of the present one.

        Args:
            num_classes: Classes; 0 for none.

        Raises:
            ValueError: If ``num_classes`` is negative or no whole number.
        """
        if not isinstance(num_classes, int) or num_classes < 0:
            raise ValueError(f'num_classes={num_classes!r}: expected a whole number of at least 0')
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


def list_models(filter: str = '*') -> list[str]:
    """Names that :func:`create_model` takes.

    Args:
        filter: Shell pattern that a name must match.
    """
    return [name for name in (PREFIX + arch for arch in ARCHS) if fnmatch(name, filter)]


def create_model(
    model_name: str,
    pretrained: bool = False,
    checkpoint_path: str | None = None,
    *,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    num_classes: int | None = None,
    in_chans: int = 3,
    **kwargs: Any,
) -> LaViTFeatures | LaViTClassifier:
    """Build a model by name, without a config file and without any toolbox.

    Args:
        model_name: One of :func:`list_models`.
        pretrained: Must stay false, since no weights are published.
        checkpoint_path: File or URL to load strictly: a checkpoint that mmpretrain, mmdet or mmseg
            wrote, or a state dict of the model. A classifier needs one with a classifier, unless
            ``num_classes`` is 0.
        features_only: Whether to return the backbone, whose forward gives a tuple of NCHW maps,
            instead of a classifier.
        out_indices: Stages (0 to 3) whose maps a feature extractor returns, by default all.
        num_classes: Classes, 1000 by default; 0 for pooled features.
        in_chans: Channels of the image.
        **kwargs: Other arguments of :class:`LaViT`, such as ``drop_path_rate`` and
            ``window_size``; not ``init_cfg``.

    Returns:
        A :class:`LaViTFeatures` or :class:`LaViTClassifier`, in training mode as any new module.

    Raises:
        ValueError: If there is no such name, ``pretrained`` is true, or an argument's value is not
            allowed or has no meaning for the model.
        TypeError: If there is no such argument.
        UserError: If the checkpoint does not exist or does not fit.
    """
    names = list_models()
    if model_name not in names:
        close = get_close_matches(str(model_name), names, 1)
        hint = f'; did you mean {close[0]!r}?' if close else ''
        raise ValueError(f'model_name={model_name!r}: expected one of {", ".join(names)}{hint}')
    if pretrained:
        raise ValueError(
            'pretrained=True: no weights are published; name a file of your own as checkpoint_path'
        )
    if features_only and num_classes is not None:
        raise ValueError(f'num_classes={num_classes!r}: features_only=True gives no classifier')
    if not features_only and out_indices is not None:
        raise ValueError(f'out_indices={out_indices!r}: needs features_only=True')
    for name, instead in REPLACED.items():
        if name in kwargs:
            raise ValueError(f'{name}={kwargs[name]!r}: {instead}')
    kwargs |= {'arch': model_name.removeprefix(PREFIX), 'in_channels': in_chans}
    if checkpoint_path is not None:
        check_checkpoint(checkpoint_path)
    if features_only:
        features = LaViTFeatures(
            out_indices=range(NUM_STAGES) if out_indices is None else out_indices, **kwargs
        )
        if checkpoint_path is not None:
            load_pretrained(features, checkpoint_path)
        return features
    model = LaViTClassifier(1000 if num_classes is None else num_classes, **kwargs)
    if checkpoint_path is not None:
        load_pretrained(model.backbone, checkpoint_path)
        if model.num_classes:
            _load_head(model, checkpoint_path)
    return model


def _load_head(model: LaViTClassifier, checkpoint_path: str) -> None:
    """Load the classifier of a checkpoint, or stop."""
    state = state_dict_of(load_checkpoint(checkpoint_path))
    found = {k.removeprefix(HEAD): v for k, v in state.items() if k.startswith(HEAD)}
    fc = model.head.fc
    shapes = {k: tuple(v.shape) for k, v in found.items()}
    expected = {k: tuple(v.shape) for k, v in fc.state_dict().items()}
    if shapes != expected:
        holds = f'classifier of shapes {shapes}' if shapes else f'key that starts with {HEAD!r}'
        raise UserError(
            f'{checkpoint_path}: found {"a" if shapes else "no"} {holds}, expected {expected}; '
            'num_classes must be that of the file, or 0 to leave the classifier out'
        )
    fc.load_state_dict(found)
