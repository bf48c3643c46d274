"""Configuration: what is refused, and that the message says where, what and what to do."""

from pathlib import Path

import pytest
import torch

from simflow_plugin import registry
from simflow_plugin.config.checks import check_before_training
from simflow_plugin.config.loading import load_config
from simflow_plugin.config.yaml_source import find_config, shipped_configs
from simflow_plugin.contracts import GenerativeModel
from simflow_plugin.errors import ConfigError
from simflow_plugin.options import Options

MINIMAL = """\
image_size: 16
data: digits
autoencoder: {name: kl, factor: 2, widths: [8, 16], norm_num_groups: 4, layers_per_block: 1}
model:
  name: simflow
  flow: {width: 32, layers_per_block: [1, 1], head_dim: 16}
training: {steps: 10}
"""


@pytest.fixture
def write(tmp_path):
    def make(text: str, name: str = "a.yaml") -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return make


def test_model_is_a_name_or_a_mapping(write):
    mapping = load_config(write(MINIMAL))
    name = load_config(
        write(
            MINIMAL.replace(
                "  name: simflow\n  flow: {width: 32, layers_per_block: [1, 1], head_dim: 16}\n", ""
            ).replace("model:", "model: simflow")
        )
    )
    assert mapping.model.name == name.model.name == "simflow"
    assert mapping.model.options["flow"]["width"] == 32


@pytest.mark.parametrize(
    "method", ["jacobi", "{name: jacobi, segment: 16}", "[cached, {name: cached, step: eager}]"]
)
def test_sampling_method_takes_options(write, method):
    config = load_config(write(MINIMAL), [f"model.sampling.method={method}"])
    assert load_config(write(config.to_yaml(), "b.yaml")) == config


def test_resolved_config_reads_back_equal(write):
    config = load_config(write(MINIMAL))
    assert load_config(write(config.to_yaml(), "b.yaml")) == config


def test_override_wins_over_the_file(write):
    config = load_config(write(MINIMAL), ["training.steps=7", "optimizer.lr=2e-3", "model.flow.width=64"])
    assert (config.training.steps, config.optimizer.lr, config.model.options["flow"]["width"]) == (
        7,
        2e-3,
        64,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\n", r"a\.yaml:\d+: not YAML"),
        ("a:\n- b\n c: d\n", r"a\.yaml:\d+: not YAML"),
        ("\tx: 1\n", r"a\.yaml:\d+: not YAML"),
        ("- a\n- b\n", "expected a mapping"),
        ("name: x\ndata: !include foo\n", r"a\.yaml:2: data: .*tag '!include'.*extends: FILE"),
        ("name: x\ndata: !include [foo]\n", r"a\.yaml:2: data: the tag !include is not known"),
        ("name: 2021-13-45\n", r"a\.yaml:1: name: 2021-13-45 looks like a date .*Put it in quotes"),
        (
            "name: x\nmodel: &m\n  flow: *m\n",
            r"a\.yaml:\d: model\.flow: an alias .*within what it stands for",
        ),
        ("data: &d [*d]\n", r"a\.yaml:1: data\.0: an alias"),
        ("? [a, b]\n: c\n", r"a\.yaml:1: the file: a key is no name"),
        ("data: " + "[" * 3000, r"a\.yaml:1: nested too deep"),
        (MINIMAL + "image_size: 32\n", r"a\.yaml:8: image_size: stands twice"),
        (MINIMAL.replace("image_size: 16\n", ""), "image_size: required"),
        (
            MINIMAL.replace("width: 32", "widht: 32"),
            r"a\.yaml:6: model\.flow\.widht: unknown key\. Did you mean `width`\?",
        ),
        (
            MINIMAL + "trainig: 3\n",
            r"a\.yaml:8: trainig: unknown key\. Did you mean `training`\? Known: .*autoencoder",
        ),
        (
            MINIMAL.replace("simflow", "simfloww"),
            r"a\.yaml:5: model: .*unknown name `simfloww`.*Did you mean `simflow`",
        ),
        (
            MINIMAL + "objective: {reconstruction: {}}\n",
            r"a\.yaml:8: objective\.reconstruction is empty",
        ),
    ],
)
def test_mistake_in_a_file_names_file_line_and_key(write, text, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(text))


def test_alias_of_a_finished_value_is_read(write):
    text = MINIMAL.replace("data: digits", "data: &name digits") + "name: *name\n"
    assert load_config(write(text)).name == "digits"


@pytest.mark.parametrize("value", ["2021-13-45", "!include foo", "&a [*a]", "[1", "{a: 1, a: 2}"])
def test_override_that_is_no_plain_data_names_itself(write, value):
    with pytest.raises(ConfigError, match=r"^--set name: "):
        load_config(write(MINIMAL), [f"name={value}"])


