from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from myriad_lab.errors import ConfigurationError
from myriad_lab.export.contract import METADATA_KEY, build_contract
from myriad_lab.export.onnx import require_onnx
from myriad_lab.export.policy import export_policy
from myriad_lab.export.torchscript import load_torchscript
from myriad_lab.export.verify import ExportError, run_onnx, verify_export
from myriad_lab.portfolio.bundle import Bundle, load_bundle, save_bundle
from portfolio.helpers import make_actor, make_manifest, make_spec


def make_bundle(tmp_path: Path, **cfg: object) -> Bundle:
    actor = make_actor(**cfg)
    return load_bundle(save_bundle(tmp_path / "iteration_000007", actor, make_manifest(actor, 7)))


@pytest.fixture
def obs() -> np.ndarray:
    return np.random.default_rng(1).normal(1.0, 4.0, (37, 5)).astype(np.float32)


@pytest.mark.parametrize("adapter", ["full", "film", "low_rank", "none"])
def test_all_heads_in_one_file(tmp_path: Path, obs: np.ndarray, adapter: str) -> None:
    bundle = make_bundle(tmp_path, adapter=adapter)
    heads = np.random.default_rng(2).integers(0, 4, 37)
    exported = export_policy(bundle, tmp_path / "out", None, obs, heads)
    assert exported.parity.onnx_max_abs_error < 1e-6
    assert exported.parity.torchscript_max_abs_error < 1e-6
    assert exported.parity.rows == 37
    expected = torch.stack(
        [bundle.actor.single(h)(torch.from_numpy(o)[None])[0] for o, h in zip(obs, heads, strict=True)]
    )
    ran = run_onnx(tmp_path / "out" / "policy.onnx", obs, heads)
    np.testing.assert_allclose(ran, expected.detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("cfg", [{}, {"squash": "clip"}, {"obs_normalization": False}, {"state_dependent_std": False}])
def test_one_head(tmp_path: Path, obs: np.ndarray, cfg: dict) -> None:
    bundle = make_bundle(tmp_path, **cfg)
    export_policy(bundle, tmp_path / "out", 2, obs)
    tiled = torch.from_numpy(obs).repeat(4, 1)
    expected = bundle.actor.act(tiled, deterministic=True).action.reshape(4, 37, 2)[2].detach().numpy()
    np.testing.assert_allclose(run_onnx(tmp_path / "out" / "policy.onnx", obs, None), expected, atol=1e-6)
    scripted = load_torchscript(tmp_path / "out" / "policy.pt")(torch.from_numpy(obs)).detach().numpy()
    np.testing.assert_allclose(scripted, expected, atol=1e-6)


def test_one_file_that_carries_its_contract(tmp_path: Path, obs: np.ndarray) -> None:
    bundle = make_bundle(tmp_path)
    export_policy(bundle, tmp_path / "out", 1, obs)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["contract.json", "policy.onnx", "policy.pt"]
    written = json.loads((tmp_path / "out" / "contract.json").read_text())
    model = onnx.load(tmp_path / "out" / "policy.onnx", load_external_data=False)
    assert not any(t.external_data for t in model.graph.initializer)
    assert str(Path(__file__).parents[2]) not in str(model), "no path of this machine in the file"
    (text,) = [entry.value for entry in model.metadata_props if entry.key == METADATA_KEY]
    assert json.loads(text) == written


def test_contract_is_complete_and_exact(tmp_path: Path, obs: np.ndarray) -> None:
    actor = make_actor()
    spec = make_spec(scale=0.1 + 0.2).to_dict()
    spec["control_period"] = 1.0 / 60.0
    spec["observations"]["policy"][0]["scale"] = (1.0 / 3.0, 2.0)
    spec["observations"]["policy"][1]["parameters"] = {"frequencies": (0.1 + 0.2, 3.0)}
    robot = {"name": "r", "joint_names": ["a"], "default_joint_pos": [0.7], "stiffness": [20.1], "damping": [0.5]}
    spec["robot"] = robot
    bundle = load_bundle(save_bundle(tmp_path / "b", actor, make_manifest(actor, spec=spec)))
    export_policy(bundle, tmp_path / "out", None, obs)
    contract = json.loads((tmp_path / "out" / "contract.json").read_text())
    first, second = contract["observation"]["terms"]
    assert (first["name"], first["shape"], first["unit"], first["slice"]) == ("base_pos", [2], "m", [0, 2])
    assert (second["name"], second["shape"], second["unit"], second["slice"]) == ("joint_vel", [3], "rad/s", [2, 5])
    assert first["scale"] == [1.0 / 3.0, 2.0]
    assert (first["parameters"], second["parameters"]) == ({}, {"frequencies": [0.1 + 0.2, 3.0]})
    assert second["scale"] == [1.0, 1.0, 1.0]
    assert contract["action"]["scale"] == [0.1 + 0.2] * 2
    assert contract["action"]["names"] == ["x", "y"]
    assert contract["action"]["meaning"] == "target = offset + scale * action"
    bundle.manifest.spec["action"]["kind"] = "discrete"
    assert "argmax" in build_contract(bundle, None)["action"]["meaning"]
    assert contract["control_period"] == {"value": 1.0 / 60.0, "unit": "s"}
    assert contract["quat_order"] == "wxyz"
    assert contract["observation"]["normalizer"] == {"in_graph": True, "clip": 10.0}
    assert contract["robot"]["default_joint_pos"] == {"value": [0.7], "unit": "rad"}
    assert contract["robot"]["stiffness"]["value"] == [20.1]
    assert contract["policy"]["head"] is None
    assert [i["name"] for i in contract["policy"]["inputs"]] == ["obs", "head"]
    assert contract["parity"]["onnx_max_abs_error"] <= contract["parity"]["tolerance"]
    assert contract["parity"]["observations"] == "recorded"


def test_wrong_files_are_caught(tmp_path: Path, obs: np.ndarray) -> None:
    bundle = make_bundle(tmp_path)
    folder = export_policy(bundle, tmp_path / "out", 0, obs).folder
    with pytest.raises(ExportError, match=r"policy\.onnx differs from torch by .* in row \d+, more than 1e-05"):
        verify_export(bundle.actor.single(1), folder, obs)
    with pytest.raises(ExportError, match="no observations"):
        verify_export(bundle.actor.single(0), folder, obs[:0])
    broken = obs.copy()
    broken[5] = np.nan
    with pytest.raises(ExportError, match="differs from torch by nan in row 5"):
        verify_export(bundle.actor.single(0), folder, broken)
    (folder / "notes.txt").write_text("not ours")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ExportError, match="differs from torch by nan in row 5"):
        export_policy(bundle, folder, 1, broken, scene="<mujoco/>")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    export_policy(bundle, folder, 1, obs, scene="<mujoco/>")
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after.keys() == before.keys() | {"scene.xml"}
    assert {name for name in before if after[name] == before[name]} == {"notes.txt"}


