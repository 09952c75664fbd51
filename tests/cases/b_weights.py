"""Kind B: weights that do not belong are dropped without a word."""

from __future__ import annotations

import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed

from gkd_scale.models.tensor_files import StateDict
from tests.cases.case import Bench, case
from tests.cases.weights import cache_with, right, save, state, taught_by
from tests.conftest import cache_flags, tiny_args, write_images
from tests.segment.support import Blocks, write_folder

KIND = "B. Weights that do not belong"


def _matrices(tensors: StateDict) -> list[str]:
    return [name for name, value in tensors.items() if name.startswith("blocks") and value.ndim == 2]


@case(KIND, "weights with LayerScale (DINOv2's) into a ViT without")
def layer_scale(bench: Bench) -> object:
    return cache_with(bench, save(bench, state(init_values=1e-5)))


@case(KIND, "weights with LayerScale, and --teacher-args init_values=1e-5")
def layer_scale_asked(bench: Bench) -> object:
    return right(bench, state(init_values=1e-5), "init_values=1e-5", init_values=1e-5)


@case(KIND, "4 blocks into a network of 2")
def more_blocks(bench: Bench) -> object:
    return cache_with(bench, save(bench, state(depth=4)))


@case(KIND, "2 blocks into a network of 4")
def fewer_blocks(bench: Bench) -> object:
    weights = save(bench, state())
    args = [each for each in tiny_args() if not each.startswith("depth=")]
    return cache_with(bench, weights, "depth=4", args=args)


@case(KIND, "int8 weights with scales beside them")
def int8(bench: Bench) -> object:
    tensors = state()
    for name in _matrices(tensors):
        scale = tensors[name].abs().amax() / 127
        tensors[name + "_scale"], tensors[name] = scale, (tensors[name] / scale).round().to(torch.int8)
    return cache_with(bench, save(bench, tensors))


@case(KIND, "int8 weights without scales")
def int8_alone(bench: Bench) -> object:
    tensors = state()
    tensors |= {name: (tensors[name] * 100).to(torch.int8) for name in _matrices(tensors)}
    return cache_with(bench, save(bench, tensors))


@case(KIND, "float8 weights with inverse scales")
def float8(bench: Bench) -> object:
    tensors = state()
    for name in _matrices(tensors):
        tensors[name + "_scale_inv"] = torch.ones(())
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    return cache_with(bench, save(bench, tensors))


@case(KIND, "float8 weights without scales")
def float8_alone(bench: Bench) -> object:
    tensors = state()
    tensors |= {name: tensors[name].to(torch.float8_e4m3fn) for name in _matrices(tensors)}
    return cache_with(bench, save(bench, tensors))


@case(KIND, "float weights to be scaled by another dict of the file")
def scales_elsewhere(bench: Bench) -> object:
    tensors = state()
    scales = {name: torch.ones(()) for name in _matrices(tensors)}
    return cache_with(bench, save(bench, {"model": tensors, "scales": scales}))


@case(KIND, "complex weights")
def complex_weights(bench: Bench) -> object:
    tensors = state()
    tensors["norm.weight"] = tensors["norm.weight"].to(torch.complex64)
    return cache_with(bench, save(bench, tensors))


@case(KIND, "weights with norms of queries and keys into a ViT without")
def query_norms(bench: Bench) -> object:
    return cache_with(bench, save(bench, state(qk_norm=True)))


@case(KIND, "weights with registers into a ViT without")
def registers(bench: Bench) -> object:
    return cache_with(bench, save(bench, state(reg_tokens=4, no_embed_class=False)))


@case(KIND, "weights with biases into a ViT without (qkv_bias=false)")
def biases(bench: Bench) -> object:
    return cache_with(bench, save(bench, state()), "qkv_bias=false")


@case(KIND, "weights with a class token into a ViT without")
def class_token(bench: Bench) -> object:
    return cache_with(bench, save(bench, state()), "class_token=false", "global_pool=avg", "fc_norm=false")


@case(KIND, "LoRA adapters beside the weights")
def adapters(bench: Bench) -> object:
    lora = {"blocks.0.attn.qkv.lora_A.default.weight": torch.ones(4, 48)}
    return cache_with(bench, save(bench, {**state(), **lora}))


@case(KIND, "a classifier, a decoder, a mask token and a queue beside the weights")
def heads(bench: Bench) -> object:
    beside = {
        "head.weight": torch.ones(10, 48),
        "fc_norm.weight": torch.ones(48),
        "decoder_blocks.0.norm1.weight": torch.ones(32),
        "decoder_pos_embed": torch.ones(1, 5, 32),
        "mask_token": torch.ones(1, 1, 48),
        "queue": torch.ones(8, 3),
        "dino_head.last_layer.weight": torch.ones(4, 48),
    }
    return right(bench, {**state(), **beside})


@case(KIND, "half precision and double precision in one file")
def precisions(bench: Bench) -> object:
    tensors = {name: value.half().float() for name, value in state().items()}
    dtypes = {1: torch.float64, 2: torch.float16}
    mixture = {name: value.to(dtypes.get(value.ndim, value.dtype)) for name, value in tensors.items()}
    ran = cache_with(bench, save(bench, mixture))
    assert ran.code == 0, ran.text
    again = cache_with(bench, save(bench, tensors, "single.pth"), out="single")
    assert taught_by(bench, "cache") == taught_by(bench, "single")
    return again


@case(KIND, "the same as --backbone of stage 2")
def of_a_backbone(bench: Bench) -> object:
    data = f"folder:{write_folder(bench.folder / 'data', Blocks(2))}"
    weights = save(bench, state(init_values=1e-5))
    return bench.stage2(
        *("--train", data, "--val", data, "--out", bench.folder / "run", "--steps", 1, "--head", "linear"),
        *("--backbone", weights, "--student", "vit_tiny_patch16_224", "--student-args", *tiny_args()),
        *("--image-size", "32x48", "--global-batch", 2, "--ds-config", "zero2.json"),
    )


