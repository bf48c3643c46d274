"""One-pass samples from a flow: a frozen teacher with an exact density, and a student that has learned its inverse.

Training: the teacher's forward pass gives noise and all inner states of an image in parallel; the student goes back.
Sampling: `learned` is one pass of the student; `hybrid` starts the exact Jacobi iteration from the student's guess;
any other method is the teacher's own exact inverse. `log_prob` is always the teacher's.
Reference: BiFlow, arXiv:2512.10953; FARMER, arXiv:2510.23588.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from simflow_plugin.contracts import NO_LABEL, DataContext, GenerativeModel, ModelContext, SamplerFacts
from simflow_plugin.errors import ConfigError
from simflow_plugin.flow import TransformerFlow
from simflow_plugin.flow.conditioning import drop_at_random
from simflow_plugin.flow.guidance import GuidanceContext, GuidanceRule
from simflow_plugin.flow.guided_forward import guided_trajectory
from simflow_plugin.learned_inverse.student import InverseStudent
from simflow_plugin.learned_inverse.targets import Pairs, joined, relative_error, state_error
from simflow_plugin.learned_inverse.teacher import build_teacher
from simflow_plugin.models.learned_inverse_options import LearnedInverseFacts, LearnedInverseOptions
from simflow_plugin.randomness import Random
from simflow_plugin.registry import GUIDANCE, MODELS, RECONSTRUCTION_LOSSES, Part


@MODELS.register("learned_inverse")
class LearnedInverse(LearnedInverseFacts, GenerativeModel):
    """A student of a flow: samples in one pass, density of the teacher.

    Raises:
        ConfigError: if the teacher has no flow or other latents, or guidance is asked for without classes.
        WeightsError: if the teacher's weights are missing or have changed.
    """

    teacher: Any
    """A frozen model with a flow; never in training mode."""

    def __init__(self, options: LearnedInverseOptions, context: ModelContext) -> None:
        super().__init__()
        self.options = options
        self.latent_shape = context.latent_shape
        if options.guidance_max > 0 and context.num_classes is None:
            raise ConfigError(
                f"model.guidance_max: {options.guidance_max}, but the data has no class labels to guide towards. "
                "Set 0."
            )
        self.teacher = build_teacher(options.teacher, context)
        if options.guidance_max > 0 and not self.teacher.supports_guidance:
            raise ConfigError(
                f"model.guidance_max: {options.guidance_max}, but the teacher was trained "
                "without label dropout and has no unconditional half to guide with. Set 0."
            )
        self.student = InverseStudent(options.student, context.latent_shape, self.teacher.flow.config)
        if options.initial == "teacher":
            self.student.start_from(self.teacher.flow)
        self.noise_std = self.teacher.noise_std
        blocks = GuidanceContext(self.teacher.flow.config.num_blocks)
        self.guidance_rule: GuidanceRule = options.sampling.guidance_rule.build(GUIDANCE, blocks)
        self.supports_guidance = options.guidance_max > 0 or not self._is_learned
        self._image_loss: nn.Module | None = None
        self._decode: Callable[[Tensor], Tensor] | None = None

    @property
    def _is_learned(self) -> bool:
        return self._method_name in ("learned", "hybrid")

    @property
    def _method_name(self) -> str:
        method = self.options.sampling.method
        return method if isinstance(method, str) else str(method.get("name"))

    def attach_decoder(self, decode: Callable[[Tensor], Tensor], image_size: int) -> None:
        """Take the decoder of the frozen autoencoder, for a loss on images of `image_size` pixels."""
        chosen = self.options.image_loss
        if chosen is None:
            return
        part = Part.model_validate({"name": chosen.name, **chosen.options})
        self._decode = decode
        self._image_loss = part.build(RECONSTRUCTION_LOSSES, DataContext(image_size, "train"))

    def train(self, mode: bool = True) -> LearnedInverse:
        """Set the student's mode; the teacher is always in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def training_losses(
        self, latents: Tensor, labels: Tensor | None, features: Tensor | None, random: Random
    ) -> dict[str, Tensor]:
        pairs = self.pairs(latents, labels, random)
        noise = pairs.noise
        if self.options.input_noise > 0:
            noise = noise + self.options.input_noise * random.normal("input_noise", noise.shape, noise.device)
        output = self.student.invert(noise, pairs.labels, pairs.guidance, with_states=True)
        terms = {"latent": relative_error(output.latents, pairs.latents)}
        if pairs.states and self.options.state_weight > 0:
            terms["states"] = self.options.state_weight * state_error(output.states, pairs.states)
        if self._image_loss is not None and self._decode is not None:
            with torch.no_grad():
                target = self._decode(pairs.latents)
            distance = self._image_loss(self._decode(output.latents), target)
            assert self.options.image_loss is not None
            terms["image"] = self.options.image_loss.weight * distance
        return terms

    @torch.no_grad()
    def pairs(self, latents: Tensor, labels: Tensor | None, random: Random) -> Pairs:
        """Return what the student learns from in this step, from encoded images (B, C, h, w) and labels (B,) or None.

        No gradient reaches the teacher.
        """
        num_data = len(latents) - round(self.options.exact_share * len(latents))
        labels = self._known(labels)
        if num_data == 0:
            return self._exact_pairs(latents, labels, random, 0)
        data = self._data_pairs(latents, labels, random, num_data)
        if num_data == len(latents):
            return data
        return joined(data, self._exact_pairs(latents, labels, random, num_data))

    def _data_pairs(self, latents: Tensor, labels: Tensor | None, random: Random, stop: int) -> Pairs:
        """Return pairs for the rows before `stop`; draws are made for all rows, as every draw of a step is."""
        rows, device = len(latents), latents.device
        labels = drop_at_random(labels, self.options.class_dropout, random)
        labels = None if labels is None else labels[:stop]
        noisy = target = latents[:stop]
        if self.teacher.noise_std > 0:
            # The student answers what the exact sampler would, which removes the noise at the end.
            noisy = self.teacher.add_noise(latents, random)[:stop]
            target = self.teacher.remove_noise(noisy, labels)
        guidance = torch.zeros(stop, device=device)
        if self.options.guidance_max > 0:
            assert labels is not None
            guidance = self.options.guidance_max * random.uniform("data_guidance", (rows,), device)[:stop]
            guidance = torch.where(labels == NO_LABEL, 0.0, guidance)
        is_exact = self.options.guidance_targets == "exact"
        states = self._states(self.teacher.tokens(noisy), labels, guidance if is_exact else None)
        noise, inner = self.teacher.latents(states[-1]), list(reversed(states[1:-1]))
        if self.options.guidance_max > 0 and not is_exact:
            free = self.student.invert(noise, None, torch.zeros_like(guidance)).latents
            target = target + guidance[:, None, None, None] * (target - free)
        return Pairs(noise, target, labels, guidance, inner)

    def _states(self, tokens: Tensor, labels: Tensor | None, guidance: Tensor | None) -> list[Tensor]:
        """Return the teacher's states of tokens (B, T, D), those of guided sampling where a weight (B,) is above 0.

        A guidance of None stands for no weight above 0, and costs one pass in place of two.
        """
        flow = self.teacher.flow
        if guidance is None or labels is None or self.options.guidance_max == 0:
            return flow.trajectory(tokens, labels)
        return guided_trajectory(flow, tokens, labels, guidance, self.guidance_rule)

    def _exact_pairs(self, like: Tensor, labels: Tensor | None, random: Random, first: int) -> Pairs:
        """Return pairs for the rows from `first` on."""
        noise = random.normal("pair_noise", like.shape, like.device)[first:]
        labels = None if labels is None else labels[first:]
        weight = 0.0
        if self.options.guidance_max > 0 and self.options.guidance_targets == "exact" and labels is not None:
            # One weight for all rows of this micro-batch: guidance is a number in the exact inverse.
            uniform = random.uniform("pair_guidance", (len(like),))
            weight = self.options.guidance_max * float(uniform[0])
        tokens = self._exact_tokens(noise, labels, weight, "cached")
        guidance = torch.full((len(noise),), weight, device=like.device)
        states = self._states(tokens, labels, guidance if weight > 0 else None)
        return Pairs(noise, self._clean(tokens, labels), labels, guidance, list(reversed(states[1:-1])))

    def _clean(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """Return the latents (B, C, h, w) of tokens, without the teacher's noise."""
        return self.teacher.remove_noise(self.teacher.latents(tokens), labels)

    def _exact_tokens(
        self, noise: Tensor, labels: Tensor | None, guidance: float, method: Any, **options: Any
    ) -> Tensor:
        """Return the tokens (B, T, D) of the teacher's exact inverse."""
        tokens: Tensor = self.teacher.flow.inverse(
            self.teacher.tokens(noise),
            labels,
            guidance=guidance,
            guidance_rule=self.guidance_rule,
            method=method,
            **options,
        )
        return tokens

    @torch.no_grad()
    def sample(self, labels: Tensor | None, shape: Sequence[int], guidance: float, random: Random) -> Tensor:
        noise = random.normal("latent", tuple(shape), self.device)
        labels = self._known(labels)
        if self._is_learned:
            self.check_guidance(guidance)
        if self._method_name == "learned":
            return self.student.invert(noise, labels, self._weights(guidance, noise)).latents
        if self._method_name == "hybrid":
            return self._hybrid(noise, labels, guidance)
        tokens = self._exact_tokens(noise, labels, guidance, self.options.sampling.method)
        return self._clean(tokens, labels)

    def _hybrid(self, noise: Tensor, labels: Tensor | None, guidance: float) -> Tensor:
        """Return the exact inverse by Jacobi iteration from the student's guess of every block."""
        guess = self.student.invert(noise, labels, self._weights(guidance, noise)).latents
        # The forward pass of the guess gives a guess of every inner state as well, all in parallel.
        weights = self._weights(guidance, noise) if guidance > 0 else None
        states = self._states(self.teacher.tokens(guess), labels, weights)
        method = self.options.sampling.method
        jacobi = {**method, "name": "jacobi"} if isinstance(method, dict) else "jacobi"
        tokens = self._exact_tokens(noise, labels, guidance, jacobi, guess=states[:-1])
        return self._clean(tokens, labels)

    def sampler_facts(self) -> SamplerFacts:
        if self._method_name == "learned":
            return SamplerFacts("learned", 1)
        if self._method_name == "hybrid":
            return SamplerFacts("hybrid", None)
        # Those of the teacher, with the pass that removes its noise, by the method that is sampled by here.
        teacher = copy.copy(self.teacher)
        options = teacher.options
        sampling = options.sampling.model_copy(update={"method": self.options.sampling.method})
        teacher.options = options.model_copy(update={"sampling": sampling})
        name, passes = teacher.sampler_facts()
        return SamplerFacts(f"teacher's {name}", passes)

    def check_guidance(self, guidance: float) -> None:
        """Refuse a weight that the student has not learned.

        Raises:
            ConfigError: naming the range.
        """
        if not 0 <= guidance <= self.options.guidance_max:
            raise ConfigError(
                f"guidance {guidance:g} is outside of [0, {self.options.guidance_max:g}], the weights that this "
                "student learned. Use one within, train with a larger model.guidance_max, or sample by the teacher's "
                "exact inverse (model.sampling.method: cached)."
            )

    def log_prob(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        """Return the teacher's log p(latents given labels), (B,), float32, nats; the student has no density."""
        return self.teacher.log_prob(latents, labels)

    def remove_noise(self, noisy_latents: Tensor, labels: Tensor | None) -> Tensor:
        return self.teacher.remove_noise(noisy_latents, labels)

    def token_flow(self) -> TransformerFlow:
        return self.teacher.flow

    def tokens(self, latents: Tensor) -> Tensor:
        """Cut latents (B, C, h, w) into the teacher's tokens (B, T, D)."""
        return self.teacher.tokens(latents)

    def latents(self, tokens: Tensor) -> Tensor:
        """Put the teacher's tokens (B, T, D) back onto the latent grid (B, C, h, w)."""
        return self.teacher.latents(tokens)

    @property
    def device(self) -> torch.device:
        return next(self.student.parameters()).device

    def _weights(self, guidance: float, noise: Tensor) -> Tensor:
        return torch.full((len(noise),), float(guidance), device=noise.device)

    def _known(self, labels: Tensor | None) -> Tensor | None:
        return labels if self.teacher.flow.config.num_classes is not None else None
