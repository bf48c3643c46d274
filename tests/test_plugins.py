"""A third-party distribution that is broken or hostile is named with status 2, and harms no other."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from simflow_plugin.cli.app import app
from simflow_plugin.config.loading import load_config
from simflow_plugin.errors import ConfigError, RegistryError
from simflow_plugin.exits import exit_on_user_error
from simflow_plugin.registry import AUTOENCODERS, DATASETS, ENCODERS, MODELS, Part
from tests.commands import succeed
from tests.third_party import MODEL_SOURCE, declare

RAISING = """
class Silent(Exception):
    def __str__(self):
        raise ValueError("no message")
"""
HEAD = "from simflow_plugin.options import Options as Base\nclass Options(Base):\n    pass\n"


FAILURES = {
    "error": ("raise ValueError('no luck')", "failed: ValueError: no luck"),
    "exit": ("import sys; sys.exit(0)", "failed: SystemExit: 0"),
    "interrupt": ("raise KeyboardInterrupt", "failed: KeyboardInterrupt"),
    "base": ("raise BaseException('anything')", "failed: BaseException: anything"),
    "silent": ("raise Silent()", "failed: Silent"),
    "own error": (
        "from simflow_plugin.errors import ConfigError\nclass E(Silent, ConfigError): pass\nraise E()",
        "failed: E",
    ),
}
"""Source of what fails -> the end of the message."""


@pytest.fixture
def hostile(install: Any, request: pytest.FixtureRequest) -> Callable[..., None]:
    """Install a distribution whose part is called `hostile`, in a module that no other test has imported."""

    def make(source: str, attribute: str = "Gaussian", kind: str = "models") -> None:
        module = f"hostile_{zlib.crc32(request.node.name.encode())}"
        install("hostile-parts", module, source, "hostile", attribute, kind)

    return make


@pytest.mark.parametrize("how", FAILURES)
def test_import_that_fails_in_any_way_is_named(hostile: Any, how: str) -> None:
    hostile(RAISING + FAILURES[how][0])
    with pytest.raises(RegistryError, match=r"entry point `hostile` of distribution hostile-parts .*failed"):
        MODELS.get("hostile")
    assert MODELS.get("simflow").__name__ == "SimFlow"


@pytest.mark.parametrize("how", ["exit", "interrupt", "base", "silent"])
def test_constructor_that_fails_in_any_way_is_named(hostile: Any, how: str) -> None:
    hostile(RAISING + MODEL_SOURCE.replace("        super().__init__()", f"        {FAILURES[how][0]}"))
    with pytest.raises(RegistryError, match=r"`hostile` of distribution hostile-parts failed: "):
        Part(name="hostile").build(MODELS, None)


@pytest.mark.parametrize("how", FAILURES)
@pytest.mark.parametrize("command", [["config", "show"], ["train"]], ids=["show", "train"])
def test_command_ends_with_status_2_and_a_message(
    hostile: Any, command: list[str], how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source, message = FAILURES[how]
    hostile(RAISING + source)
    result = CliRunner().invoke(app, [*command, "quickstart", "--set", "model=hostile"])
    assert result.exit_code == 2
    assert "hostile-parts" in result.stderr
    assert message in result.stderr.replace("\n", " ")
    succeed("config", "show", "quickstart")


def test_no_library_ends_a_command_as_a_success(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, exit_on_user_error(), exit_on_user_error():
        raise SystemExit(0)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("error:") == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("coupled_terms = 5", "its `coupled_terms` is 5: expected a set of names"),
        ("coupled_terms = {1}", "expected a set of names"),
        ("supports_alignment = 'no'", "its `supports_alignment` is 'no': expected True or False"),
        ("sample = None", "its `sample` is None: expected a method"),
        ("training_losses = GenerativeModel.training_losses", "it lacks training_losses"),
    ],
)
def test_malformed_member_of_a_class_is_named(hostile: Any, line: str, said: str) -> None:
    hostile(f"{MODEL_SOURCE}\n\nclass Malformed(Gaussian):\n    {line}\n", "Malformed")
    with pytest.raises(RegistryError, match=rf"`hostile` of .* hostile-parts \(.*:Malformed\): .*{said}"):
        MODELS.get("hostile")


BREAKS_WHEN_LOOKED_AT = """
class Meta(type):
    def __getattr__(cls, name):
        raise SystemExit(0)
