"""Run `myriad report`; see `python scripts/report.py --help`."""

from myriad_lab.cli.main import run_script

if __name__ == "__main__":
    run_script("report")
