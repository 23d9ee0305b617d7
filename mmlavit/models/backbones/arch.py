"""The variants of LaViT (docs/paper_to_code.md, decision 9)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

NUM_STAGES = 4


class Arch(NamedTuple):
    """What a variant is: one value a stage, then what all stages share."""

    channels: Sequence[int]
    depths: Sequence[int]
    va_layers: Sequence[int]  # the first ones of `depths`; the rest are less attention
    head_width: int = 64
    ffn_ratio: float = 4.0


ARCHS = {
    # nano serves the quick start and the tests. The others reach the paper's parameters and
    # multiply-adds at 224x224 with a 1000-way head within 3 % (docs/paper_to_code.md, decision 9).
    'nano': Arch((32, 64, 128, 256), (1, 2, 2, 1), (1, 1, 1, 1), head_width=32),
    'tiny': Arch((64, 128, 320, 512), (1, 2, 3, 2), (1, 1, 1, 1)),  # paper: 10.9 M, 1.6 G
    'small': Arch((64, 128, 320, 640), (3, 4, 6, 3), (1, 1, 2, 1)),  # paper: 22.4 M, 3.3 G
    'base': Arch((64, 128, 320, 640), (3, 4, 18, 4), (1, 1, 4, 1)),  # paper: 39.6 M, 6.1 G
}


def parse_arch(arch: str | Mapping[str, Any]) -> Arch:
    """Look a variant up, or make one of a dict.

    Args:
        arch: A key of :data:`ARCHS`, or a dict of the fields of :class:`Arch`.

    Raises:
        TypeError: If ``arch`` is neither a name nor a dict.
        ValueError: If a name, key or value is not allowed.
    """
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(
                f'arch={arch!r}: expected one of {tuple(ARCHS)} or a dict with the keys '
                f'{Arch._fields}'
            )
        return ARCHS[arch]
    if not isinstance(arch, Mapping):
        raise TypeError(
            f'arch={arch!r}: expected one of {tuple(ARCHS)} or a dict with the keys {Arch._fields}'
        )
    required = set(Arch._fields) - set(Arch._field_defaults)
    missing, unknown = required - set(arch), set(arch) - set(Arch._fields)
    if missing or unknown:
        raise ValueError(
            f'arch={dict(arch)!r}: missing keys {sorted(missing)}, unknown keys {sorted(unknown)}; '
            f'expected {Arch._fields}, of which {tuple(Arch._field_defaults)} are optional'
        )
    parsed = Arch(**arch)
    for key in ('channels', 'depths', 'va_layers'):
        values = getattr(parsed, key)
        if not are_positive_ints(values, NUM_STAGES):
            raise ValueError(f'arch[{key!r}]={values!r}: expected {NUM_STAGES} positive integers')
    if not are_positive_ints([parsed.head_width]):
        raise ValueError(f"arch['head_width']={parsed.head_width!r}: expected a positive integer")
    if not parsed.ffn_ratio > 0:
        raise ValueError(f"arch['ffn_ratio']={parsed.ffn_ratio!r}: expected a positive number")
    for i in range(NUM_STAGES):
        if parsed.channels[i] % parsed.head_width:
            raise ValueError(
                f"arch['channels'][{i}]={parsed.channels[i]}: expected a multiple of "
                f"arch['head_width']={parsed.head_width}"
            )
        if parsed.va_layers[i] > parsed.depths[i]:
            raise ValueError(
                f"arch['va_layers'][{i}]={parsed.va_layers[i]}: expected at most "
                f"arch['depths'][{i}]={parsed.depths[i]}"
            )
    return parsed


def are_positive_ints(values: Any, count: int = 1) -> bool:
    """Tell whether something is a sequence of that many whole numbers of at least 1."""
    return (
        isinstance(values, Sequence)
        and len(values) == count
        and all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values)
    )
