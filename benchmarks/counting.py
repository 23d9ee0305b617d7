"""What does not depend on the clock: multiply-adds, and the memory of a training step."""

from pathlib import Path
from typing import Any

import torch
from common import Setting, Size, training_step
from fresh_process import in_fresh_process
from subjects import build_backbone, images_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def multiply_adds(config: dict[str, Any], size: Size) -> int:
    """Count the multiply-adds of a forward pass on one image: products and convolutions.

    On the meta device nothing is computed: no tiles, whose common rows would count twice. LaViT's
    windows fit the map there as they do on a CPU.

    Args:
        config: Backbone.
        size: ``(h, w)`` of the image.
    """
    device = torch.device('meta')
    model = build_backbone(config, torch.device('cpu')).to(device)
    model.train()  # in evaluation mode torch's own attention is one operator that nobody counts
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(images_of(1, size, device))
    return counter.get_total_flops() // 2


def training_memory(config: dict[str, Any], size: Size, batch: int, setting: Setting) -> int | None:
    """Measure what a training step takes at its peak, in bytes above the loaded process.

    Weights, gradients and images are there before.

    Args:
        config: Backbone.
        size: ``(h, w)`` of the images.
        batch: Images.
        setting: How it is executed.

    Returns:
        Bytes; None where the system does not tell (a CPU under anything but Linux).
    """
    return in_fresh_process(setting, _training_memory, config, size, batch, setting)


def _training_memory(
    config: dict[str, Any], size: Size, batch: int, setting: Setting
) -> int | None:
    device = setting.device
    model = build_backbone(config, device)
    model.train()
    images = images_of(batch, size, device)
    # loads libraries and kernels
    training_step(model, images_of(1, (64, 64), device), setting)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        loaded = torch.cuda.memory_allocated(device)
        training_step(model, images, setting)
        return torch.cuda.max_memory_allocated(device) - loaded
    if not Path('/proc/self/status').exists():
        return None
    # forget the peak of loading and warming up
    Path('/proc/self/clear_refs').write_text('5')
    loaded = _resident('VmRSS')
    training_step(model, images, setting)
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
