"""Versions of Python and of the packages that gkd-scale needs, against its requirements."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from importlib import metadata

from gkd_scale import __version__
from gkd_scale.doctor.config import DoctorConfig
from gkd_scale.doctor.line import Line

PACKAGE = "gkd-scale"


def check(cfg: DoctorConfig) -> Iterator[Line]:  # noqa: ARG001
    """A line for Python, gkd-scale and each package that it depends on."""
    from packaging.specifiers import SpecifierSet

    yield Line("python", "ok", f"{platform.python_version()}, {sys.executable}")
    yield Line(PACKAGE, "ok", __version__)
    packages = requirements()
    if not packages:
        yield Line(
            "packages",
            "warn",
            f"{PACKAGE} is not installed, its versions are not compared",
            "pip install -e . in the checkout",
        )
    for name, (specifier, version) in packages.items():
        if version is None:
            yield Line(name, "fail", "not installed", f"pip install '{name}{specifier}'")
        elif specifier and not SpecifierSet(specifier).contains(version, prereleases=True):
            text, todo = f"{version}, not {specifier}", f"pip install '{name}{specifier}'"
            yield Line(name, "fail", text, todo, {"version": version})
        else:
            yield Line(name, "ok", version, data={"version": version})


def requirements() -> dict[str, tuple[str, str | None]]:
    """What gkd-scale depends on without its extras: name to version specifier and installed version."""
    from packaging.requirements import Requirement

    try:
        texts = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return {}
    versions = {}
    for text in texts:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            versions[requirement.name] = (str(requirement.specifier), version_of(requirement.name))
    return versions


def version_of(name: str) -> str | None:
    """The installed version of a package; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
