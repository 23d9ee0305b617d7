"""Evaluate a checkpoint of a model of mmpretrain, mmdet or mmseg."""

from argparse import Namespace
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import mmengine
from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.registry import METRICS
from mmengine.utils import apply_to

from mmlavit.apis.predict import VISUALIZER_TYPES
from mmlavit.checkpoints import check_checkpoint
from mmlavit.checks.config import check_work_dir
from mmlavit.cli.configs import check_gpu, load_config, require
from mmlavit.cli.launch import build_runner, run_tool
from mmlavit.cli.parsers import ToolParser
from mmlavit.errors import UserError

METRIC_FILES = ('.json', '.yaml', '.yml', '.pkl', '.pickle')
PREDICTION_FILES = ('.pkl', '.pickle')


class Painter(NamedTuple):
    """How a toolbox paints predictions: the hook, and its names for two settings."""

    hook: str
    switch: str
    out_dir: str | None


PAINTERS = {
    'mmpretrain': Painter('VisualizationHook', 'enable', 'out_dir'),
    'mmdet': Painter('DetVisualizationHook', 'draw', 'test_out_dir'),
    'mmseg': Painter('SegVisualizationHook', 'draw', None),
}

# Where a config has no test-time augmentation of its own; mmseg has no default.
TTA_MODELS = {
    'mmpretrain': {'type': 'AverageClsScoreTTA'},
    'mmdet': {
        'type': 'DetTTAModel',
        'tta_cfg': {'nms': {'type': 'nms', 'iou_threshold': 0.5}, 'max_per_img': 100},
    },
}


def build_parser() -> ToolParser:
    """Add the options of testing to the shared ones."""
    parser = ToolParser('Evaluate a checkpoint of a model of mmpretrain, mmdet or mmseg.')
    parser.add_argument('checkpoint', help='checkpoint file or URL')
    parser.add_argument(
        '--out', help='predictions: a pickle file (mmpretrain, mmdet), a directory (mmseg)'
    )
    parser.add_argument(
        '--out-item', choices=['pred', 'metrics'], help='what --out holds, by default pred'
    )
    parser.add_argument('--show-dir', help='save images painted with predictions here')
    parser.add_argument(
        '--show', action='store_true', help='show images painted with predictions in a window'
    )
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds each window stays, by default 2'
    )
    parser.add_argument(
        '--interval', type=int, help='paint every n-th image (mmpretrain), by default all'
    )
    parser.add_argument('--tta', action='store_true', help='augment at test time')
    return parser


def test(args: Namespace) -> None:
    """Test as the arguments say.

    Raises:
        UserError: If the arguments do not fit the config, files are missing, or the checkpoint
            does not belong to the model.
    """
    cfg = load_config(args)
    scope = cfg.default_scope
    check_out(args, scope)
    check_checkpoint(args.checkpoint)
    require(cfg, 'model', 'test_dataloader', 'test_cfg', 'test_evaluator')
    cfg.load_from, cfg.resume = args.checkpoint, False
    if args.amp:
        check_gpu()
        cfg.test_cfg.fp16 = True
    if args.show or args.show_dir:
        paint(cfg, args)
    if args.tta:
        augment(cfg)
    predictions = args.out if args.out_item != 'metrics' else None
    if predictions and scope == 'mmseg':
        save_pngs(cfg, predictions)

    runner = build_runner(cfg)
    if predictions and scope != 'mmseg':
        dump = 'mmdet.DumpDetResults' if scope == 'mmdet' else 'DumpResults'
        runner.test_evaluator.metrics.append(
            METRICS.build({'type': dump, 'out_file_path': predictions})
        )
    metrics = runner.test()
    if args.out_item == 'metrics' and is_main_process():
        plain = apply_to(metrics, lambda v: hasattr(v, 'tolist'), lambda v: v.tolist())
        mmengine.dump(plain, args.out)


