"""The bench on a flow so small that it takes a second: every subject runs, numbers are what they claim."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from simflow_plugin.bench.benchmark import PEER_CACHED, PEER_JACOBI, PEER_STEP, STEP, STUDENT, run_bench
from simflow_plugin.bench.choose import make_setting
from simflow_plugin.bench.flow_flops import forward_flops, training_flops
from simflow_plugin.bench.options import FlowOptions, MeasuringOptions
from simflow_plugin.bench.peer import constructor_arguments
from simflow_plugin.bench.setting import BenchSetting
from simflow_plugin.bench.timing import peak_memory
from simflow_plugin.bench.workload import Workload
from simflow_plugin.convert.from_ml_starflow import StarflowArguments, flow_config
from simflow_plugin.errors import ConfigError
from simflow_plugin.evaluation.flops import count_flops, without_data
from simflow_plugin.flow import FlowConfig, TransformerFlow
from simflow_plugin.flow.affine import affine_parameters
from tests.commands import succeed
from tests.convert.peers import import_from

SMALL: dict[str, Any] = {
    "width": 32,
    "layers_per_block": (1, 2),
    "head_dim": 16,
    "token_dim": 4,
    "grid_size": (3, 3),
}


def small_setting(**changes: Any) -> BenchSetting:
    config = FlowConfig.model_validate({**SMALL, "num_classes": 3, **changes.pop("config", {})})
    return BenchSetting(config, **{"batch_size": 2, "rounds": 2, "gemm_size": 64, **changes})


def test_command_measures_everything_and_writes_json(tmp_path: Path) -> None:
    report_file = tmp_path / "bench.json"
    succeed("bench", "--quick", "--batch", 2, "--json", report_file)
    report = json.loads(report_file.read_text())
    rows = {(row["name"], row["guidance"]) for row in report["rows"]}
    samplers = {(name, w) for name in ("naive", "cached", "jacobi", "auto", STUDENT) for w in (0.0, 1.5)}
    assert rows == {(STEP, 0.0), *samplers}
    assert min(report["gemm_flops"].values()) > 0
    assert all(size > 0 for size in report["memory"].values())


def test_samplers_agree_with_naive() -> None:
    rows = run_bench(small_setting(methods=("jacobi", "auto"))).rows
    differences = [row.difference for row in rows if row.reference == "naive"]
    assert len(differences) == 8
    assert max(value for value in differences if value is not None) < 1e-3


def test_ratios_are_those_of_the_medians() -> None:
    rows = {row.name: row for row in run_bench(small_setting(runs_naive=False)).rows if not row.guidance}
    expected = rows["cached"].seconds / rows["jacobi"].seconds
    assert rows["jacobi"].speedup == {"ours": pytest.approx(expected)}
    assert rows["jacobi"].reference == "cached"


@pytest.mark.parametrize("family", ["starflow", "tarflow"])
def test_weights_are_far_from_the_identity(family: str) -> None:
    setting = small_setting(config={"family": family})
    workload = Workload(setting, TransformerFlow(setting.config))
    block, outputs = workload.blocks[0], []
    block.proj_out.register_forward_hook(lambda _, __, out: outputs.append(out))
    with torch.no_grad():
        workload.flow(workload.tokens, **workload.condition)
    spread = float(affine_parameters(outputs[0], setting.config).log_scale.std())
    assert spread == pytest.approx(setting.log_scale_std, rel=0.05)


def test_training_step_changes_weights() -> None:
    setting = small_setting()
    workload = Workload(setting, TransformerFlow(setting.config))
    before = workload.blocks[0].proj_in.weight.clone()
    workload.training_step()
    assert not torch.equal(before, workload.blocks[0].proj_in.weight)


@pytest.mark.parametrize("change", [{}, {"mlp": "swiglu"}, {"gated_attention": True}, {"num_kv_heads": 1}])
def test_counted_flops_match_torchs_counter(change: dict[str, Any]) -> None:
    config = FlowConfig.model_validate({**SMALL, "num_classes": 3, **change})
    # Without data, attention is made of products, which the counter of every version of torch knows.
    flow = without_data(TransformerFlow(config))
    tokens, labels = torch.zeros(2, 9, 4, device="meta"), torch.zeros(2, dtype=torch.int64, device="meta")
    # torch's counter takes causal attention for a full one: take the half that is masked from its count.
    lengths = [9] + 2 * [10]
    masked = sum(4 * config.query_heads * config.head_dim * (n * n - n * (n + 1) // 2) for n in lengths)
    counted = count_flops(lambda: flow(tokens, labels, checks_values=False))
    assert 2 * (forward_flops(config, prefix_length=1) + masked) == counted


def test_guidance_doubles_conditional_blocks_only() -> None:
    deep_only, everywhere = (
        FlowConfig.model_validate({**SMALL, "num_classes": 3, "conditional_blocks": blocks})
        for blocks in ("deep", "all")
    )
    assert forward_flops(everywhere, 1, guided=True) == 2 * forward_flops(everywhere, 1)
    assert (
        forward_flops(deep_only, 1)
        < forward_flops(deep_only, 1, guided=True)
        < 2 * forward_flops(deep_only, 1)
    )
    assert training_flops(deep_only, 1) == 3 * forward_flops(deep_only, 1)


def test_peak_memory_counts_what_is_held_at_once() -> None:
    def run() -> None:
        kept = torch.ones(1000)
        torch.ones(2000)
        kept.add_(torch.ones(1000))

    assert peak_memory(run, torch.device("cpu")) == pytest.approx(3000 * 4, rel=0.1)


def test_peers_arguments_describe_the_same_flow() -> None:
    config = FlowConfig.model_validate({**SMALL, "condition_dim": 5})
    theirs = flow_config(StarflowArguments.parse(constructor_arguments(config)))
    assert theirs == config.model_copy(update={"rope_side": 3.0})


def test_peers_code_agrees_on_the_same_weights() -> None:
    import_from("ML_STARFLOW_DIR", "transformer_flow")
    import os

    peer = Path(os.environ["ML_STARFLOW_DIR"])
    config = {"num_classes": None, "condition_dim": 5}
    rows = {(row.name, row.guidance): row for row in run_bench(small_setting(config=config, peer=peer)).rows}
    assert {(PEER_STEP, 0.0), (PEER_JACOBI, 1.5)} <= set(rows)
    for guidance in (0.0, 1.5):
        difference = rows[PEER_CACHED, guidance].difference
        assert difference is not None
        assert difference < 1e-4


def test_default_is_size_s() -> None:
    config = make_setting(FlowOptions(), MeasuringOptions(device="cpu"), None, is_quick=False).config
    assert (config.width, config.layers_per_block, config.num_tokens) == (384, (2, 2, 2, 8), 256)


def test_cpu_clock_is_refused_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match="--cpu-time"):
        make_setting(FlowOptions(), MeasuringOptions(device="cuda", cpu_time=True), None, is_quick=False)


@pytest.mark.parametrize(
    ("flow", "measuring", "message"),
    [
        ({"tokens": 250}, {}, "225 or 256"),
        ({}, {"device": "abacus"}, "--device"),
        ({"size": "M"}, {}, "Known: B, L, S"),
        ({"layers": "2,two"}, {}, "--layers"),
        ({"width": 100}, {}, "head_dim"),
        ({}, {"method": ["{name: ["]}, "--method"),
    ],
)
def test_bad_options_are_named(flow: dict[str, Any], measuring: dict[str, Any], message: str) -> None:
    options = FlowOptions(**flow), MeasuringOptions(**{"device": "cpu", **measuring})
    with pytest.raises(ConfigError, match=message):
        make_setting(*options, None, is_quick=False)


def test_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="jacobi"):
        run_bench(small_setting(methods=("jacoby",)))


def test_folder_without_the_peer_is_refused(tmp_path: Path) -> None:
    config = {"num_classes": None, "condition_dim": 5}
    with pytest.raises(ConfigError, match=r"transformer_flow\.py"):
        run_bench(small_setting(config=config, peer=tmp_path))
