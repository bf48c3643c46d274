"""Published numbers of papers, shown in a separate block beside the measured ones."""

from __future__ import annotations

from dataclasses import dataclass

from simflow_plugin.evaluation.report.html import Table


@dataclass(frozen=True)
class Published:
    """One published result.

    Args:
        method: as the paper calls it.
        epochs: of training; None if not given here.
        parameters: of the generative model.
        gfid: of 50,000 samples, with guidance.
        rfid: of the autoencoder.
        psnr: of the autoencoder, dB.
        source: arXiv identifier of the paper that reports it.
    """

    method: str
    epochs: int | None
    parameters: str
    gfid: float
    rfid: float | None = None
    psnr: float | None = None
    source: str = "arXiv:2512.04084"


IMAGENET_256 = (
    Published("STARFlow", 320, "1.4B", 2.40),
    Published("DiT-XL/2", None, "", 2.27),
    Published("SimFlow", 160, "1.4B", 2.15, 1.21, 23.07),
    Published("SiT-XL/2", None, "", 2.06),
    Published("SimFlow + REPA-E", 160, "1.4B", 1.91, 1.08, 23.17),
    Published("REPA-E (SiT-XL/2)", None, "", 1.12),
)
IMAGENET_512 = (
    Published("STARFlow", None, "1.4B", 3.00),
    Published("SimFlow + REPA-E", None, "1.4B", 2.74),
)
COLUMNS = ("method", "gFID ↓", "rFID ↓", "PSNR, dB ↑", "epochs", "parameters", "reported in")
NOTE = "Published by others on ImageNet with guidance; nothing in this block was measured here."


def published_tables() -> list[Table]:
    """Return the published block: one table a resolution."""
    return [
        Table(
            COLUMNS,
            tuple(_row(result) for result in results),
            f"ImageNet {size} x {size}, published",
            (NOTE,),
        )
        for size, results in ((256, IMAGENET_256), (512, IMAGENET_512))
    ]


def _row(result: Published) -> tuple[str, ...]:
    def optional(value: float | None, form: str) -> str:
        return format(value, form) if value is not None else "—"

    return (
        result.method,
        f"{result.gfid:.2f}",
        optional(result.rfid, ".2f"),
        optional(result.psnr, ".2f"),
        optional(result.epochs, "d"),
        result.parameters or "—",
        result.source,
    )
