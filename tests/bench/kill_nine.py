"""``python tests/bench/kill_nine.py [--rounds 200] [--seed 1]``: see `rig.killing`."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from rig.killing import run


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    started = time.monotonic()

    def say(report, known) -> None:
        if report.rounds % 20 == 0:
            print(f"{report.rounds} kills, {len(known.created)} pods created", flush=True)

    with tempfile.TemporaryDirectory(prefix="tensorfusion-kill-") as folder:
        report = run(Path(folder), arguments.rounds, arguments.seed, say)
    print(
        f"{report.rounds} kills in {time.monotonic() - started:.0f} s: {report.created} pods created,"
        f" {report.deleted} deleted, {report.repairs} repairs at restart,"
        f" {report.torn_lines} torn log lines; nothing lost, leaked or promised twice"
    )


if __name__ == "__main__":
    main()
