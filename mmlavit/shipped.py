"""Configs and tools that come with the package, wherever it is installed."""

from difflib import get_close_matches
from pathlib import Path, PurePosixPath

__all__ = ['CONFIGS', 'TOOLS', 'config_names', 'config_path']

_PACKAGE = Path(__file__).absolute().parent
# A wheel carries them where OpenMMLab's packages carry theirs; in a clone they lie beside the code.
_ROOT = _PACKAGE / '.mim' if (_PACKAGE / '.mim').is_dir() else _PACKAGE.parent
CONFIGS = _ROOT / 'configs'
TOOLS = _ROOT / 'tools'


def config_names() -> list[str]:
    """List the configs that can be run, as paths below :data:`CONFIGS`."""
    paths = (path.relative_to(CONFIGS) for path in CONFIGS.rglob('*.py'))
    return sorted(path.as_posix() for path in paths if '_base_' not in path.parts)


def config_path(name: str) -> str:
    """Find a shipped config, to run it or to inherit from it.

    A config of one's own, read by the toolboxes' tools as well as by ours, inherits with::

        _base_ = [__import__('mmlavit').config_path('shapes/lavit-nano_shapes-cls.py')]

    mmengine's ``_base_ = 'mmlavit::...'`` could not do it: it would look every type of the config
    up in the scope ``mmlavit`` rather than in that of the toolbox.

    Args:
        name: Path below :data:`CONFIGS`, which may be a base; of a config that can be run, the
            name of the file is enough.

    Returns:
        The absolute path.

    Raises:
        FileNotFoundError: If there is no such config. The message names the closest ones.
    """
    if (CONFIGS / name).is_file():
        return str(CONFIGS / name)
    names = {PurePosixPath(path).name: path for path in config_names()}
    if name in names:
        return str(CONFIGS / names[name])
    close = get_close_matches(PurePosixPath(name).name, names, cutoff=0.7)
    hint = f'did you mean {" or ".join(names[match] for match in close)}?' if close else ''
    raise FileNotFoundError(
        f'mmlavit has no config {name!r}; {hint or "`mmlavit configs` lists them"}'
    )
