"""Writing down what a benchmark measured, with the machine and the versions."""

import json
from pathlib import Path

from trainability.experiments.environment import describe_environment


def keep(path: Path | None, command: str, **measured: object) -> None:
    if path is not None:
        path.parent.mkdir(exist_ok=True)
        record = {"command": command, "environment": describe_environment(), **measured}
        path.write_text(json.dumps(record, indent=1) + "\n")
