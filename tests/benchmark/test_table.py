"""The table: means and deviations over seeds, averages over domains, ours beside the published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gkd_scale.benchmark import table
from gkd_scale.benchmark.cells import evaluation
from gkd_scale.benchmark.table import AVERAGE, PUBLISHED, as_json, collect, markdown, read_published
from gkd_scale.errors import ConfigError

from .test_recipes import recipe


def write_miou(out: Path, method: str, seed: int, **miou: float) -> None:
    path = evaluation(out, method, seed)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({domain: {"miou": value} for domain, value in miou.items()}))


def test_means_deviations_and_averages(tmp_path: Path) -> None:
    of = recipe("gtav")
    write_miou(tmp_path, "gkd-qsd", 0, Citys=50.0, BDD=40.0, Map=60.0)
    write_miou(tmp_path, "gkd-qsd", 2, Citys=52.0, BDD=46.0, Map=52.0)
    write_miou(tmp_path, "none", 0, Citys=30.0, BDD=20.0, Map=10.0)
    rows = collect(of, tmp_path)
    gkd = rows["gkd-qsd"]
    assert gkd["Citys"].values == (50.0, 52.0) and gkd["Citys"].mean == 51
    assert gkd["Citys"].deviation == pytest.approx(2**0.5)
    assert gkd[AVERAGE].values == (50.0, 50.0) and gkd[AVERAGE].deviation == 0
    assert str(gkd["Citys"]) == "51.0 ± 1.4 (58.3)"
    assert str(rows["none"]["Map"]) == "10.0 (47.7)"
    assert str(rows["cwd"]["Avg"]) == "– (49.3)"
    assert "g2sd" not in rows
    text = markdown(of, rows)
    assert "| method | in-domain | Citys | BDD | Map | Avg | minutes |" in text
    ours = "51.0 ± 1.4 (58.3) | 43.0 ± 4.2 (54.2) | 56.0 ± 5.7 (61.3) | 50.0 ± 0.0 (57.9)"
    assert f"| GKD as published, QSD | – | {ours} | – |" in text
    again = json.loads(json.dumps(as_json(rows)))
    assert again["gkd-qsd"]["Citys"] == {
        "values": [50.0, 52.0], "mean": 51.0, "deviation": pytest.approx(2**0.5), "published": 58.3,
    }  # fmt: skip


def test_what_chose_the_step_and_what_a_seed_took(tmp_path: Path) -> None:
    of = recipe("gtav")
    for seed, miou in ((0, 60.0), (1, 62.0)):
        write_miou(tmp_path, "gkd", seed, Citys=50.0, BDD=40.0, Map=60.0)
        best = evaluation(tmp_path, "gkd", seed).with_name("best.json")
        best.write_text(json.dumps({"step": 10, "miou": miou}))
    (tmp_path / "done").mkdir()
    for name, took, complete in (
        ("gkd-0-1a", 60, True), ("gkd-0-head", 30, True), ("gkd-1-1a", 150, True),
        ("gkd-mse-0-1a", 999, True), ("cache-proxy", 999, True), ("gkd-1-head", 999, False),
    ):  # fmt: skip
        record = {"command": [], "needs": {}, "done": complete, "seconds": took}
        (tmp_path / "done" / f"{name}.json").write_text(json.dumps(record))
    row = collect(of, tmp_path)["gkd"]
    assert row["in-domain"].values == (60.0, 62.0)
    assert row["minutes"].values == (1.5, 2.5)
    assert "gkd-1-head" not in table.seconds(tmp_path)


def test_a_domain_that_came_later_leaves_a_gap(tmp_path: Path) -> None:
    of = recipe("gtav")
    write_miou(tmp_path, "gkd", 0, Citys=50.0, BDD=40.0)
    write_miou(tmp_path, "gkd", 1, Citys=52.0, BDD=46.0, Map=52.0)
    row = collect(of, tmp_path)["gkd"]
    assert row["Citys"].values == (50.0, 52.0) and row["Map"].values == (52.0,)
    assert row[AVERAGE].values == (50.0,)


def test_classes_that_do_not_count_are_named(tmp_path: Path) -> None:
    of = recipe("gtav")
    write_miou(tmp_path, "gkd", 0, Citys=50.0, BDD=40.0, Map=52.0)
    assert table.without(of, tmp_path) == []
    path = evaluation(tmp_path, "gkd", 0)
    values = json.loads(path.read_text())
    values["BDD"]["without"] = ["truck", "train"]
    path.write_text(json.dumps(values))
    without = table.without(of, tmp_path)
    assert without == ["truck", "train"]
    assert "mIoU in % (without truck, train where no label has them)" in markdown(
        of, collect(of, tmp_path), without
    )


def test_published_averages_are_those_of_their_domains() -> None:
    """Except where the paper rounds: within 0.1."""
    for name in ("gtav", "cityscapes_acdc", "potsdam"):
        for row in read_published(f"{name}/dinov2-l-vit-b").values():
            *domains, average = row.values()
            assert average == pytest.approx(sum(domains) / len(domains), abs=0.1)
    assert "2603.02554" in PUBLISHED.read_text()


def test_unknown_published_numbers_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'gtav/dinov2-l-vit-b'"):
        read_published("gtav/dinov2-l-vitb")


def test_a_picture_is_drawn_where_matplotlib_is(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_miou(tmp_path, "gkd", 0, Citys=50.0, BDD=40.0, Map=60.0)
    assert table.bars(collect(recipe("gtav"), tmp_path), tmp_path / "bars.png")
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