def test_without_recording_the_contract_says_so(tmp_path: Path) -> None:
    export_policy(make_bundle(tmp_path), tmp_path / "out", None)
    assert json.loads((tmp_path / "out" / "contract.json").read_text())["parity"]["observations"] == "normal"


def test_bad_input_is_refused(tmp_path: Path, obs: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path)
    with pytest.raises(ConfigurationError, match=r"numbers in 0\.\.3"):
        export_policy(bundle, tmp_path / "out", 4, obs)
    with pytest.raises(ConfigurationError, match="observations of width 4 for policies that take 5"):
        export_policy(bundle, tmp_path / "out", 0, obs[:, :4])
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot write to"):
        export_policy(bundle, tmp_path / "file" / "out", 0, obs)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"needs onnx, onnxscript, onnxruntime.*myriad-lab\[export\]"):
        require_onnx()


def test_exporting_says_nothing(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    program = (
        "import logging; logging.basicConfig(level=logging.INFO)\n"
        "from myriad_lab.portfolio.bundle import load_bundle\n"
        "from myriad_lab.export.policy import export_policy\n"
        f"export_policy(load_bundle({str(bundle.path)!r}), {str(tmp_path / 'out')!r}, None)\n"
    )
    done = subprocess.run([sys.executable, "-W", "always", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr == ""
