"""Say what is wrong with an environment, and how to repair it.

One line a finding; exit code 1 where one of them is a failure. The operators run, the registries
are asked.
"""

import sys

if not (3, 10) <= sys.version_info[:2] <= (3, 13):
    sys.exit(
        f'mmlavit needs Python 3.10 to 3.13, {sys.executable} is {sys.version.split()[0]}: '
        'name another, as in `make setup PYTHON=python3.11`'
    )

import argparse
import importlib
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ORIGINALS = ('mmcv', 'mmengine', 'mmdet', 'mmsegmentation', 'mmpretrain')
SET_UP = '`make setup`, then `make doctor` or `.venv/bin/python tools/doctor.py`'
PIP = f'{sys.executable} -m pip'
levels: list[str] = []


def report(level: str, text: str, repair: str = '') -> None:
    """Print a finding of level ok, warn or fail."""
    levels.append(level)
    print(f'{level.upper():4}  {text}' + (f'  -> repair: {repair}' if repair else ''), flush=True)


def installed(name: str) -> str | None:
    """Version of an installed distribution."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def read_requirements(*names: str) -> dict[str, Any]:
    """Bounds by distribution, of the lines of requirement files that hold for this Python."""
    from packaging.requirements import Requirement

    bounds: dict[str, Any] = {}
    for name in names:
        text = (ROOT / 'requirements' / f'{name}.txt').read_text('utf-8')
        for item in map(Requirement, re.findall(r'^[^#\n].*', text, flags=re.MULTILINE)):
            if item.marker is None or item.marker.evaluate():
                bounds[item.name] = item.specifier & bounds.get(item.name, '')
    return bounds


def pip_install(name: str) -> str:
    """The command that installs a tested version into the environment of this interpreter."""
    # pip would hand out the mmcv in its cache again, whichever torch that was built for
    anew = '--no-cache-dir --force-reinstall --no-deps ' if name == 'onedl-mmcv' else ''
    tested = read_requirements('constraints')[name]
    return f'{PIP} install --no-build-isolation {anew}{name}{tested}'


def check_versions() -> None:
    """Compare all packages with the tested versions, and those that are required with bounds."""
    report('ok', f'Python {sys.version.split()[0]} (tested 3.11)')
    bounds = read_requirements('build', 'mminstall', 'runtime')
    for name, tested in read_requirements('constraints').items():
        found, required = installed(name), bounds.get(name)
        text = f'{name} {found or "is not installed"} (tested {str(tested)[2:]}'
        text += f', required {required})' if required else ')'
        if required and not (found and required.contains(found, prereleases=True)):
            report('fail', text, pip_install(name))
        elif found and not tested.contains(found, prereleases=True):
            report('warn', text, pip_install(name))
        elif required:
            report('ok', text)
    # mmpretrain imports what it finds of this one, and dies with "NoneType takes no arguments"
    found = installed('transformers') or '0'
    if int(found.partition('.')[0]) >= 5:
        repair = f'{PIP} install "transformers>=4.53,<5", or uninstall it'
        report('fail', f'transformers {found} breaks `import mmpretrain` (required <5)', repair)
    for name in filter(installed, ORIGINALS):
        text = f'{name} overwrites files of the onedl package that is imported by the same name'
        report('fail', text, f'{PIP} uninstall {name}, then `make setup`')


def run_operators(device: str) -> None:
    """Run mmcv's NMS and RoIAlign, and raise AssertionError where torchvision's give another."""
    import torch
    from mmcv.ops import nms, roi_align
    from torchvision import ops

    torch.manual_seed(0)
    boxes, scores = torch.rand(200, 4, device=device) * 60, torch.rand(200, device=device)
    boxes[:, 2:] += boxes[:, :2]
    torch.testing.assert_close(nms(boxes, scores, 0.5)[1], ops.nms(boxes, scores, 0.5))
    rois = torch.cat([torch.randint(2, (200, 1), device=device), boxes], dim=1)
    maps, results = torch.rand(2, 8, 32, 32, device=device, requires_grad=True), []
    for align, options in ((roi_align, ('avg', True)), (ops.roi_align, (True,))):
        pooled = align(maps, rois, (7, 7), 0.25, 2, *options)
        results.append((pooled, *torch.autograd.grad(pooled.square().sum(), maps)))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def compiles_cuda() -> bool:
    """Whether nvcc is of the major release of CUDA that torch was built for, as torch insists."""
    import torch
    from mmengine.utils.dl_utils import collect_env

    nvcc = re.search(r'release (\d+)\.', str(collect_env().get('NVCC')))
    return nvcc is not None and nvcc[1] == str(torch.version.cuda).split('.')[0]


def check_operators() -> None:
    """Run the operators on the CPU, and on the GPU where torch sees one."""
    import torch

    for device in ['cpu'] + ['cuda'] * torch.cuda.is_available():
        # A subprocess, because operators built for another torch may kill their process.
        command = [sys.executable, __file__, '--run-operators', device]
        run = subprocess.run(command, capture_output=True, text=True)
        text = f"mmcv's NMS and RoIAlign, forward and backward, on {device}"
        reason = (run.stderr.strip().splitlines() or [f'exit code {run.returncode}'])[-1]
        if run.returncode == 0:
            report('ok', f"{text} equal torchvision's")
        elif device == 'cpu' or compiles_cuda():
            report('fail', f'{text} fail: {reason}', pip_install('onedl-mmcv'))
        else:
            repair = f'install the CUDA toolkit {torch.version.cuda}, then '
            text = f'{text} fail: {reason}; detection runs on the CPU only'
            report('warn', text, repair + pip_install('onedl-mmcv'))


def check_registry() -> None:
    """Look the backbone up from each toolbox."""
    importlib.import_module('mmlavit')  # a registry would swallow the ImportError
    for toolbox in ('mmpretrain', 'mmdet', 'mmseg'):
        found = importlib.import_module(f'{toolbox}.registry').MODELS.get('mmlavit.LaViT')
        level, repair = ('ok', '') if found else ('fail', f'{PIP} install -e .')
        report(level, f"{toolbox}'s MODELS, type='mmlavit.LaViT': {found}", repair)


def check_device() -> None:
    """What mmengine says of the machine."""
    from mmengine.utils.dl_utils import collect_env

    env = collect_env()
    report('ok', ', '.join(f'{k}: {env[k]}' for k in env if re.match('CUDA|GPU|NVCC|GCC', k)))
    if shutil.which('nvidia-smi') and not env['CUDA available']:
        repair = f'install a driver for PyTorch {env["PyTorch"]}'
        report('warn', 'nvidia-smi is here, but torch sees no GPU', repair)


def main() -> int:
    """Print the findings; return 1 where one of them is a failure, else 0."""
    checks = {
        'versions': check_versions,
        'operators': check_operators,
        'registry': check_registry,
        'device': check_device,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--only', nargs='+', choices=checks, default=checks, help='run these only')
    parser.add_argument('--run-operators', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run_operators:
        run_operators(args.run_operators)
        return 0
    if not any(map(installed, ('torch', 'onedl-mmengine', 'onedl-mmcv'))):
        # whoever forgot the environment is not told to install into another Python
        report('fail', f'{sys.executable} has neither torch nor mmengine nor mmcv', SET_UP)
        return 1
    for name in args.only:
        try:
            checks[name]()
        except Exception as error:  # a broken package fails in any way
            report('fail', f'{name}: {type(error).__name__}: {error}', SET_UP)
    return int('fail' in levels)


if __name__ == '__main__':
    sys.exit(main())
