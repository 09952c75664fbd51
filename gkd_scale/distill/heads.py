"""The QSD heads as a file: the second phase goes on with the heads of the first, as the student does.

``heads.safetensors`` holds what stage 1 trains beside the backbone: the three heads and the mask token.

After a phase of plain MSE, ψ(v_s) is the student's estimate of the teacher's token. QSD then starts with φ
equal to ψ: each token asks the teacher for the tokens that look like its estimate, its own first of all, so
attention is sharp and in the right place from the first step, where random queries take long to find it.
"""

from __future__ import annotations

from pathlib import Path

import yaml
from torch import Tensor, nn

from gkd_scale import files
from gkd_scale.models import backbone
from gkd_scale.models.weights import StateDict, read_state_dict

HEADS_FILE = "heads.safetensors"
_NET = "student.net."


def split(state: StateDict) -> tuple[StateDict, StateDict]:
    """A distiller's state dict as that of the bare backbone and that of everything else."""
    net = {name[len(_NET) :]: value for name, value in state.items() if name.startswith(_NET)}
    return net, {name: value for name, value in state.items() if not name.startswith(_NET)}


def save(folder: Path, state: dict[str, Tensor]) -> None:
    """Write the second half of :func:`split` to ``folder``."""
    from safetensors.torch import save as serialise

    tensors = {name: value.detach().cpu().float().contiguous().clone() for name, value in state.items()}
    files.write_bytes(folder / HEADS_FILE, serialise(tensors))


def resume(distiller: nn.Module, run: str | Path | None, teacher: str) -> bool:
    """Load the heads of ``run`` into ``distiller``; whether there were any that fit.

    They fit where ``run`` is the folder of a run with the same ``teacher`` and every tensor has its
    counterpart; heads of an MSE phase give φ the values of ψ. Otherwise a phase starts with its own.
    """
    if run is None or not (Path(run) / HEADS_FILE).is_file():
        return False
    card = yaml.safe_load((Path(run) / backbone.CARD_FILE).read_text())
    found = read_state_dict(Path(run) / HEADS_FILE)
    _, own = split(distiller.state_dict())
    for name in own.keys() - found.keys():
        values = found.get(name.replace(".proj_q.", ".proj_v."))
        if values is not None:
            found[name] = values
    shapes, wanted = ({name: tuple(value.shape) for name, value in each.items()} for each in (found, own))
    if card.get("teacher") != teacher or shapes != wanted:
        return False
    distiller.load_state_dict(found, strict=False)
    return True
