"""Build ``.venv`` with the tested versions and mmcv's operators, prove them, and stamp the result.

A stamp, written last, holds what the environment was built from: with the same inputs a second
call returns at once, and after an interruption the next call goes on where pip left off.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import doctor

ROOT = doctor.ROOT
VENV = ROOT / '.venv'
PYTHON = VENV / 'bin' / 'python'
LOG = VENV / 'setup.log'
STAMP = VENV / 'setup.json'
TMP = VENV / 'tmp'
SITE = VENV / 'lib' / f'python{sys.version_info[0]}.{sys.version_info[1]}' / 'site-packages'
REQUIREMENTS = ROOT / 'requirements'
REQUIRED_GB = 12.0
CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
MMCV_MINUTES = max(1, round(2 * 9 / CORES))  # 9 minutes were measured on 2 cores


def stop(message: str) -> NoReturn:
    """End the set-up with one message and exit code 1."""
    sys.exit(f'set-up stopped: {message}')


def inputs() -> str:
    """Hash of all that decides what an environment holds."""
    files = [ROOT / 'setup.py', ROOT / 'mmlavit' / 'version.py', *sorted(REQUIREMENTS.iterdir())]
    parts = [str(ROOT), str(sys.version_info[:2]), *(file.read_text('utf-8') for file in files)]
    return hashlib.sha256('\0'.join(parts).encode()).hexdigest()


def distributions() -> set[str]:
    """Names and versions of what the environment holds."""
    return {path.name for path in SITE.glob('*.dist-info')}


def complete() -> bool:
    """Whether the stamp belongs to these inputs, and nothing it lists has changed since."""
    try:
        stamp = json.loads(STAMP.read_text('utf-8'))
    except (OSError, ValueError):
        return False
    return (
        PYTHON.exists()
        and stamp.get('inputs') == inputs()
        and distributions().issuperset(stamp['distributions'])
    )


def find_compiler() -> str | None:
    """The first C++ compiler that accepts C++17; mmcv's sources ask for that standard."""
    source = '#include <optional>\nint main() { return std::optional<int>{0}.value(); }\n'
    candidates = [os.environ['CXX']] if 'CXX' in os.environ else ['c++', 'g++', 'clang++']
    for name in candidates:
        command = [*name.split(), '-std=c++17', '-fsyntax-only', '-x', 'c++', '-']
        with contextlib.suppress(OSError):
            compiled = subprocess.run(command, input=source, text=True, capture_output=True)
            if compiled.returncode == 0:
                return name
    return None


