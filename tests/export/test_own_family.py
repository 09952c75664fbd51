"""A student that came from transformers goes back to its own family, and its card's code works."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from gkd_scale import cli
from gkd_scale.models import families
from gkd_scale.models.backbone import load_backbone
from tests.models.test_twins import TWINS, save_model

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers


@pytest.fixture
def picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """An image at ``street.jpg``, as the cards name it: (1, 3, 112, 112) uint8."""
    monkeypatch.chdir(tmp_path)
    values = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    Image.fromarray(values).save("street.jpg", format="PNG")
    return torch.from_numpy(values).permute(2, 0, 1)[None]


@pytest.mark.parametrize("kind", ["Dinov2WithRegisters", "ConvNeXt", "DINOv3 ConvNeXt"])
def test_the_code_of_the_card_gives_the_students_tokens(
    kind: str, picture: torch.Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    backbone = load_backbone(None, f"hf:{save_model(TWINS[kind], tmp_path / 'model')}").eval()
    backbone.save(run, image_size=[112, 112])
    command = ["export", str(run), "--format", "transformers", "--out", str(out)]
    assert cli.main([*command, "--image-size", "112"]) == 0
    assert "largest difference" in capsys.readouterr().out
    code = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    assert code is not None
    namespace: dict[str, Any] = {}
    exec(code[1].replace("FOLDER", str(out)), namespace)
    assert type(namespace["net"]) is type(transformers.AutoModel.from_config(TWINS[kind]))
    with torch.no_grad():
        x = families.as_input(backbone.net, backbone.normalize(picture))
        expected, _ = families.dense(backbone.net, x)
    torch.testing.assert_close(namespace["patches"], expected.patches, atol=1e-4, rtol=1e-4)


def test_a_size_that_is_no_square_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    backbone = load_backbone(None, f"hf:{save_model(TWINS['Dinov2'], tmp_path / 'model')}")
    backbone.save(run, image_size=[56, 84])
    command = ["export", str(run), "--format", "transformers", "--out", str(out)]
    assert cli.main(command) == 2
    assert "--image-size N" in capsys.readouterr().err and not out.exists()
