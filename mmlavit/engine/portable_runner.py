"""mmengine's runner, also for several processes on machines without an accelerator."""

from datetime import timedelta
from typing import Any

import torch.distributed as dist
from mmengine.device import get_device
from mmengine.dist import is_distributed
from mmengine.model import is_model_wrapper, revert_sync_batchnorm
from mmengine.runner import BaseLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from mmlavit.errors import UserError
from mmlavit.registry import RUNNERS

from .dataset_checks import check_samples, explain_empty

__all__ = ['PortableRunner']


@RUNNERS.register_module()
class PortableRunner(Runner):
    """Run distributed jobs on CPUs as well, over gloo.

    mmengine's ``Runner`` selects a CUDA device for each process and hands it to
    ``DistributedDataParallel``. Without an accelerator this class starts the process group itself,
    wraps the model without device ids and turns ``SyncBatchNorm``, which has no CPU kernel, into
    ``BatchNorm``. With an accelerator it is ``Runner``.
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
            UserError: If the launcher needs an accelerator and there is none.
        """
        if self._over_gloo and not is_distributed():
            if self.launcher != 'pytorch':
                raise UserError(
                    f'launcher {self.launcher!r} needs a GPU and none was found; '
                    "without one use 'pytorch' (tools/dist_train.sh, tools/dist_test.sh)"
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
        """
        self._init_model_weights()
        return super().build_train_loop(loop)

    def _init_model_weights(self) -> None:
        model = self.model.module if is_model_wrapper(self.model) else self.model
        if not getattr(model, 'is_init', False):
            super()._init_model_weights()

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
