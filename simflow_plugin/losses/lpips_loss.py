"""LPIPS, the learned perceptual distance, from the `lpips` package with a backbone from a local file.

The package brings the calibrated layers; the ImageNet backbone is published elsewhere and found here through
`backbone_path`, or else in torch's hub cache. There is no fallback: LPIPS on random features is not LPIPS.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch import Tensor

from simflow_plugin.contracts import DataContext, NetworkOutline
from simflow_plugin.errors import WeightsError
from simflow_plugin.losses.options import LPIPSOptions, check_lpips_size
from simflow_plugin.losses.perceptual import PerceptualLoss, freeze
from simflow_plugin.published_weights import LPIPS_BACKBONES, fetch_command, torch_cache
from simflow_plugin.registry import RECONSTRUCTION_LOSSES
from simflow_plugin.weights import load_strictly, read_tensors


@RECONSTRUCTION_LOSSES.register("lpips")
class LPIPSLoss(PerceptualLoss):
    """Calibrated distance of backbone features.

    Args:
        options: see `LPIPSOptions`.
        context: what the harness knows; its `image_size`, if any, is checked.
    Raises:
        WeightsError: if the backbone's weights are missing or torn; before anything is built.
        ShapeError: if images are smaller than the backbone can see.
    Reference:
        The unreasonable effectiveness of deep features as a perceptual metric, arXiv:1801.03924.
    """

    Options = LPIPSOptions

    def __init__(self, options: LPIPSOptions, context: DataContext | None = None) -> None:
        super().__init__()
        self._net = options.net
        path = find_backbone(options)
        if context is not None:
            options.check(context)
        tensors = read_tensors(path)
        import lpips  # imported here: it takes seconds, and most runs name another loss

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lpips calls torchvision by deprecated names
            network = lpips.LPIPS(net=options.net, pnet_rand=True, verbose=False)
        # lpips cuts torchvision's `features` into slices, and keeps the index of each layer.
        wanted = {name: f"features.{name.partition('.')[2]}" for name in network.net.state_dict()}
        found = {name: tensors[source] for name, source in wanted.items() if source in tensors}
        load_strictly(network.net, found, str(path))
        self.network = freeze(network)

    def _distance(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        check_lpips_size(min(images.shape[-2:]), self._net)
        return self.network(reconstruction, images).mean()

    @staticmethod
    def outline(options: LPIPSOptions, context: DataContext) -> NetworkOutline:
        """Return the backbone without weights."""
        import torchvision

        builders: dict[str, Any] = {"vgg": torchvision.models.vgg16, "alex": torchvision.models.alexnet}
        return NetworkOutline(builders[options.net](weights=None).features, context.image_size)


def find_backbone(options: LPIPSOptions) -> Path:
    """Return the file of the backbone's weights.

    Raises:
        WeightsError: if there is none; names the file, the option and the published address.
    """
    backbone = LPIPS_BACKBONES[options.net]
    cached = torch_cache() / backbone.file_name
    path = cached if options.backbone_path is None else Path(options.backbone_path).expanduser()
    if not path.is_file():
        raise WeightsError(
            f"lpips: the backbone's weights {path} are missing.{fetch_command(backbone.file_name)} Or download "
            f"{backbone.address} and set `backbone_path` of the loss `lpips` to the file, or copy it to {cached}"
        )
    return path
