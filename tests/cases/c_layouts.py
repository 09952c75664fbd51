"""Kind C: layouts of weights that people have, and files that are no weights."""

from __future__ import annotations

import argparse
import io
import json
import pickle
import re
from collections import OrderedDict
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from gkd_scale.models.tensor_files import StateDict, read_state_dict
from tests.cases.case import Bench, Ran, case
from tests.cases.weights import cache_with, fingerprint, right, right_file, save, state

KIND = "C. Layouts of weights"


def _under(prefix: str, tensors: StateDict) -> StateDict:
    return {prefix + name: value for name, value in tensors.items()}


def _other() -> StateDict:
    return {name: value + 1 for name, value in state().items()}


def _transformers(tensors: StateDict) -> StateDict:
    """The tensors of a tiny network as transformers' Dinov2Model saves them."""
    layout: StateDict = {"embeddings.mask_token": torch.ones(1, 48)}
    for name, value in tensors.items():
        for old, new in (
            (r"^pos_embed$", "embeddings.position_embeddings"),
            (r"^cls_token$", "embeddings.cls_token"),
            (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
            (r"^norm\.", "layernorm."),
            (r"^blocks\.", "encoder.layer."),
            (r"attn\.proj\.", "attention.output.dense."),
            (r"ls([12])\.gamma", r"layer_scale\1.lambda1"),
        ):
            name = re.sub(old, new, name)
        if "attn.qkv" in name:
            for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                layout[name.replace("attn.qkv", f"attention.attention.{part}")] = piece.clone()
        else:
            layout[name] = value
    return layout


@case(KIND, "transformers' names of DINOv2")
def transformers_names(bench: Bench) -> object:
    return right(bench, _transformers(state(init_values=1e-5)), "init_values=1e-5", init_values=1e-5)


@case(KIND, "transformers' names with a prefix and a classifier")
def transformers_classifier(bench: Bench) -> object:
    tensors = _under("dinov2.", _transformers(state(init_values=1e-5)))
    tensors["classifier.weight"] = torch.ones(10, 96)
    return right(bench, tensors, "init_values=1e-5", init_values=1e-5)


@case(KIND, "transformers' names of DINOv2 into a ViT without LayerScale")
def transformers_layer_scale(bench: Bench) -> object:
    return cache_with(bench, save(bench, _transformers(state(init_values=1e-5))))


@case(KIND, "`model` > `teacher.backbone.*`, a student beside it")
def self_distilled(bench: Bench) -> object:
    both = {**_under("teacher.backbone.", state()), **_under("student.backbone.", _other())}
    ran = right(bench, {"model": both, "iteration": 9})
    assert "'model.teacher.backbone' is taken, not 'model.student.backbone'" in ran.text
    return "ok: the teacher is taken, and said"


@case(KIND, "`model` and `model_ema`")
def average(bench: Bench) -> object:
    ran = right(bench, {"model": _other(), "model_ema": state(), "epoch": 3})
    assert "'model_ema' is taken, not 'model'" in ran.text
    return "ok: the average is taken, and said"


@case(KIND, "two networks that differ, and no word for which")
def ambiguous(bench: Bench) -> object:
    return cache_with(bench, save(bench, {"net_a": state(), "net_b": _other()}))


@case(KIND, "blocks in chunks (`blocks.0.0.*`, Meta's FSDP)")
def chunks(bench: Bench) -> object:
    tensors = {re.sub(r"^blocks\.(\d)", r"blocks.\1.\1", name): value for name, value in state().items()}
    return right(bench, _under("teacher.backbone.", tensors))


@case(KIND, "`_orig_mod.`, `module.backbone.`, `base_model.model.`, `student.module.` before the names")
def prefixes(bench: Bench) -> object:
    for prefix in ("_orig_mod.", "module.backbone.", "base_model.model.", "student.module.", "a.b.c.d."):
        assert fingerprint(_under(prefix, state())) == fingerprint(state())
    return right(bench, _under("base_model.model._orig_mod.", state()))


@case(KIND, "`module`, `params_ema`, `net`, `model_state_dict`, `state_dict` around the weights")
def wrappers(bench: Bench) -> object:
    for key in ("module", "params_ema", "net", "model_state_dict", "state_dict", "ema", "anything"):
        content = {"epoch": 3, key: OrderedDict(state()), "optimizer": {"state": {0: {"step": 1}}}}
        path = save(bench, content)
        assert fingerprint(read_state_dict(path)) == fingerprint(state())
    return right_file(bench, path)


@case(KIND, "a checkpoint with its options (argparse.Namespace)")
def options(bench: Bench) -> object:
    return right(bench, {"state_dict": state(), "args": argparse.Namespace(lr=0.1)})


@case(KIND, "a safetensors file named .pth, and a PyTorch file named .safetensors")
def wrong_suffix(bench: Bench) -> object:
    path = save(bench, state(), "b.safetensors")
    assert fingerprint(read_state_dict(path)) == fingerprint(state())
    save_file(state(), bench.folder / "a.pth")
    return right_file(bench, bench.folder / "a.pth")


@case(KIND, "an index.json with its parts")
def shards(bench: Bench) -> object:
    return right_file(bench, _shards(bench))


@case(KIND, "one part of several")
def one_part(bench: Bench) -> object:
    _shards(bench)
    return cache_with(bench, bench.folder / "model-00001-of-00002.safetensors")


@case(KIND, "an index.json without its parts")
def no_parts(bench: Bench) -> object:
    index = _shards(bench)
    (bench.folder / "model-00002-of-00002.safetensors").unlink()
    return cache_with(bench, index)


@case(KIND, "an index.json saved as model.safetensors, without its parts")
def index_as_weights(bench: Bench) -> object:
    index = json.dumps({"weight_map": {"norm.bias": "model-00001-of-00002.safetensors"}})
    return _file(bench, "model.safetensors", index.encode())


@case(KIND, "an HTML page saved as weights")
def web_page(bench: Bench) -> object:
    return _file(bench, "model.pth", b"<!DOCTYPE html><html>Sign in</html>")


@case(KIND, "a Git LFS pointer")
def pointer(bench: Bench) -> object:
    return _file(bench, "model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7\n")


@case(KIND, "an empty file")
def empty(bench: Bench) -> object:
    return _file(bench, "model.pth", b"")


@case(KIND, "half a file, PyTorch's and safetensors'")
def half(bench: Bench) -> object:
    content = io.BytesIO()
    torch.save(state(), content)
    one = _file(bench, "model.pth", content.getvalue()[:9999])
    save_file(state(), bench.folder / "model.safetensors")
    whole = (bench.folder / "model.safetensors").read_bytes()
    other = _file(bench, "model.safetensors", whole[:9999])
    return f"{one}; {other}"


@case(KIND, "a pickled network, which could run code")
def network(bench: Bench) -> object:
    return cache_with(bench, save(bench, {"model": torch.nn.Linear(2, 2)}))


@case(KIND, "the folder of a model, not its file")
def folder(bench: Bench) -> object:
    (bench.folder / "dinov2").mkdir()
    save_file(state(), bench.folder / "dinov2/model.safetensors")
    return cache_with(bench, bench.folder / "dinov2")


@case(KIND, "scores of NumPy, paths, dates and random states beside the weights")
def things_beside(bench: Bench) -> object:
    beside = {"miou": np.float64(61.5), "epoch": np.int64(3), "out": Path("runs/1"), "at": datetime.now()}
    return right(bench, {"state_dict": state(), **beside, "random": np.arange(624, dtype=np.uint32)})


@case(KIND, "weights as arrays of NumPy in a PyTorch file")
def arrays(bench: Bench) -> object:
    return right(bench, {name: value.numpy() for name, value in state().items()})


@case(KIND, "a pickle of PaddlePaddle")
def paddle(bench: Bench) -> object:
    arrays = {name: value.numpy() for name, value in state().items()}
    return _file(bench, "model.pdparams", pickle.dumps(arrays, protocol=2))


@case(KIND, "a torch.export program")
def program(bench: Bench) -> object:
    graph = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
    torch.export.save(graph, bench.folder / "model.pt2")
    return cache_with(bench, bench.folder / "model.pt2")


@case(KIND, "the folder of DeepSpeed's checkpoints, and one of torch.distributed.checkpoint")
def folders_of_parts(bench: Bench) -> object:
    for name, files in (("ds", ("zero_to_fp32.py", "latest")), ("dcp", (".metadata", "__0_0.distcp"))):
        (bench.folder / name).mkdir()
        for file in files:
            (bench.folder / name / file).touch()
    return f"{cache_with(bench, bench.folder / 'ds')}; {cache_with(bench, bench.folder / 'dcp')}"


@case(KIND, "NaN in one tensor")
def not_a_number(bench: Bench) -> object:
    tensors = {name: value.clone() for name, value in state().items()}
    tensors["blocks.1.mlp.fc1.weight"][3, 4] = torch.nan
    return cache_with(bench, save(bench, tensors))


@case(KIND, "values that are infinite in single precision")
def infinite(bench: Bench) -> object:
    tensors = state()
    tensors["norm.bias"] = tensors["norm.bias"].double() * 1e300
    return cache_with(bench, save(bench, tensors))


@case(KIND, "NaN in a classifier that is not used")
def not_a_number_unused(bench: Bench) -> object:
    return right(bench, {**state(), "head.weight": torch.full((10, 48), torch.nan)})


@case(KIND, "weights of another kind of network")
def other_names(bench: Bench) -> object:
    return cache_with(bench, save(bench, {"conv1.weight": torch.ones(3), "layer1.0.bn1.bias": torch.ones(3)}))


@case(KIND, "weights of a wider network")
def wider(bench: Bench) -> object:
    return cache_with(bench, save(bench, state(embed_dim=96)))


def _file(bench: Bench, name: str, content: bytes) -> Ran:
    path = bench.folder / name
    path.write_bytes(content)
    return cache_with(bench, path)


def _shards(bench: Bench) -> Path:
    files = [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    tensors = list(state().items())
    parts = dict(zip(files, (dict(tensors[:9]), dict(tensors[9:])), strict=True))
    for file, part in parts.items():
        save_file(part, bench.folder / file)
    index = bench.folder / "model.safetensors.index.json"
    places = {name: file for file, part in parts.items() for name in part}
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index
