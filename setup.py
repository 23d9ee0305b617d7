import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def parse_requirements(name: str) -> list[str]:
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text(encoding='utf-8').splitlines()
    return [line for line in lines if line and not line.startswith('#')]


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
    packages=find_packages(include=['mmlavit', 'mmlavit.*']),
    python_requires='>=3.10',
    install_requires=parse_requirements('runtime'),
    extras_require={name: parse_requirements(name) for name in ('mminstall', 'tests', 'lint')},
    zip_safe=False,
)
