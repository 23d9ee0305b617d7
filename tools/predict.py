"""Predict images with a model of mmpretrain, mmdet or mmseg.

--out holds for every task

  pictures/         the images, painted with what was predicted
  predictions.json  what was predicted, by the path of the image below its input folder

where predictions.json is, for

  classification    {image: {"label": index, "class": name, "score": probability}}, and of a model
                    of several labels {image: {"labels": [...], "classes": [...], "scores": [...]}}
  detection         COCO: "images", "categories" and "annotations", which have "score",
                    "category_name", "file_name", bbox [x, y, width, height] in pixels, and
                    segmentation in run lengths where the model has masks. pycocotools opens it
                    with COCO(file), and reads its "annotations" with loadRes. Identifiers of
                    categories are 1, 2, ... in the order of the model's classes, those of images
                    1, 2, ... in the order of "images"; every object is there, whatever its score
  segmentation      {"classes": names, "palette": colors, "masks": {image: file}}; masks/ holds
                    PNG files of class indices with the colors of the dataset

Exit code 1: some images could not be read, they are listed, or the rest could not be predicted, the
reason is given; 2: nothing was predicted; 130: interrupted. Whatever was predicted is written.
"""

import json
import signal
import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from mmengine.device import get_device
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from mmlavit.apis.images import find_images
from mmlavit.apis.predict import LoadedImage, Predictor
from mmlavit.atomic_backend import AtomicBackend
from mmlavit.checks.config import check_work_dir
from mmlavit.cli.arguments import check_device, check_out
from mmlavit.cli.configs import read_config
from mmlavit.cli.launch import run_tool
from mmlavit.cli.parsers import LineParser
from mmlavit.cli.plain_model import load_plain_model
from mmlavit.errors import UserError

# What ends a run that is in order; any other error may be a bug, and its traceback is needed.
FAULTS = (MemoryError, OSError, UserError, torch.OutOfMemoryError)


def build_parser() -> LineParser:
    """Describe the command line."""
    parser = LineParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file of mmpretrain, mmdet or mmseg')
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument(
        'inputs',
        nargs='+',
        metavar='IMAGE|FOLDER|GLOB',
        help='images, folders, searched with their subfolders, or quoted patterns as "a/**/*.jpg"',
    )
    parser.add_argument('--out', type=Path, required=True, help='folder of the results, made new')
    parser.add_argument(
        '--overwrite', action='store_true', help='write to --out even if there is something in it'
    )
    parser.add_argument('--device', help='as cpu or cuda:1, by default a GPU if there is one')
    parser.add_argument(
        '--batch-size',
        type=int,
        default=1,
        help='images predicted at once, of those in a row that have one size (%(default)s)',
    )
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='paint objects above this score, detection (%(default)s)',
    )
    parser.add_cfg_options()
    parser.add_trust_checkpoint()
    return parser


def predict(args: Namespace) -> None:
    """Predict as the arguments say, and exit as the description says."""
    if args.batch_size < 1:
        raise UserError(f'--batch-size: {args.batch_size} is below 1')
    check_out(args.out, args.overwrite)
    check_work_dir(str(args.out), '--out')
    device = check_device(args.device or get_device())
    cfg = read_config(args.config, args.cfg_options)
    images = find_images(args.inputs, [args.out / 'pictures', args.out / 'masks'])
    model, metainfo = load_plain_model(cfg, args.checkpoint)
    predictor = Predictor(cfg, model, metainfo, device)
    args.out.mkdir(parents=True, exist_ok=True)

    pngs = png_names(images)
    records: dict[str, Any] = {}
    current, unreadable, code = next(iter(images)), 0, 0
    console = Console(file=sys.stderr)
    progress = Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console)
    task = progress.add_task('Predicting', total=len(images))

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    def load_all() -> Iterator[tuple[str, LoadedImage]]:
        nonlocal current, unreadable
        for current, path in images.items():
            try:
                yield current, predictor.load(path)
            except ValueError as error:
                unreadable += 1
                say(f'{path}: {error}')
                progress.advance(task)

    try:
        with progress:
            for batch in batches(load_all(), args.batch_size):
                current = batch[0][0]
                samples = predictor.predict([image for _, image in batch])
                for (current, image), sample in zip(batch, samples, strict=True):
                    records[current] = predictor.save(
                        image.picture, sample, args.out, pngs[current], args.score_thr
                    )
                progress.advance(task, len(batch))
    except KeyboardInterrupt:
        say(f'interrupted at {images[current]}')
        code = 128 + signal.SIGINT
    except Exception as error:
        # torch goes on with advice or a stack
        reason = (str(error) or type(error).__name__).splitlines()[0]
        say(f'stopped at {images[current]}: {reason}')
        if not isinstance(error, FAULTS):
            raise
        code = 1
    finally:
        predictions = args.out / 'predictions.json'
        AtomicBackend().put_text(json.dumps(predictor.results(records), indent=1), predictions)
        print(f'{len(records)} of {len(images)} images predicted: {predictions}')
    if unreadable:
        print(f'{unreadable} images could not be read', file=sys.stderr)
    if code or unreadable:
        raise SystemExit(code or 1)


def png_names(images: Iterable[str]) -> dict[str, str]:
    """Name a PNG file after each image: a.png for a.jpg, or a.jpg.png where names would clash."""
    short = {name: str(Path(name).with_suffix('.png')) for name in images}
    if len(set(short.values())) == len(short):
        return short
    return {name: f'{name}.png' for name in short}


def batches(
    images: Iterable[tuple[str, LoadedImage]], size: int
) -> Iterator[list[tuple[str, LoadedImage]]]:
    """Group images in a row that have one size behind the pipeline, at most ``size`` a batch."""
    for _, group in groupby(images, key=lambda item: item[1].data['inputs'].shape):
        while batch := list(islice(group, size)):
            yield batch


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    run_tool(build_parser(), predict, argv)


if __name__ == '__main__':
    main()
