"""Find the checkpoint to go on from."""

import os
from contextlib import nullcontext
from importlib import import_module
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from mmlavit.checkpoints import load_checkpoint, read_checkpoint
from mmlavit.errors import UnsafeCheckpointError, UserError

__all__ = ['ResumePoint', 'latest_resume_point', 'read_resume_point', 'resume']


class ResumePoint(NamedTuple):
    """A checkpoint to go on from.

    Attributes:
        path: The file or URL.
        seed: Seed of the run that wrote it, None where it is not known.
        warnings: What was passed over to find it, and what it lacks.
    """

    path: str
    seed: int | None
    warnings: list[str]


def read_resume_point(path: str) -> ResumePoint:
    """Read a checkpoint completely and make sure that a run can go on from it.

    Args:
        path: A path or URL.

    Raises:
        UserError: If the file is damaged, or holds weights only.
    """
    content = read_checkpoint(path)
    if not _has_state(content):
        raise UserError(
            f'checkpoint {path!r} cannot be resumed: it holds {", ".join(map(str, content))}, and '
            'no meta.iter, meta.epoch and message_hub. Published checkpoints and bare weights are '
            f'a start, not a state: --cfg-options load_from={path} starts from them'
        )
    warnings = []
    if 'optimizer' not in content:
        warnings.append(f'{path} holds no state of the optimizer, which starts afresh')
    return ResumePoint(path, content['meta'].get('seed'), warnings)


def latest_resume_point(work_dir: str) -> ResumePoint | None:
    """Find the newest complete checkpoint of a work dir.

    That is the one with the most iterations among the file that ``last_checkpoint`` names and those
    written after it. Where none of them is complete, older files serve. ``best_*.pth``, which hold
    no state of the optimizer, and other weights do not count. A file that is refused because it
    could run code may be the newest: unless it is older than the one that is found, the run stops.

    Args:
        work_dir: Where the run keeps its logs.

    Returns:
        None if the work dir has no checkpoint.

    Raises:
        UserError: If there are checkpoints and none is complete.
        UnsafeCheckpointError: If the newest file is refused.
    """
    named = _last_checkpoint(Path(work_dir))
    if '://' in named:
        return read_resume_point(named)
    pointed = _locate(named, Path(work_dir)) if named else None
    warnings = []
    if named and not pointed:
        warnings.append(f'{work_dir}/last_checkpoint names {named}, which does not exist')
    # The file is named by its absolute path, and the work dir need not be.
    found = [*([pointed.parent] if pointed else []), Path(work_dir)]
    folders = {folder.absolute(): folder for folder in found}.values()
    since = pointed.stat().st_mtime if pointed else 0.0
    states = []
    refused = []
    for path in sorted(path for folder in folders for path in folder.glob('*.pth')):
        try:
            content = _peek(path)
        except UnsafeCheckpointError as error:
            refused.append((path.stat().st_mtime, error))
            continue
        except UserError as error:
            warnings.append(f'passed over a damaged file: {error}')
            continue
        is_named = pointed is not None and path.absolute() == pointed.absolute()
        if _has_state(content) and ('optimizer' in content or is_named):
            meta = content['meta']
            written = path.stat().st_mtime
            states.append((written >= since, meta['iter'], meta['epoch'], written, str(path)))
    for *_, newest in sorted(states, reverse=True):
        try:
            point = read_resume_point(newest)
        except UserError as error:
            warnings.append(f'passed over a damaged file: {error}')
            continue
        written = Path(newest).stat().st_mtime
        _stop_if_newer(refused, written)
        warnings += [f'passed over an older file: {error}' for _, error in refused]
        return point._replace(warnings=warnings + point.warnings)
    _stop_if_newer(refused, 0.0)
    if warnings:
        raise UserError(
            f'no complete checkpoint in {", ".join(map(str, folders))}: {"; ".join(warnings)}. '
            'Move these files away to start anew'
        )
    return None


def resume(cfg: Config, checkpoint: str | None) -> list[str]:
    """Resume from a checkpoint; ``'auto'`` starts as if not resumed where there is none yet.

    Args:
        cfg: The config, changed in place.
        checkpoint: A path or URL, or ``'auto'`` for the newest complete one in the work dir;
            without one, what ``resume`` and ``load_from`` of the config say.

    Returns:
        Warnings, as of files that are damaged.

    Raises:
        UserError: If the checkpoint is damaged or holds weights only, or none of several in the
            work dir is complete.
    """
    if not checkpoint and cfg.get('resume'):
        checkpoint = cfg.get('load_from') or 'auto'
    if not checkpoint:
        return []
    if checkpoint == 'auto':
        point = latest_resume_point(cfg.work_dir)
    else:
        point = read_resume_point(checkpoint)
    cfg.resume = point is not None
    if point is None:
        return []
    cfg.load_from = point.path
    # The runner builds the dataloaders before it reads the seed, which orders their samples.
    if not cfg.get('randomness'):
        cfg.randomness = {}
    if cfg.randomness.get('seed') is None:
        cfg.randomness.seed = point.seed
    return point.warnings


def _stop_if_newer(refused: list[tuple[float, UnsafeCheckpointError]], written: float) -> None:
    newest, error = max(refused, key=itemgetter(0), default=(-1.0, None))
    if error is not None and newest >= written:
        raise error


def _last_checkpoint(work_dir: Path) -> str:
    pointer = work_dir / 'last_checkpoint'
    try:
        return pointer.read_text(errors='replace').strip('\0 \n') if pointer.is_file() else ''
    except OSError as error:
        raise UserError(f'{pointer} cannot be read: {error.strerror}') from error


def _locate(named: str, work_dir: Path) -> Path | None:
    """The file that ``last_checkpoint`` names, also where the work dir was moved since."""
    for path in (Path(named), work_dir / Path(named).name):
        # false for what is no path at all, too
        if os.path.isfile(path):  # noqa: PTH113
            return path
    return None


def _peek(path: Path) -> dict[str, Any]:
    """A checkpoint whose tensors stay on disk."""
    try:
        config: Any = import_module('torch.utils.serialization.config')
    except ImportError:  # torch < 2.6 reads them
        mapped: Any = nullcontext()
    else:
        mapped = config.patch('load.mmap', True)
    with mapped:
        return load_checkpoint(str(path))


def _has_state(content: dict[str, Any]) -> bool:
    return 'message_hub' in content and {'epoch', 'iter'} <= set(content.get('meta', ()))
