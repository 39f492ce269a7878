"""On another device than the CPU: one made of CPU tensors in disguise, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch.utils.backend_registration

pytestmark = pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this PyTorch has no way to make a device in Python",
)
NAMES = [
    "a_direct_stack",
    "a_mapped_stack",
    "convolutions",
    "members_one_after_another",
    "a_network_alone",
    "a_member_that_diverges",
    "lbe",
    "measuring",
    "remedies",
]


@pytest.fixture(scope="module")
def outcome() -> dict[str, Any]:
    script = Path(__file__).parents[1] / "accelerator_checks.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_every_check_ran(outcome):
    assert outcome["ran"] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_on_another_device(outcome, name):
    assert name not in outcome["failed"], outcome["failed"][name]
