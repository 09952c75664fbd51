"""Kind F: numbers outside their meaning, as flags, in presets, recipes, search spaces and KEY=VALUE."""

from __future__ import annotations

import json

from tests.cases.case import Bench, Ran, case
from tests.conftest import tiny_args, write_images

KIND = "F. Numbers outside their meaning"


def refusal(bench: Bench, ran: Ran, *keys: str) -> Ran:
    """The outcome of a command that must refuse in one line, name the key alone, and write nothing."""
    assert ran.code == 2, ran.text
    assert all(key in ran.text for key in keys), ran.text
    assert len(ran.text) < 400 and "pydantic" not in ran.text and "Config(" not in ran.text, ran.text
    assert not (bench.folder / "run").exists()
    return ran


def _stage1(what: str, key: str, *flags: str) -> None:
    case(KIND, what)(lambda bench: refusal(bench, bench.stage1("--out", bench.folder / "run", *flags), key))


def _stage2(what: str, key: str, *flags: str) -> None:
    case(KIND, what)(lambda bench: refusal(bench, bench.stage2("--out", bench.folder / "run", *flags), key))


_stage1("stage 1 `--lr nan`", "'optim.lr'", "--lr", "nan")
_stage1("stage 1 `--lr -1`", "'optim.lr'", "--lr=-1")
_stage1("stage 1 `--lr 5e4`, for 5e-4", "'optim.lr'", "--lr", "5e4")
_stage1("stage 1 `--optim.warmup 5`, as epochs", "'optim.warmup'", "--optim.warmup", "5")
_stage1("stage 1 `--optim.betas 0.9 1.5`", "'optim.betas'", "--optim.betas", "0.9", "1.5")
_stage1("stage 1 `--drop-path 2`", "'drop_path'", "--drop-path", "2")
_stage1("stage 1 `--drop-path nan`", "'drop_path'", "--drop-path", "nan")
_stage1("stage 1 `--loss.cls-weight -0.1`", "'loss.cls_weight'", "--loss.cls-weight=-0.1")
_stage1("stage 1 `--epochs inf`", "'epochs'", "--epochs", "inf")
_stage1("stage 1 `--seed -1`, for a random one", "'seed'", "--seed=-1")
_stage1("stage 1 `--steps 99999999999999999999999`", "'steps'", "--steps", "99999999999999999999999")
_stage1(
    "stage 1 with every weight of the loss 0",
    "every weight",
    *("--loss.feature-weight", "0", "--loss.cls-weight", "0", "--loss.ladder-weight", "0"),
)
_stage1("stage 1 `--student-args depth=2.5`", "'student_args.depth'", "--student-args", "depth=2.5")
_stage1(
    "stage 1 `--student-args drop_path_rate=1.5`",
    "'student_args.drop_path_rate'",
    *("--student-args", "drop_path_rate=1.5"),
)
_stage1("stage 1 `--student-args depth=nan`", "'student_args.depth'", "--student-args", "depth=nan")
_stage1(
    "stage 1 live with `mean=[123.675,116.28,103.53]`",
    "'mean' is 123.675",
    *("--teacher", "live", "--live", "images=photos", "image_size=32x48", "mean=[123.675,116.28,103.53]"),
)
_stage1("stage 1 `--steps 1e3`", "write 1000", "--steps", "1e3")
_stage1("stage 1 `--steps 1,000`", "write 1000", "--steps", "1,000")
_stage1("stage 1 `--lr 0,001`", "write 0.001", "--lr", "0,001")
_stage1("stage 1 `--optim.warmup 10%`", "write 0.1", "--optim.warmup", "10%")
_stage2("stage 2 `--std 58.395 57.12 57.375`", "'std'", "--std", "58.395", "57.12", "57.375")
_stage2("stage 2 `--optim.power -1`", "'optim.power'", "--optim.power=-1")
_stage2("stage 2 `--augment.flip 50`, as percent", "'augment.flip'", "--augment.flip", "50")
_stage2("stage 2 `--augment.scale 2.0 0.5`", "'augment.scale'", "--augment.scale", "2.0", "0.5")
_stage2("stage 2 `--head fpn --head-args dropout=1`", "dropout", "--head", "fpn", "--head-args", "dropout=1")
_stage2("stage 2 `--head-args widht=64`", "'widht'", "--head", "fpn", "--head-args", "widht=64")
_stage2(
    "stage 2 `--method cwd --method-args temperature=0`",
    "temperature",
    *("--method", "cwd", "--teacher", "demo_teacher", "--method-args", "temperature=0"),
)


def _cache(what: str, key: str, *flags: str) -> None:
    def run(bench: Bench) -> object:
        images = write_images(bench.folder / "images", 1)
        common = ("--images", images, "--image-size", "32x48", "--out", bench.folder / "run")
        return refusal(bench, bench.cli("cache-teacher", *common, *flags), key)

    case(KIND, what)(run)


_cache("cache-teacher `--mean 123.675 116.28 103.53`", "'mean'", "--mean", "123.675", "116.28", "103.53")
_cache("cache-teacher `--std 0 0 0`", "'std'", "--std", "0", "0", "0")
_cache("cache-teacher `--view.quality 0.9`", "'view.quality'", "--view.quality", "0.9")
_cache("cache-teacher `--workers -1`, as for DataLoaders", "'workers'", "--workers=-1")


