"""The reconstruction loss: named, weighted terms between a reconstruction and its images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from simflow_plugin.errors import ConfigError, ShapeError


class ReconstructionLoss(nn.Module):
    """Computes each term; the weighted sum is `sum(loss_by_term.values())`.

    Args:
        terms: (name, weight >= 0, module); a module maps (reconstruction, images) to a float32 scalar.
    Raises:
        ConfigError: if a name comes twice, or a weight is negative.
    """

    def __init__(self, terms: Sequence[tuple[str, float, nn.Module]]) -> None:
        super().__init__()
        names = [name for name, _, _ in terms]
        for name, weight, _ in terms:
            if names.count(name) > 1:
                raise ConfigError(
                    f"reconstruction: the term `{name}` is given twice; give each once, with its weight"
                )
            if weight < 0:
                raise ConfigError(f"reconstruction.{name}: weight {weight} is negative; expected 0 or more")
        self.weights = {name: float(weight) for name, weight, _ in terms}
        self.terms = nn.ModuleDict({name: module for name, _, module in terms})

    def forward(self, reconstruction: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Return the weighted float32 scalars by term.

        Args:
            reconstruction: (B, 3, H, W), about [-1, 1], not clamped.
            images: (B, 3, H, W), [-1, 1].
        Raises:
            ShapeError: if the shapes differ.
        """
        if reconstruction.shape != images.shape:
            raise ShapeError(
                f"reconstruction has shape {tuple(reconstruction.shape)}, images {tuple(images.shape)}; "
                "expected equal shapes"
            )
        return {
            name: weight * self.terms[name](reconstruction, images) for name, weight in self.weights.items()
        }
