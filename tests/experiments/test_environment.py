"""What is asked of git, which runs programs that a folder's configuration names."""

import os
import subprocess
from pathlib import Path

import pytest

from trainability.experiments.environment import describe_environment


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always")
    return subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def set_traps(folder: Path, trap: str) -> None:
    """Whatever of a repository's configuration git runs when it is asked for a commit or for changed files."""
    config = folder / git(folder, "rev-parse", "--git-dir")
    for key in ("core.fsmonitor", "core.pager", "pager.status", "diff.external", "core.sshCommand", "alias.status"):
        git(folder, "config", key, f"{trap}; false" if key != "alias.status" else f"!{trap}")
    for driver in ("one", "two"):
        for kind in ("clean", "smudge", "process"):
            git(folder, "config", f"filter.{driver}.{kind}", f"{trap}; cat")
        git(folder, "config", f"diff.{driver}.textconv", trap)
    (config / "info").mkdir(exist_ok=True)
    (config / "info/attributes").write_text("*.yaml filter=two diff=two\n")
    (config / "hooks").mkdir(exist_ok=True)
    for name in ("post-index-change", "reference-transaction", "pre-commit", "fsmonitor-watchman"):
        (config / "hooks" / name).write_text(f"#!/bin/sh\n{trap}\n")
        (config / "hooks" / name).chmod(0o755)


@pytest.mark.parametrize("worktree", [False, True])
def test_asking_git_runs_nothing_that_a_folder_names(tmp_path, monkeypatch, worktree):
    home, trap = tmp_path / "home", f"touch {tmp_path}/RAN"
    monkeypatch.setenv("HOME", str(tmp_path))
    home.mkdir()
    git(home, "init", "-q")
    (home / ".gitattributes").write_text("*.txt filter=one diff=one\n")
    for name in ("recipe.yaml", "kept.txt", "changed.txt"):
        (home / name).write_text("before")
    git(home, "add", "-A")
    git(home, "commit", "-qm", "x")
    inner = tmp_path / "inner"
    inner.mkdir()
    git(inner, "init", "-q")
    git(inner, "commit", "-qm", "x", "--allow-empty")
    git(home, "submodule", "--quiet", "add", str(inner), "inner")
    git(home, "commit", "-qm", "y")
    commit = git(home, "rev-parse", "HEAD")
    folder = home
    if worktree:
        folder = tmp_path / "tree"
        git(home, "worktree", "add", "-q", str(folder), "HEAD")
    for name in ("recipe.yaml", "kept.txt"):  # git looks into them again, as their times differ
        os.utime(folder / name, (1, 1))
    (folder / "changed.txt").write_text("after!")
    (folder / "new.txt").write_text("new")
    set_traps(home / "inner", trap)
    set_traps(home, trap)
    (tmp_path / "RAN").unlink(missing_ok=True)
    index = Path(git(folder, "rev-parse", "--path-format=absolute", "--git-path", "index"))
    before = index.read_bytes()
    monkeypatch.chdir(folder)
    found = describe_environment()
    assert not (tmp_path / "RAN").exists()
    assert found["git commit"] == commit
    assert found["git changed files"] == "2"
    assert index.read_bytes() == before
    subprocess.run(["git", "status"], cwd=folder, capture_output=True, check=False)
    assert (tmp_path / "RAN").exists()  # so the traps are set


def test_a_folder_without_a_commit_or_a_repository_has_no_entry(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert not any("git" in key for key in describe_environment())
    git(tmp_path, "init", "-q")
    assert not any("git" in key for key in describe_environment())


def test_an_object_that_is_missing_is_not_fetched_by_the_program_that_a_folder_names(tmp_path, monkeypatch):
    trap = tmp_path / "RAN"
    git(tmp_path, "init", "-q")
    (tmp_path / "a.txt").write_text("a")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "x")
    commit = git(tmp_path, "rev-parse", "HEAD")
    for key, value in {
        "core.repositoryformatversion": "1",
        "extensions.partialClone": "origin",
        "remote.origin.promisor": "true",
        "remote.origin.url": f"ext::sh -c touch% {trap}",
        "protocol.ext.allow": "always",
    }.items():
        git(tmp_path, "config", key, value)
    (tmp_path / ".git/objects" / commit[:2] / commit[2:]).unlink()
    monkeypatch.chdir(tmp_path)
    assert describe_environment()["git commit"] == commit
    assert not trap.exists()
    subprocess.run(["git", "status"], cwd=tmp_path, capture_output=True, check=False)
    assert trap.exists()  # so the trap is set
