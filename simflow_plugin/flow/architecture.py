"""Architecture of a flow: a user's options (`FlowArchitecture`), and these with geometry (`FlowConfig`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from simflow_plugin.errors import ConfigError
from simflow_plugin.flow.sizes import FAMILIES, SIZES
from simflow_plugin.options import Choices, Options, Size, did_you_mean
from simflow_plugin.registry import ATTENTION


class FlowArchitecture(Options):
    """Architecture of a transformer autoregressive flow.

    `family` and `size` fill in what is not written; what is written wins. The resolved object holds every
    value, so it reproduces itself from its own `model_dump()`.
    """

    family: Literal["starflow", "tarflow"] = Field(
        "starflow", description="Fills in the defaults marked (family)."
    )
    size: Annotated[str | None, Choices(SIZES)] = Field(
        None, description="A named size (`simflow_plugin.flow.SIZES`): fills in what it names; see (size)."
    )
    width: Size = Field(description="Channels of the hidden tokens (size).")
    layers_per_block: tuple[Size, ...] = Field(
        min_length=1,
        description="Layers of each block in training order; the last block is the deep one (size).",
    )
    head_dim: Size = Field(64, description="Channels of an attention head (size).")
    num_heads: Size | None = Field(None, description="Query heads; width / head_dim if null.")
    num_kv_heads: Size | None = Field(
        None, description="Key and value heads; as many as query heads if null."
    )
    patch_size: Size = Field(1, description="Side of a patch in latent pixels; a token is a patch.")

    positions: Literal["rope", "learned"] = Field(
        description="2-D rotary or learned additive positions (family)."
    )
    start_token: bool = Field(
        description="true: the input is shifted behind a learned start token. false: the output is shifted, "
        "the first token of every block passes unchanged (family)."
    )
    scale: Literal["softplus", "exp", "unit"] = Field(
        description="s = softplus(a + ln(e - 1)), s = exp(a), or s = 1 and a learned diagonal prior (family)."
    )
    soft_clip: float | None = Field(None, gt=0, description="c in a <- c tanh(a / c); null for no clip.")
    soft_clips_shift: bool = Field(False, description="The soft clip also bounds the shift b.")

    class_conditioning: Literal["token", "add", "adaln"] = Field(
        description="Labels as a prefix token, as an embedding added to every token, or as adaLN: a shift and a "
        "scale after the norms of every layer, linear in SiLU(embedding) and zero at the start (family)."
    )
    adaln_gates: bool = Field(
        True,
        description="adaLN also gates attention and MLP: DiT's six vectors. false: ml-starflow's four.",
    )
    conditional_blocks: Literal["deep", "all"] = Field(description="Which blocks see the condition (family).")
    null_label: Literal["learned", "mean"] = Field(
        description="An unlabelled row gets its own embedding, or the mean of the class embeddings (family)."
    )
    class_dropout: float = Field(
        0.1, ge=0, le=1, description="Fraction of training rows whose label is dropped, for guidance."
    )

    intermediate_weight: float = Field(
        0.0,
        ge=0,
        description="Weight, beside the NLL per dimension, of the summed mean squares of what each block gets (tokens "
        "and intermediate outputs); ml-starflow names 1e-4 a good value.",
    )

    norm: Literal["layer", "rms"] = Field(
        "layer",
        description="Normalisation before attention and MLP; with adaLN a layer norm without affine parameters.",
    )
    post_norm: bool = Field(False, description="RMSNorm after attention and MLP as well.")
    final_norm: bool = Field(description="RMSNorm before the output projection (family).")
    qk_norm: bool = Field(False, description="RMSNorm of queries and keys.")
    gated_attention: bool = Field(False, description="Gate the attention's output by a sigmoid of its input.")
    mlp: Literal["gelu", "swiglu", "geglu"] = Field("gelu", description="Activation of the MLP.")
    mlp_ratio: float = Field(4.0, gt=0, description="Hidden width of the MLP / width.")
    bias: bool = Field(True, description="Biases in the linear maps of attention and MLP.")

    first_order: Literal["identity", "flip"] = Field(
        "identity", description="Token order of the first block in training order; orders alternate."
    )
    rope_theta: float = Field(10000.0, gt=0, description="Base of the rotary frequencies.")
    rope_side: float | None = Field(
        None, gt=0, description="Side the rotary positions are scaled to; the grid's own side if null."
    )
    condition_frequencies: int = Field(
        8,
        ge=0,
        description="Of head_dim / 2 rotary frequencies, those for the position in a condition sequence.",
    )
    attention: Annotated[str, ATTENTION] = Field("sdpa", description="Attention backend by name.")
    activation_checkpointing: bool = Field(
        False, description="Recompute each layer in the backward pass instead of keeping its activations."
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """Fill in the family's and the size's values where the user wrote nothing."""
        if not isinstance(values, Mapping):
            return values
        filled = dict(values)
        size = filled.get("size")
        if size is None and "width" not in filled and "layers_per_block" not in filled:
            size = filled["size"] = "B"
        if size is not None:
            if size not in SIZES:
                raise ValueError(f"size: unknown `{size}`.{did_you_mean(str(size), SIZES)}")
            filled = {**SIZES[size], **filled}
        family = filled.get("family", "starflow")
        if family not in FAMILIES:  # here, or every value that it would fill in is reported as missing
            raise ValueError(f"family: unknown `{family}`.{did_you_mean(str(family), FAMILIES)}")
        return {**FAMILIES[family], **filled}

    @model_validator(mode="after")
    def _heads_fit(self) -> FlowArchitecture:
        if self.num_heads is None and self.width % self.head_dim:
            raise ValueError(
                f"width {self.width} is not a multiple of head_dim {self.head_dim}; or set num_heads"
            )
        if self.query_heads % self.key_heads:
            raise ValueError(
                f"{self.query_heads} query heads cannot share {self.key_heads} key and value heads"
            )
        if self.positions == "rope" and self.head_dim % 4:
            raise ValueError(f"2-D rotary positions need head_dim divisible by 4, found {self.head_dim}")
        if self.positions == "learned" and (self.rope_side is not None or self.rope_theta != 10000.0):
            raise ValueError("rope_theta and rope_side have no effect with positions: learned")
        if int(self.width * self.mlp_ratio) < 1:
            raise ValueError(
                f"mlp_ratio {self.mlp_ratio} leaves no hidden channel of the MLP at width {self.width}"
            )
        if self.class_conditioning != "adaln" and not self.adaln_gates:
            raise ValueError("adaln_gates has no effect without class_conditioning: adaln")
        if self.class_conditioning == "adaln" and self.conditional_blocks == "all" and self.norm != "layer":
            raise ValueError("norm has no effect where every block has adaLN, whose norm is a layer norm")
        if self.soft_clips_shift and self.soft_clip is None:
            raise ValueError("soft_clips_shift has no effect without soft_clip")
        if self.scale == "unit" and self.soft_clip is not None:
            raise ValueError("soft_clip has no effect with scale: unit")
        return self

    @property
    def num_blocks(self) -> int:
        return len(self.layers_per_block)

    @property
    def query_heads(self) -> int:
        return self.num_heads if self.num_heads is not None else self.width // self.head_dim

    @property
    def key_heads(self) -> int:
        return self.num_kv_heads if self.num_kv_heads is not None else self.query_heads


class FlowConfig(FlowArchitecture):
    """An architecture with the geometry of its tokens and of its condition."""

    token_dim: int = Field(
        gt=0, description="D, channels of a token: patch_size^2 times the latent channels."
    )
    grid_size: tuple[int, int] = Field(description="(h, w) in tokens; T = h * w, raster order.")
    num_classes: int | None = Field(
        None, gt=0, description="Number of labels; None for a model without labels."
    )
    condition_dim: int | None = Field(
        None, gt=0, description="Channels of condition features (B, L, D); or None."
    )
    condition_length: int | None = Field(None, gt=0, description="L; None for any length.")

    @model_validator(mode="after")
    def _condition_fits(self) -> FlowConfig:
        if self.num_classes is not None and self.condition_dim is not None:
            raise ValueError(
                "a flow has labels (num_classes) or condition features (condition_dim), not both"
            )
        if self.condition_length is not None and self.condition_dim is None:
            raise ValueError("condition_length has no effect without condition_dim")
        if self.condition_dim is not None and self.is_modulated and self.condition_length != 1:
            raise ValueError(
                "class_conditioning: adaln takes condition features of one token: set condition_length: 1, found "
                f"{self.condition_length}"
            )
        if self.condition_frequencies != 8 and self.condition_dim is None:
            raise ValueError("condition_frequencies has no effect without condition_dim")
        if self.token_dim % self.patch_size**2:
            raise ValueError(
                f"token_dim {self.token_dim} is no multiple of {self.patch_size**2}, the pixels of a patch of side "
                f"{self.patch_size}"
            )
        if min(self.grid_size) < 1:
            raise ValueError(f"grid_size must be positive, found {list(self.grid_size)}")
        rotary = self.positions == "rope" and self.condition_dim is not None
        if rotary and (self.condition_frequencies > self.head_dim // 2 or self.condition_frequencies % 2):
            raise ValueError(
                f"condition_frequencies must be even and at most head_dim / 2 = {self.head_dim // 2}, "
                f"found {self.condition_frequencies}"
            )
        return self

    @property
    def num_tokens(self) -> int:
        return self.grid_size[0] * self.grid_size[1]

    @property
    def is_modulated(self) -> bool:
        """True if the condition acts by adaLN."""
        return self.class_conditioning == "adaln"

    @property
    def is_added(self) -> bool:
        """True if the condition is added to every token; features (B, L, F) never are."""
        return self.num_classes is not None and self.class_conditioning == "add"

    def prefix_length(self, condition_length: int) -> int:
        """Return how many tokens a condition of L tokens (1 for a label) puts in front of a conditional block."""
        return 0 if self.is_modulated or self.is_added else condition_length

    @classmethod
    def for_latents(
        cls,
        architecture: FlowArchitecture,
        latent_shape: tuple[int, int, int],
        num_classes: int | None = None,
        condition_dim: int | None = None,
        condition_length: int | None = None,
    ) -> FlowConfig:
        """Return the configuration of a flow on latents of `latent_shape` (C, h, w).

        Raises:
            ConfigError: if the grid is not a multiple of the patch size.
        """
        channels, height, width = latent_shape
        patch = architecture.patch_size
        if height % patch or width % patch:
            raise ConfigError(
                f"flow.patch_size: {patch} does not divide the latent grid {height} x {width}; "
                "choose a divisor of both sides"
            )
        return cls(
            **architecture.model_dump(include=set(FlowArchitecture.model_fields)),
            token_dim=channels * patch * patch,
            grid_size=(height // patch, width // patch),
            num_classes=num_classes,
            condition_dim=condition_dim,
            condition_length=condition_length,
        )