def test_numbers_of_an_override_read_as_those_of_a_file(write):
    config = load_config(write(MINIMAL), ["optimizer={lr: 2e-3}"])
    assert config.optimizer.lr == 2e-3


@pytest.mark.parametrize("refused", ["read_text", "is_file"])
def test_file_that_may_not_be_read_is_named(write, monkeypatch, refused):
    path = write(MINIMAL)

    def deny(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, refused, deny)
    with pytest.raises(ConfigError, match=r"a\.yaml: cannot be read \(Permission denied\)"):
        load_config(path)


def test_extended_file_is_merged_key_by_key(write):
    write(MINIMAL, "base.yaml")
    config = load_config(write("extends: base.yaml\nmodel: {flow: {width: 48}}\n", "child.yaml"))
    assert config.model.options["flow"]["width"] == 48
    assert config.training.steps == 10


def test_extending_in_a_circle_is_refused(write):
    write("extends: b.yaml\n", "a.yaml")
    with pytest.raises(ConfigError, match="circle"):
        load_config(write("extends: a.yaml\n", "b.yaml"))


@pytest.mark.parametrize("model", ["dit", "{name: dit}", "{name: dit, backbone: {depth: 2}}"])
def test_another_part_drops_the_options_of_the_one_it_replaces(write, model):
    write(MINIMAL.replace("layers_per_block: 1}", "layers_per_block: 1, trainable: none}"), "base.yaml")
    config = load_config(write(f"extends: base.yaml\nmodel: {model}\n", "child.yaml"))
    assert config.model.name == "dit"
    assert "flow" not in config.model.options


def test_same_part_by_name_keeps_the_options_of_the_one_it_extends(write):
    write(MINIMAL, "base.yaml")
    child = "extends: base.yaml\nmodel: {name: simflow, flow: {width: 48}}\n"
    config = load_config(write(child, "child.yaml"))
    assert config.model.options["flow"]["head_dim"] == 16


def test_model_set_to_null_leaves_the_autoencoder_alone(write):
    write(MINIMAL, "base.yaml")
    assert load_config(write("extends: base.yaml\nmodel: null\n", "child.yaml")).model is None


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            "autoencoder.posterior.std=-1",
            "autoencoder.posterior.std: Input should be greater than 0; found -1.",
        ),
        (
            "autoencoder.posterior.std=[1, -2]",
            "autoencoder.posterior.std.1: Input should be greater than 0; found -2.",
        ),
        (
            "autoencoder.posterior.std=much",
            "autoencoder.posterior.std: Input should be a valid number or a valid list; found 'much'.",
        ),
        ("data=null", "data: expected a name or a mapping with a name; found null."),
        ("model={flow: {}}", "model: expected a name or a mapping with a name; found {'flow': {}}."),
        ("training=3", "training: Input should be a mapping; found 3."),
        ("training.ema=0.99", "training.ema: Input should be a mapping; found 0.99."),
        ("training.ema={decay: 1}", "training.ema.decay: Input should be less than 1; found 1."),
        (
            "training.ema={kind: power, decay: 0.9}",
            "training.ema.decay: unknown key. Known: includes_autoencoder, kind, lengths, snapshot_every.",
        ),
        (
            "training.ema={kind: power, lenghts: [0.05, 0.1]}",
            "training.ema.lenghts: unknown key. Did you mean `lengths`? Known: includes_autoencoder, kind, lengths, "
            "snapshot_every.",
        ),
        (
            "training.ema={warmpu: false}",
            "training.ema.warmpu: unknown key. Did you mean `warmup`? Known: decay, includes_autoencoder, kind, "
            "warmup.",
        ),
        (
            "training.ema={kind: power, lengths: [0.1, 0.1]}",
            "training.ema: lengths must differ from each other; found {'kind': 'power', 'lengths': [0.1, 0.1]}.",
        ),
        (
            "objective.reconstruction.l2=much",
            "objective.reconstruction.l2: expected a weight or a mapping with a weight; found 'much'.",
        ),
    ],
)
def test_a_mistake_is_one_line_in_words_of_the_file(write, change, line):
    with pytest.raises(ConfigError) as error:
        load_config(write(MINIMAL), [change])
    assert str(error.value) == f"--set {change.partition('=')[0]}: {line}"


