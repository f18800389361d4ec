"""Backend ``mujoco``: real MuJoCo on all CPU cores behind the simulator seam."""
