"""``--cfg-options`` that stops at a misspelt key instead of creating it."""

from argparse import ArgumentError, ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.logging import print_log

from mmlavit.checks.config import RUNNER_KEYS
from mmlavit.errors import UserError

__all__ = ['OverrideAction', 'merge_overrides']

# Arguments of mmengine's classes that are dictionaries and that most configs leave out.
OPTIONAL_DICTS = {
    'backend_args',
    'clip_grad',
    'dist_cfg',
    'init_cfg',
    'loss_scale',
    'metainfo',
    'mp_cfg',
    'paramwise_cfg',
}


class OverrideAction(DictAction):
    """mmengine's ``KEY=VALUE`` parser, with an error message for what it cannot parse."""

    def __call__(
        self,
        parser: ArgumentParser,
        namespace: Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Add the pairs to the namespace.

        Raises:
            ArgumentError: If an item is no ``KEY=VALUE`` pair or its brackets do not match.
        """
        for item in values or ():
            if '=' not in item:
                raise ArgumentError(self, f'expected KEY=VALUE, found {item!r}')
        try:
            super().__call__(parser, namespace, values, option_string)
        except AssertionError as error:
            raise ArgumentError(self, str(error)) from error


def merge_overrides(cfg: Config, overrides: Mapping[str, Any]) -> None:
    """Merge dotted keys into a config, in place.

    A new key may be added to a dictionary that exists, since that is how an argument with a
    default is set, and so may a top-level key that the runner knows. Nothing else is created.

    Args:
        cfg: The config.
        overrides: Values by dotted key; a number selects an element of a list.

    Raises:
        UserError: If a key leads nowhere; the message names the key and its close matches.
    """
    for key in overrides:
        _check(cfg, key)
        top = key.partition('.')[0]
        if top not in RUNNER_KEYS:
            print_log(
                f'--cfg-options {key}: {top!r} is a variable of the config file. Whatever the file '
                'built from it keeps the old value; override the key that the runner reads.'
            )
    cfg.merge_from_dict(dict(overrides))


def _check(cfg: Config, key: str) -> None:
    parts = key.split('.')
    node: Any = cfg
    for depth, part in enumerate(parts):
        path = '.'.join(parts[:depth])
        if isinstance(node, list):
            if not part.isdecimal() or int(part) >= len(node):
                raise UserError(
                    f'--cfg-options {key}: {path!r} is a list of {len(node)} elements, '
                    f'expected an index below {len(node)}, found {part!r}'
                )
            node = node[int(part)]
        elif not isinstance(node, Config | Mapping):
            raise UserError(
                f'--cfg-options {key}: {path!r} is {node!r}, not a dictionary or a list; '
                f'it cannot hold {part!r}'
            )
        elif part in node:
            node = node[part]
        else:
            optional = OPTIONAL_DICTS if depth else RUNNER_KEYS
            if part in optional or 0 < depth == len(parts) - 1:
                return
            close = get_close_matches(part, {*node.keys(), *optional})
            hint = f'close matches: {", ".join(close)}' if close else f'keys: {", ".join(node)}'
            raise UserError(
                f'--cfg-options {key}: {path or "the config"} has no key {part!r}; {hint}'
            )
