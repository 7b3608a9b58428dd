"""TarFlow: exact both ways, the same images by every way of decoding, and metrics as their definitions say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusal import check_refused
from torch import Tensor

from fastsample.demo import digits
from fastsample.pipelines.counting import count
from fastsample.tarflow import BlockPlan, Plan, TarFlowModel, TarFlowPipeline, load_original, plan
from fastsample.tarflow.planner import relative_residual

SIZES = dict(sample_size=10, in_channels=2, patch_size=2, channels=16, num_blocks=3, layers_per_block=2, head_dim=8)


def tiny(seed: int = 0, strength: float = 0.1, **config: Any) -> TarFlowModel:
    """25 tokens of 8 values, with output layers that are not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = TarFlowModel(**{**SIZES, "num_classes": 4, **config})
        for block in model.blocks:
            torch.nn.init.normal_(block.proj_out.weight, std=strength / 4)
            torch.nn.init.normal_(block.class_embed if block.class_embed is not None else block.pos_embed)
        model.var.copy_(torch.rand(model.var.shape) + 0.5)
    return model.double().eval()


def noise(model: TarFlowModel, batch: int = 3, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *model.var.shape, generator=generator, dtype=torch.float64).to(model.dtype)


LABELS = torch.tensor([2, 0, -1])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-12)])
def test_round_trip(dtype: torch.dtype, tolerance: float) -> None:
    model = tiny().to(dtype)
    images = torch.randn(3, 2, 10, 10, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)
    z, _ = model.encode(images, LABELS)
    torch.testing.assert_close(model.decode(z, LABELS)[0], images, rtol=0, atol=tolerance)


def test_bundled_round_trip() -> None:
    model = digits.load_pipeline().transformer
    images, labels = digits.held_out_digits()
    x = 2 * images[:16] - 1
    z, _ = model.encode(x, labels[:16])
    torch.testing.assert_close(model.decode(z, labels[:16])[0], x, rtol=0, atol=1e-4)


def test_log_likelihood_is_that_of_the_jacobian() -> None:
    model = tiny(sample_size=4)
    images = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    labels = torch.tensor([1, -1])
    for image, label, found in zip(images, labels, model.log_prob(images, labels), strict=True):
        encode = lambda x: model.encode(x[None], label[None])[0].flatten()  # noqa: B023, E731
        jacobian = torch.autograd.functional.jacobian(encode, image).reshape(32, 32)
        normal = torch.distributions.Normal(0.0, 1.0).log_prob(encode(image)).sum()
        torch.testing.assert_close(found, normal + torch.linalg.slogdet(jacobian).logabsdet)


@pytest.mark.parametrize("guidance", [0.0, 1.5])
@pytest.mark.parametrize("start", ["z", "zeros", "affine"])
@pytest.mark.parametrize("chunks", [1, 2, 4, 7, 24, 25])
def test_every_plan_gives_the_sequential_images(chunks: int, start: str, guidance: float) -> None:
    model = tiny()
    options = dict(guidance=guidance, attention_temperature=0.7)
    exact, slow = model.decode(noise(model), LABELS, **options)
    made, report = model.decode(
        noise(model), LABELS, method="gs-jacobi", plan=BlockPlan(start, chunks, tolerance=0.0), **options
    )
    torch.testing.assert_close(made, exact, rtol=1e-10, atol=1e-10)
    assert slow.sweeps == 3 * 24
    assert report.sweeps <= slow.sweeps + 3 * (start == "affine")
    assert not report.substituted
    single, _ = model.float().decode(
        noise(model), LABELS, method="gs-jacobi", plan=BlockPlan(start, chunks), **options
    )
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=1e-5 * float(exact.abs().max()))


