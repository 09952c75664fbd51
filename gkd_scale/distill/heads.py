"""The QSD heads as a file: the second phase starts from the heads of the first, as the student does.

``heads.safetensors`` holds what stage 1 trains beside the backbone: the three heads and the mask token.

After a phase of plain MSE, ψ(v_s) is the student's estimate of the teacher's token. QSD then starts with φ
equal to ψ: each token asks the teacher for the tokens that look like its estimate, its own first of all, so
attention is sharp and in the right place from the first step; random queries take long to find it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from torch import Tensor

from gkd_scale import files
from gkd_scale.distill.objectives.base import Objective
from gkd_scale.distill.qsd import QsdHead
from gkd_scale.models import backbone
from gkd_scale.models import conditioning as conditionings
from gkd_scale.models.conditioning import Affine, Conditioning
from gkd_scale.models.weights import StateDict, read_state_dict

HEADS_FILE = "heads.safetensors"


def save(folder: Path, state: dict[str, Tensor]) -> None:
    """Write what an objective trains beside the backbone to ``folder``."""
    from safetensors.torch import save as serialise

    tensors = {name: value.detach().cpu().float().contiguous().clone() for name, value in state.items()}
    files.write_bytes(folder / HEADS_FILE, serialise(tensors))


def resume(
    objective: Objective,
    run: str | Path | None,
    teacher: str,
    conditioning: Conditioning | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> bool:
    """Load the heads of ``run`` into ``objective``; whether there were any that fit.

    They fit if ``run`` is the folder of a run with the same ``teacher`` and every tensor has its
    counterpart; heads of an MSE phase give φ the values of ψ. Heads that were trained in another conditioning
    of the teacher's tokens are expressed in ``conditioning``, exactly (:func:`rebase`). Otherwise a phase
    starts with its own; if ``run`` has heads, ``say`` gets one line with the reason.
    """
    if run is None or not (Path(run) / HEADS_FILE).is_file():
        return False
    card = yaml.safe_load((Path(run) / backbone.CARD_FILE).read_text())
    found = read_state_dict(Path(run) / HEADS_FILE)
    _, own = objective.exported(objective.state_dict())
    now, old = conditioning or Conditioning(), conditionings.load(Path(run)) or Conditioning()
    reason = _misfit(found, own)
    if card.get("teacher") != teacher:
        reason = f"they belong to the teacher {card.get('teacher')!r}, and this run has {teacher!r}"
    elif not reason and not rebase(found, old, now):
        reason = f"--teacher-norm was {old.norm} and is {now.norm}, and 'layer' is not affine"
    if reason:
        say(f"the heads of {run} do not fit, new ones start: {reason}")
        return False
    for name in own.keys() - found.keys():
        found[name] = found[name.replace(".proj_q.", ".proj_v.")]
    objective.load_state_dict(found, strict=False)
    return True


def _misfit(found: StateDict, own: StateDict) -> str:
    """Why the heads ``found`` do not fit the ``own`` ones of an objective; "" if they do."""
    for name, value in found.items():
        if name not in own:
            return f"this run has no {name}"
        if value.shape != own[name].shape:
            return f"{name} is {tuple(value.shape)}, and {tuple(own[name].shape)} in this run"
    missing = (name for name in own if name not in found and ".proj_q." not in name)
    return next((f"they have no {name}" for name in missing), "")


def feature_head(run: Path, *, scaled: bool = False) -> QsdHead | None:
    """The head that takes a student's patch tokens to its teacher's space, of a finished stage-1 run.

    None if the run has none, since its objective was another. ``scaled`` as the run had it. Raises ModelError
    for a file that cannot be read.
    """
    if not (run / HEADS_FILE).is_file():
        return None
    found = read_state_dict(run / HEADS_FILE)
    prefix = "head_feature."
    state = {name[len(prefix) :]: value for name, value in found.items() if name.startswith(prefix)}
    if "proj_v.1.weight" not in state:
        return None
    teacher_dim, student_dim = state["proj_v.1.weight"].shape
    head = QsdHead(student_dim, teacher_dim, scaled=scaled, attend="proj_q.1.weight" in state)
    head.load_state_dict(state)
    return head.eval().requires_grad_(False)


def rebase(heads: StateDict, old: Conditioning, new: Conditioning) -> bool:
    """Express ``heads``, trained in ``old``'s space, in ``new``'s, in place; False if that cannot be done.

    Both spaces are affine in the teacher's token x, y = A (x - μ), so y' = M y + c with M = A' A⁻¹ and
    c = A' (μ - μ'). Values follow: ψ' = M ψ + c. Queries keep their products with the keys, up to a constant
    that the softmax does not see: φ' = M⁻ᵀ φ. ``layer`` is not affine: it goes with itself only.
    """
    if old.digest() == new.digest():
        return True
    if "layer" in (old.norm, new.norm):
        return False
    ending = ".proj_v.1.bias"
    for head in [name.removesuffix(ending) for name in heads if name.endswith(ending)]:
        part = "cls" if head == "head_cls" else "patch"
        width = len(heads[head + ending])
        before, after = (_affine(each, part, width) for each in (old, new))
        change = torch.linalg.solve(before.matrix.double().T, after.matrix.double().T).T
        shift = after.matrix.double() @ (before.shift - after.shift).double()
        for name, matrix, offset in (
            ("proj_v", change, shift),
            ("proj_q", torch.linalg.inv(change).T, torch.zeros_like(shift)),
        ):
            for key, more in (("weight", torch.zeros(())), ("bias", offset)):
                full = f"{head}.{name}.1.{key}"
                if full in heads:
                    heads[full] = (matrix @ heads[full].double() + more).float()
    return True


def _affine(conditioning: Conditioning, part: str, width: int) -> Affine:
    if conditioning.norm == "none":
        return Affine(torch.zeros(width), torch.eye(width))
    return conditioning.affine(part)
