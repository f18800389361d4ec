"""Run `myriad list_tasks`; see `python scripts/list_tasks.py --help`."""

from myriad_lab.cli.main import run_script

if __name__ == "__main__":
    run_script("list_tasks")