def test_sequential_is_the_recursion_without_a_cache() -> None:
    """The definition, with the whole prefix through the network for every token, guided and annealed."""
    model, scale, temperature = tiny(), 0.8, 0.6
    x = noise(model) * model.var.sqrt()
    for block in reversed(model.blocks):
        z = block.ordered(x)
        x = z.clone()
        for i in range(z.shape[1] - 1):
            a, b = slow_outputs(block, x[:, : i + 1], LABELS)[:, -1].chunk(2, -1)
            free_a, free_b = slow_outputs(block, x[:, : i + 1], None, temperature)[:, -1].chunk(2, -1)
            weight = scale * (i + 1) / (z.shape[1] - 1)
            a, b = a + weight * (a - free_a), b + weight * (b - free_b)
            x[:, i + 1] = z[:, i + 1] * a.exp() + b
        x = block.ordered(x)
    made, _ = model.decode(noise(model), LABELS, guidance=scale, attention_temperature=temperature)
    torch.testing.assert_close(made, model.images(x))


def slow_outputs(block: Any, tokens: Tensor, labels: Tensor | None, temperature: float = 1.0) -> Tensor:
    """The transformer written out: one head at a time, softmax over the tokens up to each."""
    positions = block.pos_embed.flip(0) if block.flip else block.pos_embed
    h = block.proj_in(tokens) + positions[: tokens.shape[1]]
    table = block.class_embed[:, 0]
    chosen = [table.mean(0) if labels is None or label < 0 else table[label] for label in LABELS]
    h = h + torch.stack(chosen)[:, None]
    for layer in block.attn_blocks:
        query, key, value = layer.attention.qkv(layer.attention.norm(h)).chunk(3, -1)
        heads = []
        for part in torch.arange(query.shape[-1]).split(layer.attention.head_dim):
            logits = query[..., part] @ key[..., part].transpose(1, 2) / len(part) ** 0.5 / temperature
            later = torch.ones(logits.shape[1:], dtype=torch.bool).triu(1)
            heads.append(logits.masked_fill(later, -torch.inf).softmax(-1) @ value[..., part])
        h = h + layer.attention.proj(torch.cat(heads, -1))
        h = h + layer.mlp.main(layer.mlp.norm(h))
    result: Tensor = block.proj_out(h)
    return result


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4])
def test_sweep_counts_are_those_of_a_slow_jacobi(tolerance: float) -> None:
    """Whole-block sweeps written out, until the prefix that has settled reaches the end."""
    model = tiny()
    _, report = model.decode(noise(model), LABELS, method="jacobi", plan=BlockPlan(tolerance=tolerance))
    x = noise(model) * model.var.sqrt()
    for found in report.blocks:
        block = model.blocks[found.block]
        z = block.ordered(x)
        guess, begin, sweeps, size = z.clone(), 0, 0, z.square().mean((1, 2)).sqrt()[:, None]
        while begin < 24:
            a, b = slow_outputs(block, guess[:, :-1], LABELS).chunk(2, -1)
            new = torch.cat([guess[:, : begin + 1], (z[:, 1:] * a.exp() + b)[:, begin:]], 1)
            moved = ((new - guess).square().mean(-1).sqrt() / size).amax(0)[begin + 1 :] > tolerance
            begin += min(1 + int(moved.long().argmax()) if moved.any() else 24, 24 - begin)
            guess, sweeps = new, sweeps + 1
        assert found.report.sweeps == sweeps
        x = block.ordered(guess)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", [1, 2, "fro"])
def test_metrics_are_as_defined(dtype: torch.dtype, norm: Any) -> None:
    model = tiny().to(dtype)
    images = torch.randn(3, 2, 10, 10, generator=torch.Generator().manual_seed(4), dtype=torch.float64).to(dtype)
    igm, crm = model.metrics(images, LABELS, norm=norm)
    x = model.tokens(images)
    for index, block in enumerate(model.blocks):
        tokens = block.ordered(x)
        a, b = slow_outputs(block, tokens, LABELS).chunk(2, -1)
        z = tokens.clone()
        z[:, 1:] = (tokens[:, 1:] - b[:, :-1]) / a[:, :-1].exp()
        scaled = tokens.clone()
        scaled[:, 1:] = tokens[:, 1:] / a[:, :-1].exp()
        weight_a, weight_b = np.split(block.proj_out.weight.detach().double().numpy(), 2)
        size = lambda matrix: np.linalg.norm(matrix, norm)  # noqa: E731
        expected = size(scaled.mean(0).detach().double().numpy()) * size(weight_a) + size(weight_b)
        assert crm[index] == pytest.approx(expected, rel=1e-4)
        nothing = torch.cat([z[:, :1], 0 * z[:, 1:]], 1)
        a, b = slow_outputs(block, 0 * z, None).chunk(2, -1)
        affine = torch.cat([z[:, :1], z[:, 1:] * a[:, :-1].exp() + b[:, :-1]], 1)
        for start, guess in (("z", z), ("zeros", nothing), ("affine", affine)):
            a, b = slow_outputs(block, guess, LABELS).chunk(2, -1)
            swept = z.clone()
            swept[:, 1:] = z[:, 1:] * a[:, :-1].exp() + b[:, :-1]
            error = (swept - tokens).mean(0).detach().double().numpy()
            assert igm[start][index] == pytest.approx(size(error), rel=1e-4)
        x = block.ordered(z)