class Gaussian(metaclass=Meta):
    pass
"""
OF_A_LATER_VERSION = MODEL_SOURCE.replace(
    "import torch", "from typing import ClassVar\nimport torch"
).replace("    std: float = 1.0", "    std: float = 1.0\n    contract_version: ClassVar[int] = 99")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("Gaussian = 7", ""),
        ("Gaussian = 'text'", ""),
        ("Gaussian = []", ""),
        (BREAKS_WHEN_LOOKED_AT, " .*failed: SystemExit"),
        (OF_A_LATER_VERSION, ".* was written for version 99 .*Install a release of hostile-parts for"),
    ],
    ids=["number", "text", "list", "breaks", "later version"],
)
def test_entry_point_that_is_no_model_of_ours_is_named(hostile: Any, source: str, said: str) -> None:
    hostile(source)
    with pytest.raises(RegistryError, match=f"distribution hostile-parts{said}"):
        MODELS.get("hostile")


@pytest.mark.parametrize(
    ("registry", "kind", "body", "said"),
    [
        (ENCODERS, "encoders", "    encode = len\n", "it has no `feature_dim`"),
        (ENCODERS, "encoders", "    encode = len\n    feature_dim = True\n", "`feature_dim` is True"),
        (
            DATASETS,
            "datasets",
            "    num_classes = 'ten'\n    class_names = None\n    def __len__(self): return 1\n"
            "    def __getitem__(self, i): return i\n",
            "`num_classes` is 'ten': expected a positive integer, or None",
        ),
    ],
)
def test_malformed_member_of_a_part_is_named(
    hostile: Any, registry: Any, kind: str, body: str, said: str
) -> None:
    source = (
        f"{HEAD}class Thing:\n    Options = Options\n    def __init__(self, options, context): pass\n{body}"
    )
    hostile(source, "Thing", kind)
    with pytest.raises(RegistryError, match=f"`hostile` of distribution hostile-parts: .*{said}"):
        Part(name="hostile").build(registry, None)


def test_autoencoder_without_its_class_methods_is_named(hostile: Any) -> None:
    hostile(f"{HEAD}class Thing:\n    Options = Options\n", "Thing", "autoencoders")
    with pytest.raises(RegistryError, match=r"hostile-parts \(.*:Thing\): it has no `geometry`"):
        AUTOENCODERS.get("hostile")


@pytest.mark.parametrize("hook", ["resolved(self)", "check(self, context)"])
def test_options_that_leave_are_named(hostile: Any, hook: str) -> None:
    hostile(
        MODEL_SOURCE.replace(
            "    std: float = 1.0", f"    std: float = 1.0\n    def {hook}:\n        raise SystemExit(0)"
        )
    )
    with pytest.raises((RegistryError, ConfigError), match="distribution hostile-parts failed: SystemExit"):
        load_config("quickstart", ["model={name: hostile}", "autoencoder.trainable=none"])


@pytest.mark.parametrize(
    ("content", "is_logged"),
    [
        (b"\xff\xfe\x00", True),
        (b"[simflow_plugin.models\nx", False),
        (b"[simflow_plugin.models]\n= =\n", False),
        (b"nonsense", False),
    ],
)
def test_malformed_list_of_entry_points_breaks_no_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    content: bytes,
    is_logged: bool,
) -> None:
    declare(tmp_path / "site", "malformed", content)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert "simflow" in MODELS.names()
    assert MODELS.get("simflow").__name__ == "SimFlow"
    with pytest.raises(RegistryError, match="unknown name"):
        MODELS.get("no-such-model")
    if is_logged:
        assert "malformed: its entry_points.txt cannot be read" in caplog.text
