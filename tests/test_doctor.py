"""The doctor and the set-up: what they say of environments and machines that lack something."""

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import mmcv
from conftest import ROOT, load_tool

DOCTOR = ROOT / 'tools' / 'doctor.py'
COMPILE_MMCV = '--no-build-isolation --no-cache-dir --force-reinstall --no-deps onedl-mmcv=='


def run_doctor(*checks: str, cwd: Path, pythonpath: Path | None = None) -> tuple[int, list[str]]:
    """Run the tool as a user does; return its exit code and its findings."""
    env = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    env['OMP_NUM_THREADS'] = '1'
    if pythonpath is not None:
        env['PYTHONPATH'] = str(pythonpath)
    command = [sys.executable, str(DOCTOR)] + (['--only', *checks] if checks else [])
    run = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    findings = [line for line in run.stdout.splitlines() if line[:4] in ('OK  ', 'WARN', 'FAIL')]
    return run.returncode, findings


def test_this_environment_passes(tmp_path: Path) -> None:
    """Every check runs from another folder, and nothing fails in the environment of the tests."""
    code, findings = run_doctor(cwd=tmp_path)
    assert code == 0, findings
    assert not [line for line in findings if line.startswith('FAIL')]
    for expected in ('Python', 'torch ', 'NMS and RoIAlign', 'mmdet', 'CUDA available'):
        assert any(expected in line for line in findings), expected


VERSIONS = {
    ('onedl-mmcv', '2.2.0'): ('FAIL', COMPILE_MMCV + metadata.version('onedl-mmcv')),
    ('torch', '2.15.0'): ('FAIL', 'torch==2.12.1'),
    ('torchvision', '0.27.1+cpu'): ('OK', ')'),
    ('scipy', '1.0.0'): ('WARN', 'scipy==1.17.1'),
    ('mmcv', '2.1.0'): ('FAIL', f'{sys.executable} -m pip uninstall mmcv, then `make setup`'),
    ('transformers', '5.1.0'): ('FAIL', 'install "transformers>=4.53,<5", or uninstall it'),
}


def test_other_versions_warn_inside_the_bounds_and_fail_outside(tmp_path: Path) -> None:
    """Also of a package that only others need, shares files (mmcv), or breaks a toolbox."""
    for name, version in VERSIONS:
        info = tmp_path / f'{name.replace("-", "_")}-{version}.dist-info'
        info.mkdir()
        (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}')
    code, findings = run_doctor('versions', cwd=tmp_path, pythonpath=tmp_path)
    assert code == 1
    for (name, _), (level, repair) in VERSIONS.items():
        (line,) = [line for line in findings if line[6:].startswith(f'{name} ')]
        assert line.startswith(level)
        assert line.endswith(repair)
        assert (f'-> repair: {sys.executable} -m pip ' in line) == (level != 'OK')


def test_constraints_pin_what_the_requirements_name_inside_their_bounds() -> None:
    """`make setup` cannot contradict itself."""
    doctor = load_tool('doctor')
    tested = doctor.read_requirements('constraints')
    for name, bounds in doctor.read_requirements('build', 'mminstall', 'runtime').items():
        assert bounds.contains(str(tested[name]).removeprefix('=='))


def test_broken_operators_fail_with_the_command_that_rebuilds(tmp_path: Path) -> None:
    """mmcv with an unusable extension, as after a change of torch, is found out by running it."""
    package = tmp_path / 'mmcv'
    package.mkdir()
    for source in Path(mmcv.__file__).parent.iterdir():
        if source.name.startswith('_ext'):
            package.joinpath(source.name).write_bytes(b'not a library')
        else:
            package.joinpath(source.name).symlink_to(source)
    code, (line,) = run_doctor('operators', cwd=tmp_path, pythonpath=tmp_path)
    assert code == 1
    assert line.startswith("FAIL  mmcv's NMS and RoIAlign")
    assert COMPILE_MMCV in line


def test_python_without_the_stack_gets_one_line() -> None:
    """Whoever forgot to activate the environment is not told to install into another Python."""
    run = subprocess.run([sys.executable, '-S', DOCTOR], capture_output=True, text=True)
    assert run.returncode == 1
    (line,) = run.stdout.splitlines()
    assert line.startswith(f'FAIL  {sys.executable} has neither torch')
    assert line.endswith('`.venv/bin/python tools/doctor.py`')


COMPLETE = """
import sys, setup_env
setup_env.SITE.mkdir(parents=True)
setup_env.PYTHON.parent.mkdir()
setup_env.PYTHON.symlink_to(sys.executable)
for step in ('packages', 'operators'):
    (setup_env.VENV / f'{step}.stamp').write_text(setup_env.fingerprint())
"""


def test_a_stamped_environment_is_left_alone_until_something_changes(tmp_path: Path) -> None:
    """Its inputs, its packages, or a stamp; a machine without a compiler is refused in one line."""
    for name in ('setup.py', 'mmlavit/version.py', 'tools/doctor.py', 'tools/setup_env.py'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / 'requirements', tmp_path / 'requirements')

    def set_up() -> str:
        command, env = [sys.executable, 'tools/setup_env.py'], os.environ | {'CXX': 'false'}
        run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert run.returncode == int(bool(run.stderr))
        return run.stdout + run.stderr

    message = set_up()
    assert message.startswith('set-up stopped: no C++17 compiler with Python.h (tried false)')
    assert len(message.splitlines()) == 1
    assert not (tmp_path / '.venv').exists()
    subprocess.run([sys.executable, '-c', COMPLETE], cwd=tmp_path / 'tools', check=True)
    assert set_up() == ''
    for name in (
        'requirements/constraints.txt',
        '.venv/packages.stamp',
        '.venv/operators.stamp',
        '.venv/lib/python{}.{}/site-packages/other-1.0.dist-info'.format(*sys.version_info),
    ):
        path = tmp_path / name
        before = path.read_text('utf-8') if path.exists() else None
        path.write_text((before or '') + '\n')
        assert 'set-up stopped' in set_up(), name
        path.unlink() if before is None else path.write_text(before)
    assert set_up() == ''
