"""``gkd-scale probe``: the table of a teacher's levels, and what to use of it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from gkd_scale import cli
from gkd_scale.models.config import TeacherConfig
from gkd_scale.models.registry import load_teacher
from gkd_scale.segment import probe as probes
from gkd_scale.segment.teacher_probe import advice, choose, draw, measure
from gkd_scale.types import Features
from tests.conftest import TINY
from tests.segment.support import Blocks

SIZE = (32, 48)


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "mobilenetv3_small_050", "swin_tiny_patch4_window7_224"]
)
def test_each_level_is_what_a_teacher_at_that_layer_gives(name: str, tmp_path: Path) -> None:
    """mIoU as the probe of that teacher alone has it; moments by hand; whatever the batch."""
    size = (64, 64) if name.startswith("swin") else SIZE
    args = dict(TINY) if name.startswith("vit") else {"img_size": 64} if name.startswith("swin") else {}
    torch.manual_seed(0)
    whole = load_untrained(name, size, args, tmp_path)
    train, val = (probes.load(Blocks(count), size, most=100) for count in (9, 5))
    levels = measure(whole, train, val, 4, quiet=True)
    assert [level.layer for level in levels] == [*range(len(levels) - 1), None]
    for level in (levels[0], levels[-2], levels[-1]):
        alone = load_untrained(
            name, size, args, tmp_path, layers=[] if level.layer is None else [level.layer]
        )
        features: list[Features] = []

        def encode(pixels: torch.Tensor, teacher=alone, outputs=features) -> Features:  # type: ignore[no-untyped-def]
            outputs.append(teacher.features(pixels))
            return outputs[-1]

        assert alone.grid == level.grid
        expected = probes.probe(encode, level.grid, train, val).miou()
        assert level.miou == pytest.approx(expected, abs=0.02)
        tokens = torch.cat([each.patches.flatten(0, 1) for each in features])[: level.tokens].double()
        power = tokens.square().sum(1).mean()
        assert level.mean_power == pytest.approx(float(tokens.mean(0).square().sum() / power), rel=1e-3)
        spectrum = torch.linalg.svdvals(tokens - tokens.mean(0)).square()
        assert level.components[0] == pytest.approx(float(spectrum[0] / spectrum.sum()), rel=1e-3)
    again = measure(whole, train, val, 3, quiet=True)
    assert [one.miou for one in again] == pytest.approx([one.miou for one in levels], abs=0.02)


def load_untrained(
    name: str, size: tuple[int, int], args: dict[str, object], folder: Path, layers: Sequence[int] = ()
):  # type: ignore[no-untyped-def]
    from safetensors.torch import save_file

    from gkd_scale.models import spec as specs

    file = folder / f"{name}.safetensors"
    if not file.exists():
        spec, _ = specs.resolve(name, args)
        net = specs.create(spec, image_size=size, pretrained=False)
        save_file({key: value.contiguous() for key, value in net.state_dict().items()}, file)
    return load_teacher(TeacherConfig(name, weights=file, args=args, layer=tuple(layers)), size, "cpu")


def test_the_best_level_is_advised_and_few_tokens_are_not_whitened(tmp_path: Path) -> None:
    teacher = load_untrained("vit_tiny_patch16_224", SIZE, dict(TINY), tmp_path)
    train, val = (probes.load(Blocks(count), SIZE, most=100) for count in (3, 2))
    first, *_, last = measure(teacher, train, val, 2, quiet=True)
    first, last = replace(first, miou=0.5), replace(last, miou=0.4)
    assert choose([first, last]) is first and choose([replace(first, miou=0.4), last]) is last
    assert advice(first) == ["--teacher-layer", "0", "--teacher-norm", "standard"]
    assert advice(replace(last, tokens=20 * last.dim)) == ["--teacher-norm", "whiten"]
    draw([first, last], first, tmp_path / "deep/probe.png")
    with Image.open(tmp_path / "deep/probe.png") as picture:
        colours = {colour for _, colour in picture.getcolors(1 << 20)}
    assert (8, 48, 107) in colours and (66, 146, 198) in colours


def test_the_command_writes_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part, count in (("train", 4), ("val", 2)):
        dataset = Blocks(count)
        for kind in ("images", "labels"):
            (tmp_path / part / kind).mkdir(parents=True)
        for index in range(count):
            sample = dataset[index]
            Image.fromarray(sample.image).save(tmp_path / part / f"images/{index}.png")
            Image.fromarray(sample.label).save(tmp_path / part / f"labels/{index}.png")
        (tmp_path / part / "classes.txt").write_text("\n".join(dataset.classes) + "\n")
    load_untrained("vit_tiny_patch16_224", SIZE, dict(TINY), tmp_path)
    flags = [
        "--teacher",
        "vit_tiny_patch16_224",
        "--teacher-weights",
        str(tmp_path / "vit_tiny_patch16_224.safetensors"),
    ]
    flags += ["--teacher-args", *(f"{key}={json.dumps(value)}" for key, value in TINY.items())]
    flags += ["--image-size", "32x48", "--device", "cpu", "--out", str(tmp_path / "out")]
    data = ["--train", f"folder:{tmp_path}/train", "--val", f"folder:{tmp_path}/val"]
    assert cli.main(["probe", *flags, *data]) == 0
    output = capsys.readouterr().out
    report = json.loads((tmp_path / "out/probe.json").read_text())
    (command,) = [line.removeprefix("next: ") for line in output.splitlines() if line.startswith("next: ")]
    assert shlex.split(command)[:2] == ["gkd-scale", "cache-teacher"]
    assert cli.main(shlex.split(command)[1:]) == 0
    assert (tmp_path / "out/cache/manifest.parquet").is_file()
    assert f"--cache {tmp_path / 'out/cache'} --teacher-norm {report['flags'][-1]}" in output
    assert sum(level["chosen"] for level in report["levels"]) == 1
    assert (tmp_path / "out/probe.png").is_file()


@pytest.mark.parametrize("flag", ["--train", "--val"])
def test_unseen_domains_are_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["probe", flag, "camvid:data/unseen_dusk"]) == 2
    assert "unseen domain" in capsys.readouterr().err
