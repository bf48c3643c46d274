"""Weights in: files read without running code, names without wrappers, every difference named."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from simflow_plugin.errors import CheckpointError, WeightsError
from simflow_plugin.runs.module_state import restore_module
from simflow_plugin.weights import fitted_state, load_strictly, read_metadata, read_tensors


def network():
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def state():
    return {name: tensor.clone() for name, tensor in network().state_dict().items()}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".ckpt", ".bin"])
def test_file_is_loaded_whatever_wraps_the_names(tmp_path, suffix):
    plain, path = state(), tmp_path / f"weights{suffix}"
    wrapped = {
        f"module._orig_mod.{name.replace('.', '._checkpoint_wrapped_module.')}": tensor
        for name, tensor in plain.items()
    }
    save_file(wrapped, path) if suffix == ".safetensors" else torch.save({"ema": wrapped, "step": 3}, path)
    target = network()
    load_strictly(target, read_tensors(path, ["ema"]), str(path))
    assert all(torch.equal(plain[name], tensor) for name, tensor in target.state_dict().items())


def test_wrapped_network_takes_plain_names():
    compiled, tensors = nn.ModuleDict({"_orig_mod": network()}), state()
    load_strictly(compiled, tensors, "a.pt")
    assert all(torch.equal(compiled.state_dict()[f"_orig_mod.{name}"], tensors[name]) for name in tensors)


def test_module_that_is_really_called_module_is_left_alone():
    holder = nn.ModuleDict({"module": nn.Linear(1, 1)})
    tensors = {name: torch.full_like(tensor, 3.0) for name, tensor in holder.state_dict().items()}
    load_strictly(holder, tensors, "a.pt")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in holder.state_dict().items())


def test_first_section_that_is_there_is_read(tmp_path):
    torch.save({"model": {"a": torch.zeros(1)}, "ema": {"b": torch.ones(1)}}, tmp_path / "a.pt")
    assert read_tensors(tmp_path / "a.pt", ["state_dict", "ema", "model"]).keys() == {"b"}
    assert read_tensors(tmp_path / "a.pt").keys() == {"model.a", "ema.b"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.weight": None}, r"a\.pt: .*of 7 tensors 1 missing: 0\.weight"),
        (
            {"0.weight": None, "0.wieght": torch.zeros(3, 2)},
            r"1 unexpected: 0\.wieght \(nearest to 0\.wieght: 0\.weight\)",
        ),
        ({"0.weight": torch.zeros(2, 3)}, r"1 of another shape: 0\.weight \(2, 3\) instead of \(3, 2\)"),
        ({"0.bias": torch.tensor([0, float("nan"), 0])}, r"1 not finite \(NaN or infinite\): 0\.bias"),
        ({"1.running_var": torch.full((3,), float("inf"))}, r"not finite .*: 1\.running_var"),
        ({"0.bias": torch.zeros(3, dtype=torch.int8)}, r"another type: 0\.bias int8 instead of float32"),
        ({"module.0.bias": torch.zeros(3)}, r"a\.pt: holds `0\.bias` twice"),
    ],
)
def test_difference_is_named_with_the_remedy_and_nothing_is_loaded(change, message):
    found = {name: tensor for name, tensor in {**state(), **change}.items() if tensor is not None}
    target = network()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(WeightsError, match=message) as caught:
        load_strictly(target, found, "a.pt", "Do this.")
    assert "twice" in message or str(caught.value).endswith("Do this.")
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())


def test_half_precision_fits_and_the_caller_names_the_error():
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state().items()}
    load_strictly(network(), half, "a.pt")
    with pytest.raises(CheckpointError, match="missing"):
        fitted_state(state(), {}, "a.pt", error=CheckpointError)


def test_run_that_diverged_is_refused_by_tensor(tmp_path):
    broken = {**state(), "0.bias": torch.full((3,), float("nan"))}
    with pytest.raises(CheckpointError, match=r"step_1: .*not finite.* 0\.bias"):
        restore_module(network(), broken, tmp_path / "step_1")


def test_file_that_is_missing_torn_or_no_weights_is_refused_by_name(tmp_path):
    with pytest.raises(WeightsError, match=r"none\.pt: no such file"):
        read_tensors(tmp_path / "none.pt")
    save_file(state(), tmp_path / "a.safetensors")
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-5])
    with pytest.raises(WeightsError, match=r"torn\.safetensors: cannot be read, perhaps torn"):
        read_tensors(tmp_path / "torn.safetensors")
    torch.save({"a": network()}, tmp_path / "module.pt")
    with pytest.raises(WeightsError, match=r"module\.pt: holds more than tensors.*as safetensors"):
        read_tensors(tmp_path / "module.pt")
    with pytest.raises(WeightsError, match=r"module\.pt: not a readable safetensors file"):
        read_metadata(tmp_path / "module.pt")
