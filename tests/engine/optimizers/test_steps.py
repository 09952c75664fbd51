"""LAMB and Muon against timm's and PyTorch's; whole parameters against ZeRO's parts on two ranks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.optim import Lamb as TimmLamb
from torch import Tensor, nn

from gkd_scale.engine import checkpoint, zero
from gkd_scale.engine.config import OptimConfig
from gkd_scale.engine.ds_config import DeepSpeedPlan
from gkd_scale.engine.loop import Job, Training
from gkd_scale.engine.optimizers import OPTIMIZERS, registry
from gkd_scale.engine.optimizers.muon import orthogonal
from gkd_scale.engine.runtime import Runtime, free_port
from tests import warm
from tests.cases.case import ROOT, world_of_one
from tests.ranks import become_rank

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")  # DeepSpeed's use of torch
STAGES = (0, 1, 2, 3)
NEW = ("lamb", "muon")
LR, EACH, STEPS, GLOBAL = 0.02, 2, 4, 4
Alone = dict[str, list[dict[str, Tensor]]]


class Net(nn.Module):
    """Matrices that the border between two ranks cuts, a bias each, a table; one layer is frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.three = nn.Linear(7, 13), nn.Linear(13, 5), nn.Linear(5, 3)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.table = nn.Embedding(GLOBAL, 13)

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        x, which = batch
        units = self.one(x.to(self.one.weight.dtype)) + self.table(which)
        return {"loss": self.three(self.two(units.tanh()).tanh()).float().square().mean()}


