"""Read checkpoints as data: without running code that they name."""

import io
import json
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast
from zipfile import is_zipfile

import numpy as np
import torch
from mmengine import fileio
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint

from mmlavit.errors import UnsafeCheckpointError, UserError

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
    """Let everything of mmengine that loads a checkpoint read it as data.

    Runners, inferencers, ``init_cfg`` and hooks load through mmengine's ``CheckpointLoader``, which
    unpickles anything where torch's safe loader fails, and whatever a URL serves. Within this
    context it refuses instead. The outermost context decides for all that are nested in it: a tool
    decides for its whole run, and what it calls is safe where nobody has decided.

    Args:
        trust: Whether to leave mmengine's loader as it is, so that checkpoints may run code.
    """
    if _decided.get():
        yield
        return
    token = _decided.set(True)
    # Every scheme, also torchvision:// and openmmlab://, reads bytes with one of these two.
    upstream = mmengine_checkpoint._safe_torch_load, mmengine_checkpoint.load_url
    try:
        if not trust:
            mmengine_checkpoint._safe_torch_load = _load_file
            mmengine_checkpoint.load_url = _load_url
        yield
    finally:
        mmengine_checkpoint._safe_torch_load, mmengine_checkpoint.load_url = upstream
        _decided.reset(token)


def load_checkpoint(path: str, map_location: str = 'cpu') -> dict[str, Any]:
    """Read a checkpoint, as data unless an enclosing :func:`safe_loading` trusts it.

    Args:
        path: A path, URL, or name as ``torchvision://resnet50`` that mmengine knows.
        map_location: Where tensors are put.

    Raises:
        UserError: If there is no such file, or it is no checkpoint.
        UnsafeCheckpointError: If it holds what is not allowed.
    """
    check_checkpoint(path)
    try:
        with safe_loading():
            content = CheckpointLoader.load_checkpoint(path, map_location, logger='silent')
    except UserError:
        raise
    except Exception as error:
        raise UserError(f'checkpoint {path!r} cannot be read: {_first_line(error)}') from error
    return _checked(content, path)


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a checkpoint of mmengine into memory of the CPU, as data.

    Args:
        path: A path or URL.

    Raises:
        UserError: If there is no such file, it is no checkpoint with a state dict, or it holds what
            :func:`load_checkpoint` does not allow.
    """
    checkpoint = load_checkpoint(path)
    if not checkpoint.get('state_dict'):
        keys = ', '.join(map(str, list(checkpoint)[:10])) or '(none)'
        raise UserError(f'checkpoint {path!r} has no state_dict: found a dict with the keys {keys}')
    return checkpoint


def state_dict_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of a checkpoint, by the names that they have in a model that is not wrapped.

    Args:
        content: What a file holds: an entry ``state_dict``, or the weights themselves.
    """
    state = content.get('state_dict', content)
    return {str(key).removeprefix('module.'): value for key, value in state.items()}


def check_checkpoint(path: str, name: str = 'checkpoint') -> None:
    """Stop where a local checkpoint does not exist, or is no file of torch or safetensors.

    Args:
        path: A path, or a URL, which is left to the loader.
        name: What the message calls it.

    Raises:
        UserError: If the file cannot be a checkpoint.
    """
    if '://' in path:
        return
    file = Path(path).expanduser()
    try:
        if not file.is_file():
            raise UserError(f'{name} {path!r} does not exist')
        with file.open('rb') as stream:
            start = stream.read(9)
    except OSError as error:
        raise UserError(f'{name} {path!r} cannot be read: {error.strerror}') from error
    if file.suffix == '.safetensors':
        # The length of the header in 8 bytes, and the header, which is JSON.
        written, writer = start[8:] == b'{', 'safetensors'
    else:
        # torch writes a zip archive; before version 1.6 a pickle, which starts like this.
        written, writer = start[:1] == b'\x80' or is_zipfile(file), 'torch.save'
    if not written:
        raise UserError(f'{name} {path!r} is damaged, or was not written by {writer}')


