"""``gkd-scale evaluate`` on small folders: the numbers, the JSON, the table, the refusals."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from gkd_scale import config as configs
from gkd_scale.errors import ConfigError, DataError, GkdError, RunError
from gkd_scale.segment import export
from gkd_scale.segment.config import EvaluateConfig
from gkd_scale.segment.evaluate import DomainResult, evaluate, table
from gkd_scale.segment.inference import Windows, predict, prepare
from gkd_scale.segment.segmenter import Segmenter
from gkd_scale.types import IGNORE, SegSample

from .support import CLASSES, Blocks, picture, tiny_segmenter, write_folder

SIZE = (32, 48)


@pytest.fixture
def segmenter() -> Segmenter:
    model = tiny_segmenter()
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    model.eval()
    return model


@pytest.fixture
def run(tmp_path: Path, segmenter: Segmenter) -> Path:
    folder = tmp_path / "run"
    segmenter.backbone.save(folder)
    export.save_head(folder, segmenter.head)
    card = export.Card("linear", {}, list(CLASSES), list(Blocks.palette), SIZE, "frozen", 7, 12.5)
    export.save_card(folder, card)
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    return {
        "day": write_folder(tmp_path / "day", Blocks(5, [SIZE, (40, 60)])),
        "dusk": write_folder(tmp_path / "dusk", Blocks(3, [(33, 47)])),
    }


def score(run: Path, *argv: str) -> dict[str, DomainResult]:
    return evaluate(configs.parse(EvaluateConfig, (str(run), *argv), prog="evaluate", description=""))


def data(folders: dict[str, Path]) -> list[str]:
    return [part for name, path in folders.items() for part in ("--data", f"{name}=folder:{path}")]


def by_hand(segmenter: Segmenter, dataset: Blocks) -> dict[str, float | None]:
    """IoU in percent from boolean masks over all pixels of the domain."""
    pairs = []
    for sample in dataset.samples:
        prediction = predict(segmenter, [prepare(sample.image, SIZE)[None]], [sample.label.shape])[0].numpy()
        pairs.append((prediction[sample.label != IGNORE], sample.label[sample.label != IGNORE]))
    guess, real = (np.concatenate(each) for each in zip(*pairs, strict=True))
    ious: dict[str, float | None] = {}
    for index, name in enumerate(CLASSES):
        union = ((guess == index) | (real == index)).sum()
        ious[name] = float(100 * ((guess == index) & (real == index)).sum() / union) if union else None
    return ious


def test_numbers_json_and_return_value(run: Path, folders: dict[str, Path], segmenter: Segmenter) -> None:
    results = score(run, *data(folders), "--json", str(run / "sub" / "out.json"), "--batch-size", "2")
    assert json.loads((run / "sub" / "out.json").read_text()) == results
    assert {name: result["images"] for name, result in results.items()} == {"day": 5, "dusk": 3}
    for name, dataset in (("day", Blocks(5, [SIZE, (40, 60)])), ("dusk", Blocks(3, [(33, 47)]))):
        expected = by_hand(segmenter, dataset)
        assert results[name]["iou"] == pytest.approx(expected)
        present = [value for value in expected.values() if value is not None]
        assert results[name]["miou"] == pytest.approx(np.mean(present))
        assert set(results[name]) == {"miou", "without", "iou", "images", "inference"}
        assert results[name]["inference"] == {"mode": "whole", "scales": [1.0], "flip": False}


def test_the_result_says_how_images_were_looked_at(run: Path, folders: dict[str, Path]) -> None:
    windows = ["--inference", "slide", "--window", "32", "--stride", "16"]
    facts = {"mode": "slide", "window": [32, 32], "stride": [16, 16], "scales": [1.0], "flip": False}
    results = score(run, *data(folders), *windows)
    assert results["day"]["inference"] == facts
    tta = score(run, *data(folders), *windows, "--tta-flip", "--tta-scales", "0.5", "1")
    assert tta["day"]["inference"] == facts | {"scales": [0.5, 1.0], "flip": True}
    whole = score(run, *data(folders))
    assert len({each["day"]["miou"] for each in (results, tta, whole)}) == 3


def test_a_run_is_evaluated_as_it_was_validated_unless_told_otherwise(
    run: Path, folders: dict[str, Path]
) -> None:
    whole = score(run, *data(folders))
    card = replace(export.load_card(run), windows=Windows((32, 32), (16, 16)))
    export.save_card(run, card)
    assert export.load_card(run) == card
    slid = score(run, *data(folders))
    assert slid["day"]["inference"]["mode"] == "slide" and slid["day"]["inference"]["window"] == [32, 32]
    assert score(run, *data(folders), "--inference", "whole") == whole
    assert score(run, *data(folders), "--inference", "slide")["day"]["inference"]["window"] == list(SIZE)


def test_a_class_that_no_training_label_held_does_not_count_and_the_result_says_so(
    run: Path, folders: dict[str, Path], segmenter: Segmenter, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *others = CLASSES
    export.save_card(run, replace(export.load_card(run), absent=[first]))
    results = score(run, *data(folders))
    expected = by_hand(segmenter, Blocks(3, [(33, 47)]))
    assert results["dusk"]["iou"] == pytest.approx(expected), "the class itself is still reported"
    present = [expected[name] for name in others if expected[name] is not None]
    assert results["dusk"]["miou"] == pytest.approx(np.mean(present))
    assert results["dusk"]["without"] == [first]
    assert f"{len(others)} of {len(CLASSES)}" in capsys.readouterr().out


def test_a_class_that_no_label_of_a_domain_holds_does_not_count_there(
    run: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    *others, last = CLASSES
    dusk = Blocks(3)
    labels = [np.where(each.label == len(others), 0, each.label) for each in dusk.samples]
    dusk.samples = [SegSample(str(i), picture(label), label) for i, label in enumerate(labels)]
    folders["dusk"] = write_folder(tmp_path / "without", dusk)
    before = score(run, *data(folders))
    assert before["dusk"]["iou"][last] == 0, "predicted, and in no label"
    (folders["dusk"] / "absent.txt").write_text(f"{last}\n")
    results = score(run, *data(folders))
    scores = [before["dusk"]["iou"][name] for name in others]
    assert results["dusk"]["miou"] == pytest.approx(np.mean([each for each in scores if each is not None]))
    assert (results["day"]["without"], results["dusk"]["without"]) == ([], [last])
    (folders["dusk"] / "absent.txt").write_text(f"{others[0]}\n")
    with pytest.raises(
        DataError, match=f"labels of domain 'dusk' hold '{others[0]}', which is said to occur"
    ):
        score(run, *data(folders))


def test_a_domain_of_which_nothing_was_trained_on_is_refused(run: Path, folders: dict[str, Path]) -> None:
    export.save_card(run, replace(export.load_card(run), absent=list(CLASSES)))
    with pytest.raises(DataError, match=r"no class of domain .* is one that was trained on"):
        score(run, *data(folders))


def test_the_json_lies_in_the_run_unless_told_otherwise(run: Path, folders: dict[str, Path]) -> None:
    results = score(run, *data(folders))
    assert json.loads((run / "evaluation.json").read_text()) == results


def test_table_has_a_row_a_class_and_a_column_a_domain() -> None:
    rest: Any = {"without": [], "inference": {}}
    results: dict[str, DomainResult] = {
        "day": {"miou": 55.5, "iou": {"road": 61.11, "sky": 50.0}, "images": 3, **rest},
        "night": {"miou": 20.0, "iou": {"road": 20.0, "sky": None}, "images": 4, **rest},
    }
    text = io.StringIO()
    Console(file=text, width=80).print(table(results, ["road", "sky"]))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.getvalue().splitlines()]
    cells = [row for row in rows if row]
    assert cells == [
        ["road", "61.1", "20.0"],
        ["sky", "50.0", "–"],
        ["mIoU", "55.50", "20.00"],
        ["images", "3", "4"],
    ]


def test_other_classes_are_refused_before_anything_is_scored(run: Path, folders: dict[str, Path]) -> None:
    (folders["dusk"] / "classes.txt").write_text("red\ngreen\nblue\ngray\n")
    with pytest.raises(DataError, match="class 3 is 'gray' there and 'grey' here"):
        score(run, *data(folders))
    assert not (run / "evaluation.json").exists()


def test_a_domain_without_a_label_is_refused(run: Path, folders: dict[str, Path]) -> None:
    for label in (folders["dusk"] / "labels").iterdir():
        Image.fromarray(np.full((33, 47), IGNORE, np.uint8)).save(label)
    with pytest.raises(DataError, match="labels' pixels are 255, ignored"):
        score(run, *data(folders))


def test_mistakes(run: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    cases: list[tuple[Path, list[str], type[GkdError], str]] = [
        (tmp_path / "none", data(folders), RunError, "does not exist"),
        (folders["day"], data(folders), RunError, "no finished stage-2 run"),
        (run, [], ConfigError, "no domain"),
        (run, ["--data", "x=foldr:y"], ConfigError, "did you mean 'folder'"),
        (run, [*data(folders), "--device", "abacus"], ConfigError, "abacus"),
    ]
    for where, argv, error, message in cases:
        with pytest.raises(error, match=message):
            score(where, *argv)


def test_a_head_of_another_shape_is_refused(run: Path, folders: dict[str, Path]) -> None:
    card = export.load_card(run)
    export.save_card(run, export.Card(**{**card.__dict__, "classes": [*card.classes, "black"]}))
    with pytest.raises(RunError, match=r"head\.safetensors does not fit"):
        score(run, *data(folders))
