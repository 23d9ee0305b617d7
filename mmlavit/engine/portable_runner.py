"""mmengine's runner, also for several processes on machines without an accelerator."""

import atexit
import os
import signal
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from mmengine.device import get_device
from mmengine.dist import is_distributed
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, OPTIMIZERS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

# Registers the file backend that the runtimes name.
import mmlavit.atomic_backend  # noqa: F401
from mmlavit.checkpoints import check_checkpoint, safe_loading
from mmlavit.datasets.guarded import GuardedDataset
from mmlavit.errors import UserError
from mmlavit.registry import RUNNERS

from .hooks import StopHook

__all__ = ['PortableRunner']


@RUNNERS.register_module()
class PortableRunner(Runner):
    """mmengine's runner, with what no hook can reach.

    Without an accelerator, several processes work together over gloo: mmengine would select a CUDA
    device for each and hand it to ``DistributedDataParallel``, and ``SyncBatchNorm`` has no CPU
    kernel. Datasets name the file of a sample that cannot be used, workers outlive the signals that
    stop a run, and checkpoints are read as data.
    """

    @property
    def _over_gloo(self) -> bool:
        return self.distributed and get_device() == 'cpu'

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        """Start the process group without an accelerator.

        Raises:
            UserError: If the launcher needs an accelerator and there is none.
        """
        if self._over_gloo and not is_distributed():
            if self.launcher != 'pytorch':
                raise UserError(
                    f'launcher {self.launcher!r} needs a GPU and none was found; without one use '
                    "'pytorch' (tools/dist_*.sh)"
                )
            seconds = (env_cfg.get('dist_cfg') or {}).get('timeout')
            timeout = None if seconds is None else timedelta(seconds=seconds)
            dist.init_process_group('gloo', timeout=timeout)
        super().setup_env(env_cfg)

    def train(self) -> nn.Module:
        """Train, and give the signals back however that ends."""
        try:
            return super().train()
        finally:
            for hook in self.hooks:
                if isinstance(hook, StopHook):
                    hook.release()

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict[str, Any],
        seed: int | None = None,
        diff_rank_seed: bool = False,
    ) -> DataLoader:
        """Guard the dataset, and let the workers outlive signals.

        Raises:
            UserError: If the dataset has no samples. The infinite sampler would look for an index
                forever.
        """
        if isinstance(dataloader, dict):
            dataloader = {**dataloader, 'dataset': _build_dataset(dataloader['dataset'])}
        loader = Runner.build_dataloader(dataloader, seed, diff_rank_seed)
        # in memory that the workers share
        running = torch.ones(1, dtype=torch.uint8).share_memory_()
        atexit.register(running.zero_)
        loader.worker_init_fn = partial(_start_worker, loader.worker_init_fn, running)
        return loader

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint as data, unless an enclosing ``safe_loading`` trusts it.

        Raises:
            UserError: If there is no such file, or it holds what is not allowed.
        """
        check_checkpoint(filename)
        with safe_loading():
            return super().load_checkpoint(filename, *args, **kwargs)

    def build_optim_wrapper(self, optim_wrapper: Any) -> Any:
        """Name an optimizer that does not exist, of which mmengine asks the signature first.

        Raises:
            UserError: If the type is unknown.
        """
        optimizer = optim_wrapper.get('optimizer') if isinstance(optim_wrapper, dict) else None
        kind = (optimizer or {}).get('type')
        if isinstance(kind, str) and OPTIMIZERS.get(kind) is None:
            raise UserError(f'optim_wrapper.optimizer: type {kind!r} is unknown')
        return super().build_optim_wrapper(optim_wrapper)

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """Wrap the model without device ids where there is no accelerator."""
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


def _build_dataset(config: Any) -> Any:
    try:
        dataset = DATASETS.build(config) if isinstance(config, dict) else config
    except ValueError as error:
        # mmengine cannot concatenate the samples of an empty list.
        if 'at least one array' not in str(error):
            raise
        dataset = ()
    if hasattr(dataset, 'full_init'):
        dataset.full_init()
    if hasattr(dataset, '__len__') and not len(dataset):
        if not isinstance(config, dict):
            raise UserError(f'{type(dataset).__name__} has no samples')
        while 'dataset' in config:
            config = config['dataset']
        names = ('data_root', 'ann_file', 'data_prefix', 'img_suffix', 'filter_cfg')
        where = ', '.join(f'{name}={config[name]!r}' for name in names if name in config)
        raise UserError(f'{config["type"]} has no samples with {where}')
    return GuardedDataset(dataset)


def _start_worker(
    then: Callable[[int], None] | None, running: torch.Tensor, worker_id: int
) -> None:
    # Schedulers and terminals signal every process, and without its workers a run could not finish
    # its iteration. A signal that comes later is that of the run itself, which waits for them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: None if running else os._exit(0))
    if then is not None:
        then(worker_id)
