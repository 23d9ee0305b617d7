"""mmengine's runner, also for several processes on machines without an accelerator."""

from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from mmengine.device import get_device
from mmengine.dist import is_distributed
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.hooks import CheckpointHook, Hook, LoggerHook
from mmengine.model import is_model_wrapper, revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIMIZERS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Priority, Runner
from torch import nn
from torch.utils.data import DataLoader

from mmlavit.atomic_backend import ATOMIC
from mmlavit.checkpoints import safe_loading
from mmlavit.checks.build import config_errors, unknown_type
from mmlavit.checks.datasets import check_samples, explain_empty
from mmlavit.errors import UserError
from mmlavit.registry import RUNNERS

from ..hooks import MetricsLoggerHook, SafeCheckpointHook
from .epoch_loop import ResumableEpochLoop
from .slurm import set_variables_from_slurm

__all__ = ['PortableRunner']

UPSTREAM_EPOCH_LOOP = ('EpochBasedTrainLoop', 'mmengine.EpochBasedTrainLoop', EpochBasedTrainLoop)
UPSTREAM_HOOKS = {
    SafeCheckpointHook: ('CheckpointHook', 'mmengine.CheckpointHook', CheckpointHook),
    MetricsLoggerHook: ('LoggerHook', 'mmengine.LoggerHook', LoggerHook),
}


