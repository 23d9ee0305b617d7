"""The memory of a training step."""

from pathlib import Path

import torch
from common import Size
from fresh_process import in_fresh_process
from recipe import TrainingLoss, training_step
from subjects import Subject, build_backbone, images_of
from timing import Setting


def training_memory(subject: Subject, size: Size, batch: int, setting: Setting) -> int | None:
    """Measure what a training step takes at its peak, in bytes above the loaded process.

    Weights, gradients and images are there before. None where the system does not tell (a CPU
    under anything but Linux).
    """
    return in_fresh_process(setting, _training_memory, subject, size, batch, setting)


def _training_memory(subject: Subject, size: Size, batch: int, setting: Setting) -> int | None:
    device = setting.device
    loss = TrainingLoss(build_backbone(subject.config, device), subject.diagonality).train()
    images = images_of(batch, size, device)
    # loads libraries and kernels
    training_step(loss, images_of(1, (32, 32), device), setting)
    for parameter in loss.parameters():
        parameter.grad = torch.zeros_like(parameter)
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        loaded = torch.cuda.memory_allocated(device)
        training_step(loss, images, setting)
        return torch.cuda.max_memory_allocated(device) - loaded
    if not Path('/proc/self/status').exists():
        return None
    # forget the peak of loading and warming up
    Path('/proc/self/clear_refs').write_text('5')
    loaded = _resident('VmRSS')
    training_step(loss, images, setting)
    return _resident('VmHWM') - loaded


def _resident(key: str) -> int:
    """Read a size of this process in bytes.

    Not ``ru_maxrss``: that starts at the size of the process that has started this one.
    """
    for line in Path('/proc/self/status').read_text().splitlines():
        name, _, value = line.partition(':')
        if name == key:
            return int(value.split()[0]) * 1024
    raise RuntimeError(f'/proc/self/status has no {key}')
