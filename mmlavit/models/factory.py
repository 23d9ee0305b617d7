"""LaViT as a plain PyTorch module, by name: the habits of timm, and no config file."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatch
from typing import Any

from mmlavit.checkpoints import check_checkpoint, load_checkpoint, state_dict_of
from mmlavit.errors import UserError

from .backbones.arch import ARCHS, NUM_STAGES
from .classifier import LaViTClassifier, LaViTFeatures
from .key_differences import key_differences
from .pretrained import load_pretrained

__all__ = ['create_model', 'list_models']

PREFIX = 'lavit_'
HEAD = 'head.fc.'


def list_models(
    filter: str | Iterable[str] = '*', exclude_filters: str | Iterable[str] = ()
) -> list[str]:
    """Names that :func:`create_model` takes.

    Args:
        filter: Shell pattern, or several, of which a name must match one.
        exclude_filters: Shell pattern, or several, of which a name must match none.
    """

    def matches(name: str, patterns: str | Iterable[str]) -> bool:
        patterns = [patterns] if isinstance(patterns, str) else patterns
        return any(fnmatch(name, pattern) for pattern in patterns)

    names = [PREFIX + arch for arch in ARCHS]
    return [n for n in names if matches(n, filter or '*') and not matches(n, exclude_filters)]


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
            wrote, or a state dict of the model, also as ``.safetensors``. A classifier needs one
            with a classifier, unless ``num_classes`` is 0.
        features_only: Whether to return the backbone, whose forward gives a tuple of NCHW maps,
            instead of a classifier.
        out_indices: Stages (0 to 3, or -4 to -1) whose maps a feature extractor returns, by
            default all.
        num_classes: Classes, 1000 by default; 0 for pooled features.
        in_chans: Channels of the image. Weights of another number are adapted as timm does, and the
            log says so.
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
        raise ValueError('pretrained=True: no weights are published; give a checkpoint_path')
    if kwargs.get('init_cfg') is not None:
        raise ValueError(f'init_cfg={kwargs["init_cfg"]!r}: name the file as checkpoint_path')
    if features_only and num_classes is not None:
        raise ValueError(f'num_classes={num_classes!r}: features_only=True gives no classifier')
    if not features_only and out_indices is not None:
        raise ValueError(f'out_indices={out_indices!r}: needs features_only=True')

    if checkpoint_path is not None:
        check_checkpoint(checkpoint_path)
    arch = model_name.removeprefix(PREFIX)
    indices = range(NUM_STAGES) if out_indices is None else out_indices
    if features_only:
        features = LaViTFeatures(arch=arch, in_channels=in_chans, out_indices=indices, **kwargs)
        if checkpoint_path is not None:
            load_pretrained(features, checkpoint_path, adapt_channels=True)
        return features
    classes = 1000 if num_classes is None else num_classes
    model = LaViTClassifier(classes, arch=arch, in_channels=in_chans, **kwargs)
    if checkpoint_path is not None:
        load_pretrained(model.backbone, checkpoint_path, adapt_channels=True)
        if model.num_classes:
            _load_head(model, checkpoint_path)
    return model


def _load_head(model: LaViTClassifier, checkpoint_path: str) -> None:
    state, fc = state_dict_of(load_checkpoint(checkpoint_path)), model.head.fc
    found = {k.removeprefix(HEAD): v for k, v in state.items() if k.startswith(HEAD)}
    differences = key_differences(found, fc.state_dict())
    if differences:
        raise UserError(
            f'{checkpoint_path} does not fit the classifier {HEAD!r}:\n'
            + '\n'.join(differences)
            + '\n  num_classes must be that of the file, or 0 to leave the classifier out'
        )
    fc.load_state_dict(found)
