"""How much memory a model's states need under each ZeRO stage, by DeepSpeed's estimators.

States are parameters, gradients and AdamW's moments in mixed precision. Activations come on top and depend
on the micro batch.
"""

from __future__ import annotations

import logging


def zero_memory(
    parameters: int, largest_layer: int, gpus: int, *, offload: bool = False, offload_parameters: bool = False
) -> dict[int, float]:
    """``{ZeRO stage: bytes a GPU}`` for stages 0 to 3 on one node of ``gpus``.

    ``offload``: master weights and moments are in CPU memory; ``offload_parameters``: parameters too, at
    stage 3.
    DeepSpeed estimates stages 2 and 3; 0 and 1 follow from the same 20 bytes a parameter: 2 of parameters,
    6 of gradients in both precisions, and 12 of master weights and moments, which stage 1 shards.
    """
    logging.disable(logging.WARNING)  # DeepSpeed prints to stdout when it is imported
    try:
        from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
        from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
    finally:
        logging.disable(logging.NOTSET)
    _, second = estimate_zero2_model_states_mem_needs(parameters, gpus, 1, cpu_offload=offload)
    _, third, _ = estimate_zero3_model_states_mem_needs(
        parameters, largest_layer, gpus, 1, cpu_offload=offload, cpu_offload_params=offload_parameters
    )
    return {
        0: 20.0 * parameters,
        1: (8 + (0 if offload else 12 / gpus)) * parameters,
        2: float(second),
        3: float(third),
    }
