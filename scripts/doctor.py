"""Run `myriad doctor`; see `python scripts/doctor.py --help`."""

from myriad_lab.cli.main import run_script

if __name__ == "__main__":
    run_script("doctor")
