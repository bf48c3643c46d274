"""Files of random weights of timm's networks."""

import pytest
import timm
import torch
from safetensors.torch import save_file


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory):
    """Return a function: name in timm -> path of random weights, with a classifier of seven classes."""
    folder = tmp_path_factory.mktemp("weights")

    def make(model: str) -> str:
        path = folder / f"{model}.safetensors"
        if not path.exists():
            torch.manual_seed(0)
            save_file(timm.create_model(model, num_classes=7).state_dict(), path)
        return str(path)

    return make
