#!/usr/bin/env bash
# A second environment with the real Isaac Lab 3.0.0 and both of its physics engines, on the CPU and without Kit:
#     tests/isaaclab/install.sh [VENV=.venv-isaaclab]
# PYTHON names the interpreter. What is there already stays, unless requirements.txt has changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
VENV=${1:-.venv-isaaclab}
REQUIREMENTS=tests/isaaclab/requirements.txt
SUPPORTED='import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))'

find_python() {
    local candidate candidates=(python3.12 python3.11 python3 python)
    if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c "$SUPPORTED" >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    echo "Isaac Lab 3.0 needs Python 3.12 (3.11 works too, off-label); ${PYTHON:-what is here} is neither." >&2
    echo "Name one that is: PYTHON=/path/to/python3.12 $0 $VENV" >&2
    return 1
}

install_isaaclab() {
    local python
    python=$(find_python)
    rm -f "$VENV/.requirements"
    "$python" -m venv --clear "$VENV" ||
        { echo "$python cannot make a virtual environment (on Debian: the package python3-venv)" >&2; return 1; }
    # torch alone with its dependencies: the pip configuration of the machine decides which build of it comes
    "$VENV/bin/python" -m pip install --quiet --constraint "$REQUIREMENTS" torch
    # --ignore-requires-python: Isaac Lab declares Python 3.12 only, its code runs with 3.11 too
    "$VENV/bin/python" -m pip install --quiet --no-deps --ignore-requires-python --requirement "$REQUIREMENTS"
    cp "$REQUIREMENTS" "$VENV/.requirements"
}

inventory() {  # every package and every conflict, as pip sees them
    "$VENV/bin/python" -m pip list --format freeze | grep -v '^myriad-lab=='
    "$VENV/bin/python" -m pip check | sort || true  # it fails where Isaac Lab's own parts are left out
}

install_ourselves() {
    local before after
    rm -f "$VENV/.installed"
    "$VENV/bin/python" -m pip uninstall --quiet --yes myriad-lab 2>/dev/null
    before=$(inventory)
    "$VENV/bin/python" -m pip install --quiet --no-deps --editable .
    after=$(inventory)
    if [ "$before" != "$after" ]; then
        echo "Installing myriad-lab changed the environment of Isaac Lab, or needs what is not in it:" >&2
        diff <(echo "$before") <(echo "$after") >&2
        return 1
    fi
}

export PIP_DISABLE_PIP_VERSION_CHECK=1
cmp --silent "$REQUIREMENTS" "$VENV/.requirements" || install_isaaclab
"$VENV/bin/python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' ||
    echo "Note: Python 3.11 is off-label for Isaac Lab 3.0, which is made for Python 3.12."
install_ourselves
"$VENV/bin/python" tests/isaaclab/assets.py "$VENV/assets"
touch "$VENV/.installed"
cat <<TEXT
Isaac Lab is in $VENV. Its stock tasks need:
export ISAACSIM_ASSET_ROOT=$(cd "$VENV" && pwd)/assets
export OMP_NUM_THREADS=1
TEXT