@case(KIND, "the same as --student-weights of stage 1")
def of_a_student(bench: Bench) -> object:
    images = write_images(bench.folder / "images", 4)
    teacher = save(bench, state(), "teacher.pth")
    first = bench.cli(*cache_command(images, teacher, bench))
    assert first.code == 0, first.text
    weights = save(bench, state(init_values=1e-5))
    return bench.stage1(
        *("--cache", bench.folder / "cache", "--out", bench.folder / "run", "--steps", 1),
        *("--student", "vit_tiny_patch16_224", "--student-args", *tiny_args()),
        *("--student-weights", weights, "--global-batch", 2, "--ds-config", "zero2.json"),
    )


def cache_command(images: object, weights: object, bench: Bench) -> list[object]:
    """``cache-teacher`` with the tiny teacher, without threads."""
    return ["cache-teacher", *cache_flags(images, weights, bench.folder / "cache"), "--workers", 0]  # type: ignore[arg-type]


@case(KIND, "iBOT's masked_embed beside the weights")
def masked_embed(bench: Bench) -> object:
    return right(bench, {**state(), "masked_embed": torch.ones(1, 48)})


@case(KIND, "a sparse tensor among the weights")
def sparse(bench: Bench) -> object:
    name = "blocks.0.attn.qkv.weight"
    ran = cache_with(bench, save(bench, {**state(), name: state()[name].to_sparse()}))
    assert ran.code == 2 and name in ran.text, ran.text
    return ran


@case(KIND, "weights that are all zero, as a save of empty shards leaves them")
def zeros(bench: Bench) -> object:
    ran = cache_with(bench, save(bench, {name: torch.zeros_like(value) for name, value in state().items()}))
    assert ran.code == 2, ran.text
    return ran


@case(KIND, "a download that was not finished, in a file of full length: its end is zeros")
def download(bench: Bench) -> object:
    path = bench.folder / "model.safetensors"
    save_file(state(), path)
    content = path.read_bytes()
    path.write_bytes(content[:80_000] + bytes(len(content) - 80_000))
    return cache_with(bench, path)


@case(KIND, "one matrix of zeros")
def one_of_zeros(bench: Bench) -> object:
    tensors = state()
    tensors["blocks.1.mlp.fc2.weight"] = torch.zeros_like(tensors["blocks.1.mlp.fc2.weight"])
    return cache_with(bench, save(bench, tensors))


@case(KIND, "a patch embedding as a matrix, whose numbers have no known order")
def flat_kernel(bench: Bench) -> object:
    tensors = state()
    kernel = tensors["patch_embed.proj.weight"]
    tensors["patch_embed.proj.weight"] = kernel.permute(0, 2, 3, 1).flatten(1)
    return cache_with(bench, save(bench, tensors))


@case(KIND, "differences from a base model (delta weights), under `delta`")
def named_delta(bench: Bench) -> object:
    return cache_with(bench, save(bench, {"delta": {name: value / 99 for name, value in state().items()}}))


@case(KIND, "differences from a base model, under the network's names")
def delta(bench: Bench) -> object:
    return cache_with(bench, save(bench, {name: value / 99 for name, value in state().items()}))


@case(KIND, "weights and differences from them in one file")
def and_delta(bench: Bench) -> object:
    delta = {name: value / 99 for name, value in state().items()}
    return cache_with(bench, save(bench, {"model": state(), "delta": delta}))


@case(KIND, "ZeRO-3's model states, whose tensors are empty")
def zero3(bench: Bench) -> object:
    return cache_with(bench, save(bench, {"module": {name: torch.empty(0) for name in state()}}))


@case(KIND, "an optimizer's states alone")
def optimizer_alone(bench: Bench) -> object:
    moments = {number: {"exp_avg": torch.ones(9)} for number in range(3)}
    return cache_with(bench, save(bench, {"optimizer_state_dict": {"state": moments}}))


@case(KIND, "a norm of the class token alone (DINOv3, untied) that the model has no place for")
def class_norm(bench: Bench) -> object:
    return cache_with(bench, save(bench, {**state(), "cls_norm.weight": torch.ones(48)}))


@case(KIND, "a position embedding of the class token that the model has no place for")
def class_position(bench: Bench) -> object:
    return cache_with(bench, save(bench, {**state(), "cls_pos_embed": torch.ones(1, 1, 48)}))


@case(KIND, "position embeddings as a map (SAM)")
def map_of_positions(bench: Bench) -> object:
    return cache_with(bench, save(bench, {**state(), "pos_embed": torch.ones(1, 14, 14, 48)}))


@case(KIND, "16 positions, of 4x4 patches, into a model of 2x8; then with what they were made for")
def other_grid(bench: Bench) -> object:
    weights = save(bench, state(img_size=(64, 64)))
    failure = cache_with(bench, weights, image_size="32x128")
    success = cache_with(bench, weights, "img_size=[64,64]", image_size="32x128")
    assert success.code == 0, success.text
    wide = state(img_size=(64, 64))
    wide["pos_embed"] = resample_abs_pos_embed(wide["pos_embed"], [2, 8])
    plain = save(bench, wide, "plain.pth")
    assert cache_with(bench, plain, "img_size=[32,128]", image_size="32x128", out="plain").code == 0
    assert taught_by(bench, "cache") == taught_by(bench, "plain")
    return failure


@case(KIND, "21 positions, of 3x7 patches, into another grid")
def no_square(bench: Bench) -> object:
    return cache_with(bench, save(bench, state(img_size=(48, 112))))
