"""Backend ``mujoco_warp``: the scenes of backend ``mujoco`` on a CUDA device, behind the same simulator seam."""