def check_out(args: Namespace, scope: str) -> None:
    """Check ``--out`` and ``--out-item`` before anything is loaded.

    Raises:
        UserError: If ``--out`` has an extension that cannot hold what was asked for, or cannot be
            written to.
    """
    if args.out is None:
        if args.out_item:
            raise UserError('--out-item needs --out')
        return
    path = Path(args.out)
    if args.out_item != 'metrics' and scope == 'mmseg':
        if path.is_file() or path.suffix in (*METRIC_FILES, '.png'):
            raise UserError(f'--out {args.out!r}: mmseg writes PNG files, expected a directory')
        check_work_dir(args.out, '--out')
        return
    suffixes = METRIC_FILES if args.out_item == 'metrics' else PREDICTION_FILES
    if path.suffix not in suffixes or path.is_dir():
        raise UserError(f'--out {args.out!r}: expected a file ending in {", ".join(suffixes)}')
    check_work_dir(str(path.parent), '--out')


def paint(cfg: Config, args: Namespace) -> None:
    """Turn on the visualization hook of the toolbox, adding it where the config has none.

    Raises:
        UserError: If the toolbox cannot paint as the arguments say.
    """
    scope = cfg.default_scope
    painter = PAINTERS[scope]
    if args.interval is not None and scope != 'mmpretrain':
        raise UserError(f'--interval: {painter.hook} of {scope} paints every test image')
    if args.tta and scope == 'mmpretrain':
        raise UserError('--tta: VisualizationHook of mmpretrain cannot paint augmented images')
    visualizer = cfg.setdefault('visualizer', ConfigDict(type=VISUALIZER_TYPES[scope]))
    hook = cfg.setdefault('default_hooks', ConfigDict()).setdefault(
        'visualization', ConfigDict(type=painter.hook)
    )
    hook.update({painter.switch: True}, show=args.show, wait_time=args.wait_time)
    if scope == 'mmpretrain':
        hook.interval = args.interval or 1
    show_dir = str(Path(args.show_dir).absolute()) if args.show_dir else None
    if painter.out_dir is not None and show_dir:
        hook[painter.out_dir] = show_dir
    elif show_dir:
        visualizer.save_dir = show_dir
        visualizer.vis_backends = [ConfigDict(type='LocalVisBackend')]


def augment(cfg: Config) -> None:
    """Test with the config's augmentation, else with the horizontal flip.

    Raises:
        UserError: If the toolbox has no default augmentation and the config none of its own, or
            the model predicts what cannot be merged.
    """
    scope = cfg.default_scope
    missing = [key for key in ('tta_model', 'tta_pipeline') if cfg.get(key) is None]
    if missing and scope not in TTA_MODELS:
        raise UserError(f'--tta: {cfg.filename} has no {", ".join(missing)}')
    if 'tta_model' in missing:
        cfg.tta_model = ConfigDict(TTA_MODELS[scope])
    has_masks = cfg.model.get('mask_head') or (cfg.model.get('roi_head') or {}).get('mask_head')
    if 'DetTTAModel' in str(cfg.tta_model.type) and has_masks:
        raise UserError('--tta: DetTTAModel of mmdet merges boxes only, and this model has masks')
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    if 'tta_pipeline' in missing:
        *transforms, pack = deepcopy(dataset.pipeline)
        if scope == 'mmdet':
            # DetTTAModel reads both to flip the boxes back; the default keys have them.
            pack.pop('meta_keys', None)
        flips = [ConfigDict(type='RandomFlip', prob=prob) for prob in (1.0, 0.0)]
        augmented = ConfigDict(type='TestTimeAug', transforms=[flips, [pack]])
        cfg.tta_pipeline = [*transforms, augmented]
    dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def save_pngs(cfg: Config, directory: str) -> None:
    """Let mmseg's metrics write their predictions.

    Raises:
        UserError: If no metric of the config can write predictions.
    """
    evaluator = cfg.test_evaluator
    if isinstance(evaluator, dict):
        evaluator = evaluator.get('metrics', evaluator)
    metrics = evaluator if isinstance(evaluator, list | tuple) else [evaluator]
    kinds = ('IoUMetric', 'CityscapesMetric')
    writers = [m for m in metrics if any(kind in str(m.get('type')) for kind in kinds)]
    if not writers:
        raise UserError(f'--out: test_evaluator has no {" or ".join(kinds)}')
    # mmseg makes it in the first process, and others may write before that.
    Path(directory).mkdir(parents=True, exist_ok=True)
    for metric in writers:
        metric.output_dir = directory


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    run_tool(build_parser(), test, argv)


if __name__ == '__main__':
    main()
