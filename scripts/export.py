"""Run `myriad export`; see `python scripts/export.py --help`."""

from myriad_lab.cli.main import run_script

if __name__ == "__main__":
    run_script("export")
