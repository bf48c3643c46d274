"""The student: layers and states, the start from a teacher, the inverse of a linear flow."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from simflow_plugin.diffusion.transformer import BackboneOptions
from simflow_plugin.errors import ConfigError
from simflow_plugin.flow import FlowArchitecture, FlowConfig, TransformerFlow, patchify, unpatchify
from simflow_plugin.learned_inverse.student import InverseStudent, default_sizes, state_layers
from simflow_plugin.learned_inverse.targets import relative_error
from tests.flow.builders import build_flow

SIZES = {"width": 16, "depth": 4, "num_heads": 2, "patch_size": 1}


def make_student(flow, **sizes):
    options = BackboneOptions.model_validate({**SIZES, **sizes})
    shape = (flow.config.token_dim, *flow.config.grid_size)
    return InverseStudent(options, shape, flow.config)


@pytest.mark.parametrize(
    ("depth", "blocks", "expected"),
    [
        (4, (1, 1, 2), (2, 3)),
        (6, (2, 2, 2), (2, 4)),
        (3, (1, 1, 9), (1, 2)),
        (12, (2, 2, 2, 2, 2, 46), (7, 8, 9, 10, 11)),
        (1, (5,), ()),
    ],
)
def test_states_are_due_in_generation_order_in_proportion_to_layers(depth, blocks, expected):
    assert state_layers(depth, blocks) == expected


def test_fewer_layers_than_blocks_are_refused():
    with pytest.raises(ConfigError, match="depth 3 or more"):
        state_layers(2, (1, 1, 1))


def test_another_patch_size_is_refused():
    with pytest.raises(ConfigError, match=r"student.patch_size: 2.*Use 1"):
        make_student(build_flow(), patch_size=2)


def test_a_new_student_is_the_identity_whatever_label_and_weight():
    flow = build_flow(torch.float32, num_classes=5)
    noise = torch.randn(3, 3, 2, 3)
    output = make_student(flow).invert(noise, torch.tensor([0, 4, -1]), torch.tensor([0.0, 1.0, 2.0]), True)
    assert torch.equal(output.latents, noise)
    assert [tuple(state.shape) for state in output.states] == [(3, 6, 3)] * 2


@pytest.mark.parametrize("size", ["S", "simflow-xxl"])
def test_the_default_student_has_a_third_of_the_parameters_and_one_pass_of_few_operations(size):
    """A CUDA kernel a launch: the exact inverse takes hundreds of operations for each of 256 tokens and every block."""
    architecture = FlowArchitecture(size=size, patch_size=1)
    config = FlowConfig.for_latents(architecture, (64, 16, 16), num_classes=1000)
    with torch.device("meta"):
        teacher = TransformerFlow(config)
        student = InverseStudent(BackboneOptions.model_validate(default_sizes(config)), (64, 16, 16), config)
        inputs = torch.empty(8, 64, 16, 16), torch.empty(8, dtype=torch.int64), torch.empty(8)
        with torch.inference_mode(), CountedOperations() as counted:
            student.invert(*inputs)
    own = sum(p.numel() for name, p in student.named_parameters() if not name.startswith("projections"))
    assert own <= teacher.num_parameters() / 3
    assert counted.number < 1000


class CountedOperations(TorchDispatchMode):
    """Counts what torch dispatches, views included."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += 1
        return func(*args, **(kwargs or {}))


def test_it_starts_from_the_layers_of_the_teacher():
    flow = build_flow(torch.float32)
    student = make_student(flow)
    student.start_from(flow)
    first, last = flow.blocks[-1].layers[0], flow.blocks[0].layers[-1]
    assert torch.equal(student.layers[0].attention.qkv.weight, first.attention.qkv.weight)
    assert torch.equal(student.layers[-1].mlp[2].bias, last.mlp.down.bias)
    with pytest.raises(ConfigError, match="width 16, 2 heads"):
        make_student(flow, width=32).start_from(flow)


def test_the_student_of_a_linear_teacher_recovers_its_inverse():
    """u = (z - b) / s with constants per channel: the head's last linear map can express it."""
    flow = build_flow(torch.float32, layers_per_block=(1,))
    with torch.no_grad():
        for name, parameter in flow.named_parameters():
            if name.endswith("proj_out.weight"):
                parameter.zero_()  # constants remain: the biases of shift and scale
    student = make_student(flow, depth=1)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(3)

    def error():
        latents = torch.randn(64, 3, 2, 3, generator=generator)
        with torch.no_grad():
            noise = unpatchify(flow(patchify(latents, 1)).noise, (2, 3), 1)
        return relative_error(student.invert(noise, None, torch.zeros(64)).latents, latents)

    before = float(error().detach())
    for _ in range(250):
        optimizer.zero_grad()
        error().backward()
        optimizer.step()
    after = float(error().detach())
    assert before > 0.02
    assert after < before / 20
