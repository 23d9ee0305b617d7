"""Load every sample of a dataset, and find what is wrong with it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import mmcv
from mmengine.utils import ProgressBar
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from mmlavit.datasets.guarded import GuardedDataset
from mmlavit.errors import UserError

from .coco import Finding, coco_findings
from .datasets import class_names, dataset_name, wrong_labels
from .masks import labels_of_mask, mask_loader, upright

__all__ = ['data_findings']

# What OpenCV makes of images that are not 8-bit RGB, by the mode that Pillow gives them.
CONVERTED = {
    '1': 'grey images, read as three equal channels',
    'L': 'grey images, read as three equal channels',
    'LA': 'images with transparency, which is dropped',
    'PA': 'images with transparency, which is dropped',
    'RGBA': 'images with transparency, which is dropped',
    'CMYK': 'CMYK images, converted to RGB',
}
DEEP = 'images of 16 bits a channel, of which the upper 8 are kept'
DARK = 'images of 16 bits a channel that are almost black in the upper 8, which are kept'
TURNED = 'images that their EXIF orientation turns: annotations must be of the turned image'
# 12-bit values, as many cameras and scanners write them
DARK_BELOW = 4096
# This process shows the progress; with a single core it loads as well.
WORKERS = min(8, (os.cpu_count() or 1) - 1)


class _Once(GuardedDataset):
    """A dataset of mmengine that draws no other sample where the pipeline leaves nothing."""

    def __getitem__(self, index: int) -> Any:
        return self.dataset.prepare_data(index)


class _Probe(Dataset):
    """Keeps what goes wrong with a sample, and the labels of its mask, instead of the sample."""

    def __init__(self, dataset: Any, masks: bool) -> None:
        self.dataset, self.masks = GuardedDataset(_Once(dataset)), masks
        loaders = getattr(dataset.pipeline, 'transforms', ())
        # What OpenCV makes of a file is known for its usual flags only.
        self.converts = any(
            getattr(loader, 'color_type', None) == 'color'
            and getattr(loader, 'imdecode_backend', None) == 'cv2'
            for loader in loaders
        )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[list[Finding], set[int]]:
        info = self.dataset.get_data_info(index)
        path = info.get('img_path')
        name = path if isinstance(path, str) else f'sample {index}'
        labels: set[int] = set()
        try:
            if self.masks:
                labels = labels_of_mask(self.dataset, index)
            sample = self.dataset[index]
        except UserError as error:
            return [Finding('FAIL', str(error))], labels
        except Exception as error:
            return [Finding('FAIL', f'{name}: {type(error).__name__}: {error}')], labels
        found = list(_conversions(name)) if self.converts else []
        if sample is None:
            kind = 'samples of which the pipeline leaves nothing; others take their place'
            found.append(Finding('warn', name, kind))
        elif isinstance(sample, dict):
            shape = getattr(sample.get('data_samples'), 'ori_shape', None)
            annotated = (info.get('height'), info.get('width'))
            if shape is not None and None not in annotated and tuple(shape) != annotated:
                text = f'{name}: the image has {shape[0]}x{shape[1]} pixels (height x width), the '
                text += f'annotation file says {annotated[0]}x{annotated[1]}'
                if Path(name).is_file() and upright(name)[1]:
                    text += '; its EXIF orientation turns it'
                found.append(Finding('FAIL', text))
        return found, labels


def data_findings(
    dataset: Any, model: nn.Module, masks: bool, training: bool, progress: TextIO
) -> Iterator[Finding]:
    """Load every sample of a base dataset once, and read its annotation file as it is.

    ``masks`` asks for the values of masks, too.
    """
    yield from coco_findings(dataset)
    yield from (Finding('FAIL', text) for text in wrong_labels(model, dataset))
    bar, held = ProgressBar(len(dataset), file=progress), set()
    probe = DataLoader(
        _Probe(dataset, masks), batch_size=None, num_workers=WORKERS, collate_fn=tuple
    )
    for findings, labels in probe:
        yield from findings
        held |= labels
        bar.update()
    progress.write('\n')
    if masks and training and mask_loader(dataset) is not None:
        for label, name in enumerate(class_names(dataset) or ()):
            if label not in held:
                yield Finding('FAIL', f'{dataset_name(dataset)}: no mask holds the class {name}')


def _conversions(path: str) -> Iterator[Finding]:
    if '://' in path or not Path(path).is_file():
        return
    try:
        with Image.open(path) as image:
            mode = image.mode
            # Pillow opens colour of 16 bits as 8, and names the depth in what its decoder is told.
            deep = mode.startswith(('I', 'F')) or any(';16' in str(tile) for tile in image.tile)
    except (OSError, Image.DecompressionBombError):
        # What the pipeline has loaded need not be of a kind that Pillow knows.
        return
    if upright(path)[1]:
        yield Finding('warn', path, TURNED)
    if deep:
        pixels = mmcv.imread(path, flag='unchanged')
        dark = pixels is not None and pixels.max() < DARK_BELOW
        yield Finding('warn', path, DARK if dark else DEEP)
    elif mode in CONVERTED:
        yield Finding('warn', path, CONVERTED[mode])
