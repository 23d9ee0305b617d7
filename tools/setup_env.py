"""Build ``.venv`` with the tested versions and mmcv's operators, and prove them.

Each of two steps leaves a stamp of what it was built from: with the same inputs a later call
returns at once, and after an interruption it goes on. `--without-operators` leaves out the second
step, which compiles; `--wheel` compiles and installs nothing, so that others can run meanwhile.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from typing import NoReturn

import doctor

ROOT = doctor.ROOT
VENV = ROOT / '.venv'
PYTHON = VENV / 'bin' / 'python'
SITE = VENV / 'lib' / 'python{}.{}'.format(*sys.version_info) / 'site-packages'
TMP = VENV / 'tmp'
REQUIREMENTS = ROOT / 'requirements'
EXTRAS = ('mminstall', 'tests', 'lint', 'docs', 'export')
ENV = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'} | {
    'MAX_JOBS': os.environ.get('MAX_JOBS', str(os.cpu_count())),
    'PATH': f'{PYTHON.parent}{os.pathsep}{os.environ.get("PATH", os.defpath)}',
    'TMPDIR': str(TMP),  # /tmp is often too small for torch
}


def fingerprint() -> str:
    """Hash of all that decides what the environment holds, and of the packages in it."""
    files = [ROOT / 'setup.py', ROOT / 'mmlavit' / 'version.py', *sorted(REQUIREMENTS.iterdir())]
    held = sorted(path.name for path in SITE.glob('*.dist-info'))
    parts = [str(SITE), *held, *(file.read_text('utf-8') for file in files)]
    return hashlib.sha256('\0'.join(parts).encode()).hexdigest()


def is_done(step: str) -> bool:
    """Whether a step left its stamp, and nothing has changed since."""
    stamp = VENV / f'{step}.stamp'
    return PYTHON.exists() and stamp.exists() and stamp.read_text('utf-8') == fingerprint()


def check_machine() -> None:
    """Stop, before anything is downloaded, where the set-up cannot succeed."""
    compiler = os.environ.get('CXX', 'c++')  # torch's choice
    command = f'{compiler} -std=c++17 -fsyntax-only -I{sysconfig.get_path("include")} -x c++ -'
    source = b'#include <optional>\n#include <Python.h>\n'
    if subprocess.run(command, shell=True, capture_output=True, input=source).returncode:
        stop(
            f'no C++17 compiler with Python.h (tried {compiler}); install them (Debian, Ubuntu: '
            'g++ and python3-dev), or name one, as in `CXX=clang++ make setup`'
        )
    if PYTHON.is_symlink() and not (PYTHON.exists() and SITE.exists()):
        stop(f'.venv was not made with {sys.executable}; remove it (`rm -rf .venv`) and retry')
    if shutil.disk_usage(ROOT).free < 12e9 and not (SITE / 'torch').exists():
        stop(f'less than 12 GB are free in {ROOT}')


def stop(problem: str) -> NoReturn:
    """End the set-up with one line."""
    sys.exit(f'set-up stopped: {problem}')


def run(*words: object, quiet: bool = False, env: dict[str, str] = ENV) -> bool:
    """Run the environment's Python and return whether it succeeded."""
    command = [str(word) for word in (PYTHON, *words)]
    return not subprocess.run(command, cwd=ROOT, env=env, capture_output=quiet).returncode


def pip(command: str, *arguments: object, env: dict[str, str] = ENV) -> None:
    """Call pip with the tested versions, and stop where it fails."""
    options = ('--disable-pip-version-check', '-c', REQUIREMENTS / 'constraints.txt')
    if not run('-m', 'pip', command, *options, *arguments, env=env):
        stop(
            f'`pip {command} {" ".join(map(str, arguments))}` failed, see above; `make setup` goes '
            'on from here (where memory ran out: `MAX_JOBS=1 make setup`)'
        )


def packages() -> None:
    """Install everything but mmcv's operators."""
    if subprocess.run([sys.executable, '-m', 'venv', VENV]).returncode:
        stop('no environment could be made, see above')
    print('\n[1/3] torch and build tools: some GB to download', flush=True)
    pip('install', '-r', REQUIREMENTS / 'build.txt')
    print('\n[2/3] the toolboxes, mmlavit, and what tests, lint and docs need', flush=True)
    # Where it is built in isolation, mmcv sees no torch and leaves its operators out. pip's cache
    # would not tell such a build from a whole one.
    pip('install', '--no-cache-dir', '--no-deps', 'onedl-mmcv')
    files = [f'-r{REQUIREMENTS / name}.txt' for name in EXTRAS]
    pip('install', '--no-build-isolation', *files, '-e', ROOT)


def compile_operators(command: str, *options: object) -> None:
    """Build mmcv against the environment's torch, unless its operators run."""
    if run('tools/doctor.py', '--only', 'operators', quiet=True):
        return
    print("\n[3/3] mmcv's operators: 10 minutes on 2 cores, unless pip kept a build", flush=True)
    code = 'import sys, doctor; sys.exit(not doctor.compiles_cuda())'
    # mmcv would call nvcc wherever there is a GPU
    cuda = run('-c', code, env=ENV | {'PYTHONPATH': 'tools'})
    env = ENV if cuda else ENV | {'CUDA_VISIBLE_DEVICES': ''}
    pip(command, '--no-build-isolation', '--no-deps', *options, 'onedl-mmcv', env=env)


def wheel() -> None:
    """Compile mmcv's operators for a later call to install."""
    compile_operators('wheel', '-v', '--wheel-dir', TMP)


def operators() -> None:
    """Install mmcv's operators and prove them; let the doctor examine the whole."""
    compile_operators('install', '--force-reinstall', '--find-links', TMP)
    # pip keeps builds whichever torch they were made for
    compile_operators('install', '--force-reinstall', '--no-cache-dir')
    if not run('tools/doctor.py'):
        stop('follow the repair beside FAIL above, then `make setup` again')
    shutil.rmtree(TMP)


def main() -> None:
    """Go through the steps that are not done."""
    steps = [packages, operators]
    if '--without-operators' in sys.argv:
        steps = [packages]
    elif '--wheel' in sys.argv:
        steps = [packages, wheel]
    if is_done('packages') and (steps == [packages] or is_done('operators')):
        return
    check_machine()
    TMP.mkdir(parents=True, exist_ok=True)
    with (VENV / 'setup.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one set-up at a time
        for step in steps:
            if not is_done(step.__name__):
                step()
                (VENV / f'{step.__name__}.stamp').write_text(fingerprint(), 'utf-8')


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit('set-up interrupted; `make setup` goes on from here')
