"""diffusers' block refinement by a commit rule: vectorised over rows, at most one wait for the device per forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers.schedulers.scheduling_block_refinement import BlockRefinementScheduler, BlockRefinementSchedulerOutput
from torch import Tensor

from fastsample.decoding.commit.rule import CommitRule, Progress, best
from fastsample.decoding.statistics import Statistics, statistics_of

BLOCK_CONFIG: dict[str, Any] = {
    "block_length": 32,
    "num_inference_steps": 32,
    "threshold": 0.95,
    "editing_threshold": None,
    "minimal_topk": 1,
}
"""Config keys of every commit scheduler: those of `BlockRefinementScheduler`, with its defaults."""


@dataclass(frozen=True)
class AboveThreshold(CommitRule):
    """diffusers' own rule: all tokens of a confidence above `threshold`, and at least the schedule's quota.

    A threshold above 1 never fires, and the quota alone is left.
    """

    threshold: float

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"confidence"})

    def commit(self, statistics: Statistics, masked: Tensor, eligible: Tensor, progress: Progress) -> Tensor:
        sure = eligible & (statistics.confidence > self.threshold)
        return sure | best(statistics.confidence, eligible, progress.quota[:, None])


class _Rows(NamedTuple):
    """What the last step did to each row, bool [B]."""

    were_open: Tensor
    """Had undecided tokens before it."""
    are_open: Tensor
    """Have some after it."""
    edited: Tensor


class CommitScheduler(BlockRefinementScheduler):  # type: ignore[misc]
    """`BlockRefinementScheduler` with a commit rule in place of its own, for diffusers 0.42's pipelines.

    `num_inference_steps` keeps its meaning: a step commits at least block_length / steps tokens, by confidence where
    the rule asks for fewer, so a block is decided when its steps are over. Candidates, editing and the arguments of
    `step` are those of diffusers. What differs, besides the rule:

    - in `LLaDA2Pipeline` a block ends with the forward that decides its last token (diffusers makes one more), and a
      row that has ended (by its end token) holds nothing up;
    - in `DiffusionGemmaPipeline` (no mask token: what is undecided is drawn anew) the pipeline's own test ends a
      block, and asks for `stability_threshold` equal predictions in a row. A decided row is shown to it as certain,
      so the block ends that many forwards after its last row; with `confidence_threshold=None` every step is run.

    A rule sees the block alone: its response is the block's positions, its steps are the block's.
    """

    # of the block at hand: dropped where it ends
    _rows: _Rows | None = None
    _committed: Tensor | None = None

    def _prepare(self) -> None:
        """The rest of `__init__`, once there is a config. Raises ValueError where options of the rule are wrong."""
        super().__init__(**{key: self.config[key] for key in BLOCK_CONFIG})
        self.rule(self.config.threshold)

    def rule(self, threshold: float) -> CommitRule:
        """The rule that the config means; `threshold` is the call's (LLaDA2Pipeline passes 0.7 unless told)."""
        raise NotImplementedError

    def set_timesteps(self, num_inference_steps: int, device: Any = None, block_length: int | None = None) -> None:
        """As diffusers; ValueError where the rule does not fit the block."""
        super().set_timesteps(num_inference_steps, device=device, block_length=block_length)
        self.rule(self.config.threshold).check(block_length or self.config.block_length)
        self._rows = self._committed = None

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        *,
        mask_token_id: int | None = None,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        sampling_method: str = "auto",
        threshold: float | None = None,
        editing_threshold: float | None = None,
        minimal_topk: int | None = None,
        prompt_mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> BlockRefinementSchedulerOutput | tuple[Tensor, ...]:
        """One refinement of the block `sample` [B, L] by logits [B, L, V]; the arguments are diffusers'.

        `minimal_topk` bounds the pipeline's steps and is not used here, as in diffusers.
        """
        step = int(timestep)
        rule = self.rule(self.config.threshold if threshold is None else threshold)
        editing = self.config.editing_threshold if editing_threshold is None else editing_threshold
        multinomial = temperature > 0 and sampling_method in ("multinomial", "auto")
        statistics = statistics_of(model_output, needs=rule.needs)
        if multinomial:
            tokens, confidence = self._sample_from_logits(
                model_output,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                generator=generator,
                use_multinomial=True,
            )
            statistics = statistics._replace(token=tokens, confidence=confidence)

        undecided = self._undecided(sample, step, mask_token_id)
        chosen = self._chosen(rule, statistics, undecided, sample, step, owed=mask_token_id is None)
        edited = torch.zeros_like(chosen)
        if editing is not None and (mask_token_id is None or editing > 0):
            edited = ~undecided & (statistics.token != sample) & (statistics.confidence > editing)
            if prompt_mask is not None:
                edited = edited & ~prompt_mask
        following = torch.where(chosen | edited, statistics.token, sample)
        left = undecided & ~chosen
        back = self.taken_back(statistics, chosen, left, step)
        if back is not None:
            following = torch.where(back, mask_token_id or 0, following)
            left, edited = left | back, edited | back
        self._rows = _Rows(undecided.any(-1), left.any(-1), edited.any(-1))
        logits = model_output
        if mask_token_id is None:
            self._committed = ~left
            drawn = torch.randint(model_output.shape[-1], sample.shape, device=sample.device, generator=generator)
            following = torch.where(left, drawn, following)
            if editing is None:
                logits = _certain_where_decided(model_output, following, self._rows.are_open)
        output = (following, chosen, edited, statistics.token, statistics.confidence, logits)
        return BlockRefinementSchedulerOutput(*output) if return_dict else output

    def taken_back(self, statistics: Statistics, chosen: Tensor, left: Tensor, step: int) -> Tensor | None:
        """bool [B, L]: tokens of the block that go back to masks after this step; None for a rule that is final.

        `chosen` is what this step commits, `left` what it leaves undecided.
        """
        return None

    def _undecided(self, sample: Tensor, step: int, mask_token_id: int | None) -> Tensor:
        """By the mask token; without one, by what the steps of this block have committed."""
        if mask_token_id is not None:
            return sample == mask_token_id
        if step == 0 or self._committed is None or self._committed.shape != sample.shape:
            self._committed = torch.zeros_like(sample, dtype=torch.bool)
        return ~self._committed

    def _chosen(
        self, rule: CommitRule, statistics: Statistics, undecided: Tensor, sample: Tensor, step: int, *, owed: bool
    ) -> Tensor:
        """What the rule commits, and the most confident of the rest where these are fewer than the step's quota.

        The quota is this step's share of the block, or with `owed` what the steps so far should have committed.
        """
        rows, length = sample.shape
        if owed:
            target = -(-(step + 1) * length // self.num_inference_steps)
            quota = (undecided.sum(-1) - (length - target)).clamp(min=0)
        else:
            share, extra = divmod(length, self.num_inference_steps)
            quota = undecided.new_full((rows,), share + (step < extra), dtype=torch.long)
        count = undecided.sum(-1)
        progress = Progress(
            step=torch.full_like(count, step),
            steps=self.num_inference_steps,
            quota=quota,
            share=quota.float() / count.clamp(min=1),
            first=0,
            length=length,
            tokens=sample,
        )
        chosen = rule.commit(statistics, undecided, undecided, progress)
        missing = (quota - chosen.sum(-1))[:, None]
        return chosen | best(statistics.confidence, undecided & ~chosen, missing)

    @staticmethod
    def check_eos_finished(
        cur_x: Tensor,
        sampled_tokens: Tensor,
        final_transfer: Tensor,
        finished: Tensor,
        eos_token_id: int,
        mask_token_id: int,
        prompt_length: int,
    ) -> Tensor:
        """bool [B]: the rows that are finished: all before the first end token of the response is decided.

        diffusers asks this only of a forward that commits an end token, and never of a row whose prompt is padded
        with end tokens: such rows are decoded to the last block.
        """
        response = cur_x[:, prompt_length:]
        ended = (response == eos_token_id).cumsum(-1) > 0
        open_before = ((response == mask_token_id) & ~ended).any(-1)
        return finished | (ended.any(-1) & ~open_before)

    def check_block_should_continue(
        self,
        step_idx: int,
        masks_remaining: bool | Tensor,
        editing_enabled: bool,
        editing_transfer_index: Tensor,
        post_steps: int,
        max_post_steps: int,
        finished: Tensor,
    ) -> bool:
        """Whether the block needs a further forward: the one wait for the device.

        It does while an unfinished row has undecided tokens; with editing, also for the forward behind the last of
        them and while such forwards edit. `masks_remaining` is of before the step: diffusers goes by it.
        """
        assert self._rows is not None
        unfinished = ~finished
        more = (self._rows.are_open & unfinished).any()
        if editing_enabled:
            pending = self._rows.were_open
            if post_steps <= max_post_steps:
                pending = pending | self._rows.edited
            more = more | (pending & unfinished).any()
        if step_idx >= self.num_inference_steps:
            more = more & ~torch.as_tensor(masks_remaining, device=more.device)
        goes_on = bool(more)
        if not goes_on:
            self._rows = None
        return goes_on


def _certain_where_decided(logits: Tensor, tokens: Tensor, are_open: Tensor) -> Tensor:
    """The logits, but for decided rows, which get logits that are certain of their tokens."""
    if bool(are_open.all()):
        return logits
    certain = torch.full_like(logits, torch.finfo(logits.dtype).min).scatter_(-1, tokens[..., None], 0)
    return torch.where(are_open[:, None, None], logits, certain)
