"""Fine-tuning: a run that starts from the weights of another one."""

import pytest
import torch

from simflow_plugin import load
from simflow_plugin.config.checks import check_config
from simflow_plugin.errors import ConfigError, WeightsError
from simflow_plugin.runs.initialisation import Classes, start_from
from simflow_plugin.runs.loaded_run import load_run
from simflow_plugin.runs.parts import build_parts
from simflow_plugin.runs.run_directory import RunDirectory
from simflow_plugin.train import train
from tests.evaluation.runs import make_run
from tests.training.tiny_runs import tiny_config, tiny_values

DIGITS = Classes(10, [str(digit) for digit in range(10)])


@pytest.fixture(scope="module", params=["simflow", "sit"])
def source(request, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / request.param, request.param), request.param


def config_from(source, weights="averaged", **changes):
    path, name = source
    values = {**tiny_values(name, steps=2, sample_every=2, checkpoint_every=2), **changes}
    values["training"]["init_from"] = {"source": str(path), "weights": weights}
    return tiny_config(values=values)


def different_tensors(module, other):
    ours, theirs = module.state_dict(), other.state_dict()
    return {n for n in ours if n not in theirs or not torch.equal(ours[n], theirs[n])}


@pytest.mark.parametrize("weights", ["averaged", "last"])
def test_parts_start_from_the_weights_of_the_source(source, weights):
    config = config_from(source, weights, optimizer={"lr": 5e-5})
    parts = build_parts(config, 10)
    notes = start_from(config, parts, DIGITS)
    loaded = load_run(source[0], averaged=weights == "averaged")
    assert not different_tensors(parts.joint.autoencoder, loaded.autoencoder)
    assert not different_tensors(parts.joint.model, loaded.model)
    assert len(notes) == 1
    assert f"step 4, {'averaged (EMA)' if weights == 'averaged' else 'last training'} weights" in notes[0]


@pytest.mark.parametrize(
    "classes", [Classes(3, ["a", "b", "c"]), Classes(10, list("abcdefghij"))], ids=["number", "names"]
)
def test_new_set_of_classes_gets_a_new_table_and_says_so(source, classes):
    config = config_from(source)
    fresh, parts = build_parts(config, classes.count), build_parts(config, classes.count)
    notes = start_from(config, parts, classes)
    loaded = load_run(source[0])
    new = different_tensors(parts.joint.model, loaded.model)
    assert new
    assert all("table" in name for name in new)
    assert not new & different_tensors(parts.joint.model, fresh.joint.model)
    assert not different_tensors(parts.joint.autoencoder, loaded.autoencoder)
    said = "3 classes instead of 10 classes" if classes.count == 3 else "classes of other names"
    assert said in notes[1]
    assert next(iter(new)) in notes[1]


def test_data_without_classes_leaves_the_table_out(source):
    config = config_from(source)
    parts = build_parts(config, None)
    notes = start_from(config, parts, Classes(None, None))
    assert not different_tensors(parts.joint.model, load_run(source[0]).model)
    assert "no classes instead of 10 classes" in notes[1]


def test_new_alignment_head_starts_anew(source):
    config = config_from(
        (source[0], "simflow") if source[1] == "simflow" else source,
        alignment={"encoder": "toy", "projector_dim": 8, "mode": "repa", "weight": 0.1},
    )
    parts = build_parts(config, 10)
    notes = start_from(config, parts, DIGITS)
    new = different_tensors(parts.joint.model, load_run(source[0]).model)
    assert new == {name for name in parts.joint.model.state_dict() if name.startswith("alignment.")}
    assert "new alignment head" in notes[1]


def test_source_of_another_architecture_is_refused(source):
    config = config_from(source)
    wide = config.autoencoder.model_copy(
        update={"options": {**config.autoencoder.options, "widths": [8, 24]}}
    )
    config = config.model_copy(update={"autoencoder": wide})
    with pytest.raises(WeightsError, match=r"init_from .*autoencoder: weights of another architecture"):
        start_from(config, build_parts(config, 10), DIGITS)


def test_exported_folder_is_a_source_too(source, tmp_path):
    load(source[0]).save_pretrained(tmp_path / "out")
    config = config_from((tmp_path / "out", source[1]))
    parts = build_parts(config, 10)
    start_from(config, parts, DIGITS)
    assert not different_tensors(parts.joint.model, load_run(source[0]).model)


def test_missing_source_is_refused_before_the_directory_is_made(tmp_path):
    config = config_from((tmp_path / "nothing", "simflow"))
    check_config(config)  # the same on every machine
    with pytest.raises(ConfigError, match="nothing"):
        train(config, RunDirectory(tmp_path / "run"), [], report=False)
    assert not (tmp_path / "run").exists()


def test_fine_tuned_run_starts_there_and_resumes_without_its_source(tmp_path, capsys):
    path = make_run(tmp_path / "source")
    values = tiny_values(steps=2, sample_every=2, checkpoint_every=2)
    values["optimizer"] = {"lr": 1e-12, "weight_decay": 0.0}
    values["training"]["init_from"] = str(path)
    config = tiny_config(values=values)
    train(config, RunDirectory(tmp_path / "run"), [], report=False)
    assert "averaged (EMA) weights" in capsys.readouterr().out
    expected, found = load_run(path).model, load_run(tmp_path / "run", averaged=False).model
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, atol=1e-6, rtol=1e-6)
    path.rename(tmp_path / "moved")
    train(config, RunDirectory(tmp_path / "run"), [], report=False)
