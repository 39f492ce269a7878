"""What is lost when processes are killed, disks fill up and files are damaged.

Claim: nothing. Training runs are killed (SIGKILL) at random moments and resumed until they end; their weights are
compared, to the bit, with those of a run that nobody killed. Three workers of a sweep are killed at random and
replaced; finished trials are counted after every kill, and the database is checked.

    python benchmarks/faults.py [--kills 50] [--out results/faults.json]
"""

import argparse
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from optuna.study import Study

from trainability.experiments.environment import describe_environment
from trainability.experiments.recipe import Recipe
from trainability.experiments.study import grid, open_study, rows
from trainability.experiments.validation import validated
from trainability.training.yaml_files import dump_yaml

TRAIN = {
    "model": {"depth": 30, "width": 64},
    "remedies": "he+lbe",
    "epochs": 40,
    "seeds": 3,
    "checkpoint_every": 5,
    "engine": {"threads": 1},
}
SWEEP = {
    "model": {"depth": 10, "width": 32},
    "remedies": "he+lbe",
    "epochs": 30,
    "seeds": 1,
    "probes": 1,
    "engine": {"threads": 1},
    "sweep": {
        "parameters": {
            "remedies.lbe.alpha": [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
            "remedies.lbe.beta": [0.02, 0.05, 0.1, 0.2, 0.3, 0.5],
            "optimizer.lr": [3e-4, 1e-3, 3e-3, 1e-2],
        },
        "stack": 4,
        "heartbeat": 2,
        "retries": 1000,
    },
}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def program(*words: str) -> list[str]:
    return [sys.executable, "-m", "trainability", *words]


def start(*words: str, log: Path | None = None) -> subprocess.Popen[bytes]:
    with open(log or os.devnull, "ab") as said:
        return subprocess.Popen(program(*words), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=said)


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = sorted((run / "checkpoints").glob("*.pt"))[-1]
    found: dict[str, torch.Tensor] = torch.load(newest, weights_only=True)["weights"]
    return found


def same(a: Path, b: Path) -> bool:
    one, other = weights(a), weights(b)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def killed_runs(folder: Path, kills: int, chance: random.Random) -> dict[str, object]:
    """Runs that are killed ten times each, as near to anything they do as chance brings it."""
    file = folder / "train.yaml"
    file.write_text(dump_yaml(TRAIN))
    subprocess.run(
        program("train", str(file), "--out", str(folder / "whole")), env=ENVIRONMENT, check=True, capture_output=True
    )
    done, runs, identical, before_checkpoint = 0, 0, 0, 0
    while done < kills:
        run, hits = folder / f"run{runs}", 0
        while True:
            process = start(
                "train", str(file), "--out", str(run), *(["--resume"] if (run / "recipe.yaml").exists() else [])
            )
            if hits < 10 and done < kills:
                begun = (run / "events.jsonl").stat().st_size if (run / "events.jsonl").exists() else 0
                while process.poll() is None and not (
                    (run / "events.jsonl").exists() and (run / "events.jsonl").stat().st_size > begun
                ):
                    time.sleep(0.01)
                time.sleep(chance.uniform(0, 0.9))
                if process.poll() is None:
                    process.kill()
                    hits, done = hits + 1, done + 1
                    before_checkpoint += not list((run / "checkpoints").glob("*.pt"))
            process.wait()
            if process.returncode == 0:
                break
            if process.returncode == 2:
                words = program("train", str(file), "--out", str(run), "--resume")
                said = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=False)
                raise SystemExit(f"{run} refused to go on: {said.stderr}")
        runs += 1
        identical += same(folder / "whole", run)
        print(json.dumps({"runs": runs, "kills": done, "bit-identical": identical}), flush=True)
    return {
        "kills": done,
        "runs": runs,
        "runs resumed to the end, bit-identical": identical,
        "kills before the first checkpoint": before_checkpoint,
    }


