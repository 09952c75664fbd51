"""Stage 1 in this process, a world of one: students in one pass, stops, live teachers, health."""

from __future__ import annotations

import runpy
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gkd_scale import files
from gkd_scale.config import build
from gkd_scale.distill import stage1
from gkd_scale.distill.config import Stage1Config
from gkd_scale.engine import checkpoint, loop, runlog
from gkd_scale.engine.loop import Hook, Job
from gkd_scale.engine.runtime import Runtime
from gkd_scale.engine.stop import Stopped
from gkd_scale.errors import CacheError, ConfigError, RunError, UserError
from tests.cases.case import world_of_one
from tests.conftest import ROOT, TINY
from tests.segment.support import Blocks, write_folder

SMALL = {"name": "vit_tiny_patch16_224", "folder": "small", "args": {**TINY, "depth": 1}}


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with world_of_one() as runtime:
        yield runtime


def config(cache: Path | None, out: Path, **changes: Any) -> Stage1Config:
    values = {
        "ds_config": "zero0.json",
        "cache": [cache] if cache else [],
        "student": "vit_tiny_patch16_224",
        "student_args": dict(TINY),
        "out": out,
        "steps": 6,
        "global_batch": 4,
        "save_every": 2,
        "workers": 1,
    }
    return build(Stage1Config, {**values, **changes}, "the test")


def train(runtime: Runtime, cfg: Stage1Config, *hooks: Hook) -> None:
    def prepare(job: Job) -> None:
        job.hooks.extend(hooks)

    stage1.train(cfg, runtime, ROOT / "launchers", prepare)


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in runlog.read(out / "metrics.jsonl")]


def files_of(out: Path) -> dict[str, bytes]:
    paths = [out / "backbone.safetensors", *sorted((out / "checkpoints").iterdir())]
    return {file.name: file.read_bytes() for file in paths}


