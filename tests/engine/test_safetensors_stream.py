from __future__ import annotations

import io

import torch
from safetensors.torch import save

from gkd_scale.engine import safetensors_stream


def test_the_bytes_are_those_of_safetensors() -> None:
    torch.manual_seed(0)
    dtypes = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.float16, torch.bfloat16)
    dtypes += (torch.int32, torch.float32, torch.float64, torch.int64)
    tensors = {f"x{number}.é": torch.randn(3, 5).to(dtype) for number, dtype in enumerate(dtypes)}
    tensors |= {"scalar": torch.tensor(3), "none": torch.zeros(0, 4), "B": torch.ones(2), "a": torch.ones(1)}
    metadata = {"gkd_scale": '{"a": "ü\\n\\"", "b": [1, 2.5e-05]}\n'}
    file = io.BytesIO()
    safetensors_stream.write(file, tensors, metadata)
    assert file.getvalue() == save(tensors, metadata)
