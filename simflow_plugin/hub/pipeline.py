"""A diffusers pipeline of a trained run: classes in, images out.

pipeline = DiffusionPipeline.from_pretrained("owner/name", trust_remote_code=True)
pipeline(["cat", "dog"], guidance=0.5, generator=torch.Generator().manual_seed(1)).images
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput

from simflow_plugin.contracts import Autoencoder, GenerativeModel
from simflow_plugin.errors import ConfigError
from simflow_plugin.evaluation.drawing import SEED, ImageSampler, to_pil, to_uint8, wanted_labels
from simflow_plugin.runs.parts import check_guidance
from simflow_plugin.runs.run_precision import Precision


class SimFlowPipeline(DiffusionPipeline):
    """Class-conditional images of a latent flow (SimFlow, STARFlow) or diffusion model (SiT, DiT).

    Args:
        autoencoder: frozen.
        model: frozen; its options decide how it samples.
        image_size: pixels.
        class_names: of the K classes by number, `{"0": "cat", ...}`; None for a model without classes.
        guidance: weight w >= 0 that the run draws its samples with; diffusers' `guidance_scale` is 1 + w.
        precision: `float32`, `bfloat16` or `float16`; float16 is read in float32 on a CPU.
        tf32: whether products of float32 may use TF32 on CUDA.
        batch_size: images at a time.
    """

    model_cpu_offload_seq = "model->autoencoder"  # type: ignore[assignment]
    autoencoder: Autoencoder
    model: GenerativeModel

    def __init__(
        self,
        autoencoder: Autoencoder,
        model: GenerativeModel,
        image_size: int = 256,
        class_names: dict[str, str] | None = None,
        guidance: float = 0.0,
        precision: str = "float32",
        tf32: bool = True,
        batch_size: int = 100,
    ) -> None:
        super().__init__()
        self.register_modules(autoencoder=autoencoder, model=model)
        self.register_to_config(
            image_size=image_size,
            class_names=class_names,
            guidance=guidance,
            precision=precision,
            tf32=tf32,
            batch_size=batch_size,
        )

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int] | Sequence[str] = 1,
        guidance: float | None = None,
        generator: torch.Generator | None = None,
        seed: int = SEED,
        output_type: Literal["pil", "np", "pt"] = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Draw images.

        Args:
            class_labels: a number of images, classes in turn; or a list with the class of each, by number or name.
            guidance: weight w >= 0; None is the run's own.
            generator: gives the seed; calls with one generator draw other images each time.
            seed: of the noise, where there is no generator: the images are those of `simflow sample --seed`.
            output_type: `pil`; `np`, (N, H, W, 3) in [0, 1]; `pt`, (N, 3, H, W) in [0, 1].
            return_dict: an `ImagePipelineOutput`, or a tuple with the images.
        Raises:
            ConfigError: if the model cannot be guided, or for another output type.
            DataError: if there is no such class.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ConfigError(f"output_type {output_type!r}: expected pil, np or pt")
        names, size = self._names(), self.config["image_size"]
        weight = self.config["guidance"] if guidance is None else guidance
        check_guidance(weight, self.model, None if names is None else len(names), "guidance")
        if generator is not None:
            seed = int(torch.randint(0, 2**62, (1,), generator=generator, device=generator.device))
        sampler = ImageSampler(self.autoencoder, self.model, size, self._precision(), weight, seed)
        labels = wanted_labels(class_labels, names)
        with self.progress_bar(total=len(labels)) as bar:
            drawn = torch.cat(list(sampler.batches(labels, self.config["batch_size"], bar.update)))
        images: Any = drawn / 2 + 0.5
        if output_type == "pil":
            images = to_pil(drawn)
        elif output_type == "np":
            images = to_uint8(drawn).numpy() / 255
        return ImagePipelineOutput(images) if return_dict else (images,)

    def save_pretrained(self, *arguments: Any, **options: Any) -> None:  # type: ignore[override]
        """Refuse: a pipeline lacks the run's configuration and record.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "a SimFlowPipeline is saved from its run: simflow export RUN --out DIR, or "
            "simflow_plugin.load(RUN).save_pretrained(DIR). To copy an exported folder, copy its files."
        )

    def _names(self) -> list[str] | None:
        names = self.config["class_names"]
        return None if names is None else [names[str(number)] for number in range(len(names))]

    def _precision(self) -> Precision:
        kind, name = self.autoencoder.last_layer().device.type, self.config["precision"]
        if name == "float16" and kind != "cuda":
            name = "float32"
        return Precision(name, self.config["tf32"] and kind == "cuda", kind)
