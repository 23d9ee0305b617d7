"""Save checkpoints so that at any moment one of them is complete."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from mmlavit.atomic_backend import AtomicBackend, remove_leftovers
from mmlavit.registry import HOOKS

from .agreement import fail_together

__all__ = ['SafeCheckpointHook', 'write_last_checkpoint']


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's hook, which removes an outdated checkpoint once the new one is complete.

    mmengine removes it first: with ``max_keep_ckpts=1``, or for the best checkpoint, a run that is
    killed while it writes, or finds the disk full, is left with none. The price is room for one
    more checkpoint. ``PortableRunner`` takes this class where a config says ``CheckpointHook``.
    """

    file_backend: Any

    def before_train(self, runner: Runner) -> None:
        """Prepare the folder of the checkpoints.

        Args:
            runner: The runner that trains.
        """
        super().before_train(runner)
        if is_main_process():
            for path in remove_leftovers(self.out_dir):
                runner.logger.warning(f'Removed {path}, which a killed run did not finish.')

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        with self._removing_last(), fail_together():
            outdated = None
            if self.max_keep_ckpts > 0 and list(self.keep_ckpt_ids)[-1:] != [step]:
                if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                    outdated = self.keep_ckpt_ids.popleft()
                self.keep_ckpt_ids.append(step)
                runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
            name = self.filename_tmpl.format(step)
            self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
            runner.message_hub.update_info('last_ckpt', self.last_ckpt)
            runner.save_checkpoint(
                self.out_dir,
                name,
                self.file_client_args,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
            if is_main_process():
                write_last_checkpoint(runner, self.last_ckpt)
                if outdated is not None:
                    path = self.file_backend.join_path(
                        self.out_dir, self.filename_tmpl.format(outdated)
                    )
                    if path != self.last_ckpt and self.file_backend.isfile(path):
                        self.file_backend.remove(path)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        with self._removing_last(), fail_together():
            super()._save_best_checkpoint(runner, metrics)

    @contextmanager
    def _removing_last(self) -> Iterator[None]:
        """Put off what is removed within the context until it ends without an error."""
        if isinstance(self.file_backend, _Postponing):
            yield
            return
        self.file_backend = postponing = _Postponing(self.file_backend)
        try:
            yield
        finally:
            self.file_backend = postponing.backend
        kept = {self.last_ckpt, getattr(self, 'best_ckpt_path', None)}
        kept.update(getattr(self, 'best_ckpt_path_dict', {}).values())
        for path in postponing.removed:
            if path not in kept:
                self.file_backend.remove(path)


class _Postponing:
    """A file backend that only notes what is to be removed."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.removed: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def remove(self, path: str) -> None:
        self.removed.append(path)


def write_last_checkpoint(runner: Runner, path: str) -> None:
    """Write down which checkpoint is the last, where mmengine looks for it.

    Args:
        runner: The runner that trains.
        path: The checkpoint.
    """
    AtomicBackend().put_text(path, Path(runner.work_dir, 'last_checkpoint'))
