"""The paper's benchmarks: what is learned from, and which domains it is tested on (arXiv 2603.02554).

References are to parts of adapters; :meth:`Benchmark.resolve` puts the user's folders in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gkd_scale.errors import ConfigError


@dataclass(frozen=True)
class Benchmark:
    """References are ``ADAPTER`` or ``ADAPTER@PART``.

    ``val`` is in-domain, to choose the best step on; ``targets`` are by the name of their column.
    """

    title: str
    train: Sequence[str]
    val: Sequence[str]
    targets: Mapping[str, str]

    def adapters(self) -> list[str]:
        """The adapters whose folders are needed."""
        refs = [*self.train, *self.val, *self.targets.values()]
        return list(dict.fromkeys(ref.partition("@")[0] for ref in refs))

    def resolve(self, roots: Mapping[str, Path]) -> Resolved:
        """With each adapter's folder put in; ConfigError that names those that are missing."""
        missing = [name for name in self.adapters() if name not in roots]
        if missing:
            raise ConfigError(f"no folder is given for {', '.join(missing)}", "give one for each adapter")

        def place(ref: str) -> str:
            name, at, part = ref.partition("@")
            return f"{name}:{roots[name]}{at}{part}"

        return Resolved(
            [place(ref) for ref in self.train],
            [place(ref) for ref in self.val],
            {column: place(ref) for column, ref in self.targets.items()},
        )


@dataclass(frozen=True)
class Resolved:
    """A benchmark's references as ``--train``, ``--val`` and ``--data`` take them."""

    train: list[str]
    val: list[str]
    targets: dict[str, str]


_CITIES = {"Citys": "cityscapes@val", "BDD": "bdd100k@val", "Map": "mapillary@val"}

BENCHMARKS = {
    "gtav": Benchmark("GTAV to real cities", ("gtav@train",), ("gtav@val",), _CITIES),
    "cityscapes_acdc": Benchmark(
        "Cityscapes to adverse conditions",
        ("cityscapes@train",),
        ("cityscapes@val",),
        {name.title(): f"acdc@{name}/val" for name in ("night", "snow", "fog", "rain")},
    ),
    "potsdam": Benchmark(
        "Potsdam to other sensors and places",
        ("potsdam_rgb@train",),
        ("potsdam_rgb@val",),
        {"P-IRRG": "potsdam_irrg@val", "V-IRRG": "vaihingen_irrg@val"},
    ),
    "gtav_synthia": Benchmark(
        "Two synthetic sources to real cities",
        ("gtav@train", "synthia@train"),
        ("gtav@val", "synthia@val"),
        _CITIES,
    ),
    "gtav_synthia_urbansyn": Benchmark(
        "Three synthetic sources to real cities",
        ("gtav@train", "synthia@train", "urbansyn@train"),
        ("gtav@val", "synthia@val", "urbansyn@val"),
        _CITIES,
    ),
    "rescuenet": Benchmark(
        "Potsdam to a disaster, in five classes",
        ("potsdam_rgb_5@train",),
        ("potsdam_rgb_5@val",),
        {"RescueNet": "rescuenet@val"},
    ),
}
"""By name. The in-domain validation of synthetic sources is our own split (see ``adapter.HELD_OUT``)."""
