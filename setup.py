import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
# They look after a clone: its environment, its README, its data.
CLONE_TOOLS = ('demo.py', 'doctor.py', 'readme_tables.py', 'setup_env.py')

TOOLBOXES = {
    'cls': 'onedl-mmpretrain',
    'det': 'onedl-mmdetection',
    'seg': 'onedl-mmsegmentation',
}


class BuildWithMim(build_py):
    """Adds configs and tools in ``mmlavit/.mim``, where OpenMMLab's packages carry theirs."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, 'mmlavit', '.mim')
        # an earlier build may have left configs that are gone
        shutil.rmtree(target, ignore_errors=True)
        ignored = shutil.ignore_patterns('__pycache__', *CLONE_TOOLS)
        for name in ('configs', 'tools'):
            shutil.copytree(ROOT / name, target / name, ignore=ignored)
        shutil.copy(ROOT / 'model-index.yml', target)


def parse_requirements(name: str) -> list[str]:
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text(encoding='utf-8').splitlines()
    return [line for line in lines if line and not line.startswith('#')]


def parse_toolbox(toolbox: str) -> list[str]:
    """One toolbox, and what all of them share."""
    others = tuple(name for name in TOOLBOXES.values() if name != toolbox)
    return [line for line in parse_requirements('mminstall') if not line.startswith(others)]


def parse_version() -> str:
    text = (ROOT / 'mmlavit' / 'version.py').read_text(encoding='utf-8')
    return re.search(r"__version__ = '(.+)'", text)[1]


readme = ROOT / 'README.md'

setup(
    name='mmlavit',
    version=parse_version(),
    description='LaViT, the Less-Attention Vision Transformer, for mmpretrain, mmdet and mmseg',
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else '',
    long_description_content_type='text/markdown',
    author='mmlavit contributors',
    license='Apache-2.0',
    keywords='computer vision, vision transformer, object detection, semantic segmentation',
    cmdclass={'build_py': BuildWithMim},
    packages=find_packages(include=['mmlavit', 'mmlavit.*']),
    python_requires='>=3.10',
    install_requires=parse_requirements('runtime'),
    extras_require={
        name: parse_requirements(name) for name in ('mminstall', 'tests', 'lint', 'docs', 'export')
    }
    | {extra: parse_toolbox(toolbox) for extra, toolbox in TOOLBOXES.items()},
    entry_points={'console_scripts': ['mmlavit = mmlavit.__main__:main']},
    zip_safe=False,
)
