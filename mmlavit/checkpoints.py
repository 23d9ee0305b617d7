"""Read checkpoints as data: without running code that they name."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache, partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import numpy as np
import torch
from mmengine import fileio
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint

from mmlavit.errors import UserError

__all__ = [
    'check_checkpoint',
    'load_checkpoint',
    'load_from_safetensors',
    'read_checkpoint',
    'safe_loading',
    'state_dict_of',
]

# Whether an enclosing `safe_loading` has decided how this run loads.
_decided: ContextVar[bool] = ContextVar('decided', default=False)

# Methods that mmengine stores, by the class that pickle takes them from.
METHODS = {
    HistoryBuffer: ('min', 'max', 'current', 'mean'),
    OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear'),
}


@contextmanager
def safe_loading(trust: bool = False) -> Iterator[None]:
    """Let every ``torch.load``, above all those of mmengine, read a checkpoint as data.

    With ``trust``, mmengine and torch load as they do, so that checkpoints may run code. The
    outermost context decides for all that are nested in it: a tool decides for its whole run, and
    what it calls is safe where nobody has decided.
    """
    token = _decided.set(True)
    try:
        with nullcontext() if trust or token.old_value is True else _forced_safe():
            yield
    finally:
        _decided.reset(token)


@contextmanager
def _forced_safe() -> Iterator[None]:
    # The switch also makes `weights_only=False` true, and torch refuses its opposite beside it.
    switch, opposite = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
    before = {name: os.environ.pop(name) for name in (switch, opposite) if name in os.environ}
    os.environ[switch] = '1'
    # mmengine's first try allows `getattr`, through which a file reaches every builtin; its second
    # one, and its downloads, would not know the list below.
    upstream = mmengine_checkpoint._safe_torch_load, mmengine_checkpoint.load_url
    mmengine_checkpoint._safe_torch_load = partial(_as_data, torch.load)
    mmengine_checkpoint.load_url = partial(_as_data, torch.hub.load_state_dict_from_url)
    try:
        with torch.serialization.safe_globals(_allowed()):
            yield
    finally:
        mmengine_checkpoint._safe_torch_load, mmengine_checkpoint.load_url = upstream
        del os.environ[switch]
        os.environ.update(before)


def load_checkpoint(path: str, map_location: str = 'cpu') -> dict[str, Any]:
    """Read a checkpoint, as data unless an enclosing :func:`safe_loading` trusts it.

    It is a path, URL, or name as ``torchvision://resnet50`` that mmengine knows.

    Raises:
        UserError: If there is no such file, it is no checkpoint, or it holds what is not allowed.
    """
    check_checkpoint(path)
    with safe_loading():
        return _as_data(CheckpointLoader.load_checkpoint, path, map_location, logger='silent')


def read_checkpoint(path: str) -> dict[str, Any]:
    """Do as :func:`load_checkpoint`, and insist on an entry ``state_dict`` that is not empty."""
    checkpoint = load_checkpoint(path)
    if not checkpoint.get('state_dict'):
        keys = ', '.join(map(str, list(checkpoint)[:10])) or '(none)'
        raise UserError(f'checkpoint {path!r} has no state_dict: found a dict with the keys {keys}')
    return checkpoint


def state_dict_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """The weights in an entry ``state_dict`` or alone, as a model without wrapper names them."""
    state = content.get('state_dict', content)
    return {str(key).removeprefix('module.'): value for key, value in state.items()}


def check_checkpoint(path: str) -> None:
    """Stop where a local file is missing, or does not start as a checkpoint; pass by URLs.

    Raises:
        UserError: If the file cannot be a checkpoint.
    """
    if '://' in path:
        return
    file = Path(path).expanduser()
    try:
        if not file.is_file():
            raise UserError(f'checkpoint {path!r} does not exist')
        with file.open('rb') as stream:
            start = stream.read(9)
    except OSError as error:
        raise UserError(f'checkpoint {path!r} cannot be read: {error.strerror}') from error
    if file.suffix == '.safetensors':
        # The length of the header in 8 bytes, and the header, which is JSON.
        written, writer = start[8:] == b'{', 'safetensors'
    else:
        # torch writes a zip archive; before version 1.6 a pickle, which starts like this.
        written, writer = start[:1] == b'\x80' or is_zipfile(file), 'torch.save'
    if not written:
        raise UserError(f'checkpoint {path!r} is damaged, or was not written by {writer}')


# mmengine matches patterns in reverse alphabetical order: these precede `https://` and any path.
@CheckpointLoader.register_scheme([r'https?://.*\.safetensors', r'.*\.safetensors$'], force=True)
def load_from_safetensors(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read tensors as ``state_dict``, and as ``meta`` what publish_model.py has kept.

    Raises:
        UserError: If the file cannot be read.
    """
    return _as_data(_read_safetensors, filename, map_location)


