"""The QSD heads as a file: the second phase starts from the heads of the first, as the student does.

``heads.safetensors`` holds what stage 1 trains beside the backbone: the three heads and the mask token. The
heads of several teachers are below ``teachers.NUMBER.``, in the order in which ``backbone.yaml`` names them.

After a phase of plain MSE, ψ(v_s) is the student's estimate of the teacher's token. QSD then starts with φ
equal to ψ: each token asks the teacher for the tokens that look like its estimate, its own first of all, so
attention is sharp and in the right place from the first step; random queries take long to find it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import yaml
from torch import Tensor

from gkd_scale.distill.objectives.base import Objective
from gkd_scale.distill.qsd import QsdHead
from gkd_scale.models import backbone
from gkd_scale.models import conditioning as conditionings
from gkd_scale.models.conditioning import Affine, Conditioning
from gkd_scale.models.tensor_files import StateDict, below, read_state_dict, write_tensors

HEADS_FILE = "heads.safetensors"
COMMON = "student."
"""Prefix of the names of what all teachers of a student share: the mask token."""


def save(folder: Path, state: dict[str, Tensor]) -> None:
    """Write what an objective trains beside the backbone to ``folder``."""
    write_tensors(folder / HEADS_FILE, state, torch.float32)


def resume(
    objective: Objective,
    run: str | Path | None,
    teachers: Mapping[str, Conditioning],
    say: Callable[[str], None] = lambda _: None,
) -> bool:
    """Load the heads of ``run`` into ``objective``; whether there were any that fit.

    ``teachers``: the conditioning of each teacher of the objective, by its name. Heads fit if ``run`` is the
    folder of a run with a teacher of that name and every tensor has its counterpart; heads of an MSE phase
    give φ the values of ψ. Heads that were trained in another conditioning of the teacher's tokens are
    expressed in the new one, exactly (:func:`rebase`). Otherwise a phase starts with new heads; if ``run``
    has heads, ``say`` gets one line with the reason.
    """
    if run is None or not (Path(run) / HEADS_FILE).is_file():
        return False
    folder = Path(run)
    names = backbone.teachers_of(yaml.safe_load((folder / backbone.CARD_FILE).read_text()))
    before = dict(zip(names, conditionings.prefixes(len(names)), strict=True))
    tensors = read_state_dict(folder / HEADS_FILE)
    _, model_state = objective.split(objective.state_dict())
    loaded = False
    for prefix, (name, conditioning) in zip(
        conditionings.prefixes(len(teachers)), teachers.items(), strict=True
    ):
        if name in before:
            state, target = _below(tensors, before[name]), _below(model_state, prefix)
            old = conditionings.load(folder, prefix=before[name]) or Conditioning()
            reason = _misfit(state, target)
            if not reason and not rebase(state, old, conditioning):
                norms = f"--teacher-norm was {old.norm} and is {conditioning.norm}"
                reason = f"{norms}, and 'layer' is not affine"
            if not reason:
                objective.load_state_dict(_fill(state, target, prefix), strict=False)
                loaded = True
        else:
            owners = ", ".join(map(repr, names)) or None
            reason = f"they belong to the teacher {owners}, and this run has {name!r}"
        if reason:
            subject = f"the heads of {run}" if len(teachers) == 1 else f"the heads of {run} for {name}"
            say(f"{subject} do not fit, new ones start: {reason}")
    return loaded


def _below(state: StateDict, prefix: str) -> StateDict:
    """The tensors below ``prefix``, without it, and those of no teacher: all if the prefix is empty."""
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith((prefix, COMMON))
    }


def _fill(state: StateDict, model_state: StateDict, prefix: str) -> StateDict:
    """``state`` under the names of an objective; a φ that is missing is ψ."""
    for name in model_state.keys() - state.keys():
        state[name] = state[name.replace(".proj_q.", ".proj_v.")]
    return {name if name.startswith(COMMON) else prefix + name: value for name, value in state.items()}


def _misfit(state: StateDict, model_state: StateDict) -> str:
    """Why the heads ``state`` do not fit ``model_state``, those of an objective; "" if they do."""
    for name, value in state.items():
        if name not in model_state:
            return f"this run has no {name}"
        if value.shape != model_state[name].shape:
            return f"{name} is {tuple(value.shape)}, and {tuple(model_state[name].shape)} in this run"
    missing = (name for name in model_state if name not in state and ".proj_q." not in name)
    return next((f"they have no {name}" for name in missing), "")


def feature_head(run: Path, *, scaled: bool = False, teacher: str = "") -> QsdHead | None:
    """The head that takes a student's patch tokens to its teacher's space, of a finished stage-1 run.

    None if the run has none, since its objective was another. ``scaled`` as the run had it; ``teacher``: the
    prefix of one of several teachers (:func:`~gkd_scale.models.conditioning.prefixes`). Raises ModelError for
    a file that cannot be read.
    """
    if not (run / HEADS_FILE).is_file():
        return None
    state = below(read_state_dict(run / HEADS_FILE), f"{teacher}head_feature.")
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
        before, after = (_affine(space, part, width) for space in (old, new))
        change = torch.linalg.solve(before.matrix.double().T, after.matrix.double().T).T
        shift = after.matrix.double() @ (before.shift - after.shift).double()
        for name, matrix, offset in (
            ("proj_v", change, shift),
            ("proj_q", torch.linalg.inv(change).T, torch.zeros_like(shift)),
        ):
            for key, addend in (("weight", torch.zeros(())), ("bias", offset)):
                full = f"{head}.{name}.1.{key}"
                if full in heads:
                    heads[full] = (matrix @ heads[full].double() + addend).float()
    return True


def _affine(conditioning: Conditioning, part: str, width: int) -> Affine:
    if conditioning.norm == "none":
        return Affine(torch.zeros(width), torch.eye(width))
    return conditioning.affine(part)
