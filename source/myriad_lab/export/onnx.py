"""Export a policy to one ONNX file, with its contract in the metadata."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from myriad_lab.errors import ConfigurationError
from myriad_lab.export.contract import HEAD_INPUT, INPUT, METADATA_KEY, OUTPUT
from myriad_lab.export.torchscript import example_inputs
from myriad_lab.portfolio.atomic import write_file

OPSET = 18
"""Operator set, the one torch's exporter knows best; onnxruntime 1.14 and later run it."""
_CHATTY = {
    "onnxscript": logging.WARNING,
    "onnx_ir": logging.WARNING,
    # Says that torchvision is not there.
    "torch.onnx._internal.exporter._registration": logging.ERROR,
}
"""Loggers -> the least severe level that is let through while exporting."""


def require_onnx() -> None:
    """Find out before the work whether the packages for ONNX are there.

    Raises:
        ConfigurationError: Naming what to install.
    """
    import importlib.util

    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"exporting to ONNX needs {', '.join(missing)}; install them with: pip install 'myriad-lab[export]'"
        )


def export_onnx(policy: nn.Module, path: str | Path, num_obs: int, indexed: bool) -> Path:
    """Write ``policy`` as a single ONNX file: inputs ``obs`` (and ``head``), output ``actions``, batch size free.

    Args:
        policy: Observation (b, num_obs), and head ids (b,) if ``indexed``, to actions (b, num_actions).
        path: File to write.
        num_obs: Width of the observation.
        indexed: Whether the policy takes head ids.

    Raises:
        ConfigurationError: If the packages for ONNX are missing.
    """
    require_onnx()
    import onnx

    inputs = example_inputs(num_obs, indexed)
    # Without a bound, torch 2.7 asks whether the batch could be the "to the end" of a slice.
    batch = torch.export.Dim("batch", max=2**31 - 1)
    with _quiet_exporter():
        program = torch.onnx.export(
            policy.cpu().eval(),
            inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT, HEAD_INPUT][: len(inputs)],
            output_names=[OUTPUT],
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program; its dynamo exporter was asked for")
    model = program.model_proto
    for node in model.graph.node:
        # Source lines of this machine do not belong into a file that travels.
        del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        del value.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    write_file(Path(path), lambda temporary: onnx.save_model(model, str(temporary)))
    return Path(path)


def write_metadata(path: str | Path, contract: str) -> None:
    """Put the text of the contract into the metadata of an ONNX file, replacing what was there."""
    import onnx

    model = onnx.load(str(path))
    kept = {entry.key: entry.value for entry in model.metadata_props if entry.key != METADATA_KEY}
    onnx.helper.set_model_props(model, {**kept, METADATA_KEY: contract})
    write_file(Path(path), lambda temporary: onnx.save_model(model, str(temporary)))


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence what the exporter and its optimiser say about themselves, and nothing else."""
    loggers = {name: logging.getLogger(name) for name in _CHATTY}
    before = {name: logger.level for name, logger in loggers.items()}
    for name, logger in loggers.items():
        logger.setLevel(_CHATTY[name])
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*", category=FutureWarning)
            warnings.filterwarnings("ignore", message=r"# The axis name: batch will not be used", category=UserWarning)
            # torch < 2.9 with onnxscript of its day.
            warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(onnxscript|torch)\..*")
            yield
    finally:
        for name, logger in loggers.items():
            logger.setLevel(before[name])
