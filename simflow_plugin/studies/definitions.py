"""Studies as data: the autoencoders that a study trains first, and the variants that it compares."""

from __future__ import annotations

from dataclasses import dataclass, replace

from simflow_plugin.errors import ConfigError
from simflow_plugin.evaluation.result import suffix_of
from simflow_plugin.options import did_you_mean


@dataclass(frozen=True)
class Variant:
    """One run of a study.

    Args:
        name: of its run directory.
        label: as the table shows it.
        autoencoder: name of the autoencoder that it starts from, or None to start from scratch.
        noise_std: of a fixed posterior on that autoencoder's normalised latents; None keeps the configuration's.
        published: the figure that was published for this variant, for its order only; None if there is none.
    """

    name: str
    label: str
    autoencoder: str | None = None
    noise_std: float | None = None
    published: float | None = None


@dataclass(frozen=True)
class Study:
    """Runs that belong into one table. The configuration of each is `studies/<study>/<name>.yaml`.

    Args:
        autoencoders: trained first (`model: null`) and exported, by name.
        variants: in the order of the table.
        guidance: weights w at which every variant is evaluated.
        published_as: what `Variant.published` is, for the table.
        encoder: file of the classifier that judges, by default.
        extractor: of the features of the distances; `pretrained` is the judge itself.
        makes_encoder: whether the study trains the judge where its file is missing.
    """

    name: str
    title: str
    autoencoders: tuple[str, ...]
    variants: tuple[Variant, ...]
    guidance: tuple[float, ...] = (0.0,)
    published_as: str = ""
    encoder: str = "runs/encoders/fashion-mnist.safetensors"
    extractor: str = "pretrained"
    makes_encoder: bool = True

    @property
    def suffix(self) -> str:
        """The extractor's name as it stands in the names of metrics."""
        return suffix_of(self.extractor)

    def config_name(self, part: str) -> str:
        """Return the name of the shipped configuration of an autoencoder or a variant."""
        return f"studies/{self.name}/{part}"


FIXED_VARIANCE = Study(
    "fixed_variance",
    "Six ways to give a flow its latents",
    ("autoencoder_learnable", "autoencoder_fixed", "autoencoder_fixed_layernorm"),
    (
        Variant(
            "frozen_learnable", "frozen VAE, learnable variance", "autoencoder_learnable", published=84.44
        ),
        Variant("frozen_fixed", "frozen VAE, fixed variance", "autoencoder_fixed", published=67.41),
        Variant(
            "frozen_fixed_layernorm",
            "frozen VAE, fixed variance, layer norm",
            "autoencoder_fixed_layernorm",
            published=55.41,
        ),
        Variant(
            "frozen_encoder_noise",
            "frozen encoder with noise",
            "autoencoder_learnable",
            noise_std=0.5,
            published=39.33,
        ),
        Variant("end_to_end_noise", "end to end with noise", published=20.01),
        Variant("end_to_end_fixed", "end to end, fixed variance (SimFlow)", published=16.97),
    ),
    published_as="gFID on ImageNet 256 x 256 without guidance, arXiv:2512.04084",
)

HEADLINE = Study(
    "headline",
    "SimFlow and its baselines in one harness",
    ("autoencoder",),
    (
        Variant("simflow", "SimFlow"),
        Variant("simflow_repa_e", "SimFlow + REPA-E"),
        Variant("starflow", "STARFlow", "autoencoder"),
        Variant("sit", "SiT", "autoencoder"),
        Variant("sit_repa_e", "SiT + REPA-E", "autoencoder"),
        Variant("dit", "DiT", "autoencoder"),
    ),
    guidance=(0.0, 0.5),
)

MIMFLOW_GFID = {0.2: 14.30, 0.3: 12.82, 0.5: 17.69}
SIGMA = Study(
    "sigma",
    "SimFlow's sigma: the standard deviation of the fixed posterior",
    (),
    tuple(
        Variant(f"std_{std}".replace(".", "_"), f"sigma {std}", published=MIMFLOW_GFID.get(std))
        for std in (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
    ),
    published_as="gFID of MIMFlow on ImageNet 256 x 256 without guidance, on its own latents, arXiv:2606.26016",
)

LATENT_WIDTH = Study(
    "latent_width",
    "SimFlow's latent channels",
    (),
    tuple(Variant(f"channels_{count}", f"{count} channels") for count in (2, 4, 8, 16, 32)),
)


def _on_cifar(study: Study) -> Study:
    """Return a study on CIFAR-10, judged by a backbone that was fine-tuned with options of its own: docs/results.md."""
    return replace(
        study,
        name=f"cifar/{study.name}",
        title=f"{study.title}: CIFAR-10 (JPEG)",
        encoder="runs/encoders/cifar10.safetensors",
        extractor="timm:tf_efficientnet_lite0@96",
        makes_encoder=False,
    )


CIFAR_FIXED_VARIANCE = _on_cifar(FIXED_VARIANCE)
CIFAR_HEADLINE = _on_cifar(HEADLINE)
CIFAR_ALIGNMENT = replace(
    _on_cifar(
        Study(
            "alignment",
            "SimFlow with and without alignment to a pretrained backbone",
            (),
            (
                Variant("none", "no alignment"),
                Variant("layer_2", "REPA-E, layer 2, weight 0.5"),
                Variant("layer_4", "REPA-E, layer 4, weight 0.5"),
                Variant("layer_2_weight_2", "REPA-E, layer 2, weight 2"),
            ),
        )
    ),
    extractor="pretrained",  # the features are the judge's: those of the target would measure the loss itself
)
CIFAR_CONDITIONS = _on_cifar(
    Study(
        "conditions",
        "One condition of SimFlow at a time",
        ("autoencoder_long",),
        (
            Variant("simflow", "SimFlow"),
            Variant("weight_15", "a quarter of the reconstruction weights"),
            Variant("weight_240", "four times the reconstruction weights"),
            Variant("sigma_2", "sigma 2 in place of 0.5"),
            Variant("layernorm", "layer norm on the mean"),
            Variant("wide_tokens", "tokens of 64 dimensions"),
            Variant("adversarial", "adversarial loss"),
            Variant("frozen_long", "frozen VAE, trained 4 times as long", "autoencoder_long"),
        ),
    )
)

STUDIES = {
    study.name: study
    for study in (
        *(FIXED_VARIANCE, HEADLINE, SIGMA, LATENT_WIDTH),
        *(CIFAR_FIXED_VARIANCE, CIFAR_HEADLINE, CIFAR_ALIGNMENT, CIFAR_CONDITIONS),
    )
}


def find_study(name: str) -> Study:
    """Return a study by name.

    Raises:
        ConfigError: with the nearest match and the known names.
    """
    if name not in STUDIES:
        raise ConfigError(f"study: unknown name `{name}`.{did_you_mean(name, STUDIES)}")
    return STUDIES[name]
