"""`simflow init`: what is seen in a folder, and a configuration that loads, fits it and gives reasons."""

from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
import yaml
from PIL import Image

from simflow_plugin.config.loading import load_config
from simflow_plugin.errors import ConfigError, DataError
from simflow_plugin.runs.parts import build_dataset
from simflow_plugin.starter import first_configuration as first
from simflow_plugin.starter import trial_steps
from simflow_plugin.starter.first_configuration import configuration_text, fit_steps, rounded_down
from simflow_plugin.starter.folder_facts import look_at
from simflow_plugin.starter.network_sizes import IMAGE_SIZES, choose_image_size, choose_sizes
from simflow_plugin.starter.trial_steps import Timing, share_between, time_here
from tests.commands import simflow
from tests.data.makers import CORRUPT

TIMING = Timing(step=0.1, grid=2.0, grid_images=16)


def make_images(root, classes=("cat", "dog"), count=24, side=40, grey=False):
    """Write `count` pictures for each class; a class of "" is no subfolder."""
    for number, name in enumerate(classes):
        for index in range(count):
            colour = (index, index, index) if grey else (index, 100 * number, 200)
            path = root / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (side, side), colour).save(path)
    return root


@pytest.fixture(autouse=True)
def _no_trial(monkeypatch):
    monkeypatch.setattr(first, "time_here", lambda config: TIMING)


def test_a_busy_machine_is_said(tmp_path, monkeypatch):
    make_images(tmp_path / "images")
    assert "keep this machine busy" not in initialise(tmp_path / "images", tmp_path)[1]
    monkeypatch.setattr(first, "time_here", lambda config: replace(TIMING, share=0.2))
    status, output, _ = initialise(tmp_path / "images", tmp_path, "--overwrite")
    assert status == 0
    assert "busy: with it to yourself, about 2 min" in output.replace("\n", " ")


def test_work_of_one_thread_is_no_sign_of_other_programs():
    """From 1 s to 5 s of work in any span of time: of the time that it could run, it waited for none, or half."""
    ran = 10**9
    assert share_between((ran, 7), (5 * ran, 7)) == 1.0
    assert share_between((ran, 7), (5 * ran, 7 + 4 * ran)) == 0.5
    assert share_between(None, (5 * ran, 0)) == share_between((0, 0), (0, 0)) == 1.0


def initialise(folder, tmp_path, *options):
    out = tmp_path / "first.yaml"
    return *simflow("init", folder, "--out", out, *options), out


@pytest.mark.parametrize(
    "classes", [("cat", "dog"), ("",), ("only",), ("train/cat", "train/dog", "val/cat", "val/dog")]
)
@pytest.mark.parametrize("image_size", [None, 64])
def test_configuration_of_any_layout_loads_and_opens_its_images(tmp_path, classes, image_size):
    root = make_images(tmp_path / "my: pictures #1", classes)
    options = [] if image_size is None else ["--image-size", str(image_size)]
    status, output, out = initialise(root, tmp_path, *options)
    assert status == 0, output
    config = load_config(str(out))
    train, test = (build_dataset(config, split) for split in ("train", "test"))
    assert len(train) > 0
    assert len(test) > 0
    has_classes = len(classes) > 1
    assert (train.num_classes is not None) == has_classes
    assert (config.sampling.guidance > 0) == has_classes
    assert config.image_size == (image_size or 32)
    assert config.training.batch_size <= len(train)


def test_steps_fill_the_minutes_that_are_given(tmp_path):
    root = make_images(tmp_path / "pictures")
    steps = []
    for minutes in (2, 20):
        out = initialise(root, tmp_path, "--minutes", str(minutes), "--overwrite")[2]
        steps.append(load_config(str(out)).training.steps)
    for minutes, count in zip((2, 20), steps, strict=True):
        schedule = fit_steps(TIMING, minutes)
        assert schedule.steps == count
        assert 0.85 * 60 * minutes <= schedule.seconds <= 60 * minutes


