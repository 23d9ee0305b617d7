"""Say which value of a config was refused, where building from it fails."""

import dis
import linecache
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from inspect import isclass, signature
from types import FrameType, TracebackType
from typing import Any, NamedTuple

from mmengine.registry import Registry, build_from_cfg

from mmlavit.errors import UserError

__all__ = ['Refusal', 'config_errors', 'find_refusal', 'unknown_type']

REFUSING = (AssertionError, ImportError, KeyError, NotImplementedError, TypeError, ValueError)

Place = tuple[str | int, ...]


class Refusal(NamedTuple):
    """A value that a constructor refused.

    Attributes:
        text: One line that names the place in the config, the value and what was expected.
        place: Keys and indices that lead to the dictionary of the constructor's arguments, ``None``
            where that is not known.
        argument: The refused argument, ``None`` where it is not known.
    """

    text: str
    place: Place | None
    argument: str | None


def find_refusal(error: Exception, cfg: Any) -> Refusal | None:
    """Tell a refused value from a bug.

    A value was refused where mmengine's registry was building an object and the failing
    instruction is a ``raise`` or ``assert`` (somebody wrote a check), or the call of the
    constructor itself (an argument that it does not have). Whatever fails otherwise, such as a
    missing attribute or an index, may be a bug of the code, and its traceback is needed.

    Args:
        error: What was raised, with its traceback.
        cfg: The config that was being built from.

    Returns:
        The refusal, or ``None`` for any other error.
    """
    if not isinstance(error, REFUSING) or error.__traceback__ is None:
        return None
    frames = list(_frames(error.__traceback__))
    builders = [frame for frame, _ in frames if frame.f_code is build_from_cfg.__code__]
    if not builders:
        return None
    values = builders[-1].f_locals
    args = values.get('args') or {}
    last, offset = frames[-1]
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    is_call = last is builders[-1] and isinstance(error, TypeError)
    is_raise = dis.opname[last.f_code.co_code[offset]] == 'RAISE_VARARGS'
    if not (is_call or is_raise or (unknown and unknown[1] in args)):
        return None
    message = str(error.args[0] if error.args else '')
    obj_type, obj_cls = values.get('obj_type'), values.get('obj_cls')
    name = getattr(obj_cls, '__name__', None)
    argument = None
    if unknown and unknown[1] in args:
        argument = unknown[1]
        close = get_close_matches(argument, _parameters(obj_cls), 1)
        hint = f'; did you mean {close[0]!r}?' if close else ''
        message = f'no argument {argument!r}{hint}'
    elif obj_cls is None and isinstance(obj_type, str):
        argument = 'type'
        message = unknown_type(values['registry'], obj_type)
    else:
        named = re.match(r'(\w+)(?=[=\[])', message)
        argument = named[1] if named and named[1] in args else None
    message = message or linecache.getline(last.f_code.co_filename, last.f_lineno).strip()
    place = _find(cfg, values.get('cfg'))
    if place is None:
        # Upstream may have taken keys out of what it built from.
        places = list(_places_of(cfg, obj_type))
        place = places[0] if len(places) == 1 else None
    parts = ['.'.join(map(str, place or ())), name or '', message]
    return Refusal(': '.join(filter(None, parts)), place, argument)


def unknown_type(registry: Registry, name: str) -> str:
    """Say that a registry does not know a type, and what was probably meant.

    Args:
        registry: The registry that was asked.
        name: The type's name.
    """
    close = get_close_matches(name, _registered(registry, name), 1)
    hint = f'; did you mean {close[0]!r}?' if close else ''
    return f'type {name!r} is unknown{hint}'


@contextmanager
def config_errors(cfg: Any) -> Iterator[None]:
    """Report values of a config that were refused without a traceback.

    Args:
        cfg: The config that is built from inside.

    Raises:
        UserError: In place of the error of a refused value. Any other error stays as it is.
    """
    try:
        yield
    except UserError:
        raise
    except REFUSING as error:
        refusal = find_refusal(error, cfg)
        if refusal is None:
            raise
        raise UserError(refusal.text) from error


def _frames(traceback: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    while traceback is not None:
        yield traceback.tb_frame, traceback.tb_lasti
        traceback = traceback.tb_next


def _parameters(constructor: Any) -> set[str]:
    """Names of all arguments, those that a class hands on to its bases included."""
    classes = constructor.__mro__ if isclass(constructor) else ()
    functions = [vars(c)['__init__'] for c in classes if '__init__' in vars(c)] or [constructor]
    names = {name for function in functions for name in signature(function).parameters}
    return names - {'self', 'args', 'kwargs'}


def _registered(registry: Registry, name: str) -> set[str]:
    """Names that could have been meant, written as ``name`` is: with its scope or without."""
    scope, _, _ = name.rpartition('.')
    names: set[str] = set()
    with registry.switch_scope_and_registry(scope or None) as found:
        while found is not None:
            names.update(found.module_dict)
            found = found.parent
    return {f'{scope}.{n}' if scope else n for n in names}


def _places_of(node: Any, obj_type: Any, path: Place = ()) -> Iterator[Place]:
    """Where a config names a type."""
    if path and hasattr(node, 'items') and node.get('type') == obj_type:
        yield path
    for key, value in _items(node):
        yield from _places_of(value, obj_type, (*path, key))


def _items(node: Any) -> Iterable[tuple[str | int, Any]]:
    if hasattr(node, 'items'):
        return node.items()
    return enumerate(node) if isinstance(node, list | tuple) else ()


def _find(node: Any, wanted: Any, path: Place = ()) -> Place | None:
    """Where a config holds the dictionary that was built from, to which upstream may have added."""
    if hasattr(node, 'items') and path and 'type' in node and isinstance(wanted, dict):
        same = all(key in wanted and wanted[key] == value for key, value in node.items())
        if node is wanted or same:
            return path
    for key, value in _items(node):
        found = _find(value, wanted, (*path, key))
        if found is not None:
            return found
    return None