def killed_workers(folder: Path, kills: int, chance: random.Random) -> dict[str, object]:
    """Three workers of one study; one of them is killed every few seconds, and replaced."""
    file, recipe = folder / "sweep.yaml", validated(Recipe, SWEEP)
    file.write_text(dump_yaml(SWEEP))
    place = f"sqlite:///{folder / 'study.db'}"
    study = open_study(recipe, place)
    out = str(folder / "sweep")

    def worker(number: int) -> subprocess.Popen[bytes]:
        words = ("sweep", str(file), "--out", out, "--storage", place, "--worker", str(number))
        return start(*words, log=folder / f"worker{number}.log")

    workers = [worker(n) for n in range(3)]
    finished: dict[int, float] = {}
    done = lost = corrupted = 0
    while done < kills and len(finished) < len(grid(recipe)):
        time.sleep(chance.uniform(1.0, 6.0))
        victim = chance.randrange(3)
        if workers[victim].poll() is None:
            workers[victim].kill()
            done += 1
        workers[victim].wait()
        workers[victim] = worker(victim)
        now = {row.number: row.val for row in rows(study, recipe)}
        lost += sum(now.get(number) != value for number, value in finished.items())
        corrupted += not intact(folder / "study.db")
        finished = now
        print(json.dumps({"kills": done, "finished trials": len(finished), "lost": lost}), flush=True)
    codes = [w.wait() for w in workers]
    for number, code in enumerate(codes):
        if code:
            print((folder / f"worker{number}.log").read_text()[-3000:], flush=True)
    return {
        "kills": done,
        **_ended(study, recipe, folder),
        "finished trials lost": lost,
        "studies corrupted": corrupted,
        "last workers' exit codes": codes,
    }


def _ended(study: Study, recipe: Recipe, folder: Path) -> dict[str, object]:
    wanted = Counter(repr(sorted(values.items())) for values in grid(recipe))
    found = Counter(repr(sorted(row.params.items())) for row in rows(study, recipe))
    return {
        "trials wanted": sum(wanted.values()),
        "trials finished": len(found),
        "trials missing": len(wanted - found),
        "trials finished twice": sum(count - 1 for count in found.values()),
        "database intact": intact(folder / "study.db"),
    }


def intact(database: Path) -> bool:
    connection = sqlite3.connect(database, timeout=60)
    try:
        return bool(connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok")
    finally:
        connection.close()


def full_disk(folder: Path) -> dict[str, object]:
    """A small file system that fills up at a checkpoint; then there is room again."""
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        return {"skipped": "mounting a small file system needs root"}
    try:
        file = folder / "train.yaml"
        words = ["train", str(file), "--out", str(disk / "run")]
        process = start(*words)
        while not list((disk / "run/checkpoints").glob("*.pt")) and process.poll() is None:
            time.sleep(0.02)
        free = shutil.disk_usage(disk).free
        (disk / "ballast").write_bytes(b"\0" * (free - 200_000))
        code = process.wait()
        left = [p.name for p in (disk / "run/checkpoints").glob(".*")]
        (disk / "ballast").unlink()
        said = subprocess.run(program(*words, "--resume"), env=ENVIRONMENT, capture_output=True, text=True, check=False)
        return {
            "exit code": code,
            "half-written files": len(left),
            "resumed": said.returncode == 0,
            "bit-identical": same(folder / "whole", disk / "run"),
        }
    finally:
        subprocess.run(["umount", str(disk)], check=False, capture_output=True)


def damaged_checkpoint(folder: Path) -> dict[str, object]:
    run = folder / "damaged"
    process = start("train", str(folder / "train.yaml"), "--out", str(run))
    while len(list((run / "checkpoints").glob("*.pt"))) < 2 and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.wait()
    newest = sorted((run / "checkpoints").glob("*.pt"))[-1]
    newest.write_bytes(newest.read_bytes()[:-1000])
    words = program("train", str(folder / "train.yaml"), "--out", str(run), "--resume")
    said = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    return {
        "exit code": said.returncode,
        "named": newest.name[:13] in said.stderr,
        "bit-identical": same(folder / "whole", run),
    }


def two_processes(folder: Path) -> dict[str, object]:
    run = folder / "two"
    words = ["train", str(folder / "train.yaml"), "--out", str(run)]
    first = start(*words)
    while not (run / "recipe.yaml").exists() and first.poll() is None:
        time.sleep(0.02)
    second = subprocess.run(program(*words, "--resume"), env=ENVIRONMENT, capture_output=True, text=True, check=False)
    return {
        "second: exit code": second.returncode,
        "second: said": second.stderr.strip().replace(str(folder), "…"),
        "first: exit code": first.wait(),
        "bit-identical": same(folder / "whole", run),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report = {
            "training run": killed_runs(folder, args.kills, chance),
            "sweep of three workers": killed_workers(folder, args.kills, chance),
            "disk full at a checkpoint": full_disk(folder),
            "truncated checkpoint": damaged_checkpoint(folder),
            "two processes on one folder": two_processes(folder),
        }
    record = {
        "command": f"python benchmarks/faults.py --kills {args.kills}",
        "environment": describe_environment(),
        **report,
    }
    print(json.dumps(record, indent=1))
    if args.out:
        args.out.parent.mkdir(exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
