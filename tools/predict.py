"""Predict images with a model of mmpretrain, mmdet or mmseg.

--out holds for every task

  pictures/         the images, painted with what was predicted
  predictions.json  what was predicted, by the path of the image below its input folder

where predictions.json is, for

  classification    {image: {"label": index, "class": name, "score": probability}}
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.device import get_device
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from mmlavit.apis.predictors import build_predictor
from mmlavit.atomic_backend import AtomicBackend
from mmlavit.checkpoints import read_checkpoint
from mmlavit.checks.image_files import find_images, read_image
from mmlavit.cli.arguments import check_device, check_out
from mmlavit.cli.configs import read_config
from mmlavit.cli.launch import run_tool
from mmlavit.cli.parsers import LineParser
from mmlavit.errors import UserError

# What ends a run that is in order; any other error may be a bug, and its traceback is needed.
FAULTS = (MemoryError, OSError, UserError, torch.OutOfMemoryError)

Batch = list[tuple[str, np.ndarray]]


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
    """Predict as the arguments say.

    Raises:
        UserError: If the arguments do not fit, files are missing, or the checkpoint does not belong
            to the model.
        SystemExit: With code 1, if images could not be read or predicted, with 130 if interrupted.
    """
    if args.batch_size < 1:
        raise UserError(f'--batch-size: {args.batch_size} is below 1')
    check_out(args.out, args.overwrite)
    device = check_device(args.device or get_device())
    cfg = read_config(args.config, args.cfg_options)
    images = find_images(args.inputs, [args.out / 'pictures', args.out / 'masks'])
    checkpoint = read_checkpoint(args.checkpoint)
    predictor = build_predictor(cfg, args.checkpoint, checkpoint, device, args.out)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'--out {str(args.out)!r} cannot be made: {error}') from error

    pngs = png_names(images)
    unreadable: list[str] = []
    predicted: list[str] = []
    console = Console(file=sys.stderr)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    current = next(iter(images))
    code = 0
    try:
        with Progress(*columns, console=console) as progress:
            task = progress.add_task('Predicting', total=len(images))

            def begin(name: str) -> None:
                nonlocal current
                current = name

            def report(name: str, reason: str) -> None:
                unreadable.append(name)
                say(f'{images[name]}: {reason}')
                progress.advance(task)

            for batch in batches(images, args.batch_size, begin, report):
                begin(batch[0][0])
                samples = predictor.predict([images[name] for name, _ in batch])
                for (name, pixels), sample in zip(batch, samples, strict=True):
                    begin(name)
                    predictor.save(name, pngs[name], pixels, sample, args.score_thr)
                    predicted.append(name)
                progress.update(task, advance=len(batch))
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
        AtomicBackend().put_text(json.dumps(predictor.results, indent=1), predictions)
        print(f'{len(predicted)} of {len(images)} images predicted: {predictions}')
    if unreadable:
        print(f'{len(unreadable)} images could not be read', file=sys.stderr)
        code = code or 1
    if code:
        raise SystemExit(code)


def png_names(images: Iterable[str]) -> dict[str, str]:
    """Name the PNG files of images after them, without a clash.

    Args:
        images: Names of images.

    Returns:
        ``a.png`` for ``a.jpg``; ``a.jpg.png`` everywhere if that would name two files alike.
    """
    names = list(images)
    short = {name: str(Path(name).with_suffix('.png')) for name in names}
    if len(set(short.values())) == len(short):
        return short
    return {name: f'{name}.png' for name in names}


def batches(
    images: dict[str, Path],
    size: int,
    begin: Callable[[str], None],
    report: Callable[[str, str], None],
) -> Iterator[Batch]:
    """Read images, a batch at a time, each of images of one size.

    Args:
        images: Paths by name.
        size: Images a batch, at most.
        begin: Called with the name of an image before it is read.
        report: Called with the name of an image that cannot be read, and the reason.
    """
    batch: Batch = []
    for name, path in images.items():
        begin(name)
        try:
            pixels = read_image(path)
        except ValueError as error:
            report(name, str(error))
            continue
        if batch and batch[0][1].shape != pixels.shape:
            yield batch
            batch = []
        batch.append((name, pixels))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    run_tool(build_parser(), predict, argv)


if __name__ == '__main__':
    main()
