"""The TarFlow model: images to noise and back, exactly, as a diffusers model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from fastsample.tarflow.block import FlowBlock
from fastsample.tarflow.checkpoint import checked, config_of
from fastsample.tarflow.decode import DecodeReport, OnBlock, decode, plan_of
from fastsample.tarflow.layers import KeyValues, Pass
from fastsample.tarflow.metrics import convergence_metrics
from fastsample.tarflow.plans import BlockPlan, Plan
from fastsample.tarflow.system import Guidance


class TarFlowModel(ModelMixin, ConfigMixin):
    """A normalizing flow of autoregressive transformer blocks on image patches (Zhai et al. 2024, arXiv:2412.06329).

    Images are [B, in_channels, sample_size, sample_size] in [-1, 1], labels [B] (below 0: none), z is [B, T, C] with
    T = (sample_size / patch_size)^2 tokens of C = in_channels patch_size^2 values, standard normal in the model.
    `noise_std` is the standard deviation of the noise on the images it was trained on.
    """

    blocks: Sequence[FlowBlock]
    var: Tensor

    @register_to_config
    def __init__(
        self,
        sample_size: int = 64,
        in_channels: int = 3,
        patch_size: int = 2,
        channels: int = 768,
        num_blocks: int = 8,
        layers_per_block: int = 8,
        head_dim: int = 64,
        expansion: int = 4,
        num_classes: int = 0,
        noise_std: float = 0.05,
    ) -> None:
        super().__init__()
        if sample_size % patch_size or sample_size < 2 * patch_size:
            raise ValueError(f"patch_size = {patch_size}: sample_size = {sample_size} must be a multiple, 2 or more")
        if channels % head_dim:
            raise ValueError(f"head_dim = {head_dim}: channels = {channels} must be a multiple of it")
        token_dim, num_tokens = in_channels * patch_size**2, (sample_size // patch_size) ** 2
        self.blocks = nn.ModuleList(  # type: ignore[assignment]
            FlowBlock(
                token_dim,
                num_tokens,
                channels,
                layers_per_block,
                head_dim,
                expansion,
                num_classes,
                flip=index % 2 == 1,
            )
            for index in range(num_blocks)
        )
        self.register_buffer("var", torch.ones(num_tokens, token_dim))

    def tokens(self, images: Tensor) -> Tensor:
        """Patches [B, T, C] of images, row by row; within one the channel first."""
        return F.unfold(images, self.config.patch_size, stride=self.config.patch_size).transpose(1, 2)

    def images(self, tokens: Tensor) -> Tensor:
        """Images of tokens [B, T, C]."""
        size, patch = self.config.sample_size, self.config.patch_size
        return F.fold(tokens.transpose(1, 2), (size, size), patch, stride=patch)

    def forward(
        self,
        tokens: Tensor,
        condition: Tensor | None = None,
        *,
        block: int,
        now: Pass,
        kept: Sequence[KeyValues] = (),
    ) -> Tensor:
        """(a, b) by one pass of a block's network: what decoding calls, so that hooks and ledgers see every pass."""
        result: Tensor = self.blocks[block].outputs(tokens, condition, now, kept)
        return result

    def encode(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z [B, T, C] of images, and `log |det dz/dx|` [B]. Raises ValueError for wrong shapes or labels."""
        self._check_images(images)
        self.check_labels(labels, len(images))
        tokens = self.tokens(images)
        logdet = -0.5 * self.var.log().sum().expand(len(tokens))
        for block in self.blocks:
            tokens, own = block(tokens, labels)
            logdet = logdet + own
        return tokens / self.var.sqrt(), logdet

    def log_prob(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """`log p(images | labels)` [B] in nats."""
        z, logdet = self.encode(images, labels)
        return logdet - 0.5 * (z.to(logdet) ** 2 + math.log(2 * math.pi)).sum((1, 2))

    def decode(
        self,
        z: Tensor,
        labels: Tensor | None = None,
        *,
        method: str = "sequential",
        plan: Plan | BlockPlan | None = None,
        guidance: float = 0.0,
        annealed_guidance: bool = True,
        attention_temperature: float = 1.0,
        on_block: OnBlock | None = None,
    ) -> tuple[Tensor, DecodeReport]:
        """Images [B, in_channels, H, W] of `z` [B, T, C], and what it took.

        `method` is "sequential" (token by token, keys and values kept), "jacobi" (all tokens of a block at once,
        again until they settle) or "gs-jacobi" (chunk after chunk so; arXiv:2505.12849). `plan` says how, for all
        blocks alike or for each; None is tolerance 1e-4 and, for "gs-jacobi", 8 chunks. Whatever the method, at
        tolerance 0 the result is the sequential one to rounding. `guidance` adds that times the difference to the
        unlabelled output (0: none), growing along the tokens where annealed; the unlabelled pass has its attention at
        `attention_temperature`. `on_block(index, images)` is called after each block.

        Raises ValueError for wrong shapes, labels, plans or guidance, before any pass.
        """
        shape = tuple(self.var.shape)
        if z.ndim != 3 or tuple(z.shape[1:]) != shape:
            raise ValueError(f"z has shape {tuple(z.shape)}: give [batch, {shape[0]}, {shape[1]}]")
        self.check_labels(labels, len(z))
        how = plan_of(method, plan, len(self.blocks), shape[0])
        guide = self.guidance(guidance, annealed_guidance, attention_temperature)
        seen = None if on_block is None else lambda index, tokens: on_block(index, self.images(tokens))
        tokens, report = decode(self, z, labels, how, guide, seen)
        return self.images(tokens), report

    def denoise(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """One Tweedie step, `x + noise_std^2 d log p(x) / dx`: the mean without the training noise (section 3.4)."""
        with torch.enable_grad():
            noisy = images.detach().requires_grad_()
            (score,) = torch.autograd.grad(self.log_prob(noisy, labels).sum(), noisy)
        return images + self.config.noise_std**2 * score

    def metrics(
        self, images: Tensor, labels: Tensor | None = None, *, norm: float = 2
    ) -> tuple[dict[str, list[float]], list[float]]:
        """IGM for each start ("z", "zeros", "affine") and CRM, one number per block.

        See :mod:`fastsample.tarflow.metrics`.
        """
        self._check_images(images)
        self.check_labels(labels, len(images))
        return convergence_metrics(self, self.tokens(images), labels, norm)

    @classmethod
    def from_original(
        cls,
        state_dict: Mapping[str, Tensor],
        *,
        patch_size: int,
        channels: int,
        num_blocks: int,
        layers_per_block: int,
        noise_std: float,
        num_classes: int = 0,
    ) -> TarFlowModel:
        """The model of an authors' checkpoint; image size and channels follow from the shapes.

        Raises ValueError, in one line, when keys are missing or left over or a shape is not that of the sizes given.
        """
        sizes = dict(
            patch_size=patch_size,
            channels=channels,
            num_blocks=num_blocks,
            layers_per_block=layers_per_block,
            num_classes=num_classes,
            noise_std=noise_std,
        )
        model = cls(**config_of(state_dict, sizes))
        model.load_state_dict(checked(state_dict, model.state_dict()))
        return model.eval()

    def guidance(self, scale: float, annealed: bool, temperature: float) -> Guidance:
        """Checked guidance; ValueError where it could have no effect."""
        guide = Guidance(scale, annealed, temperature)
        if scale > 0 and not self.config.num_classes and temperature == 1.0:
            raise ValueError(f"guidance = {scale}: without classes it needs an attention_temperature other than 1")
        return guide

    def check_labels(self, labels: Tensor | None, batch: int) -> None:
        """Raise ValueError unless `labels` is None or has one entry per batch item: a class, or below 0 for none."""
        if labels is None:
            return
        classes = self.config.num_classes
        if not classes:
            raise ValueError("labels were given and this model has no classes: leave them out")
        if labels.shape != (batch,) or labels.is_floating_point():
            raise ValueError(f"labels have shape {tuple(labels.shape)}, {labels.dtype}: give {batch} integers")
        if bool((labels >= classes).any()):
            raise ValueError(f"labels = {int(labels.max())}: the model has classes 0 to {classes - 1}")

    def _check_images(self, images: Tensor) -> None:
        own = (self.config.in_channels, self.config.sample_size, self.config.sample_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != own:
            raise ValueError(f"images have shape {tuple(images.shape)}: give [batch, {own[0]}, {own[1]}, {own[2]}]")