@RUNNERS.register_module()
class PortableRunner(Runner):
    """Run distributed jobs on CPUs as well, over gloo.

    mmengine's ``Runner`` selects a CUDA device for each process and hands it to
    ``DistributedDataParallel``. Without an accelerator this class starts the process group itself,
    wraps the model without device ids and turns ``SyncBatchNorm``, which has no CPU kernel, into
    ``BatchNorm``.

    On every machine, checkpoints are written in one step, a ``CheckpointHook`` is a
    :class:`SafeCheckpointHook` and an ``EpochBasedTrainLoop`` a :class:`ResumableEpochLoop`, so
    that a run may be killed at any moment and resumed, and a ``LoggerHook`` is a
    :class:`MetricsLoggerHook`. A value of the config that a loop, dataset, metric, optimizer or
    schedule refuses ends the run in a ``UserError`` that names it.
    """

    @property
    def _over_gloo(self) -> bool:
        return self.distributed and get_device() == 'cpu'

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        """Start the process group, then set up the environment as ``Runner`` does.

        Args:
            env_cfg: As ``Runner`` takes it; without an accelerator the backend is gloo, whatever
                ``dist_cfg`` names, and ``dist_cfg['timeout']``, in seconds, still holds.

        Raises:
            UserError: If the launcher needs an accelerator and there is none, or Slurm does not say
                which machine is the first.
        """
        if self._over_gloo and not is_distributed():
            if self.launcher == 'slurm':
                set_variables_from_slurm()
            elif self.launcher != 'pytorch':
                raise UserError(
                    f'launcher {self.launcher!r} needs a GPU and none was found; without one use '
                    "'pytorch' (tools/dist_*.sh) or 'slurm' (tools/slurm_*.sh)"
                )
            seconds = (env_cfg.get('dist_cfg') or {}).get('timeout')
            timeout = None if seconds is None else timedelta(seconds=seconds)
            dist.init_process_group('gloo', timeout=timeout)
        super().setup_env(env_cfg)

    def build_train_loop(self, loop: BaseLoop | dict[str, Any]) -> BaseLoop:
        """Initialize the weights, then build the loop and with it the datasets.

        A checkpoint that does not fit stops the run before the data is read.

        Args:
            loop: As ``Runner`` takes it.

        Raises:
            UserError: If a value of the config is refused.
        """
        self._init_model_weights()
        if isinstance(loop, dict):
            if ('type' in loop) == ('by_epoch' in loop):
                found = ', '.join(loop)
                raise UserError(f'train_cfg has {found}, expected one of type and by_epoch')
            loop = dict(loop)
            if loop.pop('by_epoch', False) or loop.get('type') in UPSTREAM_EPOCH_LOOP:
                loop['type'] = ResumableEpochLoop
            loop.setdefault('type', 'IterBasedTrainLoop')
        with self._config_errors(train_cfg=loop):
            return super().build_train_loop(loop)

    def build_val_loop(self, loop: BaseLoop | dict[str, Any]) -> BaseLoop:
        """Build the loop of validation, and with it the dataset and the metrics.

        Args:
            loop: As ``Runner`` takes it.

        Raises:
            UserError: If a value of the config is refused.
        """
        if isinstance(loop, dict):
            loop = {'type': 'ValLoop', **loop}
        with self._config_errors(val_cfg=loop):
            return super().build_val_loop(loop)

    def build_test_loop(self, loop: BaseLoop | dict[str, Any]) -> BaseLoop:
        """Build the loop of testing, and with it the dataset and the metrics.

        Args:
            loop: As ``Runner`` takes it.

        Raises:
            UserError: If a value of the config is refused.
        """
        if isinstance(loop, dict):
            loop = {'type': 'TestLoop', **loop}
        with self._config_errors(test_cfg=loop):
            return super().build_test_loop(loop)

    def build_optim_wrapper(self, optim_wrapper: Any) -> OptimWrapper:
        """Build the optimizer and its wrapper.

        Args:
            optim_wrapper: As ``Runner`` takes it.

        Raises:
            UserError: If a value of the config is refused.
        """
        if isinstance(optim_wrapper, dict):
            kind = (optim_wrapper.get('optimizer') or {}).get('type')
            # mmengine looks at its signature before it builds it, whatever it found.
            if isinstance(kind, str) and OPTIMIZERS.get(kind) is None:
                raise UserError(f'optim_wrapper.optimizer: {unknown_type(OPTIMIZERS, kind)}')
        with self._config_errors():
            return super().build_optim_wrapper(optim_wrapper)

    def build_param_scheduler(self, scheduler: Any) -> Any:
        """Build the schedules.

        Args:
            scheduler: As ``Runner`` takes it.

        Raises:
            UserError: If a value of the config is refused.
        """
        with self._config_errors():
            return super().build_param_scheduler(scheduler)

    def _config_errors(self, **built: Any) -> AbstractContextManager[None]:
        """Name refused values by their place in the config, of which some are built as given."""
        return config_errors({**dict(self.cfg.items()), **built})

    def _init_model_weights(self) -> None:
        model = self.model.module if is_model_wrapper(self.model) else self.model
        if not getattr(model, 'is_init', False):
            with safe_loading():
                super()._init_model_weights()

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint as data, unless an enclosing ``safe_loading`` trusts it.

        Args:
            filename: A path, URL, or name that mmengine knows.
            *args: As ``Runner`` takes them.
            **kwargs: As ``Runner`` takes them.

        Raises:
            UserError: If the checkpoint holds what is not allowed.
        """
        with safe_loading():
            return super().load_checkpoint(filename, *args, **kwargs)

    def register_hook(
        self, hook: Hook | dict[str, Any], priority: str | int | Priority | None = None
    ) -> None:
        """Register a hook.

        Args:
            hook: As ``Runner`` takes it.
            priority: As ``Runner`` takes it.
        """
        for mine, upstream in UPSTREAM_HOOKS.items():
            if isinstance(hook, dict) and hook.get('type') in upstream:
                hook = {**hook, 'type': mine}
        super().register_hook(hook, priority)

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: dict[str, Any] | None = None,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        meta: dict[str, Any] | None = None,
        by_epoch: bool = True,
        backend_args: dict[str, Any] | None = None,
    ) -> None:
        """Save a checkpoint; a file on a local disk is complete or not there.

        Args:
            out_dir: As ``Runner`` takes it.
            filename: As ``Runner`` takes it.
            file_client_args: As ``Runner`` takes it; with this deprecated argument the file is
                written as ``Runner`` writes it.
            save_optimizer: As ``Runner`` takes it.
            save_param_scheduler: As ``Runner`` takes it.
            meta: As ``Runner`` takes it.
            by_epoch: As ``Runner`` takes it.
            backend_args: As ``Runner`` takes it.

        Raises:
            UserError: If the file cannot be written, as on a full disk.
        """
        if file_client_args is None:
            backend = get_file_backend(out_dir, backend_args=backend_args)
            if type(backend) is LocalBackend:
                backend_args = {'backend': ATOMIC}
        super().save_checkpoint(
            out_dir,
            filename,
            file_client_args,
            save_optimizer,
            save_param_scheduler,
            meta,
            by_epoch,
            backend_args,
        )

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict[str, Any],
        seed: int | None = None,
        diff_rank_seed: bool = False,
    ) -> DataLoader:
        """Build a dataloader.

        Args:
            dataloader: As ``Runner`` takes it.
            seed: As ``Runner`` takes it.
            diff_rank_seed: As ``Runner`` takes it.

        Raises:
            UserError: If a dataset has no samples. A hook would come too late: the infinite sampler
                looks for an index forever.
        """
        try:
            built = Runner.build_dataloader(dataloader, seed, diff_rank_seed)
        except ValueError:
            # mmengine cannot serialize an empty list.
            if isinstance(dataloader, dict):
                explain_empty(dataloader['dataset'])
            raise
        if hasattr(built.dataset, '__len__') and not len(built.dataset):
            check_samples(built.dataset)
        return built

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """Wrap the model for distributed execution.

        Args:
            model_wrapper_cfg: As ``Runner`` takes it.
            model: The model to wrap.
        """
        if not self._over_gloo:
            return super().wrap_model(model_wrapper_cfg, model)
        self.logger.info(
            f'No GPU was found: {self.world_size} processes work together over gloo, and '
            'SyncBatchNorm layers, if there are any, become BatchNorm layers.'
        )
        self.cfg.sync_bn = None
        if model_wrapper_cfg is None:
            model_wrapper_cfg = {
                'broadcast_buffers': False,
                'find_unused_parameters': self.cfg.get('find_unused_parameters', False),
            }
        return super().wrap_model(
            {**model_wrapper_cfg, 'device_ids': None}, revert_sync_batchnorm(model)
        )