def batch(step: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(100 + step)
    x, share = torch.randn(GLOBAL, 7), GLOBAL // world
    return x[rank * share :][:share], torch.arange(GLOBAL)[rank * share :][:share]


def training(runtime: Runtime, out: Path, name: str, stage: int, **more: Any) -> Training:
    micro = GLOBAL // runtime.world
    plan = {
        "train_micro_batch_size_per_gpu": micro,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": stage, "reduce_bucket_size": 1000},
        **more,
    }
    net = Net()
    job = Job(
        "net", net, lambda _: LR, out, optim=OptimConfig(name=name), lr_scales={"one.weight": 0.5}, ema=0.9
    )
    return Training(job, runtime, DeepSpeedPlan(ROOT, plan, micro, 1, GLOBAL))


def train(run: Training, start: int, stop: int) -> dict[str, Tensor]:
    """The masters after steps [start, stop)."""
    for step in range(start, stop):
        run.begin(step)
        run.micro_step(batch(step, run.runtime.rank, run.runtime.world), step, gradient_norm=False)
        run.end(step + 1)
    return {
        name: (zero.exact(p) if p.requires_grad else p.detach()).clone()
        for name, p in run.module.named_parameters()
    }


def save(run: Training, step: int) -> None:
    snapshot = checkpoint.take(step, run.engine, run.ema, run.runtime, {})
    run.runtime.on_main(partial(checkpoint.write, run.folder, snapshot))


def _rank(rank: int, port: int, root: Path) -> None:
    """Two steps under each stage in turn, from the checkpoint of the stage before."""
    runtime = become_rank(rank, port)
    for name in NEW:
        for stage in STAGES:
            run = training(runtime, root / name, name, stage)
            start = EACH * stage
            if start:
                checkpoint.load(run.folder, start, run.engine, run.ema, {})
            after = train(run, start, start + EACH)
            save(run, start + EACH)
            if runtime.main:
                save_file(after, root / name / f"{stage}.safetensors")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("two")
    warm.spawn(_rank, free_port(), root)
    return root


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """What one rank without ZeRO has after each :data:`EACH` steps."""
    states = {}
    with world_of_one() as runtime:
        for name in OPTIMIZERS:
            run = training(runtime, tmp_path_factory.mktemp("one"), name, 0)
            states[name] = [train(run, EACH * stage, EACH * stage + EACH) for stage in STAGES]
    return states


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", NEW)
def test_two_ranks_under_zero_train_as_one_without(name: str, stage: int, two: Path, alone: Alone) -> None:
    """Also from the checkpoint of another stage. Muon works in bfloat16, which magnifies rounding."""
    state, start = load_file(two / name / f"{stage}.safetensors"), Net().state_dict()
    for key, expected in alone[name][stage].items():
        change = (expected - start[key]).abs().max()
        assert change > 0 or "frozen" in key
        tolerance = 0.02 if name == "muon" else 1e-3
        assert (state[key] - expected).abs().max() <= tolerance * change, key


@pytest.mark.parametrize("name", NEW)
def test_a_checkpoint_holds_what_the_optimizer_keeps(name: str, two: Path) -> None:
    files = [checkpoint.path(two / name / "checkpoints", EACH * (1 + stage)) for stage in STAGES]
    keys = [set(load_file(file)) for file in files]
    assert all(each == keys[0] for each in keys)
    assert ("exp_avg_sq/two.weight" in keys[0]) == (name != "muon")
    assert {"exp_avg/two.weight", "exp_avg_sq/two.bias", "exp_avg_sq/table.weight"} <= keys[0]


def test_a_step_of_lamb_is_timms() -> None:
    nets = Net(), Net()
    ours, theirs = (
        registry.groups(net, weight_decay=0.05, lr_scales={}, no_decay=frozenset()) for net in nets
    )
    optimizers = (
        registry.build("lamb", ours, lr=LR, betas=(0.9, 0.999), fused=False),
        TimmLamb(theirs, lr=LR, betas=(0.9, 0.999), max_grad_norm=None),
    )
    for step in range(STEPS):
        for net, optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad()
            net(batch(step, 0, 1))["loss"].backward()
            optimizer.step()
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_a_step_of_muon_is_pytorchs() -> None:
    """On a matrix, PyTorch's Muon with the step of AdamW's size; on a bias, AdamW."""
    nets = Net(), Net()
    groups = registry.groups(nets[0], weight_decay=0.05, lr_scales={}, no_decay=frozenset(), matrices=True)
    matrices = [p for name, p in nets[1].named_parameters() if p.requires_grad and p.ndim == 2]
    matrices = [p for p in matrices if p is not nets[1].table.weight]
    others = [p for p in nets[1].parameters() if p.requires_grad and all(p is not m for m in matrices)]
    theirs = (
        torch.optim.Muon(matrices, lr=LR, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=LR, weight_decay=0.0),
    )
    ours = registry.build("muon", groups, lr=LR, betas=(0.9, 0.999), fused=False)
    for step in range(STEPS):
        for net, optimizers in zip(nets, ((ours,), theirs), strict=True):
            net.zero_grad()
            net(batch(step, 0, 1))["loss"].backward()
            for optimizer in optimizers:
                optimizer.step()
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("shape", [(8, 8), (40, 10), (10, 40)])
def test_orthogonal_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape)).float())
    assert values.min() > 0.4 and values.max() < 1.4


@pytest.mark.parametrize(("name", "stage"), [("adamw", 0), ("adamw", 2), ("adamw", 3), ("muon", 2)])
def test_a_fused_step_is_the_same_step(
    name: str,
    stage: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    alone: Alone,
) -> None:
    """As on a GPU. A fused kernel also goes on from a checkpoint; it counts steps on the device."""
    build = registry.build
    monkeypatch.setattr(registry, "build", lambda *args, **more: build(*args, **{**more, "fused": True}))
    with world_of_one() as runtime:
        run = training(runtime, tmp_path, name, stage)
        train(run, 0, 2)
        save(run, 2)
        other = training(runtime, tmp_path, name, stage)
        checkpoint.load(run.folder, 2, other.engine, other.ema, {})
        for state in (train(run, 2, STEPS), train(other, 2, STEPS)):
            for key, expected in alone[name][1].items():
                torch.testing.assert_close(state[key], expected, rtol=1e-3, atol=2e-4)


def test_half_precision_trains(tmp_path: Path) -> None:
    with world_of_one() as runtime:
        for name in NEW:
            for stage in (1, 3):
                run = training(runtime, tmp_path, name, stage, bf16={"enabled": True})
                after, start = train(run, 0, STEPS), Net().state_dict()
                assert all(v.dtype == torch.float32 for k, v in after.items() if "frozen" not in k)
                assert not torch.equal(after["two.weight"], start["two.weight"])
