"""The sections of a configuration, as typed options.

A part (`data`, `autoencoder`, `model`, ...) is a name or a mapping with a name: `model: simflow`, or
`model: {name: simflow, flow: {...}}`; its registry stands beside its type.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from simflow_plugin.config.average_options import Average, ExponentialAverage, from_earlier_keys
from simflow_plugin.local_paths import LocalPathOrName
from simflow_plugin.losses.options import AdversarialOptions
from simflow_plugin.options import MomentDecay, Options
from simflow_plugin.registry import (
    AUTOENCODERS,
    DATASETS,
    ENCODERS,
    JUDGES,
    MODELS,
    RECONSTRUCTION_LOSSES,
    Part,
)

MOST_IMAGES = 1 << 20
"""Of a batch; a larger number is a mistake, not a setting."""
FOLDER_NAME = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,99}")


def _weighted(value: Any) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return {"weight": value}
    if isinstance(value, (dict, WeightedLoss)):
        return value
    raise ValueError("expected a weight or a mapping with a weight")


class WeightedLoss(Options):
    """A reconstruction loss with its weight; written as a number, or as `{weight: ..., options: {...}}`."""

    weight: float = Field(gt=0, description="factor of this loss in the objective")
    options: dict[str, Any] = Field(default_factory=dict, description="of this loss, by name")


class Objective(Options):
    """L = sum of reconstruction terms + beta * model terms (+ KL) (+ adversarial); alignment has its own section."""

    reconstruction: Annotated[
        dict[str, Annotated[WeightedLoss, BeforeValidator(_weighted)]], RECONSTRUCTION_LOSSES
    ] = Field(
        default_factory=lambda: {"l2": WeightedLoss(weight=20.0)},
        description="loss name -> weight; against beta 1 per latent dimension l2: 1 would let the mean collapse",
    )
    beta: float = Field(
        1.0, ge=0, description="weight of the model's own terms (NLL in nats per latent dimension)"
    )
    kl_weight: float = Field(
        1e-6,
        ge=0,
        description="weight of KL(q || N(0, I)) in nats per image; for a learnable variance, where the model's "
        "likelihood does not reach the encoder",
    )
    adversarial: AdversarialOptions | None = Field(
        None, description="options of the adversarial loss; null: none"
    )


class Alignment(Options):
    """REPA / REPA-E: align hidden tokens of the model with a frozen encoder's patch features."""

    encoder: Annotated[Part, ENCODERS] = Field(
        description="frozen encoder whose patch features are the target"
    )
    mode: Literal["repa", "repa_e"] = Field(
        "repa_e", description="repa_e: the gradient reaches the autoencoder"
    )
    layer: int = Field(1, ge=1, description="hidden layer of the model, counted from 1")
    weight: float = Field(0.5, ge=0, description="for the model's parameters")
    autoencoder_weight: float | None = Field(
        None, ge=0, description="for the autoencoder's; null: as `weight`"
    )
    projector_dim: int = Field(
        2048,
        ge=1,
        le=1 << 20,
        description="hidden channels of the MLP between the model's tokens and the features",
    )
    cache: bool = Field(False, description="keep the features of all training images on disk, by data set")


class Optimizer(Options):
    """AdamW on all trained parts; norms, biases and embeddings are not decayed."""

    lr: float = Field(1e-4, gt=0, description="peak learning rate")
    autoencoder_lr: float | None = Field(None, gt=0, description="null: as `lr`")
    betas: tuple[MomentDecay, MomentDecay] = Field(
        (0.9, 0.95), description="decay per step of the running means of the gradient and of its square"
    )
    eps: float = Field(1e-8, gt=0, description="added to the root of the second moment in AdamW's update")
    weight_decay: float = Field(0.0, ge=0, description="decoupled, times the learning rate in each step")
    max_grad_norm: float | None = Field(
        1.0, gt=0, description="gradients are scaled down to this L2 norm; null: no clipping"
    )
    clipping: Literal["per_part", "global"] = Field(
        "per_part",
        description="per_part: autoencoder and model each by their own norm (REPA-E); global: by one norm over both",
    )
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="of the learning rate after the warm-up; cosine: down to `final_lr_ratio`"
    )
    warmup_steps: int = Field(0, ge=0, description="steps of a linear rise of the learning rate from 0")
    final_lr_ratio: float = Field(0.0, ge=0, le=1, description="of the cosine schedule's end to `lr`")


class InitialWeights(Options):
    """Weights of another run to start from; written as its directory or Hub name, or as a mapping."""

    written_as: ClassVar[str] = "RUN, or mapping"

    source: str = Field(min_length=1, description="run directory, exported folder or Hub name (`owner/name`)")
    weights: Literal["averaged", "last"] = Field(
        "averaged", description="averaged (EMA), or the last training weights"
    )
    step: int | None = Field(None, ge=0, description="of the checkpoint; null: the newest")

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value