@case(KIND, "cache-teacher with the model's own `--mean` and `--std` said again")
def own_mean(bench: Bench) -> object:
    images = write_images(bench.folder / "images", 2)
    flags = ("cache-teacher", "--images", images, "--image-size", "96x128", "--workers", 0)
    assert bench.cli(*flags, "--out", bench.folder / "a").code == 0
    own = json.loads((bench.folder / "a/cache.json").read_text())["spec"]["teacher"]
    ran = bench.cli(*flags, "--out", bench.folder / "b", "--mean", *own["mean"], "--std", *own["std"])
    assert own == json.loads((bench.folder / "b/cache.json").read_text())["spec"]["teacher"]
    return ran


def _preset(what: str, key: str, text: str) -> None:
    def run(bench: Bench) -> object:
        (bench.folder / "preset.yaml").write_text(text)
        ran = bench.stage1("--config", bench.folder / "preset.yaml", "--out", bench.folder / "run")
        return refusal(bench, ran, "preset.yaml", key)

    case(KIND, what)(run)


_preset("a preset with `optim: {warmup: 1000}`", "'optim.warmup'", "optim: {warmup: 1000}\n")
_preset("a preset with `drop_path: .nan`", "'drop_path'", "drop_path: .nan\n")
_preset("a preset with `steps: yes`", "'steps'", "steps: yes\n")
_preset("a preset with `steps: true`", "'steps'", "steps: true\n")


_preset("a preset with `objective: {}`", "'objective'", "objective: {}\n")


@case(KIND, "a preset with `image_size: true`")
def a_switch_for_a_size(bench: Bench) -> object:
    (bench.folder / "preset.yaml").write_text("image_size: true\n")
    flags = ("--images", bench.folder, "--out", bench.folder / "run")
    ran = bench.cli("cache-teacher", "--config", bench.folder / "preset.yaml", *flags)
    return refusal(bench, ran, "preset.yaml", "'image_size'")


def _space(what: str, key: str, text: str, kind: str = KIND) -> None:
    def run(bench: Bench) -> object:
        (bench.folder / "space.yaml").write_text(text)
        flags = ("--student", "vit_tiny_patch16_224", "--student-args", *tiny_args())
        ran = bench.tune("--space", bench.folder / "space.yaml", *flags, "--out", bench.folder / "run")
        return refusal(bench, ran, "space.yaml", key)

    case(kind, what)(run)


_space("a space with `drop_path: uniform(0, 2)`", "'drop_path'", "drop_path: uniform(0, 2)\n")
_space("a space with `student_args.depth: uniform(2, 4)`", "depth", "student_args.depth: uniform(2, 4)\n")
_space("a space with `views: uniform(1, 3)`", "'views'", "views: uniform(1, 3)\n")
_space("a space with `optim.warmup: uniform(0, 10)`", "'optim.warmup'", "optim.warmup: uniform(0, 10)\n")

_space(
    "a space with `cache: choice(a, b)`, which the search would not heed", "'cache'", "cache: choice(a, b)\n"
)

L = "L. Wrong cause or no next step"
for _text in (
    "optim.lr: tune.loguniform(1e-4, 1e-2)",
    "optim.lr: quniform(1e-4, 1e-2, 1e-4)",
    "optim.lr: {distribution: log_uniform, min: 1e-4, max: 1e-2}",
    "views: tune.randint(1, 4)",
    "global_batch: choice([16, 32])",
    "optim.lr: tune.choice([1e-4, 1e-3])",
    "lr: loguniform(1e-4, 1e-2)",
):
    _space(f"a space with `{_text}`", f"'{_text.partition(':')[0]}'", f"{_text}\n", L)

_space(
    "a space with `optim: {lr: loguniform(1e-4, 1e-2)}`",
    "quote it",
    "optim: {lr: loguniform(1e-4, 1e-2)}\n",
    L,
)


def _recipe(what: str, key: str, before: str, after: str) -> None:
    def run(bench: Bench) -> object:
        from tests.conftest import ROOT

        text = (ROOT / "benchmarks/recipes/camvid.yaml").read_text()
        assert before in text
        (bench.folder / "recipe.yaml").write_text(text.replace(before, after, 1))
        ran = bench.cli("benchmark", bench.folder / "recipe.yaml", "--out", bench.folder / "run", "--dry-run")
        return refusal(bench, ran, "recipe.yaml", key)

    case(KIND, what)(run)


_recipe("a recipe with `seeds: [-1]`", "'seeds'", "budget:", "seeds: [-1]\nbudget:")


@case(KIND, "stage 2 `--label-fraction 0.25` in a preset, a number where flags have a text")
def a_number_for_a_text(bench: Bench) -> object:
    from gkd_scale import config
    from gkd_scale.segment.config import Stage2Config

    preset = bench.folder / "preset.yaml"
    preset.write_text("label_fraction: 0.25\nimage_size: 64\n")
    cfg = config.parse(Stage2Config, ["--config", str(preset)], prog="stage2.py", description="")
    assert cfg.data.label_share() == 0.25 and cfg.size() == (64, 64)
    return "ok"
