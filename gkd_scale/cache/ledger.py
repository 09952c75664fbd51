"""The ledger records which sample went into which step. It proves that an epoch uses each sample once.

Each rank appends to ``RUN/ledger/rank-NNN.tsv`` one line a sample: step, position in the global batch,
epoch, sid. A run that was killed repeats the steps after its last checkpoint and writes them again; being
a pure function of the step they must agree, and count once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from gkd_scale.errors import RunError
from gkd_scale.types import Batch

FOLDER = "ledger"


def record(
    batches: Iterable[Batch], folder: Path, rank: int, start: int, accumulation: int
) -> Iterator[Batch]:
    """The batches, each written to the ledger when it is yielded; the first belongs to step ``start``."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"rank-{rank:03d}.tsv", "a", encoding="ascii") as file:
        file.write("\n")  # ends a line that a kill may have cut
        for number, batch in enumerate(batches):
            step = start + number // accumulation
            entries = zip(batch.positions, batch.epochs, batch.sids, strict=True)
            file.writelines(f"{step}\t{position}\t{epoch}\t{sid}\n" for position, epoch, sid in entries)
            file.flush()
            yield batch


def check_ledger(folder: Path, sids: Iterable[str]) -> tuple[int, list[str]]:
    """(epochs that are complete, lines about what is wrong) of a ledger against the cache's sids.

    RunError if there is no ledger, or no whole line in it.
    """
    entries, lines = _read(folder)
    expected = set(sids)
    by_epoch: dict[int, list[str]] = {}
    for epoch, sid in entries.values():
        by_epoch.setdefault(epoch, []).append(sid)
    last = max(by_epoch)
    complete = 0
    for epoch, epoch_sids in sorted(by_epoch.items()):
        doubles = len(epoch_sids) - len(set(epoch_sids))
        missing = len(expected - set(epoch_sids))
        foreign = len(set(epoch_sids) - expected)
        if doubles or foreign or (missing and epoch != last):
            lines.append(
                f"epoch {epoch}: {doubles} sids twice, {missing} missing, {foreign} not of the cache"
            )
        elif not missing:
            complete += 1
    return complete, lines


def _read(folder: Path) -> tuple[dict[tuple[int, int], tuple[int, str]], list[str]]:
    """{(step, position): (epoch, sid)} of all ranks, and lines about entries that contradict each other."""
    entries: dict[tuple[int, int], tuple[int, str]] = {}
    lines: list[str] = []
    for path in sorted(folder.glob("rank-*.tsv")):
        for text in path.read_text(encoding="ascii").splitlines():
            parts = text.split("\t")
            if len(parts) != 4 or len(parts[3]) != 16:
                continue  # a kill cut the line; the step was done again
            step, position, epoch = map(int, parts[:3])
            first = entries.setdefault((step, position), (epoch, parts[3]))
            if first != (epoch, parts[3]):
                lines.append(f"step {step}, position {position}: {first[1]} and {parts[3]}")
    if not entries:
        raise RunError(f"{folder} holds no ledger", "train with --ledger, then give RUN/ledger")
    return entries, lines