@pytest.mark.parametrize(
    "change",
    [
        "optimizer.betas=[0.9, 1.5]",
        "optimizer.betas=[-0.1, 0.95]",
        "objective.adversarial.betas=[0.5, 1]",
        "optimizer.lr=.inf",
        "optimizer.eps=.nan",
        "objective.beta=.inf",
        "model.flow.class_dropout=.nan",
    ],
)
def test_number_without_meaning_is_refused(write, change):
    with pytest.raises(ConfigError, match=rf"--set {change.partition('=')[0]}: .*Input should be "):
        load_config(write(MINIMAL), [change])


ADVERSARIAL = "objective.adversarial={width: 8}"
FROZEN = ["model=starflow", "autoencoder.trainable=none"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["training.steps"], r"--set training\.steps: expected key\.sub=value"),
        (["training.steps=-1"], r"--set training\.steps: training\.steps: .*greater than 0.*found -1"),
        (["model={name: simflow, flow: {width: -1}}"], r"^--set model: model\.flow\.width: "),
        (["model.sampling.method={name: jacobi, segments: 16}"], "segments"),
        (
            ["image_size=31"],
            r"--set image_size: image_size 31 is not divisible by the autoencoder's factor 2.*30 or 32",
        ),
        (["model.flow.patch_size=3"], r"patch_size: 3 does not divide the latent grid 8 x 8"),
        (["autoencoder.posterior.std=0"], r"autoencoder\.posterior\.std"),
        (["training.accumulation=3"], r"batch_size 64 is not divisible by training\.accumulation 3"),
        (["autoencoder.factor=3"], r"factor"),
        (
            ["sampling.guidance=1.0", "model.flow.class_dropout=0"],
            r"guidance 1\.0 needs an unconditional model, but model\.flow\.class_dropout is 0",
        ),
        (["model=null", "autoencoder.trainable=none"], "nothing to train"),
        (
            [*FROZEN, ADVERSARIAL],
            r"--set objective\.adversarial: .*no effect with autoencoder\.trainable: none",
        ),
        (
            [*FROZEN, "optimizer.autoencoder_lr=1e-5"],
            r"optimizer\.autoencoder_lr 1e-05 has no effect with autoencoder\.trainable: none",
        ),
        (
            ["optimizer.schedule=constant", "optimizer.final_lr_ratio=0.1"],
            r"optimizer\.final_lr_ratio 0\.1 has no effect with optimizer\.schedule: constant",
        ),
        (["objective.kl_weight=5"], r"kl_weight 5 has no effect with a posterior of constant variance"),
        (
            ["objective.reconstruction.l2={weight: 1, options: {nett: 2}}"],
            r"objective\.reconstruction\.l2\.options\.nett: unknown key",
        ),
        (["model=null", "alignment={encoder: dinov2-b}"], r"alignment has no effect with model: null"),
        (
            ["alignment={encoder: dinov2-b, mode: repa, autoencoder_weight: 1.5}"],
            r"alignment\.autoencoder_weight 1\.5 has no effect with alignment\.mode: repa",
        ),
        (
            ["optimizer.warmup_steps=11"],
            r"--set optimizer\.warmup_steps: .*11 is more than training\.steps 10",
        ),
        (
            ["evaluation.judge=digits", "data=fashion-mnist"],
            r"--set evaluation\.judge: .*`digits` only, not `fashion-mnist`",
        ),
        (
            ["evaluation.judge=digits", "evaluation.num_samples=19"],
            r"--set evaluation\.num_samples: .*num_samples 19 is too few .*two samples of each of 10 classes: 20",
        ),
    ],
)
def test_values_that_clash_or_have_no_effect_are_refused_before_anything_is_built(write, changes, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(MINIMAL), changes)


@pytest.mark.parametrize(
    "changes", [["optimizer.warmup_steps=10"], ["evaluation={judge: digits, num_samples: 20}"]]
)
def test_least_that_makes_sense_is_accepted(write, changes):
    assert load_config(write(MINIMAL), changes) != load_config(write(MINIMAL))


def judged_by_encoder(write, checkpoint, num_samples=20):
    evaluation = (
        f"evaluation={{judge: {{name: encoder, checkpoint: {checkpoint}}}, num_samples: {num_samples}}}"
    )
    return load_config(write(MINIMAL), [evaluation])


def test_judge_without_its_file_is_refused_before_training_and_reads_everywhere(write, tmp_path):
    config = judged_by_encoder(write, "no_such.safetensors")
    with pytest.raises(
        ConfigError, match=r"no_such\.safetensors: no such file\..*pretrain-encoder --data digits"
    ):
        check_before_training(config, 10)


def test_judge_of_too_few_samples_or_no_labels_is_refused_before_training(write, tmp_path):
    (tmp_path / "judge.safetensors").touch()
    config = judged_by_encoder(write, tmp_path / "judge.safetensors")
    check_before_training(config, 10)
    with pytest.raises(ConfigError, match="two samples of each of 11 classes"):
        check_before_training(config, 11)
    with pytest.raises(ConfigError, match="needs labels"):
        check_before_training(config, None)


