"""A third-party distribution that is broken or hostile is named with status 2, and harms no other."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from simflow_plugin.cli.app import app
from simflow_plugin.errors import ConfigError, RegistryError
from simflow_plugin.exits import exit_on_user_error
from simflow_plugin.registry import AUTOENCODERS, DATASETS, ENCODERS, MODELS, Part
from tests.third_party import MODEL_SOURCE

RAISING = """
class Silent(Exception):
    def __str__(self):
        raise ValueError("no message")
"""
HEAD = "from simflow_plugin.options import Options as Base\nclass Options(Base):\n    pass\n"


@pytest.fixture
def counted(request: pytest.FixtureRequest) -> str:
    """A name of a module that no other test has imported."""
    return f"hostile_{zlib.crc32(request.node.name.encode())}"


FAILURES = {
    "exit": "import sys; sys.exit(0)",
    "interrupt": "raise KeyboardInterrupt",
    "base": "raise BaseException('anything')",
    "silent": "raise Silent()",
    "own error": "from simflow_plugin.errors import ConfigError\nclass E(Silent, ConfigError): pass\nraise E()",
}
SAID = {
    "exit": "failed: SystemExit: 0",
    "interrupt": "failed: KeyboardInterrupt",
    "base": "failed: BaseException: anything",
    "silent": "failed: Silent",
    "own error": "failed: E",
}


@pytest.mark.parametrize("how", FAILURES)
def test_import_that_fails_in_any_way_is_named(install: Any, counted: str, how: str) -> None:
    source = RAISING + FAILURES[how]
    install("hostile-models", counted, source, "hostile", "Model")
    with pytest.raises(RegistryError, match=r"entry point `hostile` of distribution hostile-models .*failed"):
        MODELS.get("hostile")
    assert MODELS.get("simflow").__name__ == "SimFlow"


@pytest.mark.parametrize("how", ["exit", "interrupt", "base", "silent"])
def test_constructor_that_fails_in_any_way_is_named(install: Any, counted: str, how: str) -> None:
    body = FAILURES[how]
    source = RAISING + MODEL_SOURCE.replace("        super().__init__()", f"        {body}")
    install("hostile-models", counted, source, "hostile", "Gaussian")
    with pytest.raises(RegistryError, match=r"`hostile` of distribution hostile-models failed: "):
        Part(name="hostile").build(MODELS, None)


@pytest.mark.parametrize("how", FAILURES)
@pytest.mark.parametrize("command", [["config", "show"], ["train"]], ids=["show", "train"])
def test_command_ends_with_status_2_and_a_message(
    install: Any, counted: str, command: list[str], how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    install("hostile-models", counted, RAISING + FAILURES[how], "hostile", "Model")
    result = CliRunner().invoke(app, [*command, "quickstart", "--set", "model=hostile"])
    assert result.exit_code == 2
    assert "hostile-models" in result.stderr
    assert SAID[how] in result.stderr.replace("\n", " ")
    assert CliRunner().invoke(app, ["config", "show", "quickstart"]).exit_code == 0


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
def test_malformed_member_of_a_class_is_named(install: Any, counted: str, line: str, said: str) -> None:
    source = f"{MODEL_SOURCE}\n\nclass Malformed(Gaussian):\n    {line}\n"
    install("hostile-models", counted, source, "hostile", "Malformed")
    with pytest.raises(RegistryError, match=f"`hostile` of distribution hostile-models: .*{said}"):
        MODELS.get("hostile")


@pytest.mark.parametrize("value", ["7", "'text'", "[]"])
def test_entry_point_that_is_no_factory_is_named(install: Any, counted: str, value: str) -> None:
    install("hostile-models", counted, f"thing = {value}", "hostile", "thing")
    with pytest.raises(RegistryError, match="distribution hostile-models"):
        MODELS.get("hostile")


def test_class_that_breaks_when_it_is_looked_at_is_named(install: Any, counted: str) -> None:
    source = (
        "class Meta(type):\n    def __getattr__(cls, name):\n        raise SystemExit(0)\n"
        "class Model(metaclass=Meta):\n    pass\n"
    )
    install("hostile-models", counted, source, "hostile", "Model")
    with pytest.raises(RegistryError, match="distribution hostile-models .*failed: SystemExit"):
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
    install: Any, counted: str, registry: Any, kind: str, body: str, said: str
) -> None:
    source = (
        f"{HEAD}class Thing:\n    Options = Options\n    def __init__(self, options, context): pass\n{body}"
    )
    install("hostile-parts", counted, source, "hostile", "Thing", kind)
    with pytest.raises(RegistryError, match=f"`hostile` of distribution hostile-parts: .*{said}"):
        Part(name="hostile").build(registry, None)


def test_autoencoder_without_its_class_methods_is_named(install: Any, counted: str) -> None:
    source = f"{HEAD}class Thing:\n    Options = Options\n"
    install("hostile-parts", counted, source, "hostile", "Thing", "autoencoders")
    with pytest.raises(RegistryError, match="of distribution hostile-parts: it has no `geometry`"):
        AUTOENCODERS.get("hostile")


@pytest.mark.parametrize("hook", ["resolved(self)", "check(self, context)"])
def test_options_that_leave_are_named(install: Any, counted: str, hook: str) -> None:
    source = MODEL_SOURCE.replace(
        "    std: float = 1.0", f"    std: float = 1.0\n    def {hook}:\n        raise SystemExit(0)"
    )
    install("hostile-models", counted, source, "hostile", "Gaussian")
    with pytest.raises((RegistryError, ConfigError), match="distribution hostile-models failed: SystemExit"):
        load_with_model("hostile")


def load_with_model(name: str) -> Any:
    from simflow_plugin.config.loading import load_config

    return load_config("quickstart", [f"model={{name: {name}}}", "autoencoder.trainable=none"])


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00", b"[simflow_plugin.models\nx", b"[simflow_plugin.models]\n= =\n", b"nonsense"]
)
def test_malformed_list_of_entry_points_breaks_no_command_and_is_named_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    info = tmp_path / "site" / "malformed-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: malformed\nVersion: 1.0\n")
    (info / "entry_points.txt").write_bytes(content)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert "simflow" in MODELS.names()
    assert MODELS.get("simflow").__name__ == "SimFlow"
    with pytest.raises(RegistryError, match="unknown name"):
        MODELS.get("no-such-model")
    if content.startswith(b"\xff"):
        assert "malformed: its entry_points.txt cannot be read" in caplog.text


def test_contract_of_another_version_is_refused(install: Any, counted: str) -> None:
    source = MODEL_SOURCE.replace("    std: float = 1.0", "    std: float = 1.0\n    contract_version = 99")
    source = source.replace("import torch", "from typing import ClassVar\nimport torch").replace(
        "contract_version = 99", "contract_version: ClassVar[int] = 99"
    )
    install("future-models", counted, source, "future", "Gaussian")
    with pytest.raises(RegistryError, match=r"distribution future-models: it was written for version 99"):
        MODELS.get("future")
