"""The doctor: silent about a sound environment, and a mend beside each failure of another."""

import importlib.util
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import mmcv
import pytest

DOCTOR = Path(__file__).parents[1] / 'tools' / 'doctor.py'


def load_doctor() -> ModuleType:
    spec = importlib.util.spec_from_file_location('doctor', DOCTOR)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


doctor = load_doctor()


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
    for expected in ('Python', 'torch ', 'NMS and RoIAlign', 'mmdet', 'bf16', 'GB free'):
        assert any(expected in line for line in findings), expected


def test_package_out_of_bounds_fails_with_its_mend(tmp_path: Path) -> None:
    """The metadata of another onedl-mmcv, found first, are reported with bounds and command."""
    folder = tmp_path / 'onedl_mmcv-2.2.0.dist-info'
    folder.mkdir()
    folder.joinpath('METADATA').write_text(
        'Metadata-Version: 2.1\nName: onedl-mmcv\nVersion: 2.2.0'
    )
    code, findings = run_doctor('versions', cwd=tmp_path, pythonpath=tmp_path)
    failures = [line for line in findings if line.startswith('FAIL')]
    assert code == 1
    assert len(failures) == 1
    assert 'onedl-mmcv 2.2.0 is out of bounds' in failures[0]
    assert 'required >=2.3.0,<2.4.0' in failures[0]
    assert failures[0].endswith(f'onedl-mmcv=={metadata.version("onedl-mmcv")}')


def test_broken_operators_fail_with_the_command_that_rebuilds(tmp_path: Path) -> None:
    """mmcv with an unusable extension, as after a change of torch, is found out by running it."""
    package = tmp_path / 'mmcv'
    package.mkdir()
    for source in Path(mmcv.__file__).parent.iterdir():
        if source.name.startswith('_ext'):
            package.joinpath(source.name).write_bytes(b'not a library')
        else:
            package.joinpath(source.name).symlink_to(source)
    code, findings = run_doctor('operators', cwd=tmp_path, pythonpath=tmp_path)
    assert code == 1
    assert findings[0].startswith("FAIL  mmcv's NMS and RoIAlign")
    assert '--no-build-isolation --no-cache-dir --force-reinstall' in findings[0]


def test_python_without_the_stack_gets_one_line() -> None:
    """Whoever forgot to activate the environment is not told to install into another Python."""
    run = subprocess.run([sys.executable, '-S', DOCTOR], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stdout.startswith(f'FAIL  {sys.executable} has neither torch')
    assert run.stdout.rstrip().endswith('`.venv/bin/python tools/doctor.py`')
    assert len(run.stdout.splitlines()) == 1


def test_mends_name_the_interpreter_that_was_examined() -> None:
    """A mend pasted into a shell changes the environment it was written for."""
    finding = doctor.check_version('numpy', None, '2.2.6', '>=2.0.1')
    assert finding.level == 'fail'
    assert finding.mend.startswith(f'{sys.executable} -m pip install')
    assert finding.mend.endswith('numpy==2.2.6')


@pytest.mark.parametrize(
    ('found', 'level'),
    [
        ('2.12.1', 'ok'),
        ('2.12.1+cpu', 'ok'),
        ('2.13.0', 'warn'),
        ('2.4.0', 'warn'),
        ('2.15.0', 'fail'),
        ('2.3.1', 'fail'),
        (None, 'fail'),
    ],
)
def test_other_versions_warn_inside_the_bounds_and_fail_outside(
    found: str | None, level: str
) -> None:
    """Only what is out of bounds stops the user; both versions are in every line."""
    finding = doctor.check_version('torch', found, '2.12.1', '>=2.4.0,<2.15.0')
    assert finding.level == level
    assert 'tested 2.12.1' in finding.text
    assert bool(finding.mend) == (level != 'ok')
    assert (found or 'not installed') in finding.text


def test_each_required_package_has_a_tested_version_inside_its_bounds() -> None:
    """The constraints pin all that the requirement files name, and obey their bounds."""
    tested = doctor.tested_versions()
    for name, bounds in doctor.required_bounds().items():
        assert doctor.check_version(name, tested[name], tested[name], bounds).level == 'ok'


def test_constraints_with_a_marker_count_where_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version that the marker excludes for this Python is no tested one."""
    (tmp_path / 'requirements').mkdir()
    (tmp_path / 'requirements/constraints.txt').write_text(
        '# all\na==1.0\nb.b==2.0 ; python_version >= "3.10"\nc==3.0 ; python_version < "3.10"\n'
    )
    monkeypatch.setattr(doctor, 'ROOT', tmp_path)
    assert doctor.tested_versions() == {'a': '1.0', 'b.b': '2.0'}


def test_another_version_of_a_constraint_with_a_marker_warns(tmp_path: Path) -> None:
    """SciPy, of which no requirement file speaks, differs from the tested one."""
    folder = tmp_path / 'scipy-1.0.0.dist-info'
    folder.mkdir()
    folder.joinpath('METADATA').write_text('Metadata-Version: 2.1\nName: scipy\nVersion: 1.0.0')
    code, findings = run_doctor('versions', cwd=tmp_path, pythonpath=tmp_path)
    assert code == 0
    (line,) = [line for line in findings if 'scipy' in line]
    assert line.startswith('WARN  scipy 1.0.0 (tested ')


@pytest.mark.parametrize(('found', 'level'), [('3.11.2', 'ok'), ('3.10.0', 'warn')])
def test_other_pythons_warn(found: str, level: str) -> None:
    """The micro version does not matter."""
    assert doctor.check_python(found, '3.11').level == level


@pytest.mark.parametrize(('free', 'level'), [(2.0, 'ok'), (1.9, 'fail')])
def test_disk_fails_below_what_is_required(free: float, level: str) -> None:
    """Both numbers are in the line."""
    finding = doctor.check_disk(free, required_gb=2.0)
    assert finding.level == level
    assert f'{free:.1f} GB free' in finding.text
    assert '2.0' in finding.text


@pytest.mark.parametrize(
    ('toolkit', 'torch_cuda', 'same'),
    [
        ('13.0', '13.0', True),
        ('13.2', '13.0', True),
        ('12.8', '13.0', False),
        (None, '13.0', False),
        ('13.0', None, False),
    ],
)
def test_toolkit_compiles_for_the_same_major_release_of_cuda(
    toolkit: str | None, torch_cuda: str | None, same: bool
) -> None:
    """torch refuses extensions compiled with another major release."""
    assert doctor.same_cuda(toolkit, torch_cuda) is same


def test_unknown_check_is_refused(tmp_path: Path) -> None:
    """A typing error does not pass as a clean report."""
    code, findings = run_doctor('operater', cwd=tmp_path)
    assert code == 2
    assert not findings
