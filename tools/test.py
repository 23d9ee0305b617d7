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
from mmengine.runner import Runner
from mmengine.utils import apply_to

from mmlavit.checkpoints import check_checkpoint
from mmlavit.cli.amp import check_gpu
from mmlavit.cli.configs import load_config, require
from mmlavit.cli.launch import build_runner, run_tool
from mmlavit.cli.parsers import ToolParser
from mmlavit.engine import StrictLoadHook, add_dataset_check
from mmlavit.errors import UserError

METRIC_FILES = ('.json', '.yaml', '.yml', '.pkl', '.pickle')
PREDICTION_FILES = ('.pkl', '.pickle')
# mmseg's metrics that write predictions, each into its output_dir.
PNG_METRICS = ('IoUMetric', 'CityscapesMetric')


class Painter(NamedTuple):
    """How a toolbox paints predictions: classes, and the hook's names for two settings."""

    hook: str
    visualizer: str
    switch: str
    out_dir: str | None


PAINTERS = {
    'mmpretrain': Painter('VisualizationHook', 'UniversalVisualizer', 'enable', 'out_dir'),
    'mmdet': Painter('DetVisualizationHook', 'DetLocalVisualizer', 'draw', 'test_out_dir'),
    'mmseg': Painter('SegVisualizationHook', 'SegLocalVisualizer', 'draw', None),
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
    check_out(args, cfg.default_scope)
    check_checkpoint(args.checkpoint)
    require(cfg, 'model', 'test_dataloader', 'test_cfg', 'test_evaluator')
    cfg.load_from = args.checkpoint
    cfg.resume = False
    if args.amp:
        check_gpu()
        cfg.test_cfg.fp16 = True
    if args.show or args.show_dir:
        paint(cfg, args)
    if args.tta:
        augment(cfg)
    save_predictions = args.out and args.out_item != 'metrics'
    if save_predictions and cfg.default_scope == 'mmseg':
        save_pngs(cfg, args.out)

    runner = build_runner(cfg)
    runner.register_hook(StrictLoadHook())
    add_dataset_check(runner)
    if save_predictions and cfg.default_scope != 'mmseg':
        dump = 'mmdet.DumpDetResults' if cfg.default_scope == 'mmdet' else 'DumpResults'
        runner.test_evaluator.metrics.append(
            METRICS.build({'type': dump, 'out_file_path': args.out})
        )
    metrics = runner.test()
    if args.out_item == 'metrics' and is_main_process():
        mmengine.dump(apply_to(metrics, lambda v: hasattr(v, 'tolist'), _to_list), args.out)
    report(runner)


def check_out(args: Namespace, scope: str) -> None:
    """Check ``--out`` and ``--out-item`` before anything is loaded.

    Args:
        args: The parsed arguments.
        scope: The toolbox.

    Raises:
        UserError: If ``--out`` has an extension that cannot hold what was asked for.
    """
    if args.out is None:
        if args.out_item:
            raise UserError('--out-item needs --out')
        return
    path = Path(args.out)
    if args.out_item != 'metrics' and scope == 'mmseg':
        if path.is_file() or path.suffix in (*METRIC_FILES, '.png'):
            raise UserError(f'--out {args.out!r}: mmseg writes PNG files, expected a directory')
        return
    suffixes = METRIC_FILES if args.out_item == 'metrics' else PREDICTION_FILES
    if path.suffix not in suffixes or path.is_dir():
        raise UserError(f'--out {args.out!r}: expected a file ending in {", ".join(suffixes)}')


def paint(cfg: Config, args: Namespace) -> None:
    """Turn on the visualization hook of the toolbox, adding it where the config has none.

    Args:
        cfg: The config, changed in place.
        args: The parsed arguments.

    Raises:
        UserError: If the toolbox cannot paint as the arguments say.
    """
    scope = cfg.default_scope
    painter = PAINTERS[scope]
    if args.interval is not None and scope != 'mmpretrain':
        raise UserError(f'--interval: {painter.hook} of {scope} paints every test image')
    if args.tta and scope == 'mmpretrain':
        raise UserError('--tta: VisualizationHook of mmpretrain cannot paint augmented images')
    backend = {'type': 'LocalVisBackend'}
    visualizer = cfg.setdefault(
        'visualizer', ConfigDict(type=painter.visualizer, vis_backends=[backend])
    )
    hook = cfg.setdefault('default_hooks', ConfigDict()).setdefault(
        'visualization', ConfigDict(type=painter.hook)
    )
    hook[painter.switch] = True
    hook.update(show=args.show, wait_time=args.wait_time)
    if scope == 'mmpretrain':
        hook.interval = args.interval or 1
    if args.show_dir:
        show_dir = str(Path(args.show_dir).absolute())
        if painter.out_dir is not None:
            hook[painter.out_dir] = show_dir
        else:
            visualizer.save_dir = show_dir
            backends = visualizer.get('vis_backends') or []
            if backend['type'] not in [other.get('type') for other in backends]:
                visualizer.vis_backends = [*backends, backend]


def augment(cfg: Config) -> None:
    """Test with the config's augmentation, else with the horizontal flip.

    Args:
        cfg: The config, changed in place.

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
    if 'DetTTAModel' in str(cfg.tta_model.type) and _predicts_masks(cfg.model):
        raise UserError('--tta: DetTTAModel of mmdet merges boxes only, and this model has masks')
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    if 'tta_pipeline' in missing:
        cfg.tta_pipeline = flip_pipeline(dataset.pipeline, scope)
    dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def flip_pipeline(pipeline: list[ConfigDict], scope: str) -> list[ConfigDict]:
    """Let a test pipeline yield every image twice, flipped and as it is.

    Args:
        pipeline: A pipeline whose last transform packs the inputs.
        scope: The toolbox.
    """
    *transforms, pack = deepcopy(pipeline)
    if scope == 'mmdet':
        # DetTTAModel reads both to flip the boxes back; the default keys have them.
        pack.pop('meta_keys', None)
    flips = [ConfigDict(type='RandomFlip', prob=prob) for prob in (1.0, 0.0)]
    return [*transforms, ConfigDict(type='TestTimeAug', transforms=[flips, [pack]])]


def _predicts_masks(model: ConfigDict) -> bool:
    return bool(model.get('mask_head') or (model.get('roi_head') or {}).get('mask_head'))


def save_pngs(cfg: Config, directory: str) -> None:
    """Let mmseg's metrics write their predictions.

    Args:
        cfg: The config, changed in place.
        directory: Where the PNG files go.

    Raises:
        UserError: If no metric of the config can write predictions, or the folder cannot be made.
    """
    evaluator = cfg.test_evaluator
    metrics = evaluator if isinstance(evaluator, list) else [evaluator]
    writers = [metric for metric in metrics if metric.get('type') in PNG_METRICS]
    if not writers:
        raise UserError(f'--out: test_evaluator has no {" or ".join(PNG_METRICS)}')
    try:
        # mmseg makes it in the first process, and others may write before that.
        Path(directory).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'--out {directory!r} cannot be made: {error.strerror}') from error
    for metric in writers:
        metric.output_dir = directory


def _to_list(value: object) -> object:
    return value.tolist()  # type: ignore[attr-defined]


def report(runner: Runner) -> None:
    """Say where mmengine wrote the metrics.

    Args:
        runner: The runner, after the test.
    """
    path = Path(runner.log_dir, f'{runner.timestamp}.json')
    if is_main_process() and path.is_file():
        runner.logger.info(f'Metrics: {path}')


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    run_tool(build_parser(), test, argv)


if __name__ == '__main__':
    main()
