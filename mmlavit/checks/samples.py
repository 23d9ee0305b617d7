"""Load every sample of a dataset, and report what is wrong with it."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TextIO

import mmcv
from mmengine.utils import ProgressBar
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from mmlavit.errors import UserError

from .coco import Finding, coco_findings
from .datasets import base_datasets, class_names, dataset_name, wrong_labels
from .masks import check_mask
from .pipeline import name_files
from .report import Report

__all__ = ['check_data', 'empty_classes']

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
# 12-bit values, as many cameras and scanners write them
DARK_BELOW = 4096
# This process shows the progress; with a single core it loads as well.
WORKERS = min(8, (os.cpu_count() or 1) - 1)


class SampleProbe(Dataset):
    """Loads samples as training does, and keeps what went wrong instead of raising it.

    Args:
        dataset: A dataset without a wrapper.
        ignored: Labels of masks that do not count; without them no mask is read for its values.
    """

    def __init__(self, dataset: Any, ignored: Collection[int] | None) -> None:
        name_files(dataset)
        self.dataset = dataset
        self.ignored = ignored

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> list[Finding]:
        """Load one sample.

        Args:
            index: Number of the sample.
        """
        info = self.dataset.get_data_info(index)
        path = info.get('img_path')
        name = path if isinstance(path, str) else f'sample {index}'
        try:
            result = self.dataset.prepare_data(index)
            if self.ignored is not None:
                check_mask(self.dataset, index, self.ignored)
            found = list(_conversions(name))
        except UserError as error:
            return [Finding('FAIL', 'files that cannot be used', str(error))]
        except Exception as error:
            text = f'{name}: {type(error).__name__}: {error}'
            return [Finding('FAIL', 'samples that fail', text)]
        if result is None:
            kind = 'samples of which the pipeline leaves nothing; others take their place'
            found.append(Finding('warn', kind, name))
        elif isinstance(result, dict):
            shape = getattr(result.get('data_samples'), 'ori_shape', None)
            annotated = (info.get('height'), info.get('width'))
            if shape is not None and None not in annotated and tuple(shape) != annotated:
                text = f'{name}: the image has {shape[0]}x{shape[1]} pixels (height x width), the '
                text += f'annotation file says {annotated[0]}x{annotated[1]}'
                found.append(Finding('FAIL', 'images of another size', text))
        return found


def check_data(
    dataset: Any,
    model: nn.Module,
    ignored: Collection[int] | None,
    report: Report,
    progress: TextIO,
) -> None:
    """Load every sample once, and read annotation files as they are.

    Args:
        dataset: A dataset or a wrapper around some.
        model: The model without wrappers.
        ignored: Labels of masks that do not count; without them no mask is read for its values.
        report: Takes the findings.
        progress: Where the progress bar goes.
    """
    for base in base_datasets(dataset):
        name, before = dataset_name(base), report.failures
        if not hasattr(base, 'prepare_data'):
            report.warn(f'{name}: its samples are not checked, as it is no dataset of mmengine')
            continue
        findings = list(coco_findings(base))
        findings += [Finding('FAIL', 'labels', text) for text in wrong_labels(model, base)]
        loader = DataLoader(
            SampleProbe(base, ignored),
            batch_size=None,
            num_workers=WORKERS,
            collate_fn=_as_it_is,
        )
        bar = ProgressBar(len(base), file=progress)
        for found in loader:
            findings += found
            bar.update()
        progress.write('\n')
        _report(name, findings, report)
        if report.failures == before:
            report.ok(f'{name}: all {len(base)} samples load')


def empty_classes(dataset: Any) -> list[str]:
    """Find classes of mmpretrain that no image belongs to.

    Args:
        dataset: A dataset without a wrapper.
    """
    classes = class_names(dataset)
    if classes is None or not hasattr(dataset, 'get_gt_labels'):
        return []
    found = {label for i in range(len(dataset)) for label in dataset.get_cat_ids(i)}
    return [name for label, name in enumerate(classes) if label not in found]


def _report(name: str, findings: list[Finding], report: Report) -> None:
    kinds: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        kinds.setdefault((finding.level, finding.kind), []).append(finding.text)
    for (level, kind), texts in sorted(kinds.items()):
        if level == 'FAIL':
            report.fail_each(texts)
        else:
            report.warn_once(f'{kind}, in {name}', texts)


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
    if deep:
        pixels = mmcv.imread(path, flag='unchanged')
        dark = pixels is not None and pixels.max() < DARK_BELOW
        yield Finding('warn', DARK if dark else DEEP, path)
    elif mode in CONVERTED:
        yield Finding('warn', CONVERTED[mode], path)


def _as_it_is(found: list[Finding]) -> list[Finding]:
    return found
