"""Build the distribution; the version and the metadata live in extension.toml, where Isaac Lab looks for them too."""

import tomllib
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
PACKAGE = tomllib.loads((ROOT / "extension.toml").read_text())["package"]

EXPORT = ["onnx", "onnxscript", "onnxruntime"]
VIZ = ["matplotlib", "imageio-ffmpeg", "pillow", "tensorboard"]
DEV = ["pytest", "pytest-timeout", "pytest-xdist", "ruff", "pyright[nodejs]", "pre-commit", "build"]

setup(
    name=PACKAGE["name"],
    version=PACKAGE["version"],
    description=PACKAGE["description"],
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    author=PACKAGE["author"],
    keywords=PACKAGE["keywords"],
    license="BSD-3-Clause",
    python_requires=">=3.11,<3.14",
    package_dir={"": "source", "myriad_lab.config": "config"},
    packages=[*find_packages("source"), "myriad_lab.config"],
    package_data={"myriad_lab": ["py.typed", "**/*.xml"], "myriad_lab.config": ["**/*.yaml"]},
    install_requires=[
        "torch>=2.7",
        "numpy>=1.26",
        "tensordict",
        "rsl-rl-lib>=5.5",
        "hydra-core",
        "omegaconf",
        "mujoco>=3.12",
        "scipy",
    ],
    extras_require={
        "export": EXPORT,
        "viz": VIZ,
        "wandb": ["wandb"],
        "warp": ["mujoco-warp"],
        "isaaclab": ["isaaclab>=3.0; python_version == '3.12'"],
        "isaacsim": ["isaacsim>=6.2; python_version == '3.12'"],
        "dev": DEV,
        "all": EXPORT + VIZ + DEV,
    },
    entry_points={"console_scripts": ["myriad = myriad_lab.cli.main:main"]},
    zip_safe=False,
)
