"""Hard attention learned from reward: REINFORCE on the environment's own dynamics (SAT §4.1; Williams 1992).

Each update captions a batch of images K times, with glimpses sampled from the policy. Glimpses of captions that earn
more than the baseline become likelier. With ``--train-decoder`` words are sampled and trained, too (self-critical
sequence training, Rennie et al. 2017).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from agents.attention import AdditiveAttention, AttentionConfig, save_attention
from agents.attention_agents import HardAttentionAgent
from glimpse_env.datasets import find_world, make_dataset
from glimpse_env.features.build import open_features
from glimpse_env.metrics.references import SplitReferences
from glimpse_env.metrics.rewards import make_reward
from glimpse_env.models.captioner import save_captioner
from glimpse_env.models.decoder import mean_annotation
from glimpse_env.models.frozen_decoder import FrozenDecoder
from glimpse_env.rollout.beam_search import BeamSearch
from glimpse_env.rollout.dynamics import CaptionDynamics
from glimpse_env.rollout.word_sampling import WordSampling
from train.captioner.batches import CaptionBatch
from train.captioner.losses import unroll
from train.common.distributed import Processes, join_processes
from train.common.options import autocast, prepare
from train.common.run_directory import RunDirectory
from train.common.trainer import cosine_schedule
from train.evaluate.policy_trainer import PolicyTrainer
from train.reinforce.baselines import BASELINES
from train.reinforce.corpus_bleu import CorpusBleuReward
from train.reinforce.feature_dropout import FeatureDropout
from train.reinforce.options import CORPUS_BLEU, Options, resolve_defaults
from train.reinforce.trajectories import (
    LogProbabilities,
    Trajectories,
    caption_log_probabilities,
    glimpse_log_probabilities,
    roll_out,
)


class Trainer(PolicyTrainer):
    """A run of REINFORCE with options whose defaults are resolved, resumable at any update."""

    PROGRESS = ("update", "steps", "recent_metrics")
    STEP = "update {}"
    options: Options

    def __init__(self, options: Options, processes: Processes | None = None) -> None:
        super().__init__(options, options.start, processes)
        self.train_set = make_dataset(self.dataset, "train", options.data_root)
        decoder = self.captioner.decoder.config
        self.attention = self.start_attention or AdditiveAttention(
            AttentionConfig(decoder.feature_dim, decoder.hidden_dim, options.attention_dim)
        )
        self.attention.requires_grad_(True).to(options.device).train()
        self._scale_scores(options.sharpen or 1.0)
        self.features = open_features(self.train_set, self.captioner.encoder)
        if options.feature_dropout:
            self.features = FeatureDropout(self.features, options.feature_dropout)
        self.rows = np.arange(len(self.train_set))[: options.limit]
        self.images = min(options.images or 1, len(self.rows))
        self.batch_slice = self.processes.batch_slice(self.images)
        self.baseline = BASELINES[options.baseline](decoder, options.reward_to_go)
        vocabulary = self.captioner.vocabulary
        self.corpus_bleu = CorpusBleuReward(self.train_set, vocabulary) if options.reward == CORPUS_BLEU else None
        self.dynamics = self._make_dynamics()
        self.optimiser = self._make_optimiser()
        self.schedule = cosine_schedule(self.optimiser, options.updates or 1)
        self.generator = torch.Generator(options.device).manual_seed(options.seed)
        self.update = self.steps = 0
        self.recent_metrics: list[dict[str, float]] = []  # of the updates since the last scores on val
        names = ("attention", "baseline", "optimiser", "schedule", "generator")
        self.stateful = {name: getattr(self, name) for name in names}
        if options.train_decoder:
            self.stateful["decoder"] = self.captioner.decoder
        if self.corpus_bleu is not None:
            self.stateful["corpus_bleu"] = self.corpus_bleu

    @torch.no_grad()
    def _scale_scores(self, factor: float) -> None:
        """Multiply the scores of locations, and of words that are trained: samples come closer to the likeliest."""
        self.attention.score.weight.mul_(factor)
        if self.options.train_decoder:
            for parameter in self.captioner.decoder.output_word.parameters():
                parameter.mul_(factor)

    def _make_dynamics(self) -> CaptionDynamics:
        options = self.options
        if self.images < self.processes.world_size:
            raise ValueError(
                f"a batch of {self.images} images cannot be shared by {self.processes.world_size} processes; start "
                "fewer, or pass more --images"
            )
        reward = "bleu" if self.corpus_bleu is not None else options.reward or "bleu"
        per_image = (options.rollouts or 1) + self.baseline.greedy_last
        return CaptionDynamics(
            self.captioner,
            self.features,
            SplitReferences(self.train_set, self.captioner.vocabulary),
            make_reward(reward, lambda: self.train_set),
            num_episodes=(self.batch_slice.stop - self.batch_slice.start) * per_image,
            per_image=per_image,
            sampling=WordSampling("sample" if options.train_decoder else "greedy"),
            shaped=options.reward_to_go,
            max_caption_length=find_world(self.dataset).longest,
            device=options.device,
        )

    def _make_optimiser(self) -> torch.optim.Adam:
        options, decoder = self.options, self.captioner.decoder
        groups: list[dict[str, Any]] = [{"params": list(self.attention.parameters()), "lr": options.learning_rate}]
        if self.baseline.network is not None:
            groups.append({"params": list(self.baseline.network.to(options.device).parameters()), "lr": 1e-3})
        if options.train_decoder:
            decoder.requires_grad_(True)
            groups.append({"params": list(decoder.parameters()), "lr": options.decoder_learning_rate})
        return torch.optim.Adam(groups)

    def run(self, directory: RunDirectory) -> None:
        """Train to the last update, keeping the weights that are best on val."""
        total, is_main = self.options.updates or 1, self.processes.is_main
        for module in (self.attention, self.captioner.decoder, self.baseline.network):
            if module is not None:
                self.processes.broadcast_weights(module)
        if self.update == 0 and is_main:
            self._validate(directory, {})
        with tqdm(total=total, initial=self.update, desc="updates", unit="update", disable=not is_main) as bar:
            while self.update < total:
                with self.timed():
                    self.recent_metrics.append(self.train_batch(directory))
                bar.update()
                bar.set_postfix(reward=f"{self.recent_metrics[-1]['charts/reward']:.3f}")
                validate = self.update % (self.options.validate_every or 1) == 0 or self.update == total
                if validate:
                    names = self.recent_metrics[0]
                    means = {name: float(np.mean([row[name] for row in self.recent_metrics])) for name in names}
                    if is_main:
                        self._validate(directory, means)
                    self.recent_metrics = []
                if validate or self.checkpoint_due():
                    self.save(directory)

    def train_batch(self, directory: RunDirectory) -> dict[str, float]:
        """Sample one batch of captions and take one step of the optimiser; returns the metrics.

        Raises:
            FloatingPointError: the loss is not finite; nothing is learned from it.
        """
        self.processes.seed_rank(self.options.seed, self.update)
        if self.processes.rank:  # the first process draws the numbers of a run with one process, others their own
            sequence = np.random.SeedSequence([self.options.seed, self.processes.rank, self.update])
            self.generator.manual_seed(int(sequence.generate_state(1)[0]))
        rng = np.random.default_rng([self.options.seed, self.update])
        rows = rng.choice(self.rows, self.images, replace=False)[self.batch_slice]
        if self.processes.world_size > 1:
            rng = np.random.default_rng([self.options.seed, self.update, self.processes.rank])
        return self._learn(directory, rows, self._sample(rows, rng), rng)

    def _annotations(self, rows: np.ndarray) -> Tensor:
        """Annotations of images, (I, L, D), float32."""
        return torch.from_numpy(self.features[rows]).to(self.options.device).float()

    def _sample(self, rows: np.ndarray, rng: np.random.Generator) -> Trajectories:
        """Trajectories of images (I,), with their rewards."""
        if isinstance(self.features, FeatureDropout):
            self.features.draw(rows, rng)
            self.dynamics.set_decoder(self.dynamics.decoder)  # initial states depend on the annotations
        if self.options.train_decoder:
            suppressed = self.captioner.vocabulary.suppressed
            self.dynamics.set_decoder(FrozenDecoder(self.captioner.decoder, suppressed, self.options.device))
        with torch.no_grad():
            keys = self.attention.keys(self._annotations(rows))
        trajectories = roll_out(self.dynamics, self.attention, keys, rows, self.generator, self.baseline.greedy_last)
        if self.corpus_bleu is not None:
            return self.corpus_bleu.pay(trajectories, rows, self.processes)
        return trajectories

    def _learn(
        self, directory: RunDirectory, rows: np.ndarray, trajectories: Trajectories, rng: np.random.Generator
    ) -> dict[str, float]:
        """One step of the optimiser (Williams 1992; SAT eq. 12) on this process's captions; returns the metrics."""
        options, processes, sampled = self.options, self.processes, trajectories.sampled
        annotations = self._annotations(rows)
        returns = trajectories.returns(options.reward_to_go)
        means = mean_annotation(annotations, self.features.location_masks(rows, options.device))
        predicted = self.baseline(trajectories, returns, means)
        advantages = self._normalise((returns - predicted.detach()) * trajectories.alive, sampled)
        log_probabilities = self._log_probabilities(annotations, rows, trajectories)
        words = processes.sum(sampled.sum())
        entropy = (log_probabilities.entropy * sampled).sum()
        bonus = (options.entropy_bonus or 0.0) * max(0.0, 1 - self.update / (options.updates or 1))
        gain = (advantages * (log_probabilities.locations + log_probabilities.words)).sum()
        policy_loss = -(gain + bonus * entropy) / words
        value_loss = anchor_loss = policy_loss.new_zeros(())
        if self.baseline.network is not None:
            value_loss = ((predicted - returns).square() * sampled).sum() / words
        if options.anchor:
            anchor_loss = self._anchor_loss(annotations, rows, rng)
        self._descend(policy_loss + 0.5 * value_loss + options.anchor * anchor_loss, directory)
        rewards = processes.gather(trajectories.rewards.sum(0)[sampled[0]])
        self.baseline.observe(float(rewards.mean()))
        self.update += 1
        self.steps += int(words)
        return {
            "charts/reward": float(rewards.mean()),
            "charts/length": float(words / len(rewards)),
            "losses/policy": float(processes.sum(policy_loss)),
            "losses/entropy": float(processes.sum(entropy) / words),
            "losses/value": float(processes.sum(value_loss)),
            "losses/anchor": float(processes.sum(anchor_loss)),
        }

    def _normalise(self, advantages: Tensor, sampled: Tensor) -> Tensor:
        """Advantages divided by their standard deviation over the batch, unless all are alike."""
        if not self.options.normalise:
            return advantages
        deviation = self.processes.gather(advantages[sampled]).std()
        return advantages / deviation if deviation > 1e-6 else advantages

    def _log_probabilities(self, annotations: Tensor, rows: np.ndarray, trajectories: Trajectories) -> LogProbabilities:
        masks = self.features.location_masks(rows, self.options.device)
        if not self.options.train_decoder:
            return glimpse_log_probabilities(self.attention, annotations, trajectories, masks)
        with autocast(self.options.precision, self.options.device):
            return caption_log_probabilities(self.captioner, self.attention, annotations, trajectories, rows, masks)

    def _anchor_loss(self, annotations: Tensor, rows: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Cross-entropy of a random reference of each image, with glimpses sampled from the policy."""
        vocabulary, longest = self.captioner.vocabulary, self.dynamics.max_caption_length
        references = [self.train_set.references(row) for row in rows.tolist()]
        drawn = [captions[rng.choice(np.arange(len(captions)))] for captions in references]
        captions = [[*vocabulary.encode(caption), vocabulary.end][:longest] for caption in drawn]
        batch = CaptionBatch.from_ids(torch.from_numpy(rows), [[caption] for caption in captions], vocabulary)
        with autocast(self.options.precision, self.options.device):
            masks = self.features.location_masks(rows, self.options.device)
            loss = unroll(self.captioner.decoder, self.attention, annotations, batch, "hard", location_masks=masks).loss
        return loss * self.processes.fraction(batch.lengths.sum().to(loss.device))

    def _descend(self, loss: Tensor, directory: RunDirectory) -> None:
        """One step of the optimiser and of the schedule, with gradients summed over all processes."""
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss of update {self.update + 1} is {float(loss)}; the last good checkpoint is "
                f"{directory.path / 'checkpoint.pt'}; start anew --from {directory.path}, with a lower --learning-rate"
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        for group in self.optimiser.param_groups:
            self.processes.sum_gradients(group["params"])
            nn.utils.clip_grad_norm_(group["params"], 1.0)
        self.optimiser.step()
        self.schedule.step()

    def _validate(self, directory: RunDirectory, metrics: dict[str, float]) -> None:
        """Score the policy on val, and write its weights if they are the best so far."""
        width = self.options.validate_beam or 1
        agent = HardAttentionAgent(self.attention, self.val_features, self.options.device)
        captions = self.caption_val(agent, BeamSearch(width) if width > 1 else "greedy")
        self.attention.train()
        trained_with = {"command": "train.reinforce", "seed": self.options.seed, "update": self.update}
        metrics = {**metrics, "charts/steps": self.steps}
        notes = self.score_val(directory, captions, self.update, metrics, trained_with)
        if notes is None:
            return
        save_attention(self.attention, directory.path / "attention.safetensors", notes)
        if self.options.train_decoder:
            save_captioner(self.captioner, directory.path / "captioner.safetensors", notes)


def main(options: Options) -> None:
    """Train, from the start or from the checkpoint of the run."""
    options = resolve_defaults(options)
    with join_processes(options) as (processes, local_options):
        prepare(local_options)
        trainer = Trainer(local_options, processes)  # first: options that do not fit leave no files
        directory = processes.open_directory(options.run_dir or Path("runs"), options, options.resume)
        trainer.complete(directory, options.resume)
