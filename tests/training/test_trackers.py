"""Trackers against what they really write: TensorBoard's event files and wandb's offline store."""

import json
import struct

import pytest

from simflow_plugin.errors import ConfigError
from simflow_plugin.runs.run_directory import RunDirectory
from simflow_plugin.train import train
from simflow_plugin.training.interrupts import Interrupted
from simflow_plugin.training.trackers import is_logged_in, log_final_metrics, wandb_mode
from tests.training.tiny_runs import StopAfter, losses_of, make_trainer, tiny_config, tiny_values

WANDB = {"name": "wandb", "project": "digits", "entity": "us", "tags": ["tiny", "test"], "mode": "offline"}


def values_with(tracker, **training):
    values = tiny_values(steps=4, log_every=1, sample_every=2, checkpoint_every=4, **training)
    values["evaluation"] = {"num_samples": 4, "num_likelihood": 8}
    return {**values, "tracker": tracker}


def events_of(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(
        str(run / "tensorboard"), size_guidance={"images": 0, "scalars": 0, "tensors": 0}
    )
    return events.Reload()


def records_of(run):
    """Return the records of all offline stores of a run: a log of LevelDB's format, with protocol buffers inside."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for file in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        content, position, parts = file.read_bytes(), 7, b""
        while position + 7 <= len(content):
            if 32768 - position % 32768 < 7:  # the rest of a block is padding
                position += 32768 - position % 32768
                continue
            _, length, kind = struct.unpack("<IHB", content[position : position + 7])
            parts += content[position + 7 : position + 7 + length]
            position += 7 + length
            if kind in (1, 4):  # a whole record, or the last part of one
                record = Record()
                record.ParseFromString(parts)
                found.append((file.parent.name, record))
                parts = b""
    return found


def test_tensorboard_has_losses_grids_metrics_and_configuration(tmp_path):
    run = tmp_path / "run"
    config = tiny_config(values=values_with("tensorboard"))
    train(config, RunDirectory(run), [])
    events = events_of(run)
    rows = losses_of(run)
    points = {point.step: point.value for point in events.Scalars("nll")}
    assert points == {row["step"]: pytest.approx(row["nll"], rel=1e-6) for row in rows}
    assert [image.step for image in events.Images("samples")] == [2, 4]
    assert events.Images("final/reconstructions")[0].encoded_image_string.startswith(b"\x89PNG")
    assert [point.step for point in events.Scalars("final/psnr")] == [4]
    text = events.Tensors("configuration/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "image_size: 8" in text


def test_resumed_run_goes_on_in_the_same_curves(tmp_path):
    config = tiny_config(values=values_with("tensorboard", keep_checkpoints=5))
    with pytest.raises(Interrupted):
        make_trainer(config, tmp_path, StopAfter(3)).train()
    make_trainer(config, tmp_path).train()
    assert [point.step for point in events_of(tmp_path).Scalars("loss")] == [1, 2, 3, 4]


def test_wandb_store_holds_one_page_for_a_run_that_was_resumed(tmp_path):
    wandb = pytest.importorskip("wandb")
    config = tiny_config(values=values_with([WANDB, "tensorboard"]))
    with pytest.raises(Interrupted):
        make_trainer(config, tmp_path, StopAfter(2)).train()
    make_trainer(config, tmp_path).train()
    run = RunDirectory(tmp_path)
    run.summary_file.write_text(json.dumps({"step": 4, "psnr": 21.5, "split": "test"}))
    run.reconstructions_file.write_bytes((run.samples / "step_00000004.png").read_bytes())
    log_final_metrics(run, config)
    wandb.teardown()  # closes the stores
    records = records_of(tmp_path)
    runs = [record.run for _, record in records if record.WhichOneof("record_type") == "run"]
    assert {run.run_id for run in runs} == {RunDirectory(tmp_path).run_id}
    assert {(run.project, run.entity, tuple(run.tags)) for run in runs} == {
        ("digits", "us", ("tiny", "test"))
    }
    steps, pictures = set(), set()
    for _, record in records:
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            step = int(items["_step"])
            steps |= {step} if "nll" in items else set()
            pictures |= {step} if any(name.startswith("samples") for name in items) else set()
    assert steps == {1, 2, 3, 4}
    assert pictures == {2, 4}
    summaries = [
        record.summary.update for _, record in records if record.WhichOneof("record_type") == "summary"
    ]
    finals = {
        item.key or "/".join(item.nested_key): item.value_json for update in summaries for item in update
    }
    assert finals["final/psnr"] == "21.5"
    assert any(name.startswith("final/reconstructions") for name in finals)
    assert [point.step for point in events_of(tmp_path).Scalars("nll")] == [1, 2, 3, 4]


def test_offline_only_where_nobody_is_logged_in(monkeypatch, tmp_path):
    (options,) = tiny_config(values=values_with("wandb")).tracker
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert wandb_mode(options) == "offline"
    (tmp_path / "netrc").write_text("machine elsewhere.org login user password p\n")
    assert not is_logged_in()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password p\n")
    assert wandb_mode(options) == "online"
    (tmp_path / "netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert wandb_mode(options) == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode(options) is None
    assert wandb_mode(options.model_copy(update={"mode": "offline"})) == "offline"


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("none", []),
        (None, []),
        ("wandb", ["wandb"]),
        ({"name": "wandb", "tags": ["a"]}, ["wandb"]),
        (["wandb", "tensorboard"], ["wandb", "tensorboard"]),
    ],
)
def test_trackers_may_be_written_as_names_mappings_or_a_list(written, names):
    config = tiny_config(values=values_with(written))
    assert [tracker.name for tracker in config.tracker] == names


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"name": "tensorboard", "project": "p"}, "project has no effect with tensorboard"),
        (["wandb", "wandb"], "named twice"),
        ("mlflow", "wandb.*tensorboard"),
        ({"name": "wandb", "projct": "p"}, "Did you mean `project`"),
    ],
)
def test_trackers_that_cannot_be_are_refused(written, message):
    with pytest.raises(ConfigError, match=message):
        tiny_config(values=values_with(written))
