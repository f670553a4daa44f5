"""The paper's optimiser steps with the paper's models, a quarter of its batches: `bench training` takes whole ones."""

from __future__ import annotations

from functools import partial

import open_clip
import pytest

from affserve.benchmarks.training.steps import encoder_step, head_step, in_a_process, vit_activation_bytes
from affserve.train.labels import EXPRESSION
from affserve.train.models.encoder import FrameClassifier, create_encoder
from affserve.train.stages.finetune import FinetuneConfig
from affserve.train.stages.fit import FitConfig
from affserve.train.stages.memory import MemoryPlan, plan_memory


def test_one_step_of_stage_1_with_the_full_encoder() -> None:
    # bf16: the real shapes in half the time. Micro batches: what does not fit at once.
    told = in_a_process(partial(encoder_step, "ViT-B-32", batch=FinetuneConfig.batch // 4, micro_batch=8, amp="bf16"))
    assert told["batch"] == 64
    assert told["loss"] == pytest.approx(2.08, abs=0.2)  # ln 8: eight classes and no idea
    assert told["tensors_changed"] == told["tensors"] > 150
    # 2.7 GB, of which weights, gradients and AdamW take 1.4; all 64 frames at once would need 0.8 GiB more.
    assert told["peak_resident_mib"] < 3000


def test_one_step_of_stage_2_with_the_papers_head() -> None:
    told = in_a_process(partial(head_step, batch=FitConfig.batch // 4))
    assert told["batch"] == 8
    assert 2.5 < told["loss"] < 5  # 1 - CCC about 1, ln 8, ln 2
    assert told["tensors_changed"] == told["tensors"] > 100
    assert told["peak_resident_mib"] < 4000


@pytest.mark.parametrize("amp", ["none", "bf16"])
@pytest.mark.parametrize("architecture", ["ViT-B-32", "ViT-B-16"])
def test_the_formula_of_activations_is_what_pytorch_keeps(architecture: str, amp: str) -> None:
    model = FrameClassifier(create_encoder(architecture), [EXPRESSION.key])
    plan = plan_memory(model, amp, "cpu")
    formula = vit_activation_bytes(model.encoder.config.vision_cfg, amp)
    assert formula == pytest.approx(plan.per_frame, rel=0.05)
    assert plan.fixed == (16 + 2 * (amp == "bf16")) * sum(parameter.numel() for parameter in model.parameters())


def test_the_papers_batch_fits_its_gpu_at_once_with_vit_b_32_and_in_two_halves_with_vit_b_16() -> None:
    bytes_per_parameter = 22  # several ranks and autocast
    frames = {}
    for architecture in ("ViT-B-32", "ViT-B-16"):
        vision = open_clip.get_model_config(architecture)["vision_cfg"]
        activations = vit_activation_bytes(vision, "bf16", gpu=True)
        frames[architecture] = MemoryPlan(fixed=bytes_per_parameter * 88e6, per_frame=activations).frames()
    assert frames["ViT-B-32"] >= 256
    assert 128 <= frames["ViT-B-16"] < 256
