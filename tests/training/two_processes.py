"""A module of the tests on two processes, as a launcher would start it."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.training.tiny_runs import free_port


def in_two_processes(module, out, values, environment):
    """Run `python -m module OUT VALUES` as ranks 0 and 1; return what each printed. Both must end with status 0."""
    return command_in_two_processes([module, out, json.dumps(values)], environment)


def command_in_two_processes(words, environment):
    """Run `python -m WORDS` as ranks 0 and 1; return what each printed. Both must end with status 0."""
    group = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", *map(str, words)],
            env={**os.environ, **group, **environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(outputs)
    return outputs
