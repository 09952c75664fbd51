from __future__ import annotations

import pytest
import torch

from gkd_scale.errors import ModelError
from gkd_scale.models.config import TeacherConfig
from gkd_scale.models.cost import cost
from gkd_scale.models.registry import load_teacher


def test_vit_b_has_its_published_size() -> None:
    result = cost("vit_base_patch16_224", (224, 224))
    assert result.parameters == 85_798_656
    assert result.flops / 2 == pytest.approx(17.6e9, rel=0.01), "17.6 GMAC"
    assert (result.dim, result.grid, result.largest_layer) == (768, (14, 14), 4 * 768 * 768 + 4 * 768)


@pytest.mark.parametrize(
    ("name", "size", "args", "layers"),
    [
        ("demo_teacher", (96, 128), {}, []),
        ("demo_teacher", (96, 128), {}, [2]),
        ("demo_teacher", (96, 128), {}, [1, 3]),
        ("mobilenetv2_050", (64, 96), {"pad_type": "same"}, [3]),
        ("resnet18", (64, 64), {}, []),
    ],
)
def test_dim_and_grid_are_those_of_the_loaded_teacher(
    name: str,
    size: tuple[int, int],
    args: dict[str, object],
    layers: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from gkd_scale.models import spec

    create = spec.create

    def random_weights(*arguments: object, **more: object) -> torch.nn.Module:
        return create(*arguments, **{**more, "pretrained": False})

    monkeypatch.setattr(spec, "create", random_weights)
    teacher = load_teacher(TeacherConfig(name, args=dict(args), layer=tuple(layers)), size, "cpu")
    result = cost(name, size, args, layers=layers)
    assert (result.dim, result.grid) == (teacher.dim, teacher.grid)
    assert result.parameters == sum(p.numel() for p in teacher.net.parameters())


def test_mistakes_are_those_of_loading() -> None:
    for arguments, message in [
        ({"name": "vit_bas_patch16_224", "image_size": (224, 224)}, "did you mean"),
        ({"name": "vit_base_patch16_224", "image_size": (220, 224)}, "no whole number"),
        ({"name": "demo_teacher", "image_size": (96, 128), "layers": [9]}, "feature levels 0 to 4"),
    ]:
        with pytest.raises(ModelError, match=message):
            cost(**arguments)
