"""Build the distribution; the version and the metadata live in extension.toml, which Isaac Lab and Kit read too."""

import tomllib
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
PACKAGE = tomllib.loads((ROOT / "extension.toml").read_text())["package"]

EXPORT = ["onnx", "onnxscript", "onnxruntime"]
VIZ = ["matplotlib", "imageio-ffmpeg", "pillow", "tensorboard"]
# without a GPU Triton interprets and compiles our kernels in the tests; torch for CUDA brings it along
TRITON = 'triton; platform_system == "Linux" and platform_machine == "x86_64"'
# on a CPU, where no one would train with it, the tests run its kernels at small sizes and compile them for GPUs
WARP = ["mujoco-warp>=4.0"]
DEV = ["pytest", "pytest-timeout", "pytest-xdist", "ruff", "pyright[nodejs]", "pre-commit", "build", TRITON, *WARP]

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
        "torch>=2.9",
        "numpy>=1.26",
        "tensordict",
        "rsl-rl-lib>=5.5",
        "hydra-core>=1.3",
        "omegaconf>=2.3",
        "mujoco>=3.12",
        "scipy",
    ],
    extras_require={
        "export": EXPORT,
        "viz": VIZ,
        "wandb": ["wandb"],
        # not beside Isaac Lab, whose Newton pins an older one
        "warp": WARP,
        # Isaac Lab brings Newton and its own pins of torch, rsl-rl-lib and mujoco; its extra adds an engine
        "isaaclab": ["isaaclab[ovphysx]~=3.0.0; python_version == '3.12'"],
        "isaacsim": ["isaaclab[isaacsim]~=3.0.0; python_version == '3.12'"],
        "dev": DEV,
        "all": EXPORT + VIZ + DEV,
    },
    entry_points={
        "console_scripts": ["myriad = myriad_lab.cli.main:main"],
        # Isaac Lab imports what this group names before it looks for a task.
        "isaaclab.tasks": ["myriad = myriad_lab.tasks.isaaclab"],
    },
    zip_safe=False,
)