class Compilation(Options):
    """Options of torch.compile on the repeated layers of the model."""

    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = Field(
        "default", description="torch.compile's; reduce-overhead and max-autotune capture CUDA graphs"
    )


class Training(Options):
    """Length and batches of training, precision, averages, and intervals of logs and checkpoints."""

    steps: int = Field(gt=0, le=10**10, description="optimizer steps")
    init_from: InitialWeights | None = Field(
        None, description="run whose weights training starts from; null: random weights, and pretrained ones"
    )
    batch_size: int = Field(
        64, gt=0, le=MOST_IMAGES, description="global: over all processes and accumulation steps"
    )
    accumulation: int = Field(1, ge=1, le=MOST_IMAGES, description="micro-batches per optimizer step")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 on a GPU that has it, float32 on CPU"
    )
    tf32: bool = Field(True, description="allow TF32 matrix products on CUDA")
    deterministic: bool = Field(
        False,
        description="only kernels that repeat their results bit for bit; slower on a GPU. A CPU repeats them anyway",
    )
    compile: bool | Compilation = Field(
        False, description="torch.compile the repeated layers of the model: true, or a mapping with a mode"
    )
    horizontal_flip: bool = Field(False, description="mirror every training image with probability 1/2")
    cache_latents: bool = Field(
        False,
        description="keep the moments that a frozen encoder gives for all training images on disk, by data set",
    )
    num_workers: int = Field(
        0,
        ge=0,
        le=1024,
        description="processes that read images, per training process; 0: the training process itself",
    )
    ema: Average = Field(
        ExponentialAverage(), description="average of the weights, which samples and metrics are made with"
    )
    log_every: int = Field(50, gt=0, description="steps between rows of metrics.jsonl, each a mean over them")
    sample_every: int = Field(1000, gt=0, description="steps between sample grids")
    checkpoint_every: int = Field(1000, gt=0, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="the newest K are kept ...")
    keep_every: int | None = Field(
        None, gt=0, description="... and every one whose step is a multiple of this"
    )
    max_bad_steps: int = Field(
        20,
        ge=1,
        description="stop after this many steps in a row that are not finite, or whose gradients are all zero",
    )

    @model_validator(mode="before")
    @classmethod
    def _accept_earlier_keys(cls, value: Any) -> Any:
        return from_earlier_keys(value)


