"""Setup of d2_pixcontrast. Imports neither torch nor detectron2, so that pip can run it anywhere.

detectron2 is not among the requirements because PyPI does not have it: see
``tools/install_detectron2.py``.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """Read ``__version__`` of the package without importing it.

    Raises:
        RuntimeError: the package has no such line.
    """
    text = (ROOT / "d2_pixcontrast" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise RuntimeError('d2_pixcontrast/__init__.py has no line __version__ = "..."')
    return match.group(1)


def read_description() -> str:
    """The README, or nothing where a source tree comes without one."""
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


setup(
    name="d2_pixcontrast",
    version=read_version(),
    description="Pixel contrast for semantic segmentation, as a Detectron2 project extension",
    long_description=read_description(),
    long_description_content_type="text/markdown",
    author="The d2_pixcontrast authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["d2_pixcontrast", "d2_pixcontrast.*"]),
    # d2_pixcontrast/model_zoo/configs is a link to the configs folder, so that an editable install
    # reads the files of the checkout and a wheel gets copies of them.
    package_data={"d2_pixcontrast.model_zoo": ["configs/**/*.yaml"]},
    python_requires=">=3.11",
    install_requires=[
        "torch>=2.6",  # before, a file that torch.load reads with weights_only could run code
        "torchvision>=0.21",
        "fvcore>=0.1.5",
        "pycocotools>=2.0.2",
        "opencv-python>=4.8",
        "numpy>=1.26",
        "timm>=1.0",
        "pillow>=10.1",
        "safetensors>=0.4",
        "tabulate>=0.9",
        "tqdm>=4.29",
        "pyyaml>=6",
    ],
    extras_require={
        "vis": ["matplotlib>=3.7", "scikit-learn>=1.3"],
        "export": ["onnx>=1.16", "onnxruntime>=1.18", "onnxscript>=0.1"],
        "datasets": ["scipy>=1.11"],
        "dev": [
            "pytest>=8",
            "ruff>=0.6",
            "hypothesis>=6",
            "scipy>=1.11",
            "pytorch-metric-learning>=2.3",
            "build>=1",
        ],
    },
)
