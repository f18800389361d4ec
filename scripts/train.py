"""Run `myriad train`; see `python scripts/train.py --help`."""

from myriad_lab.cli.main import run_script

if __name__ == "__main__":
    run_script("train")