@pytest.fixture(scope="module")
def alone(tiny_cache: Path, runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    train(runtime, config(tiny_cache, out))
    return out


def test_students_in_one_pass_are_those_of_a_pass_each(
    runtime: Runtime, tiny_cache: Path, alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bit for bit: weights, checkpoints and losses; then a third, coarser student is added to the folder."""
    both = tmp_path / "both"
    train(runtime, config(tiny_cache, both, student=["vit_tiny_patch16_224", SMALL]))
    assert files_of(both / "vit_tiny_patch16_224") == files_of(alone)
    assert losses(both / "vit_tiny_patch16_224") == losses(alone)
    small = config(tiny_cache, tmp_path / "small", student_args=SMALL["args"])
    train(runtime, small)
    assert files_of(both / "small") == files_of(tmp_path / "small")
    third = {"name": "mobilenetv3_small_050", "args": {}}
    before = (both / "small/run.json").read_bytes()
    assert "coarser" not in capsys.readouterr().out
    train(runtime, config(tiny_cache, both, student=["vit_tiny_patch16_224", SMALL, third]))
    assert len(losses(both / "mobilenetv3_small_050")) == 6
    assert (both / "small/run.json").read_bytes() == before
    assert "output_stride=16" in capsys.readouterr().out


def test_a_pass_that_was_killed_between_two_saves_goes_on_for_both(
    runtime: Runtime, tiny_cache: Path, alone: Path, tmp_path: Path
) -> None:
    """One student's step 4 is whole, the other's newest is 2: both go on from 2."""

    def stop(step: int, _module: object) -> dict[str, float]:
        if step == 4:
            raise KeyboardInterrupt
        return {}

    cfg = config(tiny_cache, tmp_path / "run", student=["vit_tiny_patch16_224", SMALL])
    with pytest.raises(KeyboardInterrupt):
        train(runtime, cfg, Hook(2, stop))
    ahead = tmp_path / "run/vit_tiny_patch16_224/checkpoints"
    later = checkpoint.path(alone / "checkpoints", 4).read_bytes()
    checkpoint.path(ahead, 4).write_bytes(later)
    train(runtime, cfg)
    assert losses(tmp_path / "run/vit_tiny_patch16_224") == losses(alone)
    assert files_of(tmp_path / "run/vit_tiny_patch16_224") == files_of(alone)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_writes_a_checkpoint_and_the_same_call_goes_on(
    number: signal.Signals, runtime: Runtime, tiny_cache: Path, alone: Path, tmp_path: Path
) -> None:
    def ask(step: int, _module: object) -> dict[str, float]:
        if step == 2:
            signal.raise_signal(number)
        return {}

    cfg = config(tiny_cache, tmp_path / "run", save_every=100)
    with pytest.raises(Stopped, match="after step 3 of 6"):
        train(runtime, cfg, Hook(1, ask))
    assert checkpoint.steps(cfg.run.out / "checkpoints") == [3]
    assert not (cfg.run.out / "run.json").exists()
    train(runtime, cfg)
    assert losses(cfg.run.out) == losses(alone)
    one, two = (load_file(out / "backbone.safetensors") for out in (cfg.run.out, alone))
    assert all(torch.equal(one[name], two[name]) for name in two)


def test_metrics_of_several_steps_are_fetched_together(
    runtime: Runtime, tiny_cache: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: no code of ours reads a tensor's value between, and the rows are those of each step."""
    reads: list[str] = []
    for name in ("tolist", "item", "__float__", "__bool__"):
        original = getattr(torch.Tensor, name)

        def spy(tensor: torch.Tensor, original: Any = original) -> Any:
            reads.append(Path(sys._getframe(1).f_code.co_filename).name)
            return original(tensor)

        monkeypatch.setattr(torch.Tensor, name, spy)
    monkeypatch.setattr(loop, "steps_of_window", lambda _: 4)
    monkeypatch.setattr(checkpoint, "take", lambda *_: None)
    monkeypatch.setattr(checkpoint, "write", lambda *_: None)
    train(runtime, config(tiny_cache, tmp_path / "run", save_every=100))
    monkeypatch.undo()
    assert reads.count("metrics.py") == 4, "losses and gradient norms, after steps 4 and 6"
    ours = {path.name for path in (ROOT / "gkd_scale").rglob("*.py")}
    assert {name for name in reads if name in ours} == {"metrics.py"}
    timing = ("images_per_s", "data_wait")
    one, two = (
        [{key: value for key, value in row.items() if key not in timing} for row in runlog.read(path)]
        for path in (alone / "metrics.jsonl", tmp_path / "run/metrics.jsonl")
    )
    assert one == two


def test_views_that_a_run_does_not_read_are_counted(
    runtime: Runtime, tiny_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(runtime, config(tiny_cache, tmp_path / "one", steps=2))
    assert "0.7 epochs read 1 of the 2 views of each image" in capsys.readouterr().out
    train(runtime, config(tiny_cache, tmp_path / "both", steps=4))
    assert "of the 2 views" not in capsys.readouterr().out


def test_checkpoints_of_every_mth_step_stay(runtime: Runtime, tiny_cache: Path, tmp_path: Path) -> None:
    train(runtime, config(tiny_cache, tmp_path, save_every=1, keep=2, keep_every=3))
    assert checkpoint.steps(tmp_path / "checkpoints") == [3, 5, 6]


def test_checkpointed_activations_change_nothing(
    runtime: Runtime, tiny_cache: Path, alone: Path, tmp_path: Path
) -> None:
    """Bit for bit, and a run may go on with them: where memory was short, say."""

    def ask(step: int, _module: object) -> dict[str, float]:
        if step == 2:
            signal.raise_signal(signal.SIGTERM)
        return {}

    with pytest.raises(Stopped):
        train(runtime, config(tiny_cache, tmp_path), Hook(1, ask))
    with pytest.raises(RunError, match="compile: False then, True now"):  # it rounds differently
        train(runtime, config(tiny_cache, tmp_path, compile=True))
    train(runtime, config(tiny_cache, tmp_path, grad_checkpointing=True))
    assert losses(tmp_path) == losses(alone)


def test_checkpointed_activations_leave_running_statistics_alone(
    runtime: Runtime, tiny_cache: Path, tmp_path: Path
) -> None:
    statistics = []
    for on in (False, True):
        student = {"student": "mobilenetv4_conv_small_035", "student_args": {}}
        cfg = config(tiny_cache, tmp_path / str(on), **student, steps=2, ema=0.0, grad_checkpointing=on)
        train(runtime, cfg)
        state = load_file(cfg.run.out / "backbone.safetensors")
        statistics.append({name: value for name, value in state.items() if name.endswith("running_mean")})
    assert statistics[0]
    for name, value in statistics[0].items():
        torch.testing.assert_close(statistics[1][name], value)


def test_layers_learn_at_rates_of_their_own(runtime: Runtime, tiny_cache: Path, tmp_path: Path) -> None:
    """With a decay near 0 only the layer nearest the output moves."""
    same = {"seed": 0, "ema": 0.0, "steps": 2, "student_weights": None}
    train(runtime, config(tiny_cache, tmp_path / "none", **same, optim={"lr": 1e-12, "weight_decay": 0.0}))
    train(runtime, config(tiny_cache, tmp_path / "one", **same, optim={"layer_decay": 1e-9, "lr": 1e-2}))
    none, one = (load_file(tmp_path / name / "backbone.safetensors") for name in ("none", "one"))
    names = {name for name in none if float((none[name] - one[name]).abs().max()) > 1e-6}
    last = {name for name in none if name.startswith(("blocks.1.", "norm."))}
    assert {"norm.weight", "blocks.1.mlp.fc2.weight"} <= names <= last


def live(images: Path, weights: Path) -> dict[str, Any]:
    teacher = {"teacher": "vit_tiny_patch16_224", "teacher_weights": str(weights), "teacher_args": TINY}
    return {"images": str(images), "image_size": "32x48", "samples_per_shard": 5, **teacher}


def test_a_live_teacher_gives_the_run_of_its_cache(
    runtime: Runtime, tiny_cache: Path, tiny_teacher: Path, alone: Path, tmp_path: Path
) -> None:
    """2 epochs of 2 views; then views that are new in each epoch, of which the first is the cache's.

    The conditioning of new views has the moments of the first epoch's, as that of one view."""
    recipe = live(tiny_cache.parent / "images", tiny_teacher)
    train(runtime, config(None, tmp_path / "live", teacher="live", live=recipe, views=2))
    assert losses(tmp_path / "live") == pytest.approx(losses(alone), rel=1e-3)
    train(runtime, config(None, tmp_path / "one", teacher="live", live=recipe, views=1))
    train(runtime, config(tiny_cache, tmp_path / "first", views=1))
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "first"), rel=1e-3)
    train(runtime, config(None, tmp_path / "fresh", teacher="live", live=recipe))
    fresh = losses(tmp_path / "fresh")
    assert fresh[:3] == losses(tmp_path / "one")[:3]
    assert fresh[3:] != losses(tmp_path / "one")[3:]


def test_a_live_teacher_reads_a_labelled_dataset(
    runtime: Runtime, tiny_teacher: Path, tmp_path: Path
) -> None:
    """``--live images=folder:PATH``, as the launcher runs it: what ``cache-teacher --images`` takes."""
    write_folder(tmp_path / "data", Blocks(5))
    recipe = {**live(tmp_path, tiny_teacher), "images": f"folder:{tmp_path / 'data'}"}
    launcher = runpy.run_path(str(ROOT / "launchers/stage1.py"))
    cfg = config(None, tmp_path / "run", teacher="live", live=recipe, steps=2)
    launcher["run"](cfg, runtime, ROOT / "launchers")
    assert len(losses(tmp_path / "run")) == 2


def test_a_dead_student_stops_the_run(runtime: Runtime, tiny_cache: Path, tmp_path: Path) -> None:
    def die(_step: int, module: Any) -> dict[str, float]:
        with torch.no_grad():
            module.student.net.norm.weight.zero_()
        return {}

    cfg = config(tiny_cache, tmp_path, steps=40, optim={"lr": 1e-9}, ema=0.0)
    with pytest.raises(UserError, match="the student is dead"):
        train(runtime, cfg, Hook(1, die))


def test_mistakes_name_what_to_change(runtime: Runtime, tiny_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="--views 3 is more than the 2 views"):
        train(runtime, config(tiny_cache, tmp_path / "a", views=3))
    with pytest.raises(ConfigError, match="two students would be trained in"):
        config(tiny_cache, tmp_path, student=["resnet18", "resnet18"])
    with pytest.raises(ConfigError, match="unknown key 'nam'"):
        config(tiny_cache, tmp_path, student=[{"nam": "resnet18"}, "resnet18"])
    with pytest.raises(ConfigError, match="both --teacher live and --cache"):
        config(tiny_cache, tmp_path, teacher="live")
    with pytest.raises(ConfigError, match="--live is given without --teacher live"):
        config(tiny_cache, tmp_path, live={"images": "x"})
    with pytest.raises(ConfigError, match="neither images nor teacher"):
        train(runtime, config(None, tmp_path / "b", teacher="live"))
    with pytest.raises(ConfigError, match="does not take 'views'"):
        train(runtime, config(None, tmp_path / "c", teacher="live", live={"views": 2}))


def test_another_setting_than_that_of_the_checkpoint_is_refused(
    runtime: Runtime, tiny_cache: Path, tmp_path: Path
) -> None:
    train(runtime, config(tiny_cache, tmp_path, steps=2))
    with pytest.raises(RunError, match="views: None then, 1 now"):
        train(runtime, config(tiny_cache, tmp_path, steps=2, views=1))


def test_another_optimizer_is_refused_and_the_usual_one_is_not_noted(
    runtime: Runtime, tiny_cache: Path, alone: Path, tmp_path: Path
) -> None:
    """Runs that know of no other optimizer go on; their files have the bytes that they had."""
    assert "name" not in files.read_json(alone / "begun.json")["identity"]["optim"]
    with pytest.raises(RunError, match=r"optim\.name: 'adamw' then, 'lamb' now") as error:
        train(runtime, config(tiny_cache, alone, optim={"name": "lamb"}))
    assert "the same settings" in str(error.value.hint)
    train(runtime, config(tiny_cache, tmp_path, steps=2, optim={"name": "lamb"}))
    with pytest.raises(RunError, match=r"optim\.name: 'lamb' then, 'adamw' now"):
        train(runtime, config(tiny_cache, tmp_path, steps=2))


@pytest.mark.parametrize("name", ["lamb", "muon"])
def test_an_optimizer_learns_and_goes_on_to_the_bit(
    name: str, runtime: Runtime, tiny_cache: Path, tmp_path: Path
) -> None:
    optim = {"name": name, "lr": 3e-3, "layer_decay": 0.8}
    train(runtime, config(tiny_cache, tmp_path / "a", ds_config="zero2.json", optim=optim))
    curve = losses(tmp_path / "a")
    assert curve[-1] < curve[0]

    class Kill(Exception):
        pass

    def kill(step: int, _module: Any) -> dict[str, float]:
        if step == 5:
            raise Kill
        return {}

    cfg = config(tiny_cache, tmp_path / "b", ds_config="zero2.json", optim=optim)
    with pytest.raises(Kill):
        train(runtime, cfg, Hook(1, kill))
    train(runtime, cfg)
    assert files_of(tmp_path / "b") == files_of(tmp_path / "a")


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")  # DeepSpeed's use of torch
def test_zero3_with_offload_trains_in_bf16(
    runtime: Runtime, tiny_cache: Path, alone: Path, tmp_path: Path
) -> None:
    kinds: set[torch.dtype] = set()

    def look(_step: int, module: Any) -> dict[str, float]:
        kinds.update(each.dtype for each in module.conditioning.tensors().values())
        return {}

    train(runtime, config(tiny_cache, tmp_path, ds_config="zero3_offload.json"), Hook(1, look))
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=0.05)
    assert kinds == {torch.float32}, "the targets are conditioned in float32"
    average = load_file(checkpoint.path(tmp_path / "checkpoints", 6))
    weights = load_file(tmp_path / "backbone.safetensors")
    assert all(torch.equal(value, average[f"ema/student.net.{name}"]) for name, value in weights.items())


@pytest.mark.slow
@pytest.mark.parametrize("ds_config", ["zero0.json", "zero2.json"])
def test_a_compiled_student_gives_the_same_losses(
    ds_config: str, runtime: Runtime, tiny_cache: Path, alone: Path, tmp_path: Path
) -> None:
    train(runtime, config(tiny_cache, tmp_path, ds_config=ds_config, compile=True))
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=1e-4)
    weights = load_file(tmp_path / "backbone.safetensors")
    assert weights.keys() == load_file(alone / "backbone.safetensors").keys()