def check_machine() -> str:
    """Stop, before anything is downloaded, where the set-up cannot succeed.

    Returns:
        The C++ compiler.
    """
    found = '.'.join(map(str, sys.version_info[:3]))
    if sys.version_info >= (3, 14):
        stop(
            f'the tested numpy 2.2.6 has no build for Python {found}; name a Python from 3.10 to '
            '3.13, as in `make setup PYTHON=python3.11`'
        )
    if sys.prefix != str(VENV) and importlib.util.find_spec('ensurepip') is None:
        stop(f'{sys.executable} has no ensurepip; install it (Debian, Ubuntu: python3-venv)')
    if not Path(sysconfig.get_path('include'), 'Python.h').exists():
        stop(f'{sys.executable} has no Python.h; install it (Debian, Ubuntu: python3-dev)')
    others = [path.name for path in VENV.glob('lib/python*') if path != SITE.parent]
    if others or (PYTHON.is_symlink() and not PYTHON.exists()):
        gone = others[0] if others else 'a Python that is gone'
        stop(
            f'.venv was made with {gone}, not Python {found}; remove it (`rm -rf .venv`) and retry'
        )
    compiler = find_compiler()
    if compiler is None:
        tried = os.environ.get('CXX', 'c++, g++, clang++')
        stop(f'no C++17 compiler found (tried {tried}); install one (Debian, Ubuntu: g++)')
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < REQUIRED_GB and not (SITE / 'torch').exists():
        stop(f'{free:.1f} GB free in {ROOT}, {REQUIRED_GB:.0f} GB needed')
    return compiler


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """Let one set-up at a time work on an environment."""
    with (VENV / 'setup.lock').open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print('another set-up works on this .venv: waiting for it', flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def report_progress(started: float, offset: int, width: int) -> None:
    """Print the elapsed time and, while ninja compiles, its step."""
    with LOG.open('rb') as log:
        log.seek(max(offset, LOG.stat().st_size - 200_000))
        steps = re.findall(rb'^\s*\[(\d+)/(\d+)\] ', log.read(), flags=re.MULTILINE)
    minutes, seconds = divmod(int(time.monotonic() - started), 60)
    text = f'      {minutes}:{seconds:02} elapsed'
    if steps:
        text += ', file {} of {} compiled'.format(*(number.decode() for number in steps[-1]))
    print(f'\r{text:<{width}}' if width else text, end='' if width else '\n', flush=True)


def run(command: list[str], env: dict[str, str], hint: str = '') -> None:
    """Run a command with its output in the log and a sign of life on the terminal.

    Args:
        command: Program and arguments.
        env: Its environment variables.
        hint: Added to the message of a failure.

    Raises:
        SystemExit: If the command fails. The message holds the last lines of the log.
    """
    terminal = sys.stdout.isatty()
    width, pause = (60, 1.0) if terminal else (0, 30.0)
    started = shown = time.monotonic()
    with LOG.open('ab') as log:
        log.write(f'\n$ {" ".join(command)}\n'.encode())
        log.flush()
        offset = log.tell()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                time.sleep(0.2)
                if time.monotonic() - shown >= pause:
                    shown = time.monotonic()
                    report_progress(started, offset, width)
        finally:
            # pip's compilers are children of its children: end the whole group.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
            if terminal:
                print('\r' + ' ' * width + '\r', end='', flush=True)
    if process.returncode:
        tail = LOG.read_bytes()[offset:].decode('utf-8', 'replace').splitlines()[-15:]
        print('\n'.join(f'      | {line[:200]}' for line in tail))
        stop(
            f'`{" ".join(command[1:])}` ended with exit code {process.returncode}; '
            f'all of its output is in {LOG}. {hint}`make setup` goes on from here.'
        )


def clean_environment(compiler: str) -> dict[str, str]:
    """Environment variables for pip: nothing from outside the checkout, its own scratch folder."""
    drop = ('PYTHONPATH', 'PYTHONHOME', 'PIP_USER', 'PIP_TARGET', 'PIP_PREFIX')
    env = {key: value for key, value in os.environ.items() if key not in drop}
    env.setdefault('MAX_JOBS', str(CORES))
    return env | {
        'CXX': compiler,
        'PATH': f'{PYTHON.parent}{os.pathsep}{os.environ.get("PATH", os.defpath)}',
        'PIP_DISABLE_PIP_VERSION_CHECK': '1',
        'TMPDIR': str(TMP),
    }


def pip(arguments: list[str], env: dict[str, str], hint: str = '') -> None:
    """Install with the pinned versions, against the packages that are there."""
    options = ['--no-input', '--no-build-isolation', '-c', str(REQUIREMENTS / 'constraints.txt')]
    run([str(PYTHON), '-m', 'pip', 'install', *options, *arguments], env, hint)


def doctor_passes(checks: list[str], env: dict[str, str]) -> bool:
    """Run the doctor's checks inside the environment, with its findings on the terminal."""
    command = [str(PYTHON), str(ROOT / 'tools' / 'doctor.py'), '--only', *checks]
    return subprocess.run(command, env=env, stdin=subprocess.DEVNULL).returncode == 0


def cuda_usable(env: dict[str, str]) -> bool:
    """Whether mmcv's CUDA operators can be compiled; say so where only nvcc stands in the way."""
    probe = (
        'import doctor, torch; '
        'print(torch.cuda.is_available(), doctor.nvcc_release(), torch.version.cuda)'
    )
    result = subprocess.run(
        [str(PYTHON), '-c', probe], cwd=ROOT / 'tools', env=env, capture_output=True, text=True
    )
    gpu, nvcc, cuda = (result.stdout.split() or ['False', 'None', 'None'])[-3:]
    usable = doctor.same_cuda(*(None if value == 'None' else value for value in (nvcc, cuda)))
    if gpu == 'True' and not usable:
        print(
            f'      a GPU, but no CUDA {cuda} compiler (nvcc: {nvcc}): operators for the CPU only'
        )
    return usable


def install_mmcv(env: dict[str, str]) -> None:
    """Install mmcv, run its operators, and compile it anew where they fail."""
    if not cuda_usable(env):
        env = env | {'CUDA_VISIBLE_DEVICES': ''}
    hint = 'Where memory ran out, set MAX_JOBS=1. '
    pip(['-v', 'onedl-mmcv'], env, hint)
    if doctor_passes(['operators'], env):
        return
    print(
        '      the installed build does not run here; pip keeps builds whichever torch they were '
        f'made for: compiling anew, about {MMCV_MINUTES} min',
        flush=True,
    )
    tested = next(version for name, version, _ in doctor.pins() if name == 'onedl-mmcv')
    pip(['-v', *doctor.rebuild_mmcv(tested)], env, hint)
    if not doctor_passes(['operators'], env):
        stop(f"mmcv's operators fail, though compiled against this torch; see above and {LOG}")


def build(compiler: str) -> None:
    """Go through the steps; each of them is quick where its result is there already."""
    env = clean_environment(compiler)
    shutil.rmtree(TMP, ignore_errors=True)
    TMP.mkdir()
    print(f'Setting up .venv, once; details in {LOG}')
    print(f'[1/5] Python {sys.version.split()[0]}, C++ compiler {compiler}', flush=True)
    has_pip = [str(PYTHON), '-m', 'pip', '--version']
    if not PYTHON.exists() or subprocess.run(has_pip, env=env, capture_output=True).returncode:
        run([sys.executable, '-m', 'venv', str(VENV)], env)
    print('[2/5] torch and build tools: some GB to download', flush=True)
    pip(['-r', str(REQUIREMENTS / 'build.txt')], env)
    print(
        f'[3/5] mmcv: compiling its operators takes about {MMCV_MINUTES} min on {CORES} cores '
        '(measured: 9 min on 2), seconds where pip kept the build',
        flush=True,
    )
    install_mmcv(env)
    print(
        '[4/5] mmpretrain, mmdet, mmseg, mmlavit and the tools for tests, lint and docs', flush=True
    )
    files = [
        f'-r{REQUIREMENTS / name}.txt' for name in ('mminstall', 'tests', 'lint', 'docs', 'export')
    ]
    pip([*files, '-e', str(ROOT)], env)
    run([str(PYTHON), '-m', 'pip', 'check'], env)
    print('[5/5] tools/doctor.py', flush=True)
    if not doctor_passes(list(doctor.CHECKS), env):
        stop('a finding above says FAIL; follow the mend beside it, then `make setup` again')
    shutil.rmtree(TMP, ignore_errors=True)
    stamp = {'inputs': inputs(), 'distributions': sorted(distributions())}
    unfinished = STAMP.with_suffix('.part')
    unfinished.write_text(json.dumps(stamp, indent=1), 'utf-8')
    unfinished.replace(STAMP)
    print('.venv is ready', flush=True)


def main() -> None:
    """Set the environment up unless it is complete."""
    if complete():
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    compiler = check_machine()
    VENV.mkdir(exist_ok=True)
    with only_one():
        if not complete():
            STAMP.unlink(missing_ok=True)
            build(compiler)


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit('\nset-up interrupted; `make setup` goes on from here')
