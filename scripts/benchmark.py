"""Run `myriad benchmark`; see `python scripts/benchmark.py --help`."""

from myriad_lab.cli.main import run_script

if __name__ == "__main__":
    run_script("benchmark")
