"""`python -m tests.fuzz`: try many inputs, and say what became of them."""

import argparse
import faulthandler
import json
import random
import sys
import traceback
from pathlib import Path

import torch

from .core import SECONDS, SORTS, Tally, bounded, fuzz, start, within
from .kinds import KINDS


def main() -> int:
    """Run the fuzzer; 1 where anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=main.__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=20_000, help="of inputs, in all")
    parser.add_argument("--seconds", type=float, default=3600.0, help="after which it ends in any case")
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"some of {','.join(KINDS)}")
    parser.add_argument("--only", type=int, help="number of the one input to try, with its traceback")
    parser.add_argument("--json", type=Path, help="a file for the counts and the failures")
    given = parser.parse_args()
    kinds = {name: KINDS[name] for name in given.kinds.split(",")}
    torch.set_num_threads(1)
    faulthandler.enable()
    if given.only is not None:
        for name, kind in kinds.items():
            case = kind(random.Random(f"{name} {given.seed} {given.only}"))
            print(case.text)
            start(0)
            try:
                with bounded(), within(SECONDS):
                    case.run(lambda: print("accepted"))
            except BaseException:  # among them that of an input which takes too long
                traceback.print_exc(file=sys.stdout)
        return 0
    tallies = fuzz(kinds, given.seed, given.count, given.seconds)
    for name, tally in tallies.items():
        show(name, tally)
    if given.json:
        given.json.write_text(json.dumps({name: tally.to_dict() for name, tally in tallies.items()}, indent=1) + "\n")
    return int(any(tally.failures for tally in tallies.values()))


def show(name: str, tally: Tally) -> None:
    """Print the counts of a kind and its failures."""
    sorts = sorted({*SORTS, *(key[0] for key in tally.times)})
    failed = ", ".join(f"{tally.count(sort)} {sort}" for sort in sorts)
    share = tally.accepted / max(1, tally.made)
    print(
        f"{name}: {tally.made} made, {tally.accepted} accepted ({share:.0%}), {sum(tally.refused.values())} refused "
        f"with {len(tally.refused)} codes, {tally.users} errors of the user's own, {failed}; {tally.seconds:.0f} s"
    )
    for key, times in tally.times.most_common():
        failure = tally.failures[key]
        place = f" at {failure.place}, line {failure.line}" if failure.place else ""
        print(f"  {failure.sort} {failure.error}{place} ({times} times): {failure.message[:120]}")
        print(f"    {failure.text[:300]}")
        print(f"    python -m tests.fuzz {failure.again}")


if __name__ == "__main__":
    raise SystemExit(main())