def test_overflowing_chunks_are_redone_and_reported() -> None:
    """A scale that grows with the tokens sends Jacobi's guesses out of float32; the images are still the same."""
    model = tiny(strength=1.0).float()
    with torch.no_grad():
        for block in model.blocks:
            block.proj_out.weight[:8] *= 30
    z = noise(model, batch=2) * 3
    exact, _ = model.decode(z, LABELS[:2])
    made, report = model.decode(z, LABELS[:2], method="gs-jacobi", plan=BlockPlan(chunks=3))
    assert bool(exact.isfinite().all()) == bool(made.isfinite().all())
    assert report.substituted
    torch.testing.assert_close(made, exact, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_keys_and_values_of_finished_chunks_are_exact() -> None:
    """With one sweep a chunk, every chunk after the first one follows from the tokens as they were left."""
    model = tiny(num_blocks=1)
    x, _ = model.decode(noise(model), LABELS, method="gs-jacobi", plan=BlockPlan(chunks=5, max_sweeps=1))
    block, x, z = model.blocks[0], model.tokens(x), noise(model) * model.var.sqrt()
    guess = z.clone()
    for begin in range(0, 25, 5):
        last = max(begin - 1, 0)  # the chunk's tokens are those after `last`
        a, b = slow_outputs(block, guess, LABELS).chunk(2, -1)
        end = begin + 5
        guess[:, last + 1 : end] = z[:, last + 1 : end] * a[:, last : end - 1].exp() + b[:, last : end - 1]
    torch.testing.assert_close(x, guess)


def test_plan_reaches_its_target_and_says_what_it_measured(tmp_path: Path) -> None:
    model = tiny()
    chosen = plan(model, 1e-3, batch=4, repeats=1, guidance=0.5, generator=torch.Generator().manual_seed(0))
    z, labels = noise(model, 4), torch.arange(4)
    exact, _ = model.decode(z, labels, guidance=0.5)
    made, report = model.decode(z, labels, method="gs-jacobi", plan=chosen, guidance=0.5)
    assert relative_residual(made, exact) <= 1e-3
    assert chosen.measured["residual"] <= 1e-3
    assert len(chosen.blocks) == len(chosen.measured["crm"]) == len(report.blocks) == 3
    chosen.save(tmp_path)
    assert Plan.load(tmp_path) == chosen


def test_plan_from_data_takes_the_better_start() -> None:
    model = digits.load_pipeline().transformer
    model.blocks = model.blocks[:16]  # those nearest to the images, where starts differ most
    images, labels = (part[:8] for part in digits.held_out_digits())
    chosen = plan(model, 1e-2, images=2 * images - 1, labels=labels, repeats=1)
    igm = chosen.measured["igm"]
    assert chosen.measured["data"]
    assert len(chosen.blocks) == 16
    for index, block in enumerate(chosen.blocks):
        better = min(igm, key=lambda start: igm[start][index])
        assert block.chunks == 64 or block.start == better


def test_bundled_plan_is_within_its_target_and_needs_fewer_passes() -> None:
    pipe = digits.load_pipeline()
    labels = torch.arange(16) % 10
    z = noise(pipe.transformer, 16, seed=9)
    with count(pipe, 16) as slow:
        exact, _ = pipe.transformer.decode(z, labels)
    with count(pipe, 16) as fast:
        made, report = pipe.transformer.decode(z, labels, method="gs-jacobi", plan=pipe.plan)
    assert relative_residual(made, exact) <= 1e-4
    assert slow.forward_calls == len(pipe.transformer.blocks) * 63
    assert fast.forward_calls == report.sweeps < slow.forward_calls / 5


def test_denoising_is_a_tweedie_step() -> None:
    model = tiny()
    images = torch.randn(2, 2, 10, 10, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    step, value = torch.zeros_like(images), torch.zeros(2)
    index, h = (0, 1, 3, 4), 1e-5
    step[index] = h
    value = (model.log_prob(images + step, LABELS[:2]) - model.log_prob(images - step, LABELS[:2])) / (2 * h)
    moved = model.denoise(images, LABELS[:2]) - images
    assert float(moved[index]) == pytest.approx(model.config.noise_std**2 * float(value[0].detach()), rel=1e-5)


def original_state(model: TarFlowModel) -> dict[str, Tensor]:
    masks = {f"blocks.{index}.attn_mask": torch.ones(4, 4).tril() for index in range(len(model.blocks))}
    return {**model.state_dict(), **masks}


@pytest.mark.parametrize("classes", [0, 3])
def test_authors_checkpoints_load(tmp_path: Path, classes: int) -> None:
    model = TarFlowModel(4, 3, 2, 64, num_blocks=2, layers_per_block=1, num_classes=classes, noise_std=0.07).eval()
    path = tmp_path / "afhq_model_2_64_2_1_0.07.pth"
    torch.save(original_state(model), path)
    loaded = load_original(path)
    assert {key: loaded.config[key] for key in ("noise_std", "num_classes", "sample_size")} == {
        "noise_std": 0.07,
        "num_classes": classes,
        "sample_size": 4,
    }
    images = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(loaded.log_prob(images), model.log_prob(images))
    loaded.save_pretrained(tmp_path / "saved")
    again = TarFlowModel.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(again.log_prob(images), model.log_prob(images))


def test_pipeline_round_trip_and_outputs(tmp_path: Path) -> None:
    pipe = digits.load_pipeline()
    pipe.save_pretrained(tmp_path)
    again = TarFlowPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert again.plan == pipe.plan
    streams = lambda: [torch.Generator().manual_seed(seed) for seed in range(4)]  # noqa: E731
    batch = again([3, 7], num_images_per_label=2, generator=streams(), output_type="pt", method="sequential").images
    alone = pipe(7, generator=streams()[2:3], output_type="np", method="sequential").images
    np.testing.assert_allclose(batch[2].permute(1, 2, 0).numpy(), alone[0], atol=1e-5)
    image = pipe(7, generator=streams()[2:3]).images[0]
    assert image.size == (16, 16)
    assert np.abs(np.asarray(image) / 255 - alone[0, ..., 0]).max() < 3e-3
    assert len(pipe(num_images_per_label=3).images) == 3


LOADING: list[dict[str, Any]] = [
    dict(torch_dtype=torch.bfloat16),
    dict(dtype=torch.float64),
    dict(local_files_only=True, use_safetensors=True, low_cpu_mem_usage=True),
    dict(revision="main", cache_dir="nowhere", force_download=False, token=None),
    dict(device_map="cpu"),
    dict(device_map="balanced"),
    dict(variant="fp16", torch_dtype=torch.float16),
]


@pytest.mark.parametrize("options", LOADING, ids=[",".join(options) for options in LOADING])
def test_pipelines_load_as_diffusers_do(tmp_path: Path, options: dict[str, Any]) -> None:
    pipe = TarFlowPipeline(TarFlowModel(4, 1, 2, 64, num_blocks=2, layers_per_block=1))
    pipe.plan = Plan((BlockPlan(), BlockPlan()))
    pipe.save_pretrained(tmp_path, variant=options.get("variant"))
    for again in (
        TarFlowPipeline.from_pretrained(str(tmp_path), **options),
        TarFlowPipeline.from_pretrained(pretrained_model_name_or_path=tmp_path, **options),
    ):
        assert again.transformer.dtype == (options.get("dtype") or options.get("torch_dtype") or torch.float32)
        assert again.plan == pipe.plan
    with pytest.raises(ValueError, match="variant"):
        TarFlowPipeline.from_pretrained(tmp_path, variant="other")


def test_samples_are_the_digits_that_were_asked_for() -> None:
    pipe = digits.load_pipeline()
    labels = torch.arange(10).repeat_interleave(12)
    images = pipe(labels.tolist(), generator=torch.Generator().manual_seed(0), output_type="pt").images
    assert digits.accuracy(images, labels) > 0.85
    assert digits.accuracy(*digits.held_out_digits()) > 0.98


def test_bundled_folder_is_small() -> None:
    assert sum(file.stat().st_size for file in digits.model_path().rglob("*") if file.is_file()) <= 4e6


MODEL = tiny()
STATE = original_state(TarFlowModel(4, 3, 2, 64, num_blocks=1, layers_per_block=1))
ORIGINAL = dict(patch_size=2, channels=64, num_blocks=1, layers_per_block=1, noise_std=0.1)
WRONG: list[tuple[Any, str]] = [
    (lambda: MODEL.decode(noise(MODEL), torch.tensor([1, 2, 4])), "labels = 4: the model has classes 0 to 3"),
    (lambda: MODEL.decode(noise(MODEL), torch.tensor([1, 2])), "give 3 integers"),
    (lambda: MODEL.decode(noise(MODEL)[:, 1:]), "z has shape (3, 24, 8)"),
    (lambda: MODEL.decode(noise(MODEL), method="newton"), "method = 'newton'"),
    (lambda: MODEL.decode(noise(MODEL), guidance=-1.0), "guidance = -1.0"),
    (lambda: MODEL.decode(noise(MODEL), attention_temperature=0.0), "attention_temperature = 0.0"),
    (lambda: MODEL.decode(noise(MODEL), method="gs-jacobi", plan=BlockPlan(chunks=26)), "chunks = 26"),
    (lambda: MODEL.decode(noise(MODEL), method="jacobi", plan=BlockPlan(chunks=2)), "method = 'jacobi'"),
    (lambda: MODEL.decode(noise(MODEL), plan=BlockPlan()), "method = 'sequential' has no plan"),
    (lambda: MODEL.decode(noise(MODEL), method="gs-jacobi", plan=Plan((BlockPlan(),))), "plan has 1 block and"),
    (lambda: BlockPlan(tolerance=-1e-3), "tolerance = -0.001"),
    (lambda: BlockPlan(start="ones"), "start = 'ones'"),
    (lambda: BlockPlan(max_sweeps=0), "max_sweeps = 0"),
    (lambda: Plan.from_json("{}"), "plan is not one that fastsample saved"),
    (lambda: plan(MODEL, 0.0), "target_residual = 0.0"),
    (lambda: plan(MODEL, batch=0), "batch = 0"),
    (lambda: MODEL.encode(torch.zeros(1, 3, 10, 10)), "images have shape (1, 3, 10, 10)"),
    (lambda: TarFlowModel(sample_size=9, patch_size=2), "patch_size = 2"),
    (lambda: TarFlowModel(channels=65), "head_dim = 64"),
    (lambda: TarFlowModel.from_original({}, **ORIGINAL), "no 'var'"),
    (lambda: TarFlowModel.from_original({**STATE, "extra": STATE["var"]}, **ORIGINAL), "has a further 'extra'"),
    (lambda: TarFlowModel.from_original(STATE, **{**ORIGINAL, "num_blocks": 2}), "state_dict lacks 'blocks.1."),
    (lambda: TarFlowModel.from_original(STATE, **{**ORIGINAL, "channels": 128}), "has shape"),
    (lambda: TarFlowPipeline(MODEL)(4), "labels = 4"),
    (lambda: TarFlowPipeline(MODEL)(1, output_type="jpg"), "output_type = 'jpg'"),
    (lambda: TarFlowPipeline(MODEL)(1, generator=[torch.Generator()] * 2), "generator has 2 entries"),
    (lambda: load_original("weights.pth"), "does not name its sizes"),
]


@pytest.mark.parametrize(("call", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_input_is_refused_before_any_pass(call: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_pass(*_: Any, **__: Any) -> None:
        raise AssertionError("a pass was made")

    for block in MODEL.blocks:
        monkeypatch.setattr(block, "outputs", no_pass)
    check_refused(call, message)