def test_tracker_without_its_package_is_refused_before_training(write, monkeypatch):
    config = load_config(write(MINIMAL), ["tracker=wandb"])
    monkeypatch.setattr("simflow_plugin.config.checks.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'simflow-plugin\[wandb\]'"):
        check_before_training(config, 10)


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_configuration_loads_and_reads_back_equal(write, name):
    config = load_config(name)
    assert load_config(write(config.to_yaml(), "again.yaml")) == config


def test_resolved_autoencoder_has_its_numbers_and_reads_back_equal(write):
    text = MINIMAL.replace("factor: 2, widths: [8, 16], norm_num_groups: 4, layers_per_block: 1", "factor: 2")
    config = load_config(write(text))
    options = config.autoencoder.options
    assert (options["widths"], options["norm_num_groups"], options["latent_channels"]) == ([64, 128], 16, 4)
    assert options["posterior"]["std"] == 0.5
    unknown = {key for key, value in options.items() if value is None}
    assert unknown == {"architecture", "pretrained", "subfolder"}
    assert load_config(write(config.to_yaml(), "b.yaml")) == config


def test_what_pretrained_weights_decide_stays_open(write):
    config = load_config(
        write(MINIMAL), ["autoencoder={name: kl, pretrained: weights/vae, trainable: none}", "model=starflow"]
    )
    assert config.autoencoder.options["widths"] is None


class Mute(GenerativeModel):
    """A model without hidden tokens."""

    class Options(Options):
        pass

    def __init__(self, options, context):
        super().__init__()

    def training_losses(self, latents, labels, features, random):
        return {"denoising": latents.square().mean()}

    def sample(self, labels, shape, guidance, random):
        return torch.zeros(shape)


def test_alignment_of_a_model_without_hidden_tokens_is_refused(monkeypatch):
    monkeypatch.setattr(registry.MODELS, "get", lambda name: Mute)
    aligned = [
        "model={name: mute}",
        "autoencoder.trainable=none",
        "alignment={encoder: dinov2-b, mode: repa}",
    ]
    with pytest.raises(ConfigError, match="model `mute` gives no hidden tokens to align"):
        load_config("quickstart", [*aligned, "sampling.guidance=0"])


def test_model_that_detaches_is_not_told_to_align_its_way_out():
    with pytest.raises(ConfigError, match="model `starflow` detaches the latents") as error:
        load_config("quickstart", ["model={name: starflow}"])
    assert "repa_e" not in str(error.value)


def test_model_on_pretrained_latents_is_checked_before_they_are_read():
    with pytest.raises(ConfigError, match="alignment.layer is 9"):
        load_config("studies/headline/sit_repa_e", ["alignment.layer=9"])


def test_decay_of_the_average_under_its_earlier_name_is_read(write):
    """Run directories of earlier versions hold it."""
    config = load_config(write(MINIMAL), ["training.ema_decay=0.5"])
    assert config.training.ema == load_config(write(MINIMAL), ["training.ema.decay=0.5"]).training.ema
    assert "ema_decay" not in config.to_yaml()
    with pytest.raises(ConfigError, match=r"ema_decay is the earlier name of ema\.decay: give one of them"):
        load_config(write(MINIMAL), ["training.ema_decay=0.5", "training.ema.decay=0.5"])


def test_judge_of_a_shipped_configuration_named_again_keeps_its_checkpoint():
    assert load_config("fashion-mnist", ["evaluation.judge=encoder"]) == load_config("fashion-mnist")


def test_judge_of_an_extended_file_is_removed_with_its_checkpoint(write):
    child = "extends: fashion-mnist.yaml\nevaluation: {judge: none, judge_checkpoint: null}\n"
    assert load_config(write(child)).evaluation.judge is None


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("quikstart", "quickstart"), ("image-folder", "image-folder-small"), ("repa_e", "repa_e")],
)
def test_wrong_name_of_a_configuration_shows_three_at_most(wrong, right):
    with pytest.raises(ConfigError) as caught:
        find_config(wrong)
    message = str(caught.value)
    assert right in message
    assert message.count("`") <= 6
    assert "simflow config list" in message
    assert len(message) < 300


def test_mistake_between_keys_shows_their_values_only():
    ema = "training.ema={kind: power, lengths: [0.12, 0.12], snapshot_every: 1000}"
    with pytest.raises(ConfigError) as caught:
        load_config("quickstart", [ema])
    message = str(caught.value)
    assert "found lengths: [0.12, 0.12]." in message
    assert "snapshot_every" not in message
