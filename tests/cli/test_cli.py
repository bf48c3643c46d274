"""The command line as a new user meets it: a small run from start to samples, and one clear message per mistake."""

import functools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from simflow_plugin.cli.app import app
from simflow_plugin.errors import ConfigError
from tests.commands import simflow
from tests.data.makers import class_folders
from tests.third_party import MODEL_SOURCE

TINY = """\
name: tiny
image_size: 8
data: digits
autoencoder: {name: kl, factor: 2, widths: [8, 8], norm_num_groups: 4, layers_per_block: 1, uses_mid_attention: false}
model: {name: simflow, flow: {width: 16, layers_per_block: [1, 1], head_dim: 8, patch_size: 2}}
training: {steps: 4, batch_size: 8, log_every: 2, sample_every: 4, checkpoint_every: 2}
sampling: {guidance: 0.5, grid_per_class: 2}
evaluation: {judge: digits, num_samples: 40, num_likelihood: 20}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.yaml").write_text(TINY)
    status, output = simflow("train", folder / "tiny.yaml", "--out", folder / "run")
    assert status == 0, output
    return folder / "run"


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def test_run_directory_holds_everything(trained):
    assert {p.name for p in trained.iterdir()} >= {
        "config.yaml",
        "metrics.jsonl",
        "samples",
        "checkpoints",
        "report.html",
        "summary.json",
    }
    assert [p.name for p in (trained / "samples").iterdir()] == ["step_00000004.png"]


def test_summary_states_the_agreed_numbers(trained):
    summary = json.loads((trained / "summary.json").read_text())
    wanted = {
        "class_agreement",
        "diversity_ratio",
        "psnr",
        "bits_per_dim",
        "bits_per_dim_error",
        "train_seconds",
        "images_per_second",
    }
    assert wanted <= summary.keys()
    assert all(np.isfinite(summary[key]) for key in wanted)


def test_metrics_have_every_term_at_every_log_step(trained):
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    assert all(
        {
            "loss",
            "l2",
            "nll",
            "grad_norm",
            "latent_std",
            "latent_dead",
            "signal_to_noise",
            "nll_floor",
            "lr_model",
        }
        <= row.keys()
        for row in rows
    )


def test_report_is_one_file_with_its_pictures_inside(trained):
    html = (trained / "report.html").read_text()
    assert html.count("data:image/png;base64,") >= 3
    assert not re.search(r'(src|href)="(?!data:|#)', html)


def test_samples_are_balanced_and_in_the_adm_layout(trained, tmp_path):
    status, output = simflow("sample", trained, "--num", 20, "--seed", 3, "--out", tmp_path / "s.npz")
    assert status == 0, output
    archive = np.load(tmp_path / "s.npz")
    assert archive["arr_0"].shape == (20, 8, 8, 3)
    assert archive["arr_0"].dtype == np.uint8
    assert np.bincount(archive["labels"]).tolist() == [2] * 10


def test_sample_depends_on_its_index_and_not_on_the_batch(trained, tmp_path):
    arguments = ("sample", trained, "--num", 12, "--seed", 3)
    simflow(*arguments, "--out", tmp_path / "a.npz")
    simflow(*arguments, "--batch-size", 5, "--out", tmp_path / "b.npz")
    difference = np.abs(
        np.load(tmp_path / "a.npz")["arr_0"].astype(int) - np.load(tmp_path / "b.npz")["arr_0"]
    )
    assert difference.max() <= 1  # another batch size may round another way in the last bit


def test_length_of_the_average_is_refused_where_a_run_keeps_one_only(trained, tmp_path):
    status, output = simflow("sample", trained, "--num", 1, "--ema-length", 0.07, "--out", tmp_path / "s.npz")
    assert status == 2
    assert "keeps one exponential average" in output
    assert "training.ema: {kind: power}" in output


def test_samples_go_into_a_folder_as_png(trained, tmp_path):
    status, _ = simflow("sample", trained, "--num", 3, "--out", tmp_path / "pngs")
    assert status == 0
    assert sorted(p.name for p in (tmp_path / "pngs").iterdir())[0] == "000000_class0.png"


def test_folder_with_files_is_refused_for_png_before_samples_are_drawn(trained, tmp_path, monkeypatch):
    (tmp_path / "000000_class0.png").write_text("mine")
    monkeypatch.setattr(
        "simflow_plugin.evaluation.drawing.ImageSampler.draw", lambda *_: pytest.fail("samples were drawn")
    )
    status, output = simflow("sample", trained, "--num", 3, "--out", tmp_path)
    assert status == 2
    assert "holds files already" in output
    assert [p.name for p in tmp_path.iterdir()] == ["000000_class0.png"]


def test_folder_with_files_is_refused_before_an_evaluation(trained, tmp_path):
    (tmp_path / "000000_class0.png").write_text("mine")
    before = sorted(trained.rglob("*"))
    status, output = simflow("evaluate", trained, "--extractor", "none", "--png", tmp_path)
    assert status == 2
    assert f"--png {tmp_path}: holds files already" in output.replace("\n", "")
    assert sorted(trained.rglob("*")) == before


@pytest.mark.parametrize("name", ["s.npz", "pngs"])
def test_samples_that_cannot_be_written_are_one_message(trained, tmp_path, name):
    (tmp_path / "file").write_text("no folder")
    status, output = simflow("sample", trained, "--num", 1, "--out", tmp_path / "file" / name)
    assert status == 2
    assert f"{name}: cannot be written" in output.replace("\n", " ")


@pytest.mark.parametrize(
    "command", [("sample", "s.npz", "--num", 1), ("export", "a.safetensors", "--keep-scale")]
)
def test_file_that_is_there_is_replaced_only_when_asked_to(trained, tmp_path, command):
    name, file, *options = command
    (tmp_path / file).write_text("mine")
    status, output = simflow(name, trained, *options, "--out", tmp_path / file)
    assert (status, (tmp_path / file).read_text()) == (2, "mine")
    assert "add --overwrite" in output.replace("\n", " ")
    assert simflow(name, trained, *options, "--out", tmp_path / file, "--overwrite")[0] == 0
    assert (tmp_path / file).read_bytes() != b"mine"
    assert [p.name for p in tmp_path.iterdir()] == [file]


def every_command():
    """Return every command by its words, those of groups too."""
    found = {command.name: command for command in app.registered_commands}
    for group in app.registered_groups:
        for command in group.typer_instance.registered_commands:
            found[f"{group.name} {command.name or command.callback.__name__}"] = command
    return found


REQUIRED = {
    "init": ["x"],
    "train": ["x"],
    "distill": ["x"],
    "finetune-decoder": ["x"],
    "sample": ["x", "--out", "y"],
    "evaluate": ["x"],
    "analyze": ["x"],
    "compare": ["x"],
    "export": ["x", "--out", "y"],
    "convert": ["--from", "x", "--checkpoint", "y", "--out", "z"],
    "plan": ["x"],
    "prepare": ["x", "--out", "y"],
    "latents": ["x", "--out", "y"],
    "app": ["x"],
    "pretrain-encoder": ["--out", "x", "--data", "y"],
    "statistics": ["x", "--out", "y"],
    "study": ["x"],
    "config show": ["x"],
}


@pytest.mark.parametrize("words", every_command())
def test_mistake_within_any_command_is_one_message(words, monkeypatch):
    def fail(*_, **__):
        raise ConfigError("a.yaml:3: lr: too high")

    command = every_command()[words]
    monkeypatch.setattr(command, "callback", functools.wraps(command.callback)(fail))
    status, output = simflow(*words.split(), *REQUIRED.get(words, []))
    assert (status, output) == (2, "error: a.yaml:3: lr: too high\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "digitz"], "Did you mean `digits`"),
        (["--data-option", "root"], "--data-option root: expected key"),
        (["--data-option", "root=3"], "--data-option root: root: Input should be a valid string"),
        (["--data-option", "root=[1"], "--data-option root: not YAML"),
        (["--data", "image_folder"], "--data image_folder: root: required"),
        (["--steps", 1, "--epochs", 1], "both set the length"),
    ],
)
def test_mistake_in_pretraining_is_one_message(tmp_path, arguments, message):
    status, output = simflow("pretrain-encoder", "--out", tmp_path / "x.safetensors", *arguments)
    assert status == 2
    assert message in output.replace("\n", " ")
    assert list(tmp_path.iterdir()) == []


FROZEN = ("model=starflow", "autoencoder.trainable=none")


@pytest.mark.parametrize(
    "settings",
    [
        (*FROZEN, "objective.adversarial={width: 8}"),
        (*FROZEN, "optimizer.autoencoder_lr=0.1"),
        ("optimizer.warmup_steps=5",),
        ("evaluation.num_samples=5",),
        ("image_size=31",),
        ("autoencoder.posterior.std=-1",),
        ("training.steps=0",),
    ],
)
def test_bad_value_is_refused_before_anything_is_written(tiny, tmp_path, settings):
    words = [word for setting in settings for word in ("--set", setting)]
    status, output = simflow("train", tiny, *words, "--out", tmp_path / "run")
    assert status == 2
    assert output.startswith("error: --set ")
    assert not (tmp_path / "run").exists()


def test_finished_run_is_not_trained_again(trained):
    before = (trained / "metrics.jsonl").read_bytes()
    report = (trained / "report.html").stat().st_mtime_ns
    status, output = simflow("train", trained / "config.yaml", "--out", trained)
    assert status == 0
    assert (trained / "metrics.jsonl").read_bytes() == before
    assert "finished: all 4 steps were done before" in output
    assert "measured before" in output
    assert (trained / "report.html").stat().st_mtime_ns == report


def test_start_is_a_short_header_and_the_end_says_where_to_look(tiny, tmp_path):
    status, output = simflow("train", tiny, "--out", tmp_path / "run", "--no-report")
    assert status == 0
    header = output.split("start:")[0].splitlines()
    assert len(header) == 5  # the sixth says where the run begins
    words = [line.split(":")[0].strip() for line in header]
    assert words == ["run", "data", "parameters", "device", "training"]
    assert "4 steps of 8 images" in header[-1]
    assert f"samples: {tmp_path / 'run' / 'samples' / 'step_00000004.png'}" in output
    assert "report:" not in output


def test_run_with_another_configuration_is_refused_and_untouched(trained):
    before = {p: p.read_bytes() for p in trained.rglob("*") if p.is_file() and p.name != ".lock"}
    status, output = simflow("train", trained / "config.yaml", "--set", "optimizer.lr=0.5", "--out", trained)
    assert status == 2
    assert "optimizer.lr" in output
    assert {p: p.read_bytes() for p in before} == before


def test_third_party_model_trains_by_name(tiny, tmp_path, install):
    install("tiny-models", "tiny_models_cli", MODEL_SOURCE, "gaussian", "Gaussian")
    status, output = simflow(
        "train", tiny, "--set", "model=gaussian", "--set", "autoencoder.trainable=none", "--set",
        "sampling.guidance=0", "--out", tmp_path / "run",
    )  # fmt: skip
    assert status == 0, output
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["denoising"] > 0


def image_folder(path, classes, count=4, size=12):
    generator = torch.Generator().manual_seed(0)
    for name in classes:
        (path / name).mkdir(parents=True)
        for index in range(count):
            pixels = torch.randint(0, 256, (size, size, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(path / name / f"{index}.png")
    return path


def train_on_folder(tiny, root, out, *more):
    return simflow(
        "train", tiny, "--set", f"data={{name: image_folder, root: '{root}'}}", "--set", "evaluation.judge=none",
        "--set", "training.batch_size=4", *more, "--out", out,
    )  # fmt: skip


def test_own_images_train(tiny, tmp_path):
    root = image_folder(tmp_path / "images", ["cat", "dog"], count=12)
    status, output = train_on_folder(tiny, root, tmp_path / "run")
    assert status == 0, output


def test_one_class_is_refused_as_a_condition_and_trains_without_labels(tiny, tmp_path):
    root = image_folder(tmp_path / "images", ["cat"], count=24)
    status, output = train_on_folder(tiny, root, tmp_path / "run")
    assert status == 2
    assert "data.labels: false" in output.replace("\n", " ")
    more = ("--set", "data.labels=false", "--set", "sampling.guidance=0")
    status, output = train_on_folder(tiny, root, tmp_path / "run", *more)
    assert status == 0, output


def test_empty_image_folder_is_refused_before_the_run_directory_is_made(tiny, tmp_path):
    (tmp_path / "images").mkdir()
    status, output = train_on_folder(tiny, tmp_path / "images", tmp_path / "run")
    assert status == 2
    assert output.count("error:") == 1
    assert str(tmp_path / "images") in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "no_such.yaml"], "no such configuration"),
        (["train", "../bad.yaml"], "bad.yaml:"),
        (["config", "show", "quickstar"], "Did you mean `quickstart`"),
        (["sample", "no_such_run", "--out", "x.npz"], "is no_such_run a run directory?"),
    ],
)
def test_mistake_gets_one_message_and_a_status(arguments, message, tmp_path, monkeypatch):
    (tmp_path / "bad.yaml").write_text("a: [1\n")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    status, output = simflow(*arguments)
    assert status == 2
    assert message in output.replace("\n", " ")
    assert list(Path().iterdir()) == []


def test_run_without_checkpoint_says_so(trained, tmp_path):
    (tmp_path / "config.yaml").write_bytes((trained / "config.yaml").read_bytes())
    status, output = simflow("sample", tmp_path, "--out", tmp_path / "x.npz")
    assert status == 2
    assert "no checkpoint yet" in output


def test_config_show_prints_what_loads_again(tiny, tmp_path):
    status, output = simflow("config", "show", tiny)
    assert status == 0
    (tmp_path / "again.yaml").write_text(output)
    assert simflow("config", "show", tmp_path / "again.yaml") == (0, output)


def test_grid_has_a_row_for_each_class_that_was_asked_for(trained, tmp_path):
    status, output = simflow(
        "sample", trained, "--classes", "3,7", "--grid", tmp_path / "a" / "grid.png", "--num", 6
    )
    assert status == 0, output
    with Image.open(tmp_path / "a" / "grid.png") as grid:
        assert grid.height == 2 * 48 + 2
        assert grid.width > 3 * 48
    status, output = simflow("sample", trained, "--classes", "3,7", "--out", tmp_path / "pngs", "--num", 4)
    assert status == 0, output
    assert sorted(p.name for p in (tmp_path / "pngs").iterdir()) == [
        f"{index:06d}_class{label}.png" for index, label in enumerate((3, 7, 3, 7))
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--classes", "eleven", "--out", "s.npz"), "no class `eleven`"),
        (("--grid", "grid.jpg"), "ends in .png"),
        ((), "--grid FILE.png"),
    ],
)
def test_mistake_in_sampling_is_one_message(trained, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, output = simflow("sample", trained, *arguments)
    assert status == 2
    assert message in output
    assert not list(tmp_path.iterdir())


def test_run_is_measured_from_any_folder_and_where_its_images_moved(tiny, tmp_path, monkeypatch):
    class_folders(tmp_path / "work" / "images", {"cat": 24, "dog": 24})
    monkeypatch.chdir(tmp_path / "work")
    settings = ("data={name: image_folder, root: images}", "evaluation={num_samples: 4, num_likelihood: 2}")
    options = [word for setting in settings for word in ("--set", setting)]
    assert simflow("train", tiny, *options, "--out", "run", "--no-report")[0] == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    measure = ("evaluate", tmp_path / "work" / "run", "--only", "reconstruction", "--extractor", "none")
    assert simflow(*measure)[0] == 0
    (tmp_path / "work" / "images").rename(tmp_path / "elsewhere" / "pictures")
    status, output = simflow(*measure)
    assert status == 2
    assert "--data-root" in output
    assert simflow(*measure, "--data-root", "pictures")[0] == 0
    more = ("--set", "training.steps=6", "--allow-changed", "training.steps", "--no-report")
    status, output = simflow(
        "train", tmp_path / "work" / "run" / "config.yaml", "--out", tmp_path / "work" / "run", *more,
        "--data-root", "pictures",
    )  # fmt: skip
    assert status == 0, output
    assert "goes on after step 4 of 6" in output


def test_shell_completes_commands_configurations_and_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quiet.yaml").touch()
    (tmp_path / "quick.txt").touch()

    def completed(words):
        typed = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        environment = {"_SIMFLOW_COMPLETE": "complete_bash", **typed}
        return CliRunner().invoke(app, [], env=environment, prog_name="simflow").output.split()

    assert completed("simflow tra") == ["train"]
    assert completed("simflow train qui") == ["quickstart", "quiet.yaml"]
    assert "imagenet256/simflow" in completed("simflow config show imagenet256/s")