def test_what_was_seen_stands_in_the_file_and_on_the_terminal(tmp_path):
    root = make_images(tmp_path / "pictures", grey=True)
    (root / "cat" / "broken.png").write_bytes(CORRUPT)
    (root / "cat" / "notes.txt").write_text("no image")
    _, output, out = initialise(root, tmp_path)
    text = out.read_text()
    for words in ("2 classes: cat, dog", "grey, shorter side 40 pixels"):
        assert words in output
        assert words in text
    assert "about" in text.splitlines()[0]
    assert f"simflow train {out}" in output


def test_existing_file_is_kept_unless_told_otherwise(tmp_path):
    root = make_images(tmp_path / "pictures", count=12)
    (tmp_path / "first.yaml").write_text("mine")
    status, output, out = initialise(root, tmp_path)
    assert status == 2
    assert "--overwrite" in output
    assert out.read_text() == "mine"
    assert initialise(root, tmp_path, "--overwrite")[0] == 0


def test_missing_folder_of_the_file_is_refused_before_timing_and_not_made(tmp_path, monkeypatch):
    root = make_images(tmp_path / "pictures")
    timed = Mock()
    monkeypatch.setattr(first, "time_here", timed)
    status, output = simflow("init", root, "--out", tmp_path / "nodir" / "x.yaml")
    assert status == 2
    assert "there is no folder" in output
    assert not timed.called
    assert not (tmp_path / "nodir").exists()


def test_folder_without_images_is_refused(tmp_path):
    with pytest.raises(DataError, match="no images"):
        look_at(tmp_path)


def test_unknown_image_size_names_the_choices():
    with pytest.raises(ConfigError, match="16, 32, 64, 128, 256"):
        choose_sizes(48, 100, "cpu")


@pytest.mark.parametrize(
    ("side", "device", "expected"), [(10, "cpu", 16), (40, "cpu", 32), (500, "cpu", 32), (500, "cuda", 128)]
)
def test_image_size_is_what_images_fill_and_the_device_trains(tmp_path, side, device, expected):
    facts = look_at(make_images(tmp_path / "pictures", count=11, side=side))
    assert choose_image_size(facts, device) == expected


@pytest.mark.parametrize("image_size", IMAGE_SIZES)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_size_gives_a_configuration_that_loads(tmp_path, image_size, device):
    facts = look_at(make_images(tmp_path / "pictures", count=11))
    sizes = choose_sizes(image_size, facts.num_train, device)
    timing = fit_steps(Timing(1.0, 10.0, 16), 10)
    (tmp_path / "c.yaml").write_text(configuration_text("c", facts, sizes, timing, "here"))
    assert load_config(str(tmp_path / "c.yaml")).image_size == image_size


def test_trial_times_real_steps_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trial_steps, "SCHEDULER", tmp_path / "nothing")
    root = make_images(tmp_path / "pictures", count=12, side=16)
    facts = look_at(root)
    values = yaml.safe_load(
        configuration_text(
            "c", facts, choose_sizes(16, facts.num_train, "cpu"), fit_steps(Timing(1, 1, 16), 1), ""
        )
    )
    values["autoencoder"] |= {"widths": [8, 8], "norm_num_groups": 4}
    values["model"]["flow"] |= {"width": 16, "layers_per_block": [1, 1], "head_dim": 8}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    timing = time_here(load_config(str(tmp_path / "c.yaml")))
    assert timing.step > 0
    assert timing.grid > 0
    assert timing.grid_images == 16
    assert timing.device_type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert timing.share == 1.0  # the system does not say
    assert timing.peak_bytes > 10**7
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", "c.yaml"}


@pytest.mark.parametrize(
    ("value", "expected"), [(1234.5, 1200), (99.9, 99), (100, 100), (7, 7), (20_900, 20_000)]
)
def test_rounding_keeps_two_digits_and_never_exceeds(value, expected):
    assert rounded_down(value) == expected
