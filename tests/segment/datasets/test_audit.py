"""gkd-scale datasets, and its check: everything counted, every fault listed, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gkd_scale.cli import main
from gkd_scale.segment.datasets.registry import ADAPTERS

from ..support import Blocks, write_folder  # noqa: TID252
from .miniature import write_image, write_values


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for index, size in enumerate([(4, 6), (4, 6), (2, 4)]):
        write_image(tmp_path / f"rgb_anon/fog/val/seq/{index}_rgb_anon.png", size)
        write_values(tmp_path / f"gt/fog/val/seq/{index}_gt_labelTrainIds.png", [0, 13, 255, 255], size)
    write_image(tmp_path / "rgb_anon/night/train/seq/0_rgb_anon.png")
    write_values(tmp_path / "gt/night/train/seq/0_gt_labelTrainIds.png", [18])
    return tmp_path


def check(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, list[dict[str, Any]]]:
    capsys.readouterr()
    code = main(["datasets", "check", *map(str, argv), "--json"])
    return code, json.loads(capsys.readouterr().out or "[]")


def test_all_parts_that_are_there_are_counted(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, reports = check(capsys, "acdc", root)
    assert code == 0
    there = [each["domain"] for each in reports if each["pairs"]]
    assert there == ["acdc/night/train", "acdc/fog/val"]
    assert {each["domain"] for each in reports} == {f"acdc/{part}" for part in ADAPTERS["acdc"].parts}
    absent = {each["domain"]: each["notes"] for each in reports if not each["pairs"]}
    assert absent["acdc/night/val"] == ["nothing is there (106 pairs)"]
    fog = reports[1]
    assert fog["pairs"] == 3 and fog["expected"] == 100 and fog["sizes"] == {"4x6": 2, "2x4": 1}
    assert fog["classes"]["road"] == {"pixels": 14, "share": 0.25, "images": 3}
    assert fog["classes"]["car"]["share"] == 0.25 and fog["void_share"] == 0.5
    assert fog["faults"] == []
    assert "97 of 100 pairs missing" in fog["notes"] and any("sidewalk" in note for note in fog["notes"])
    assert len(check(capsys, "acdc", f"{root}@fog/val")[1]) == 1


def test_every_fault_is_listed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = root / "gt/fog/val/seq"
    write_values(folder / "0_gt_labelTrainIds.png", [0, 77], (4, 6))
    write_values(folder / "1_gt_labelTrainIds.png", [0], (4, 5))
    write_values(folder / "9_gt_labelTrainIds.png", [0], (4, 6))
    (folder / "2_gt_labelTrainIds.png").write_bytes(b"broken")
    code, reports = check(capsys, "acdc", f"{root}@fog/val")
    assert code == 1 and len(reports[0]["faults"]) == 4
    for message in ("label value 77", "4x5", "9_gt_labelTrainIds.png has no image", "cannot be read"):
        assert any(message in fault for fault in reports[0]["faults"])


def test_a_part_without_its_labels_is_a_fault_and_the_others_are_checked(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(root / "rgb_anon/rain/val/seq/0_rgb_anon.png")
    code, reports = check(capsys, "acdc", root)
    faults = {each["domain"]: each["faults"] for each in reports if each["faults"]}
    assert code == 1 and list(faults) == ["acdc/rain/val"] and "rain" in faults["acdc/rain/val"][0]
    assert [each["pairs"] for each in reports if each["domain"] == "acdc/fog/val"] == [3]


def test_a_class_that_is_said_to_be_absent_and_is_there_is_a_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_folder(tmp_path / "town", Blocks(2))
    (root / "absent.txt").write_text("red\n")
    code, reports = check(capsys, "folder", root)
    assert code == 1 and reports[0]["faults"] == ["labels hold 'red', which is said to occur in none"]


def test_images_are_decoded_where_asked(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = root / "rgb_anon/fog/val/seq/1_rgb_anon.png"
    image.write_bytes(image.read_bytes()[:-40])
    assert check(capsys, "acdc", root)[0] == 0
    assert check(capsys, "acdc", root, "--decode")[0] == 1


def test_the_table_says_shares_and_faults(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets", "check", "acdc", str(root)]) == 0
    out = capsys.readouterr().out
    assert "acdc/night/val: nothing is there" in out
    assert "acdc/fog/val: 3 pairs" in out and "25.000" in out and "4x6 (2)" in out and "0 faults" in out


def test_mistakes_exit_2(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "empty").mkdir()
    for argv, message in (
        (["check", "acdx", str(root)], "did you mean 'acdc'"),
        (["check", "acdc", f"{root}@fog"], "did you mean 'fog/val'"),
        (["check", "acdc", str(root / "nowhere")], "there is no folder"),
        (["check", "acdc", str(root / "empty")], "no folder rgb_anon/"),
        (["check", "acdc"], "PATH[@PART]"),
        (["chekc"], "did you mean 'check'"),
    ):
        assert main(["datasets", *argv]) == 2
        assert message in capsys.readouterr().err.replace("\n", " ")


def test_the_list_has_every_adapter(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets"]) == 0
    output = capsys.readouterr().out
    assert main(["datasets", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in entries] == list(ADAPTERS)
    assert all(name in output for name in ADAPTERS)
    by_name = {entry["name"]: entry for entry in entries}
    assert by_name["cityscapes"]["parts"] == {"train": 2975, "val": 500, "test": 1525}
    assert sum(by_name["acdc"]["parts"][f"{c}/val"] for c in ("fog", "night", "rain", "snow")) == 406
    assert np.all([entry["encoding"] for entry in entries])