class Autoguidance(Options):
    """A weaker model in place of the unconditional half of guidance; written as `RUN[@step]`, or as a mapping."""

    written_as: ClassVar[str] = "RUN[@step], or mapping"

    run: LocalPathOrName | None = Field(
        None, min_length=1, description="run directory or exported folder; null: this run itself, at `step`"
    )
    step: int | None = Field(None, ge=1, description="of the checkpoint; null: the newest")

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return guide_from_text(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _is_weaker(self) -> Autoguidance:
        if self.run is None and self.step is None:
            raise ValueError(
                "without a run it is this run itself, whose newest checkpoint would change nothing; name an earlier "
                "step, or a run"
            )
        return self

    def __str__(self) -> str:
        return "@".join(str(part) for part in (self.run or "", self.step) if part is not None)


def guide_from_text(text: str) -> dict[str, Any]:
    """Return `run` and `step` of `RUN[@step]`; `@step` is a checkpoint of the run itself.

    Raises:
        ValueError: for an empty text, which would be the current folder.
    """
    if not text:
        raise ValueError("expected RUN[@step], found an empty text")
    path, separator, step = text.rpartition("@")
    if separator and step.isdecimal():
        return {"run": path or None, "step": int(step)}
    return {"run": text, "step": None}


class Sampling(Options):
    """Guidance and batches of samples, during training and after it."""

    guidance: float = Field(0.0, ge=0, description="weight w; 0 is the conditional model itself")
    autoguidance: Autoguidance | None = Field(
        None, description="a weaker model to guide by; null: the unconditional half of the model"
    )
    batch_size: int = Field(
        100, gt=0, le=MOST_IMAGES, description="images at a time; it does not change them"
    )
    grid_per_class: int = Field(8, gt=0, le=1000, description="samples per class in the grids")


class Evaluation(Options):
    """Measurements at the end of training."""

    num_samples: int = Field(
        1000,
        ge=0,
        le=10**8,
        description="samples for FID and its relatives, and for the judge; 0: none are drawn",
    )
    num_likelihood: int = Field(
        1000, ge=0, le=10**8, description="held-out images for bits per dimension and PSNR"
    )
    judge: Annotated[Part | None, JUDGES] = Field(
        None,
        description="of class agreement, a part: digits, scikit-learn's SVC on real digits; encoder, a classifier made "
        "by `simflow pretrain-encoder`; none",
    )

    judge_checkpoint: str | None = Field(
        None, exclude=True, description="another way to write the judge's option `checkpoint`"
    )

    @model_validator(mode="before")
    @classmethod
    def _put_the_checkpoint_into_the_judge(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = {**values, "judge": None if values.get("judge") == "none" else values.get("judge")}
        judge, checkpoint = values["judge"], values.pop("judge_checkpoint", None)
        if checkpoint is None:
            return values
        if not isinstance(judge, (str, dict)):
            raise ValueError(
                "judge_checkpoint goes with a judge: set judge: encoder, or judge_checkpoint: null"
            )
        named = {"name": judge} if isinstance(judge, str) else judge
        if named.get("checkpoint", checkpoint) != checkpoint:
            raise ValueError("judge_checkpoint is another way to write judge.checkpoint: give one of them")
        return {**values, "judge": {**named, "checkpoint": checkpoint}}


def _folder_name(name: str) -> str:
    if not FOLDER_NAME.fullmatch(name):
        raise ValueError(
            "expected at most 100 characters without / and \\, and no dot in front: it becomes the folder runs/NAME"
        )
    return name


FolderName = Annotated[str, AfterValidator(_folder_name)]


class TrackerOptions(Options):
    """A place that losses, pictures and metrics are sent to beside the run directory."""

    name: Literal["wandb", "tensorboard"] = Field(description="of the tracker; its package must be installed")
    project: str | None = Field(None, min_length=1, description="of wandb; null: simflow-plugin")
    entity: str | None = Field(None, min_length=1, description="of wandb: user or team; null: your default")
    tags: tuple[str, ...] = Field((), description="of wandb")
    mode: Literal["auto", "online", "offline"] = Field(
        "auto",
        description="of wandb; auto: WANDB_MODE, else online where somebody is logged in, else offline",
    )

    @model_validator(mode="after")
    def _options_have_effect(self) -> TrackerOptions:
        unset = (None, (), "auto")
        changed = [key for key in ("project", "entity", "tags", "mode") if getattr(self, key) not in unset]
        if self.name == "tensorboard" and changed:
            raise ValueError(
                f"{changed[0]} has no effect with tensorboard, which writes to RUN/tensorboard; remove it"
            )
        return self


def _as_trackers(value: Any) -> Any:
    entries = value if isinstance(value, (list, tuple)) else [] if value in (None, "none") else [value]
    return [{"name": entry} if isinstance(entry, str) else entry for entry in entries]


def _each_once(trackers: tuple[TrackerOptions, ...]) -> tuple[TrackerOptions, ...]:
    names = [tracker.name for tracker in trackers]
    if len(set(names)) < len(names):
        raise ValueError(f"a tracker is named twice ({', '.join(names)}); name each once")
    return trackers


Trackers = Annotated[tuple[TrackerOptions, ...], BeforeValidator(_as_trackers), AfterValidator(_each_once)]


class FrozenModel(Options):
    """Weights of `model`, which then no step changes: the decoder alone is trained (`simflow finetune-decoder`)."""

    weights: str = Field(description="file with all of the model's weights")
    sha256: str = Field(description="of the file")
    source: str = Field("", description="where the weights come from, for people")
    run_id: str | None = Field(
        None, description="of the run that they come from, whose checkpoints may guide the model"
    )


class RunConfig(Options):
    """Everything that decides a run."""

    name: FolderName = Field(
        "run", description="of the run, whose directory is runs/NAME unless --out names one"
    )
    seed: int = Field(
        0, ge=0, description="of all random draws: initial weights, order of images, noise, label dropout"
    )
    image_size: int = Field(gt=0, le=1 << 14, description="pixels; images are square")
    data: Annotated[Part, DATASETS] = Field(description="images, and their classes where they have any")
    autoencoder: Annotated[Part, AUTOENCODERS] = Field(
        description="between images and latents, with its posterior"
    )
    model: Annotated[Part | None, MODELS] = Field(
        None, description="generative model of the latents; null: train the autoencoder alone"
    )
    frozen_model: FrozenModel | None = Field(
        None, description="weights that `model` keeps; null: it is trained"
    )
    objective: Objective = Objective()
    alignment: Alignment | None = None
    optimizer: Optimizer = Optimizer()
    training: Training
    sampling: Sampling = Sampling()
    evaluation: Evaluation = Evaluation()
    tracker: Trackers = Field(
        (), description="none, wandb, tensorboard, a mapping with a name and options, or a list of these"
    )

    def to_yaml(self, shortens_paths: bool = False) -> str:
        """Return the configuration as YAML, every default written out; null is what pretrained weights decide.

        Args:
            shortens_paths: keep only the names of files and folders, for a page that is passed on: where data lies
                on a machine, and under which user, concerns nobody else.
        """
        values = self.model_dump(mode="json")
        return yaml.safe_dump(_with_short_paths(values) if shortens_paths else values, sort_keys=False)


def _with_short_paths(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _with_short_paths(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_with_short_paths(value) for value in values]
    if isinstance(values, str) and values.startswith(("/", "~", "file:/")):
        return f".../{PurePosixPath(values).name}"
    return values
