"""LaViT, the Less-Attention Vision Transformer, as a backbone for mmpretrain, mmdet and mmseg."""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .shipped import config_path
from .version import __version__

if TYPE_CHECKING:
    from .models.factory import create_model, list_models

__all__ = [
    'REQUIRED',
    '__version__',
    'check_dependency',
    'check_installed',
    'config_path',
    'create_model',
    'list_models',
]

# module: (distribution, lower bound, inclusive, upper bound, exclusive)
REQUIRED = {
    'mmengine': ('onedl-mmengine', '0.10.8', '1.0.0'),
    'torch': ('torch', '2.7.0', '2.15.0'),
    'mmcv': ('onedl-mmcv', '2.3.0', '2.4.0'),
}


def check_dependency(module: str, found: str | None) -> None:
    """Check the version of one dependency against the bounds that mmlavit supports.

    Args:
        module: Import name, a key of ``REQUIRED``.
        found: Its version, ``None`` where the module is not installed.

    Raises:
        ImportError: If the module is missing or out of bounds. The message names the version
            found, the versions required and the command that repairs it.
    """
    distribution, lower, upper = REQUIRED[module]
    if found is not None:
        from mmengine.utils import digit_version

        if digit_version(lower) <= digit_version(found) < digit_version(upper):
            return
    # With build isolation mmcv is built without its operators, and says nothing.
    option = '--no-build-isolation ' if module == 'mmcv' else ''
    raise ImportError(
        f'mmlavit {__version__} requires {distribution}>={lower},<{upper}, '
        f'found {"no " + module if found is None else module + " " + found}. '
        'Repair it with `make setup` in a checkout of mmlavit, '
        f'or with `pip install {option}"{distribution}>={lower},<{upper}"`.'
    )


def check_installed(module: str) -> None:
    """Import a dependency and check its version (see :func:`check_dependency`).

    Args:
        module: Import name, a key of ``REQUIRED``.

    Raises:
        ImportError: If the module is missing or out of bounds.
    """
    try:
        found = import_module(module).__version__
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        found = None
    check_dependency(module, found)


# mmcv is left to mmlavit.engine: the models need none.
for _module in ('mmengine', 'torch'):
    try:
        check_installed(_module)
    except ImportError as _error:
        # A registry that looks `mmlavit.LaViT` up swallows the ImportError and reports an unknown
        # type instead: only the warning reaches the user of an upstream tool.
        warnings.warn(str(_error), stacklevel=2)
        raise


def __getattr__(name: str) -> Any:
    # Imported when asked for: the registries need the package without its models.
    if name in ('create_model', 'list_models'):
        return getattr(import_module('.models.factory', __name__), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
