"""The base of the trainings by reward (reinforce, sb3, rllib): a captioner, and a policy that is scored on val."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

from agents.loading import find_attention
from glimpse_env.datasets import find_world, make_dataset, world_of
from glimpse_env.features.build import open_features
from glimpse_env.models.captioner import Captioner, load_captioner
from glimpse_env.rollout.beam_search import BeamSearch, Captioned
from glimpse_env.rollout.decode import Policy, decode
from train.common.distributed import Processes
from train.common.run_directory import RunDirectory
from train.common.trainer import BaseTrainer, val_notes
from train.evaluate.scoring import score, world_metrics


class PolicyTrainer(BaseTrainer):
    """A run that trains a policy to attend for a captioner.

    Args:
        options: options of reinforce, sb3 or rllib.
        start: attention to start from: an agent's name, a file, or a run directory; by default none.
        processes: the processes that train together; by default this one alone.

    Attributes:
        dataset: short name of the environment's dataset.
        captioner: the captioner, on the device of the options; by default that of ``start``, else the dataset's own.
        start_attention: the attention of ``start``, frozen.
        val_set: the dataset that the policy is scored on.
        val_features: its annotations.
    """

    def __init__(self, options: Any, start: str | None = None, processes: Processes | None = None) -> None:
        world = world_of(options.env)
        super().__init__(options.checkpoint_minutes, processes, world.metrics[0])
        self.options = options
        self.dataset, self._env_id = world.name, world.env_id
        file, captioner = (None, None) if start is None else find_attention(start, self.dataset)
        self._captioner_name = str(options.captioner or captioner or world.captioner or world.name)
        self.captioner: Captioner = load_captioner(self._captioner_name).to(options.device)
        self.start_attention = None if file is None else file.attention_for(self.captioner)
        self.val_set = make_dataset(self.dataset, "val", options.data_root)
        self.val_features = open_features(self.val_set, self.captioner.encoder)

    def caption_val(self, policy: Policy, decoding: BeamSearch | str = "greedy") -> list[Captioned]:
        """Captions of val, or of its first ``limit`` images, with the best locations of ``policy``."""
        return decode(
            self.captioner,
            self.val_features,
            policy,
            range(len(self.val_set))[: self.options.limit],
            decoding,
            max_caption_length=find_world(self.dataset).longest,
            device=self.options.device,
        )

    def score_val(
        self,
        directory: RunDirectory,
        captions: list[Captioned],
        step: int,
        metrics: dict[str, float],
        trained_with: dict[str, Any],
    ) -> dict[str, Any] | None:
        """Score captions of val after an update or environment step, and log the scores beside ``metrics``.

        Returns:
            The notes for a weights file, ``trained_with`` in them, if the world's first metric is the best so far,
            else None.
        """
        references = [self.val_set.references(caption.row) for caption in captions]
        scores, others = score(captions, references), world_metrics(self.dataset, captions, references)
        metrics = {
            **metrics,
            "charts/seconds": self.seconds,
            **{f"val/bleu{order}": value for order, value in enumerate(scores.bleu, 1)},
            "val/length_ratio": scores.length_ratio,
            "val/bad_endings": scores.bad_endings,
            **{f"val/{name}": value for name, value in others.items()},
        }
        directory.log(step, metrics)
        # Update and steps; one of the two where they are the same.
        progress = dict.fromkeys([self.STEP.format(step), f"{metrics['charts/steps']:,.0f} steps"])
        percent = " ".join(f"{100 * value:.1f}" for value in scores.bleu)
        percent += "".join(f", {name} {value:.4f}" for name, value in others.items())
        reward = f", reward {metrics['charts/reward']:.3f}" if "charts/reward" in metrics else ""
        tqdm.write(
            f"{', '.join(progress)}, {self.seconds:.0f} s: "
            f"val BLEU-1..4 {percent}, length {scores.length_ratio:.2f}{reward}"
        )
        if not self.improved({"bleu": scores.bleu[3], **others}[self.metric], step):
            return None
        notes = {"trained_with": trained_with, "env": self._env_id, "captioner": self._captioner_name}
        return {**notes, "val": val_notes(metrics)}
