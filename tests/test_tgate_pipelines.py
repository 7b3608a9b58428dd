"""T-GATE on every pipeline of the zoo: gated and undone, or refused with the reason."""

from __future__ import annotations

import diffusers
import pytest
import torch
from zoo import ZOO

from fastsample.pipelines.tgate import TGate
from fastsample.pipelines.tgate.targets import check_class

JOINT = {
    *("aura_flow", "bria", "chroma", "cogview_3", "cogview_4", "cogvideox", "cogvideox_image_to_video", "flux"),
    *("flux_2", "flux_control", "flux_fill", "flux_img2img", "flux_inpaint", "flux_kontext", "hidream", "lumina_2"),
    *("hunyuan_video", "hunyuan_video_15", "mochi", "qwen_image", "stable_diffusion_3", "stable_diffusion_3_img2img"),
    *("z_image", "easy_animate"),
}
UNSEEN = ("ConsisID", "ErnieImage", "GlmImage", "Ideogram4", "JoyImageEdit", "Krea2", "MotifVideo", "OvisImage")
"""Networks that are not in the zoo."""
OTHERS = {
    "stable_diffusion_instruct_pix2pix": "three branches",
    "stable_diffusion_xl_refiner": "has none of the components",
    "shap_e": "has none of the components",
    "kandinsky_2_2": "concatenates text",
    "deepfloyd_if": "concatenates text",
    "prx": "concatenates text",
    "dit": "reads no text",
}
UNMOVED = {"kandinsky_5"}  # before its training text moves nothing
GATED = sorted(set(ZOO) - JOINT - set(OTHERS))


@pytest.mark.parametrize("name", GATED)
@torch.no_grad()
def test_gates_and_undoes(name: str) -> None:
    entry = ZOO[name]
    pipe = entry.build()
    plain = entry.sample(pipe)
    with TGate(1).apply(pipe) as handle:
        gated = entry.sample(pipe)
        again = entry.sample(pipe)
        summary = handle.summary()
    assert summary.cross_modules > 0
    assert summary.cross_reused > 0
    assert summary.dropped > 0
    assert torch.equal(gated, plain) == (name in UNMOVED)
    assert torch.equal(gated, again)
    assert torch.equal(entry.sample(pipe), plain)


def test_at_least_twenty_classes() -> None:
    assert len(GATED) >= 20


@pytest.mark.parametrize("name", sorted(JOINT))
def test_joint_attention_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="joint attention"):
        TGate(1).apply(ZOO[name].build())


@pytest.mark.parametrize("name", UNSEEN)
def test_networks_with_joint_attention_are_known(name: str) -> None:
    kinds = [kind for kind in dir(diffusers) if kind.startswith(f"{name}Transformer")]
    assert kinds
    for kind in kinds:
        with pytest.raises(ValueError, match="joint attention"):
            check_class(kind)


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_others_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=OTHERS[name]):
        TGate(1).apply(ZOO[name].build())
