"""CPU time of commands that train nothing, beside that of loading torch, in turns.

Claim: help, versions and refusals take less than half a second, and a fraction of what loading torch takes.

    python benchmarks/startup.py [--rounds 5] [--out FILE.json]
"""

import argparse
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median

from records import Rows

WORDS = (
    "--help",
    "--version",
    "compare --help",
    "compare --depth 0",
    "compare --remedies tat+he",
    "train missing.yaml",
)


def seconds(command: list[str]) -> float:
    """User and system time of a process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    commands = {words: [sys.executable, "-m", "trainability", *words.split()] for words in WORDS}
    commands["import torch"] = [sys.executable, "-c", "import torch"]
    found: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(args.rounds):
        for name, command in commands.items():
            found[name].append(seconds(command))
    torch = median(found["import torch"])
    rows = Rows(args.out, "cpu", rounds=args.rounds)
    for name, times in found.items():
        rows.add(
            {"command": name, "seconds": round(median(times), 3), "of loading torch": round(median(times) / torch, 3)}
        )


if __name__ == "__main__":
    main()