def _read_safetensors(filename: str, map_location: Any) -> dict[str, Any]:
    from safetensors.torch import load

    content = fileio.get(filename if '://' in filename else str(Path(filename).expanduser()))
    state_dict = {key: value.to(map_location) for key, value in load(content).items()}
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], 'little')])
    meta = json.loads(header.get('__metadata__', {}).get('meta', '{}'))
    return {'meta': meta, 'state_dict': state_dict}


def _as_data(load: Callable[..., Any], source: Any, *args: Any, **options: Any) -> dict[str, Any]:
    """Load a checkpoint, stop where that fails, and leave out what a runner would execute."""
    name = f'checkpoint {str(source)!r}'
    try:
        content = load(source, *args, **options)
    except UserError:
        raise
    except UnpicklingError as error:
        text = str(error)
        # torch buries what it refused in advice.
        found = re.search(r'GLOBAL (\S+)', text) or re.search(
            r'WeightsUnpickler error:\s*(.+)', text
        )
        raise UserError(
            f'{name} cannot be read safely: it holds {found[1] if found else text}, and loading '
            'that could run code. If you trust whoever made the file, --trust-checkpoint loads it '
            'for one run'
        ) from error
    except Exception as error:
        # Bytes that are damaged, or made to harm, raise anything.
        reason = next(iter(str(error).strip().splitlines()), '')
        raise UserError(f'{name} cannot be read: {type(error).__name__}: {reason}') from error
    if not isinstance(content, dict):
        raise UserError(f'{name} has no state_dict: found a {type(content).__name__}')
    for key in ('meta', 'state_dict', 'message_hub'):
        if not isinstance(content.get(key, {}), dict):
            found_type = type(content[key]).__name__
            raise UserError(f'{name}: found a {found_type} as {key}, expected a dict')
    if 'meta' in content:
        # mmengine's runners execute this entry as a Python config when they resume.
        content['meta'] = {k: v for k, v in dict.items(content['meta']) if k != 'config'}
    return content


@cache
def _allowed() -> list[Any]:
    """What a checkpoint may hold besides tensors and plain containers."""
    functions: list[Any] = [np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]]
    codes = '?SU' + np.typecodes['AllInteger'] + np.typecodes['AllFloat']
    return [
        slice,
        np.ndarray,
        np.dtype,
        *{type(np.dtype(code)) for code in codes},
        # numpy 2 has renamed the module, and files name it either way.
        *[
            (f, f'numpy.{core}.multiarray.{f.__name__}')
            for f in functions
            for core in ('core', '_core')
        ],
        ConfigDict,
        *METHODS,
        (_get_method, 'builtins.getattr'),
    ]


def _get_method(owner: Any, name: Any) -> Any:
    """Stand in for ``getattr``, as which pickle writes a method."""
    if not isinstance(owner, type) or name not in METHODS.get(owner, ()):
        raise UnpicklingError('GLOBAL builtins.getattr')
    return getattr(owner, name)
