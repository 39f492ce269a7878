"""The benchmarks: that their sides do the same work, and that a part that fails takes no other along."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.mark.parametrize("name", ["published", "plain", "loop", "ensemble", "stack", "stack with lbe", "products"])
def test_every_side_computes_the_matrix_products_of_its_members(name):
    from sides import alone, ensemble, loop, operations, products, stacked

    shape = (3, 8, 16)
    side = {
        "published": lambda: alone(*shape, "published"),
        "plain": lambda: alone(*shape, "plain"),
        "loop": lambda: loop(*shape, 3),
        "ensemble": lambda: ensemble(*shape, 3),
        "stack": lambda: stacked(*shape, 3, False),
        "stack with lbe": lambda: stacked(*shape, 3, True),
        "products": lambda: products(*shape, 3),
    }[name]()
    with FlopCounterMode(display=False) as counter:
        side.step()
    assert counter.get_total_flops() == side.members * operations(*shape)


def test_turns_divide_by_members_and_steps(monkeypatch):
    import turns

    clock = [0.0]
    monkeypatch.setattr(turns.time, "perf_counter", lambda: clock[0])

    def lasting(seconds: float):
        def step() -> None:
            clock[0] += seconds

        return step

    sides = {"slow": turns.Side(lasting(0.5), 4), "fast": turns.Side(lasting(0.01), 2)}
    times = turns.take_turns(sides, 3, "cpu", steps=5)
    assert times == {"slow": pytest.approx([0.125] * 3), "fast": pytest.approx([0.005] * 3)}
    assert clock[0] == pytest.approx(0.51 + 3 * (0.5 + 5 * 0.01))  # a side that is slow takes one step in a turn
    assert len(turns.take_turns(sides, 9, "cpu", seconds=1.0)["fast"]) == 3


def test_a_side_that_cannot_run_is_named_and_the_others_go_on():
    import turns

    def broken() -> turns.Side:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    sides, failed = turns.warm({"broken": broken, "sound": lambda: turns.Side(lambda: None)}, "cpu")
    assert list(sides) == ["sound"]
    assert failed == {"broken": "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."}


def test_a_part_that_fails_dies_or_hangs_takes_no_other_along(tmp_path):
    script = tmp_path / "parts_for_test.py"
    script.write_text(
        "import os, sys, time\n"
        "from parts import measure_parts, options\n"
        "FATES = {'fails': lambda: 1 / 0, 'dies': lambda: os._exit(3), 'hangs': lambda: time.sleep(600)}\n"
        "def measured(args):\n"
        "    FATES.get(args.fate, lambda: None)()\n"
        "    yield {'fate': args.fate}\n"
        "if __name__ == '__main__':\n"
        "    parts = [*({'fate': fate} for fate in FATES), {'fate': 'fine'}]\n"
        "    parts[2]['limit'] = 5\n"
        "    sys.exit(measure_parts(options(None).parse_args(), parts, measured))\n"
    )
    out = tmp_path / "new" / "rows.json"
    paths = {"PYTHONPATH": f"{FOLDER}:{FOLDER.parent / 'src'}", "BENCHMARK_COMMIT": "abc"}
    command = [sys.executable, str(script), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **paths})
    assert done.returncode == 1, done.stderr
    record = json.loads(out.read_text())
    assert record["environment"]["git commit"] == "abc"
    assert record["rows"] == [
        {"fate": "fails", "failed": "ZeroDivisionError: division by zero"},
        {"fate": "dies", "failed": "the process ended with 3"},
        {"fate": "hangs", "limit": 5, "failed": "given up after 5 s"},
        {"fate": "fine"},
    ]


SMALL = {"device": "cpu", "rounds": 2, "steps": 1, "seconds": 9.0}


def test_several_networks_at_once():
    import stack

    sides = ["plain, loop", "plain, ensemble", "plain, stack"]
    about = {"networks": stack.Network.of("2x8x8"), "members": 2, "precision": "32-true", "sides": sides}
    *rows, rate = stack.measured(Namespace(**SMALL, **about))
    assert [(row["side"], row["members"], row["rounds"]) for row in rows] == [(side, 2, 2) for side in sides]
    for row in rows:
        ratio = row["ms_per_member_step"] / rows[0]["ms_per_member_step"]
        assert row["of plain, loop"] == pytest.approx(ratio, rel=0.02)
    assert rate["matrix_gflops"] > 0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_step_beside_its_matrix_products(precision):
    import floor

    args = Namespace(**SMALL, depths=2, width=8, batch=8, members=2, precisions=precision)
    rows = list(floor.measured(args))
    assert [row["side"] for row in rows if "side" in row] == [
        "floor",
        "published",
        "plain",
        "lbe, launched",
        "floor, stack",
        "lbe, stack",
    ]
    assert not any("failed" in row for row in rows)


@pytest.mark.parametrize("case", ["fnn2x8", "conv2x4"])
def test_what_lbe_costs(case):
    import overhead

    (row,) = overhead.measured(Namespace(**SMALL, case=overhead.Case.of(case), mode="eager"))
    assert row["case"] == case
    assert set(row["ratio"]) == set(row["memory"]) == {"plain again", "published", "lbe"}