# mmengine matches patterns in reverse alphabetical order: these precede `https://` and any path.
@CheckpointLoader.register_scheme([r'https?://.*\.safetensors', r'.*\.safetensors$'], force=True)
def load_from_safetensors(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a ``.safetensors`` file; mmengine's loader calls this for paths and URLs of that kind.

    Args:
        filename: A path or URL.
        map_location: Where tensors are put.

    Returns:
        The tensors as ``state_dict``, and as ``meta`` what ``tools/publish_model.py`` has kept.

    Raises:
        UserError: If the file cannot be read, or safetensors is not installed.
    """
    return _as_data(filename, _read_safetensors, filename, map_location)


def _read_safetensors(filename: str, map_location: Any) -> dict[str, Any]:
    from safetensors.torch import load

    content = fileio.get(str(Path(filename).expanduser()) if '://' not in filename else filename)
    state_dict = {key: value.to(map_location) for key, value in load(content).items()}
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], 'little')])
    meta = json.loads(header.get('__metadata__', {}).get('meta', '{}'))
    return {'meta': meta, 'state_dict': state_dict}


def _load_file(file: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
    """What ``safe_loading`` puts in the place of mmengine's function of the same arguments."""
    source = str(file) if isinstance(file, (str, Path)) else 'from remote storage'
    return _as_data(source, torch.load, file, map_location=map_location, weights_only=True)


def _load_url(url: str, **options: Any) -> Any:
    """What ``safe_loading`` puts in the place of ``torch.hub.load_state_dict_from_url``."""
    load = torch.hub.load_state_dict_from_url
    return _as_data(url, load, url, weights_only=True, **options)


def _as_data(source: str, load: Callable[..., Any], *args: Any, **options: Any) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals(_allowed()):
            content = load(*args, **options)
    except UnpicklingError as error:
        named = _refused(error, args[0])
        kind = UnsafeCheckpointError if named else UserError
        raise kind(
            f'checkpoint {source!r} cannot be read safely: it holds '
            f'{named or f"what is no checkpoint ({_unpickler_line(error)})"}, '
            'and loading that could run code. If you trust whoever made the file, '
            '--trust-checkpoint loads it for one run'
        ) from error
    except Exception as error:
        # Bytes that are damaged, or made to harm, raise anything.
        raise UserError(f'checkpoint {source!r} cannot be read: {_first_line(error)}') from error
    content = _checked(content, source)
    if 'meta' in content:
        # mmengine's runners execute the entry as a Python config when they resume.
        content['meta'] = {k: v for k, v in dict.items(content['meta']) if k != 'config'}
    return content


def _checked(content: Any, source: str) -> dict[str, Any]:
    """Stop where the outer containers are not of the types that every reader takes for granted."""
    if not isinstance(content, dict):
        found = type(content).__name__
        raise UserError(f'checkpoint {source!r} has no state_dict: found a {found}')
    for key in ('meta', 'state_dict', 'message_hub'):
        if not isinstance(content.get(key, {}), dict):
            found = type(content[key]).__name__
            raise UserError(f'checkpoint {source!r}: found a {found} as {key}, expected a dict')
    return content


@cache
def _allowed() -> list[Any]:
    """What a checkpoint may hold besides tensors and plain containers.

    The list that mmengine keeps has ``getattr``, which hands every builtin to a file.
    """
    functions = [np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]]
    codes = '?SU' + np.typecodes['AllInteger'] + np.typecodes['AllFloat']
    return [
        slice,
        np.ndarray,
        np.dtype,
        *{type(np.dtype(code)) for code in codes},
        # numpy 2 has renamed the module, and files name it either way.
        *[
            (function, f'numpy.{core}.multiarray.{function.__name__}')
            for function in cast(list[Callable[..., Any]], functions)
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


def _refused(error: UnpicklingError, file: Any) -> str | None:
    """Name what the safe loader refused, which its message buries in advice."""
    named = re.search(r'GLOBAL (\S+)', str(error))
    if named:
        return named[1]
    if isinstance(file, (str, Path)) and Path(file).is_file():
        first = _first_global(Path(file))
        if first:
            return f'{first}, in a pickle protocol that torch.save does not use by itself'
    return None


def _unpickler_line(error: UnpicklingError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if 'WeightsUnpickler' in line]
    return (lines or [str(error)])[0]


class _Scanner(pickle.Unpickler):
    """Stops at the first type or function that a pickle names, before anything is called."""

    first: str | None = None

    def find_class(self, module: str, name: str) -> Any:
        self.first = f'{module}.{name}'
        raise UnpicklingError


def _first_global(path: Path) -> str | None:
    if is_zipfile(path):
        content = torch.PyTorchFileReader(str(path)).get_record('data.pkl')
    else:
        content = path.read_bytes()
    scanner = _Scanner(io.BytesIO(content))
    # What follows in a damaged pickle may raise anything, and does not matter.
    with suppress(Exception):
        scanner.load()
    return scanner.first


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f'{type(error).__name__}: {lines[0]}' if lines else type(error).__name__
