"""Run an exported policy with numpy, onnxruntime and mujoco: python run_policy.py EXPORT_FOLDER [SECONDS] [HEAD]."""

import json
import sys
from pathlib import Path

import mujoco
import numpy as np
import onnxruntime


def quantities(data, actions, command):
    """Every observation the tasks use, before scale and offset."""
    mujoco.mju_quat2Mat(flat := np.empty(9), data.qpos[3:7])
    matrix = flat.reshape(3, 3)  # body to world
    yaw, roll = np.arctan2(matrix[1, 0], matrix[0, 0]), np.arctan2(matrix[2, 1], matrix[2, 2])
    return {
        "position": data.qpos[:2], "root_height": data.qpos[2:3], "heading": matrix[:2, 0],
        "projected_gravity": -matrix[2], "lin_vel_b": matrix.T @ data.qvel[:3], "ang_vel_b": data.qvel[3:6],
        "yaw": [yaw], "roll": [roll], "angle_to_target": [-yaw], "up_projection": [matrix[2, 2]],
        "heading_projection": [matrix[0, 0]], "command": command, "actions": actions, "last_action": actions,
        **dict.fromkeys(("joint_pos", "joint_pos_rel"), data.qpos[7:]),
        **dict.fromkeys(("joint_vel", "joint_vel_scaled"), data.qvel[6:]),
    }  # fmt: skip


def observe(contract, data, actions, command):
    """The policy's input: the terms of the contract in order, scale * (quantity - offset)."""
    known, row = quantities(data, actions, command), []
    for term in contract["observation"]["terms"]:
        if term["name"] == "position_fourier":  # built from the position term before it
            waves = np.pi * np.array(term["parameters"]["frequencies"])
            known[term["name"]] = np.ravel([f(np.outer(row[-1], waves)) for f in (np.sin, np.cos)])
        value = np.array(term["scale"]) * (np.array(known[term["name"]]) - term["offset"])
        row.append(value if term["clip"] is None else np.clip(value, -term["clip"], term["clip"]))
    return np.concatenate(row).astype(np.float32)[None]


def run(folder, seconds=5.0, head=0, command=(0.5, 0.0, 0.0)):
    """Drive the scene beside the policy; returns the positions of the base, shape (steps, 3)."""
    contract = json.loads((Path(folder) / "contract.json").read_text())
    session = onnxruntime.InferenceSession(str(Path(folder) / "policy.onnx"), providers=["CPUExecutionProvider"])
    model = mujoco.MjModel.from_xml_path(str(Path(folder) / "scene.xml"))
    data, action, period = mujoco.MjData(model), contract["action"], contract["control_period"]["value"]
    mujoco.mj_resetDataKeyframe(model, data, model.key("start").id)
    scale, offset = np.array(action["scale"]), np.array(action["offset"])
    last, delayed, path = 0.0 * scale, [offset] * action["delay_steps"], []
    for _ in range(round(seconds / period)):
        feeds = {"obs": observe(contract, data, last, command), "head": np.array([head])}
        last = session.run(["actions"], {i.name: feeds[i.name] for i in session.get_inputs()})[0][0]
        delayed.append(offset + scale * last)
        data.ctrl[:] = delayed.pop(0)
        mujoco.mj_step(model, data, nstep=round(period / model.opt.timestep))
        path.append(data.qpos[:3].copy())
    return np.array(path)


if __name__ == "__main__":
    positions = run(sys.argv[1], *map(float, sys.argv[2:3]), *map(int, sys.argv[3:4]))
    print(f"{len(positions)} steps, from {positions[0].round(3)} to {positions[-1].round(3)} m")
