"""One run over several processes and hosts, and a study on a database server, against one process."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from recipes_for_tests import events, last_state, newest
from trainability import cli
from trainability.experiments.recipe import Recipe
from trainability.experiments.study import open_study, rows
from trainability.experiments.validation import validated
from trainability.training.yaml_files import dump_yaml

RECIPE = {
    "model": {"depth": 5, "width": 24},
    "remedies": ["he", {"name": "lbe", "alpha": 0.7, "beta": 0.5}],
    "optimizer": {"name": "sgd", "lr": 0.05, "options": {"momentum": 0.9}},
    "epochs": 2,
    "batch_size": 64,
    "seeds": 2,
    "probes": 2,
    "engine": {"precision": "64-true", "threads": 1},
}


def write(path: Path, **engine: object) -> Path:
    path.write_text(dump_yaml({**RECIPE, "engine": {**RECIPE["engine"], **engine}}))
    return path


def assert_same_run(one: Path, several: Path) -> None:
    expected, found = last_state(one), last_state(several)
    for part in ("weights", "lbe"):
        for name, value in (expected[part] or {}).items():
            torch.testing.assert_close(found[part][name], value, rtol=1e-6, atol=1e-9)
    for a, b in zip(events(one, "losses"), events(several, "losses"), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-6)
        if "lbe" in a:
            assert b["lbe"] == pytest.approx(a["lbe"], rel=1e-6)  # the term is of the global batch on every rank


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("seeds", [1, 2])
def test_several_processes_make_the_updates_of_one(tmp_path, processes, seeds):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    for name, count in (("one", 1), ("several", processes)):
        file = write(tmp_path / f"{name}.yaml", devices=count)
        command = [sys.executable, "-m", "trainability", "train", str(file), "--out", str(tmp_path / name)]
        done = subprocess.run(
            [*command, f"seeds={seeds}"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "one", tmp_path / "several")


def test_weights_shared_out_over_processes_are_trained_as_in_one(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    changes = {"batch_size": 64, "seeds": 1, "optimizer": {"name": "adamw", "lr": 3e-3, "weight_decay": 0.01}}
    recipe = {**RECIPE, **changes, "checkpoint_every": 8, "model": {"depth": 5, "width": 25}}

    def run(name: str, *more: str, **engine: object) -> Path:
        file = tmp_path / f"{name}.yaml"
        file.write_text(dump_yaml({**recipe, "engine": {"threads": 1, **engine}}))
        command = [sys.executable, "-m", "trainability", "train", str(file), "--out", str(tmp_path / name), *more]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return tmp_path / name

    one, several = run("one"), run("several", devices=2, strategy="fsdp")
    expected, found = last_state(one), last_state(several)
    for name, value in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], value, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["lbe"]["alpha"], expected["lbe"]["alpha"], rtol=1e-5, atol=1e-6)
    run("several", "--resume", devices=2, strategy="fsdp")  # all is done
    newest(several).unlink()
    again = last_state(run("several", "--resume", devices=2, strategy="fsdp"))
    for name, value in found["weights"].items():
        assert torch.equal(again["weights"][name], value)


def test_a_comparison_over_several_processes_is_that_of_one_and_can_be_taken_up_again(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    words = ["remedies=default,lbe,layernorm", "remedies.lbe.beta=0.5"]

    def run(name: str, *more: str, **engine: object) -> Path:
        file = write(tmp_path / f"{name}.yaml", **engine)
        command = [sys.executable, "-m", "trainability", "compare", str(file), "--out", str(tmp_path / name), *words]
        done = subprocess.run(
            [*command, *more], env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        return tmp_path / name

    one, several = run("one"), run("several", devices=2)
    for path in sorted((one / "stacks").iterdir()):
        assert_same_run(path, several / "stacks" / path.name)
    before = last_state(several / "stacks/2-lbe")
    newest(several / "stacks/2-lbe").unlink()
    run("several", "--resume", devices=2)
    after = last_state(several / "stacks/2-lbe")
    assert after["steps"] == before["steps"]
    assert all(torch.equal(after["weights"][name], value) for name, value in before["weights"].items())


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("whom", ["the first process", "all", "all, again and again"])
def test_an_interrupt_of_several_processes_is_a_checkpoint(tmp_path, strategy, whom):
    file = tmp_path / "long.yaml"
    recipe = {"model": {"depth": 5, "width": 24, "batchnorm": True}, "batch_size": 64, "probes": 2, "seeds": 1}
    recipe["epochs"] = 1000
    file.write_text(dump_yaml({**recipe, "engine": {"devices": 2, "strategy": strategy, "threads": 1}}))
    process = subprocess.Popen(
        [sys.executable, "-m", "trainability", "train", str(file), "--out", str(tmp_path / "run")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    log = tmp_path / "run" / "events.jsonl"
    try:
        wait_for(lambda: log.exists() and events(tmp_path / "run", "losses"))
        if whom.startswith("all"):  # as a terminal does
            for number in [signal.SIGINT] if whom == "all" else [signal.SIGINT, signal.SIGTERM, signal.SIGINT]:
                os.killpg(process.pid, number)
        else:
            process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=60)[1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, err
    assert "--resume" in err
    assert "Traceback" not in err
    last = json.loads(log.read_text().splitlines()[-1])
    assert last["event"] == "interrupted"
    assert last_state(tmp_path / "run")["steps"] == last["step"]
    kept = json.loads((tmp_path / "run/results.json").read_text())["results"]
    assert [(result["status"], result["steps"]) for result in kept] == [("interrupted", last["step"])]


def wait_for(what: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.1)


def hosts() -> str | None:
    """Why two network namespaces cannot be made here, if they cannot."""
    if os.name != "posix" or os.geteuid() != 0:
        return "needs root, to make network namespaces"
    if not shutil.which("ip"):
        return "needs the ip command (Debian's iproute2)"
    made = subprocess.run(["ip", "netns", "add", "trainability-probe"], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", "trainability-probe"], capture_output=True, check=False)
    return None if made.returncode == 0 else "network namespaces are not allowed here"


@pytest.fixture
def two_hosts() -> Iterator[list[str]]:
    """Two network namespaces with a cable between them."""
    if reason := hosts():
        pytest.skip(reason)
    names = [f"trainability-{os.getpid()}-{n}" for n in (0, 1)]
    wires = [f"tr{os.getpid() % 100000}{c}" for c in "ab"]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", wires[0], "type", "veth", "peer", "name", wires[1])
        for number, (name, wire) in enumerate(zip(names, wires, strict=True), 1):
            ip("link", "set", wire, "netns", name)
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", wire)
            ip("-n", name, "link", "set", wire, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield [*names, *wires]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def test_two_hosts_make_the_updates_of_one(tmp_path, two_hosts):
    file = write(tmp_path / "r.yaml", devices=1, nodes=2)
    processes = []
    for rank in (0, 1):
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": two_hosts[2 + rank],
            "MASTER_ADDR": "10.77.0.1",
            "MASTER_PORT": "29511",
            "NODE_RANK": str(rank),
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "2",
            "RANK": str(rank),
            "GROUP_RANK": str(rank),
            "LOCAL_WORLD_SIZE": "1",
            "TORCHELASTIC_RUN_ID": "two-hosts",
        }
        command = [sys.executable, "-m", "trainability", "train", str(file), "--out", str(tmp_path / "several")]
        processes.append(
            subprocess.Popen(
                ["ip", "netns", "exec", two_hosts[rank], *command], env=environment, stderr=subprocess.PIPE
            )
        )
    said = [process.communicate(timeout=300)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert cli.run(["train", str(write(tmp_path / "one.yaml")), "--out", str(tmp_path / "one")]) == 0
    assert_same_run(tmp_path / "one", tmp_path / "several")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A PostgreSQL server of its own, and the address of its database."""
    pytest.importorskip("psycopg", reason="needs pip install 'trainability[postgresql]'")
    programs = [*Path("/usr/lib/postgresql").glob("*/bin"), Path(shutil.which("initdb") or "/nowhere").parent]
    found = next((p for p in sorted(programs, reverse=True) if (p / "initdb").exists()), None)
    if found is None:
        pytest.skip("needs a PostgreSQL server (Debian's postgresql package)")
    data, port = Path(tempfile.gettempdir()) / f"trainability-pg-{os.getpid()}", 54_000 + os.getpid() % 1000
    data.mkdir(mode=0o700)
    as_user: list[str] = []
    if os.geteuid() == 0:  # the server refuses to run as root
        shutil.chown(data, "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]

    def call(program: str, *words: str) -> None:
        subprocess.run(
            [*as_user, str(found / program), *words], check=True, capture_output=True, cwd=tempfile.gettempdir()
        )

    try:
        call("initdb", "-D", str(data / "db"), "-U", "postgres", "--auth=trust")
        options = f"-p {port} -k {data} -c listen_addresses=127.0.0.1"
        call("pg_ctl", "-D", str(data / "db"), "-o", options, "-l", str(data / "log"), "-w", "start")
        yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run(
            [*as_user, str(found / "pg_ctl"), "-D", str(data / "db"), "-m", "immediate", "stop"],
            capture_output=True,
            check=False,
            cwd=tempfile.gettempdir(),
        )
        shutil.rmtree(data, ignore_errors=True)


@pytest.mark.postgresql
def test_a_study_on_a_database_server_survives_the_death_of_a_worker(tmp_path, server):
    content = {
        "model": {"depth": 3, "width": 12},
        "remedies": "he+lbe",
        "seeds": 1,
        "epochs": 10,
        "probes": 1,
        "sweep": {
            "parameters": {"remedies.lbe.beta": [0.1, 0.2, 0.3], "remedies.lbe.alpha": [0.3, 0.6]},
            "stack": 2,
            "heartbeat": 1,
        },
    }
    wanted = validated(Recipe, content)
    file = tmp_path / "s.yaml"
    file.write_text(dump_yaml(content))
    command = [sys.executable, "-m", "trainability", "sweep", str(file), "--storage", server, "--worker"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [*command, str(n), "--out", str(tmp_path / f"host{n}")], env=environment, stderr=subprocess.DEVNULL
        )
        for n in (1, 2)
    ]
    study = open_study(wanted, server)
    while not any(t.state.name == "RUNNING" for t in study.get_trials(deepcopy=False)):
        time.sleep(0.05)
    workers[0].kill()
    workers[0].wait()
    assert workers[1].wait(timeout=120) == 0
    found = rows(study, wanted)
    assert sorted(tuple(sorted(row.params.items())) for row in found) == sorted(
        (("remedies.lbe.alpha", a), ("remedies.lbe.beta", b)) for a in (0.3, 0.6) for b in (0.1, 0.2, 0.3)
    )
