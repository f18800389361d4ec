"""Read films back, for tests."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np

from myriad_lab.monitor.video import require_video


def read_film(path: Path) -> tuple[np.ndarray, float]:
    """Return the frames of a film, (frames, height, width, 3), and its rate."""
    program = require_video()
    told = subprocess.run([program, "-i", str(path)], capture_output=True, text=True, check=False).stderr
    size = re.search(r"Video: .*?(\d{2,5})x(\d{2,5})", told)
    rate = re.search(r"([\d.]+) fps", told)
    assert size is not None, told
    assert rate is not None, told
    raw = [program, "-loglevel", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    data = subprocess.run(raw, capture_output=True, check=True).stdout
    frames = np.frombuffer(data, dtype=np.uint8).reshape(-1, int(size[2]), int(size[1]), 3)
    return frames, float(rate[1])
