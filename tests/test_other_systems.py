"""Windows and macOS, simulated: every module imports, and a lock is taken, without what only Linux or POSIX has."""

import subprocess
import sys

CODE = """
import importlib, os, pkgutil, sys, tempfile
import psutil
from pathlib import Path
import simflow_plugin

def import_all():
    names = [m.name for m in pkgutil.walk_packages(simflow_plugin.__path__, "simflow_plugin.")]
    for name in names:
        if not name.endswith("__main__"):
            importlib.import_module(name)
    return len(names)

import_all()  # other packages, which choose their own files by the platform, are those of this machine
for name in [name for name in sys.modules if name.partition(".")[0] == "simflow_plugin"]:
    del sys.modules[name]
MISSING = ("fcntl", "resource", "pwd", "grp", "termios")
for name in MISSING:
    sys.modules[name] = None  # its import fails
for name in ("fork", "forkpty", "register_at_fork", "pread", "pwrite", "geteuid", "getuid", "killpg", "statvfs",
             "O_NOFOLLOW", "O_NONBLOCK", "sched_getaffinity", "sysconf", "posix_fadvise"):
    if hasattr(os, name):
        delattr(os, name)
sys.platform = "win32"
import simflow_plugin
assert import_all() > 200
from simflow_plugin.runs.run_directory import RunDirectory
with tempfile.TemporaryDirectory() as folder:
    with RunDirectory(Path(folder) / "run").locked() as run:
        try:
            with RunDirectory(Path(folder) / "run").locked():
                raise SystemExit("entered twice")
        except simflow_plugin.errors.RunDirectoryError as error:
            assert "another process is writing it" in str(error), error
print("imported")
"""


def test_every_module_imports_and_locks_without_posix():
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert result.stdout.strip() == "imported", result.stderr[-2000:]
