"""Make ``golden.npz``: QSD losses and gradients by an implementation that shares no code with ours.

float64, written out as the formulas of the paper with explicit softmax; gradients by torch's autograd of
these formulas. Run: python -m tests.distill.make_golden
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

HEADS = ("fea", "mask", "token")
GOLDEN = Path(__file__).with_name("golden.npz")


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    deviations = x - x.mean(-1, keepdim=True)
    return deviations / torch.sqrt((deviations**2).mean(-1, keepdim=True) + 1e-5) * weight + bias


def head(p: dict[str, torch.Tensor], name: str, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    def project(which: str) -> torch.Tensor:
        at = f"head_{name}.proj_{which}"
        tokens = layer_norm(student, p[f"{at}.0.weight"], p[f"{at}.0.bias"])
        return torch.einsum("bnc,dc->bnd", tokens, p[f"{at}.1.weight"]) + p[f"{at}.1.bias"]

    logits = torch.einsum("bnc,bmc->bnm", project("q"), teacher)
    weights = torch.exp(logits - logits.amax(-1, keepdim=True))
    weights = weights / weights.sum(-1, keepdim=True)
    return torch.einsum("bnm,bmc->bnc", weights, project("v"))


def main(batch: int = 2, tokens: int = 6, student: int = 8, teacher: int = 12) -> None:
    rng = np.random.default_rng(20261122)

    def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.from_numpy(rng.normal(size=shape) * scale)

    p = {
        "student_patch": draw(batch, tokens, student),
        "student_patch_masked": draw(batch, tokens, student),
        "student_cls": draw(batch, student),
        "teacher_patch": draw(batch, tokens, teacher),
        "teacher_cls": draw(batch, teacher),
    }
    for name in HEADS:
        for which in "qv":
            at = f"head_{name}.proj_{which}"
            p[f"{at}.0.weight"], p[f"{at}.0.bias"] = 1 + draw(student, scale=0.1), draw(student, scale=0.1)
            p[f"{at}.1.weight"], p[f"{at}.1.bias"] = (
                draw(teacher, student, scale=0.4),
                draw(teacher, scale=0.1),
            )
    for name in p:
        if not name.startswith("teacher"):
            p[name].requires_grad_()
    cls = head(p, "token", p["student_cls"][:, None], p["teacher_cls"][:, None])
    feature = head(p, "fea", p["student_patch"], p["teacher_patch"])
    masked = head(p, "mask", p["student_patch_masked"], p["teacher_patch"])
    target_cls = p["teacher_cls"][:, None]
    loss_token = ((cls - target_cls) ** 2).mean()
    both = torch.cat([cls - target_cls, feature - p["teacher_patch"]], 1)
    loss_feature = (both**2).mean()
    loss_masked = ((masked - p["teacher_patch"]) ** 2).mean()
    total = loss_feature + loss_masked + loss_token
    total.backward()
    out = {name: value.detach() for name, value in p.items()}
    out |= {f"grad_{name}": value.grad for name, value in p.items() if value.grad is not None}
    out |= {"out_cls": cls, "out_feature": feature, "out_masked": masked}
    out |= {
        "loss_token": loss_token,
        "loss_feature": loss_feature,
        "loss_masked": loss_masked,
        "loss_total": total,
    }
    np.savez_compressed(
        GOLDEN, **{name: value.detach().numpy().astype(np.float32) for name, value in out.items()}
    )


if __name__ == "__main__":
    main()
