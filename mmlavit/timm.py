"""Register LaViT with timm: after this import ``timm.create_model('lavit_tiny')`` builds it."""

from collections.abc import Callable
from typing import Any

from timm.models import register_model
from torch import nn

from mmlavit.models.factory import create_model, list_models


def _register(name: str) -> Callable[..., nn.Module]:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        # timm names what it has no value for, such as pretrained_cfg, and its train.py drop_rate
        given = {key: value for key, value in kwargs.items() if value is not None}
        if given.get('drop_rate') == 0:
            del given['drop_rate']
        return create_model(name, pretrained, **given)

    entrypoint.__name__ = name
    return register_model(entrypoint)


for _name in list_models():
    globals()[_name] = _register(_name)
