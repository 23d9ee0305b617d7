"""Train the Shapes configs in float32 and under --amp, and print the difference in points.

Each run is `tools/train.py` with the schedule of its config; its metrics are those of the last
validation. All runs of a config start from the same seed and weights, without the classifier's
checkpoint. Example: `python benchmarks/mixed_precision.py --out work_dirs/mixed_precision`.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from mmengine.config import Config

ROOT = Path(__file__).resolve().parent.parent
METRICS = {
    'lavit-nano_shapes-cls': {'accuracy/top1': 1},
    'mask-rcnn_lavit-nano_shapes': {'coco/bbox_mAP': 100, 'coco/segm_mAP': 100},
    'retinanet_lavit-nano_shapes': {'coco/bbox_mAP': 100},
    'upernet_lavit-nano_shapes': {'mIoU': 1},
    'semantic-fpn_lavit-nano_shapes': {'mIoU': 1},
}  # with what turns each into points


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--configs', nargs='+', choices=METRICS, default=list(METRICS))
    parser.add_argument(
        '--scale', type=float, default=1.0, help='part of each schedule to train, by default 1'
    )
    parser.add_argument(
        '--dtype',
        choices=['float16', 'bfloat16'],
        help='of --amp, by default what it chooses; without a GPU always bfloat16',
    )
    parser.add_argument(
        '--bfloat16-products',
        action='store_true',
        help='on a CPU without bfloat16, compute products as one with it (bfloat16_products.py)',
    )
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument('--out', default='work_dirs/mixed_precision', help='logs and results')
    parser.add_argument('--limit', type=float, default=2.0, help='points --amp may lose')
    return parser.parse_args()


def schedule(cfg: Config, scale: float) -> list[str]:
    """Options that shorten the schedule, and validate at its end only."""
    by_iter = cfg.train_cfg.get('type') == 'IterBasedTrainLoop'
    key = 'max_iters' if by_iter else 'max_epochs'
    length = max(1, round(cfg.train_cfg[key] * scale))
    options = [f'train_cfg.{key}={length}', f'train_cfg.val_interval={length}']
    options.append(f'default_hooks.checkpoint.interval={length}')
    for i, scheduler in enumerate(cfg.param_scheduler):
        for name, least in (('begin', 0), ('end', 1), ('T_max', 1)):
            if name in scheduler:
                value = max(least, round(scheduler[name] * scale))
                options.append(f'param_scheduler.{i}.{name}={value}')
    return options


def train(
    name: str, scale: float, seed: int, precision: str, products: bool, out: Path
) -> dict[str, float]:
    """Train once; returns the metrics of the validation and the seconds of an iteration."""
    config = ROOT / f'configs/shapes/{name}.py'
    work_dir = out / f'{name}-{precision}-{seed}'
    options = schedule(Config.fromfile(config), scale)
    options += ['model.backbone.init_cfg=None', f'randomness.seed={seed}']
    if precision in ('float16', 'bfloat16'):
        options.append(f'optim_wrapper.dtype={precision}')
    amp = precision != 'float32'
    tools = [ROOT / 'benchmarks/bfloat16_products.py'] * (amp and products)
    tools.append(ROOT / 'tools/train.py')
    command = [sys.executable, *map(str, tools), str(config), *['--amp'] * amp]
    command += ['--work-dir', str(work_dir), '--cfg-options', *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f'{name}: {" ".join(command)} failed:\n{done.stderr[-2000:]}')
    log = max(work_dir.glob('*/vis_data/scalars.json'))
    lines: list[dict[str, Any]] = [json.loads(line) for line in log.read_text().splitlines()]
    steps = sorted(line['time'] for line in lines if 'loss' in line)
    metrics = {key: value for key, value in lines[-1].items() if key in METRICS[name]}
    if metrics.keys() != METRICS[name].keys():
        sys.exit(f'{log}: the last validation has no {", ".join(METRICS[name])}')
    return {**metrics, 'seconds': steps[len(steps) // 2]}


def main() -> None:
    """Train every pair of runs, print the table, and exit with 1 where --amp loses too much."""
    args = parse_args()
    out, rows, lost = Path(args.out).absolute(), [], False
    amp = args.dtype or 'amp'
    print(f'{"config":32}{"metric":16}{"seed":>5}{"float32":>9}{amp:>9}{"points":>8}{"time":>7}')
    for name in args.configs:
        for seed in args.seeds:
            plain, mixed = (
                train(name, args.scale, seed, precision, args.bfloat16_products, out)
                for precision in ('float32', amp)
            )
            for metric, factor in METRICS[name].items():
                a, b = factor * plain[metric], factor * mixed[metric]
                ratio = mixed['seconds'] / plain['seconds']
                print(
                    f'{name:32}{metric:16}{seed:5}{a:9.2f}{b:9.2f}{b - a:+8.2f}{ratio:7.2f}',
                    flush=True,
                )
                rows.append({'config': name, 'metric': metric, 'seed': seed, 'float32': a,
                             'amp': b, 'time_ratio': ratio})  # fmt: skip
                lost |= b < a - args.limit
    out.mkdir(parents=True, exist_ok=True)
    (out / 'results.json').write_text(
        json.dumps({'scale': args.scale, 'dtype': args.dtype, 'rows': rows}, indent=2)
    )
    sys.exit(int(lost))


if __name__ == '__main__':
    main()
