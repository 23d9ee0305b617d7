"""Say what is wrong with an environment, and how to mend it.

One line a finding; exit code 1 where one of them is a failure. Every check really does what it
reports: the operators run, the registries are asked.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - the message is for those who run an older one
    sys.exit(
        f'mmlavit needs Python 3.10 to 3.13, {sys.executable} is {sys.version.split()[0]}: '
        'name another, as in `make setup PYTHON=python3.11`'
    )

import argparse
import importlib
import os
import re
import shutil
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TESTED_PYTHON = '3.11'
TOOLBOXES = ('mmpretrain', 'mmdet', 'mmseg')
MIN_FREE_GB = 2.0


class Finding(NamedTuple):
    """One line of the report; ``mend`` is a command or an action."""

    level: Literal['ok', 'warn', 'fail']
    text: str
    mend: str = ''

    def __str__(self) -> str:
        return f'{self.level.upper():4}  {self.text}' + (
            f'  -> mend: {self.mend}' if self.mend else ''
        )


def pip_install(*arguments: str) -> str:
    """The command line that installs into the environment of this interpreter."""
    return ' '.join([sys.executable, '-m pip install --no-build-isolation', *arguments])


def rebuild_mmcv(tested: str) -> list[str]:
    """Arguments of ``pip install`` that compile mmcv anew.

    Without ``--no-cache-dir`` pip would hand out the wheel in its cache again, whichever torch that
    wheel was built for.
    """
    return ['--no-cache-dir', '--force-reinstall', '--no-deps', f'onedl-mmcv=={tested}']


def pins() -> list[tuple[str, str, str]]:
    """Distribution, version and marker (or nothing) of each ``requirements/constraints.txt`` line.

    Needs the standard library only.
    """
    text = (ROOT / 'requirements' / 'constraints.txt').read_text(encoding='utf-8')
    return re.findall(r'^([\w.-]+)==(\S+)(?: *; *(.+))?$', text, flags=re.MULTILINE)


def tested_versions() -> dict[str, str]:
    """Versions of ``requirements/constraints.txt`` by distribution name.

    Lines whose marker excludes this Python are left out: there is no tested version for it.
    """
    from packaging.markers import Marker

    return {
        name: version for name, version, marker in pins() if not marker or Marker(marker).evaluate()
    }


def required_bounds() -> dict[str, str]:
    """Bounds such as ``>=2.4.0,<2.15.0`` by distribution name, from the requirement files."""
    bounds: dict[str, str] = {}
    for name in ('build', 'mminstall', 'runtime'):
        text = (ROOT / 'requirements' / f'{name}.txt').read_text(encoding='utf-8')
        for distribution, bound in re.findall(r'^([\w.-]+)(.*)$', text, flags=re.MULTILINE):
            bounds[distribution] = bound or bounds.get(distribution, '')
    return bounds


def check_python(found: str, tested: str = TESTED_PYTHON) -> Finding:
    """Compare two Python versions by major and minor number."""
    same = found.split('.')[:2] == tested.split('.')
    return Finding('ok' if same else 'warn', f'Python {found} (tested {tested})')


def check_version(name: str, found: str | None, tested: str, bounds: str) -> Finding:
    """Compare a version with the tested one and with the bounds.

    Args:
        name: Distribution name.
        found: Installed version, ``None`` where it is not installed.
        tested: The version the project is tested with.
        bounds: A version specifier such as ``>=2.4.0,<2.15.0``; empty for none.
    """
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version

    required = f'tested {tested}' + (f', required {bounds}' if bounds else '')
    install = rebuild_mmcv(tested) if name == 'onedl-mmcv' else [f'{name}=={tested}']
    mend = pip_install(*install)
    if found is None:
        return Finding('fail', f'{name} is not installed ({required})', mend)
    if not SpecifierSet(bounds).contains(found, prereleases=True):
        return Finding('fail', f'{name} {found} is out of bounds ({required})', mend)
    # A local version such as 2.12.1+cpu is a build of the tested version.
    same = Version(found).public == Version(tested).public
    return Finding('ok' if same else 'warn', f'{name} {found} ({required})', '' if same else mend)


def check_versions() -> list[Finding]:
    """Compare every package named in the requirement files."""
    tested = tested_versions()
    findings = [check_python('.'.join(map(str, sys.version_info[:3])))]
    required = required_bounds()
    for name, bounds in required.items():
        findings.append(check_version(name, installed(name), tested[name], bounds))
    for name in sorted(tested.keys() - required):
        # What the others depend on is worth a line only where it differs.
        finding = check_version(name, installed(name) or tested[name], tested[name], '')
        if finding.level != 'ok':
            findings.append(finding)
    for original in ('mmcv', 'mmengine', 'mmdet', 'mmsegmentation', 'mmpretrain'):
        found = installed(original)
        if found is not None:
            mend = f'{sys.executable} -m pip uninstall {original}, then `make setup`'
            text = f'{original} {found} overwrites files of the onedl package of the same import'
            findings.append(Finding('fail', f'{text} name', mend))
    return findings


def installed(name: str) -> str | None:
    """Version of an installed distribution, ``None`` where there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def run_operators(device: str) -> None:
    """Run mmcv's NMS and RoIAlign, forward and backward, against torchvision's.

    Raises:
        AssertionError: If a result differs.
    """
    import torch
    import torchvision
    from mmcv.ops import nms, roi_align

    torch.manual_seed(0)
    torch.set_num_threads(1)
    boxes = torch.rand(200, 4, device=device) * 60
    boxes[:, 2:] += boxes[:, :2]
    scores = torch.rand(200, device=device)
    _, kept = nms(boxes, scores, iou_threshold=0.5)
    torch.testing.assert_close(kept, torchvision.ops.nms(boxes, scores, 0.5))

    rois = torch.cat([torch.randint(2, (200, 1), device=device), boxes], dim=1)
    pooled, gradients = [], []
    for align in (
        lambda maps: roi_align(maps, rois, (7, 7), 0.25, 2, 'avg', True),
        lambda maps: torchvision.ops.roi_align(maps, rois, (7, 7), 0.25, 2, True),
    ):
        generator = torch.Generator().manual_seed(0)
        maps = torch.randn(2, 8, 32, 32, generator=generator).to(device).requires_grad_()
        pooled.append(align(maps))
        pooled[-1].square().sum().backward()
        gradients.append(maps.grad)
    torch.testing.assert_close(*pooled, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def nvcc_release() -> str | None:
    """Release, such as ``13.0``, of the CUDA compiler that torch would call."""
    from torch.utils.cpp_extension import CUDA_HOME

    if CUDA_HOME is None:
        return None
    try:
        nvcc = subprocess.run(
            [Path(CUDA_HOME) / 'bin' / 'nvcc', '--version'], capture_output=True, text=True
        )
    except OSError:
        return None
    release = re.search(r'release (\d+\.\d+)', nvcc.stdout)
    return release[1] if release else None


def same_cuda(toolkit: str | None, torch_cuda: str | None) -> bool:
    """Whether a CUDA toolkit can compile for a torch; torch insists on the same major release."""
    return None not in (toolkit, torch_cuda) and (
        str(toolkit).split('.')[0] == str(torch_cuda).split('.')[0]
    )


def check_operators() -> list[Finding]:
    """Run the operators on the CPU, and on the GPU where torch sees one."""
    import torch

    mend = pip_install(*rebuild_mmcv(tested_versions()['onedl-mmcv']))
    operators = "mmcv's NMS and RoIAlign, forward and backward"
    findings = []
    for device in ['cpu'] + ['cuda'] * torch.cuda.is_available():
        # A subprocess, because operators built for another torch may kill their process.
        run = subprocess.run(
            [sys.executable, __file__, '--run-operators', device], capture_output=True, text=True
        )
        if run.returncode == 0:
            findings.append(Finding('ok', f"{operators} on {device} equal torchvision's"))
            continue
        reason = (run.stderr.strip().splitlines() or [f'exit code {run.returncode}'])[-1]
        text = f'{operators} fail on {device}: {reason}'
        if device == 'cuda' and not same_cuda(nvcc_release(), torch.version.cuda):
            toolkit = f'install the CUDA toolkit {torch.version.cuda} (nvcc), then {mend}'
            findings.append(Finding('warn', f'{text}; detection runs on the CPU only', toolkit))
        else:
            findings.append(Finding('fail', text, mend))
    return findings


def check_registry() -> list[Finding]:
    """Import the package and look the backbone up from each toolbox, away from the checkout."""
    mend = pip_install(f'-e {ROOT}')
    findings = []
    with tempfile.TemporaryDirectory() as folder:
        before = Path.cwd()
        os.chdir(folder)
        try:
            try:
                # First, because a registry would swallow the ImportError and its message.
                importlib.import_module('mmlavit')
            except ImportError as error:
                return [Finding('fail', f'mmlavit does not import: {error}', mend)]
            for toolbox in TOOLBOXES:
                try:
                    models: Any = importlib.import_module(f'{toolbox}.registry').MODELS
                    found = models.get('mmlavit.LaViT')
                    reason = 'the registry does not know it'
                except Exception as error:
                    found, reason = None, f'{type(error).__name__}: {error}'.splitlines()[0]
                lookup = f"{toolbox}'s MODELS, type='mmlavit.LaViT'"
                findings.append(
                    Finding('ok', f'{lookup}: {found.__module__}.{found.__qualname__}')
                    if found is not None
                    else Finding('fail', f'{lookup}: {reason}', mend)
                )
        finally:
            os.chdir(before)
    return findings


def check_device() -> list[Finding]:
    """GPU and bf16 support of this machine's torch."""
    import torch

    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        gpu = Finding('ok', f'{torch.cuda.device_count()} GPU ({", ".join(sorted(names))})')
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return [gpu, check_bf16('GPU', bf16)]
    if shutil.which('nvidia-smi'):
        mend = f'install a driver for CUDA {torch.version.cuda}, which torch was built for'
        gpu = Finding('warn', 'nvidia-smi is here, but torch sees no GPU', mend)
    else:
        gpu = Finding('ok', 'no GPU: all runs on the CPU')
    with torch.autocast('cpu', torch.bfloat16):
        product = torch.ones(4, 4) @ torch.ones(4, 4)
    return [gpu, check_bf16('CPU', product.dtype == torch.bfloat16)]


def check_bf16(device: str, supported: bool) -> Finding:
    """Tell which dtype mixed precision can use."""
    if supported:
        return Finding('ok', f'bf16 on {device}')
    return Finding('warn', f'no bf16 on {device}', "train with AmpOptimWrapper's dtype='float16'")


def check_disk(free_gb: float, required_gb: float = MIN_FREE_GB) -> Finding:
    """Compare free disk space in GB with what a training run writes."""
    text = f'{free_gb:.1f} GB free in {ROOT} (required {required_gb:.1f})'
    if free_gb >= required_gb:
        return Finding('ok', text)
    return Finding('fail', text, f'free {required_gb - free_gb:.1f} GB, or move the checkout')


CHECKS = {
    'versions': check_versions,
    'operators': check_operators,
    'registry': check_registry,
    'device': check_device,
    'disk': lambda: [check_disk(shutil.disk_usage(ROOT).free / 1e9)],
}


def main() -> int:
    """Print the findings; return 1 where one of them is a failure, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--only',
        nargs='+',
        choices=CHECKS,
        default=list(CHECKS),
        metavar='CHECK',
        help=f'run these checks only, of: {", ".join(CHECKS)}',
    )
    parser.add_argument('--run-operators', metavar='DEVICE', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run_operators:
        run_operators(args.run_operators)
        return 0
    if not any(map(installed, ('torch', 'onedl-mmengine', 'onedl-mmcv'))):
        mend = '`make setup`, then `make doctor` or `.venv/bin/python tools/doctor.py`'
        print(Finding('fail', f'{sys.executable} has neither torch nor mmengine nor mmcv', mend))
        return 1
    failed = False
    for name in args.only:
        try:
            findings = CHECKS[name]()
        except ImportError as error:
            findings = [Finding('fail', f'{name}: {error}', '`make setup`, then `make doctor`')]
        for finding in findings:
            print(finding, flush=True)
            failed |= finding.level == 'fail'
    return int(failed)


if __name__ == '__main__':
    sys.exit(main())
