"""Hard attention learned from reward: REINFORCE on the environment's own dynamics (SAT §4.1; Williams 1992).

K captions are made of every image of a batch, each with glimpses drawn from the policy. What a caption earned more
than its baseline makes its glimpses likelier. With ``--train-decoder`` the words are drawn, too, and the same advantage
makes glimpses and words likelier together (self-critical sequence training, Rennie et al. 2017).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from agents.attention import AdditiveAttention, AttentionConfig, save_attention
from agents.attention_agents import HardAttentionAgent, entropy, log_probability
from agents.loading import find_start, load_fitting_attention
from glimpse_env.datasets import longest_caption, make_dataset
from glimpse_env.features.build import open_features
from glimpse_env.metrics.bleu import BleuStatistics, corpus_statistics
from glimpse_env.metrics.references import SplitReferences
from glimpse_env.metrics.rewards import make_reward
from glimpse_env.models.captioner import Captioner, load_captioner, save_captioner
from glimpse_env.models.frozen_decoder import FrozenDecoder
from glimpse_env.registration import IDS
from glimpse_env.rollout.beam_search import BeamSearch
from glimpse_env.rollout.decode import decode
from glimpse_env.rollout.dynamics import CaptionDynamics
from glimpse_env.rollout.word_sampling import WordSampling
from train.captioner.batches import CaptionBatch
from train.captioner.losses import unroll
from train.common.distributed import Processes, processes
from train.common.options import native_bfloat16, prepare
from train.common.run_directory import RunDirectory
from train.evaluate.scoring import Scores, score
from train.reinforce.feature_dropout import DroppedFeatures
from train.reinforce.options import CORPUS_BLEU, Options, settle
from train.reinforce.trajectories import Rollouts, Value, advantages, as_batch, corpus_gains, glimpse_scores, roll_out


class Trainer:
    """One run, resumable.

    Args:
        options: settled options.
        processes: those that train together; by default this one alone.
    """

    def __init__(self, options: Options, processes: Processes | None = None) -> None:
        self.options = options
        self.processes = processes or Processes()
        dataset = IDS[options.env]
        attention_file, own = (None, None) if options.start is None else find_start(options.start, dataset)
        self.speaker = options.captioner or own or dataset
        self.captioner: Captioner = load_captioner(self.speaker).to(options.device)
        self.train_set = make_dataset(dataset, "train", options.data_root)
        self.val_set = make_dataset(dataset, "val", options.data_root)
        decoder = self.captioner.decoder.config
        if attention_file is None:
            self.attention = AdditiveAttention(
                AttentionConfig(decoder.feature_dim, decoder.hidden_dim, options.attention_dim)
            )
        else:
            self.attention = load_fitting_attention(attention_file, self.captioner).requires_grad_(True)
        self.attention.to(options.device).train()
        self._sharpen(options.sharpen or 1.0)
        self.features = open_features(self.train_set, self.captioner.encoder)
        if options.feature_dropout:
            self.features = DroppedFeatures(self.features, options.feature_dropout)
        self.val_features = open_features(self.val_set, self.captioner.encoder)
        self.rows = np.arange(len(self.train_set))[: options.limit]
        self.images = min(options.images or 1, len(self.rows))
        if self.images < self.processes.count:
            raise ValueError(
                f"a batch of {self.images} images cannot be shared by {self.processes.count} processes; start fewer, "
                "or pass more --images"
            )
        self.own = self.processes.own(self.images)  # of a batch
        self.by_corpus = options.reward == CORPUS_BLEU
        self.per_image = (options.rollouts or 1) + (options.baseline == "self-critical")
        self.dynamics = CaptionDynamics(
            self.captioner,
            self.features,
            SplitReferences(self.train_set, self.captioner.vocabulary),
            make_reward("bleu" if self.by_corpus else options.reward or "bleu", lambda: self.train_set),
            num_episodes=(self.own.stop - self.own.start) * self.per_image,
            per_image=self.per_image,
            sampling=WordSampling("sample" if options.train_decoder else "greedy"),
            shaped=options.reward_to_go,
            max_caption_length=longest_caption(dataset),
            device=options.device,
        )
        groups: list[dict[str, Any]] = [{"params": list(self.attention.parameters()), "lr": options.learning_rate}]
        self.value: Value | None = None
        if options.baseline == "value":
            self.value = Value(decoder.hidden_dim, decoder.feature_dim).to(options.device)
        if self.value is not None:
            groups.append({"params": list(self.value.parameters()), "lr": 1e-3})
        if options.train_decoder:
            self.captioner.decoder.requires_grad_(True)
            groups.append({"params": list(self.captioner.decoder.parameters()), "lr": options.decoder_learning_rate})
        self.optimiser = torch.optim.Adam(groups)
        total = options.updates or 1
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser, lambda step: 0.5 * (1 + float(np.cos(np.pi * min(step / total, 1))))
        )
        self.generator = torch.Generator(options.device).manual_seed(options.seed)
        auto = options.precision == "auto" and native_bfloat16(options.device)
        self.bfloat16 = auto or options.precision == "bfloat16"
        self.update, self.steps, self.seconds = 0, 0, 0.0
        self.average, self.best, self.best_update = 0.0, -1.0, 0
        self.corpus: BleuStatistics | None = None  # running mean of a caption's counts
        self.gathered: list[dict[str, float]] = []  # metrics of the updates since val was scored

    def _draw_apart(self) -> None:
        """Let every process draw of its own, the first, whose generator is that of one alone, going on with that."""
        self.processes.draw_apart(self.options.seed, self.update)
        if self.processes.rank:
            own = np.random.SeedSequence([self.options.seed, self.processes.rank, self.update])
            self.generator.manual_seed(int(own.generate_state(1)[0]))

    @torch.no_grad()
    def _sharpen(self, factor: float) -> None:
        """Multiply the scores of locations, and of words that are trained: draws come closer to the likeliest."""
        self.attention.score.weight.mul_(factor)
        if self.options.train_decoder:
            for part in self.captioner.decoder.output_word.parameters():
                part.mul_(factor)

    _PROGRESS = ("update", "steps", "seconds", "average", "best", "best_update")

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        return {
            "attention": self.attention.state_dict(),
            "decoder": self.captioner.decoder.state_dict() if self.options.train_decoder else {},
            "value": {} if self.value is None else self.value.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "corpus": None if self.corpus is None else list(self.corpus),
            "progress": {name: getattr(self, name) for name in self._PROGRESS},
            "gathered": list(self.gathered),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go back to a ``state()``."""
        self.attention.load_state_dict(state["attention"])
        if self.options.train_decoder:
            self.captioner.decoder.load_state_dict(state["decoder"])
        if self.value is not None:
            self.value.load_state_dict(state["value"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"])
        self.corpus = None if state["corpus"] is None else BleuStatistics(*state["corpus"])
        for name, value in state["progress"].items():
            setattr(self, name, value)
        self.gathered = list(state["gathered"])

    def run(self, directory: RunDirectory) -> None:
        """Train to the last update, keeping the weights that are best on val."""
        total, saved, first = self.options.updates or 1, time.monotonic(), self.processes.first
        for part in (self.attention, self.captioner.decoder, *([self.value] if self.value is not None else [])):
            self.processes.agree(part)
        if self.update == 0 and first:
            self._validate(directory, {})
        with tqdm(total=total, initial=self.update, desc="updates", unit="update", disable=not first) as bar:
            while self.update < total:
                began = time.monotonic()
                self.gathered.append(self._improve(directory))
                self.seconds += time.monotonic() - began
                bar.update()
                bar.set_postfix(reward=f"{self.gathered[-1]['charts/reward']:.3f}")
                if self.update % (self.options.validate_every or 1) == 0 or self.update == total:
                    means = {name: float(np.mean([one[name] for one in self.gathered])) for name in self.gathered[0]}
                    if first:
                        self._validate(directory, means)
                    self.gathered = []
                    directory.save(self.state())
                    saved = time.monotonic()
                elif time.monotonic() - saved > 60 * self.options.checkpoint_minutes:
                    directory.save(self.state())
                    saved = time.monotonic()

    def _improve(self, directory: RunDirectory) -> dict[str, float]:
        """One batch of captions and one step of the optimiser (Williams 1992; SAT eq. 12); returns its metrics."""
        self._draw_apart()
        rng = np.random.default_rng([self.options.seed, self.update])
        rows = rng.choice(self.rows, self.images, replace=False)[self.own]
        if self.processes.count > 1:
            rng = np.random.default_rng([self.options.seed, self.update, self.processes.rank])
        return self._learn(directory, rows, self._make(rows, rng), rng)

    def _annotations(self, rows: np.ndarray) -> Tensor:
        """Of images, (I, L, D), float32."""
        return torch.from_numpy(self.features[rows]).to(self.options.device).float()

    def _make(self, rows: np.ndarray, rng: np.random.Generator) -> Rollouts:
        """Captions of images, as they were paid."""
        options, decoder = self.options, self.captioner.decoder
        if isinstance(self.features, DroppedFeatures):
            self.features.draw(rows, rng)
            self.dynamics.listen_to(self.dynamics.decoder)  # where captions start has changed, too
        if options.train_decoder:
            self.dynamics.listen_to(FrozenDecoder(decoder, self.captioner.vocabulary.silent, options.device))
        with torch.no_grad():
            keys = self.attention.keys(self._annotations(rows))
        critical = options.baseline == "self-critical"
        made = roll_out(self.dynamics, self.attention, keys, rows, self.generator, critical)
        return self._paid_by_corpus(made, rows) if self.by_corpus else made

    def _learn(
        self, directory: RunDirectory, rows: np.ndarray, made: Rollouts, rng: np.random.Generator
    ) -> dict[str, float]:
        """A step of the optimiser (Williams 1992; SAT eq. 12) from each process's own captions; returns metrics."""
        options, together = self.options, self.processes
        annotations = self._annotations(rows)
        critical = options.baseline == "self-critical"
        values = None if self.value is None else self.value(made.hidden, annotations, self.per_image)
        gained = advantages(
            made,
            self.per_image,
            options.baseline,
            options.reward_to_go,
            self.average,
            None if values is None else values.detach(),
        )
        counted = made.alive.clone()
        if critical:
            counted.unflatten(1, (-1, self.per_image))[..., -1] = False
        rewards = together.gather(made.rewards.sum(0)[counted[0]])
        if options.normalise:
            width = together.gather(gained[counted]).std()
            gained = gained / width if width > 1e-6 else gained  # of a single caption, all words may have gained alike
        log_policy, spread, likelihood = self._log_probabilities(annotations, rows, made)
        words = together.sum(counted.sum())
        bonus = (options.entropy_bonus or 0.0) * max(0.0, 1 - self.update / (options.updates or 1))
        loss = -((gained * (log_policy + likelihood)).sum() + bonus * (spread * counted).sum()) / words
        value_loss = torch.zeros((), device=options.device)
        if values is not None:
            returns = made.rewards.flip(0).cumsum(0).flip(0) if options.reward_to_go else made.rewards.sum(0)
            value_loss = ((values - returns).square() * counted).sum() / words
        anchored = self._anchor(annotations, rows, rng) if options.anchor else value_loss.new_zeros(())
        total = loss + 0.5 * value_loss + options.anchor * anchored
        if not torch.isfinite(total):
            raise FloatingPointError(
                f"the loss of update {self.update + 1} is {float(total)}; the last good checkpoint is "
                f"{directory.path / 'checkpoint.pt'}; start anew --from {directory.path}, with a lower --learning-rate"
            )
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        for group in self.optimiser.param_groups:
            together.add_gradients(group["params"])
            nn.utils.clip_grad_norm_(group["params"], 1.0)
        self.optimiser.step()
        self.schedule.step()
        self.update += 1
        self.steps += int(words)
        mean = float(rewards.mean())
        self.average = mean if self.update == 1 else 0.9 * self.average + 0.1 * mean  # SAT §4.1
        return {
            "charts/reward": mean,
            "charts/length": float(words / len(rewards)),
            "losses/policy": float(together.sum(loss)),
            "losses/entropy": float(together.sum((spread * counted).sum()) / words),
            "losses/value": float(together.sum(value_loss)),
            "losses/anchor": float(together.sum(anchored)),
        }

    def _log_probabilities(
        self, annotations: Tensor, rows: np.ndarray, made: Rollouts
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities of glimpses, entropies, and log-probabilities of words where they are trained: (T, B)."""
        if not self.options.train_decoder:
            scores = glimpse_scores(self.attention, annotations, made, self.per_image)
            nothing = torch.zeros(made.alive.shape, device=made.alive.device)
            log_policy = nothing.masked_scatter(made.alive, log_probability(scores, made.looks[made.alive]))
            return log_policy, nothing.masked_scatter(made.alive, entropy(scores)), nothing
        batch, looks, order = as_batch(made, rows, self.per_image, self.captioner.vocabulary.start)
        decoder = self.captioner.decoder.eval()  # words were drawn without dropout, so they are judged without
        with torch.autocast(torch.device(self.options.device).type, torch.bfloat16, enabled=self.bfloat16):
            silent = self.captioner.vocabulary.silent
            unrolled = unroll(decoder, self.attention, annotations, batch, "told", looks=looks, silent=silent)

        def back(values: Tensor) -> Tensor:
            """(I, K, T), sorted by length, as (T, B)."""
            place = order.argsort(1).unsqueeze(-1).expand_as(values)
            return values.gather(1, place).flatten(0, 1).t()

        return back(unrolled.log_alpha).float(), back(unrolled.entropy).float(), back(unrolled.likelihood).float()

    def _paid_by_corpus(self, made: Rollouts, rows: np.ndarray) -> Rollouts:
        """Rollouts whose captions have earned ``corpus_gains`` at a running mean of the counts."""
        vocabulary = self.captioner.vocabulary
        said = [
            [vocabulary.words[word] for word in caption[:length] if word != vocabulary.end]
            for caption, length in zip(made.words.t().tolist(), made.alive.sum(0).tolist(), strict=True)
        ]
        references = [self.train_set.references(row) for row in rows.tolist() for _ in range(self.per_image)]
        each = corpus_statistics(references, said)
        now = BleuStatistics(*(self.processes.gather(part).mean(0).clamp(min=1e-3) for part in each))
        kept = now if self.corpus is None else self.corpus
        self.corpus = BleuStatistics(*(0.95 * old + 0.05 * new for old, new in zip(kept, now, strict=True)))
        last = (made.alive.sum(0) - 1).unsqueeze(0)
        gains = corpus_gains(each, self.corpus).float().to(made.rewards.device).unsqueeze(0)
        return made._replace(rewards=torch.zeros_like(made.rewards).scatter_(0, last, gains))

    def _anchor(self, annotations: Tensor, rows: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Cross-entropy of a reference of each image, read where the policy looks."""
        vocabulary = self.captioner.vocabulary
        chosen = [rng.choice(np.arange(len(self.train_set.references(row)))) for row in rows.tolist()]
        told = [
            [*vocabulary.encode(self.train_set.references(row)[one]), vocabulary.end][
                : self.dynamics.max_caption_length
            ]
            for row, one in zip(rows.tolist(), chosen, strict=True)
        ]
        lengths = torch.tensor([[len(words)] for words in told])
        tokens = torch.full((len(told), 1, int(lengths.max()) + 1), vocabulary.pad)
        tokens[:, 0, 0] = vocabulary.start
        for place, words in enumerate(told):
            tokens[place, 0, 1 : len(words) + 1] = torch.tensor(words)
        batch = CaptionBatch(torch.from_numpy(rows), tokens, lengths)
        with torch.autocast(torch.device(self.options.device).type, torch.bfloat16, enabled=self.bfloat16):
            loss = unroll(self.captioner.decoder, self.attention, annotations, batch, "hard").loss
        return loss * self.processes.share(lengths.sum().to(loss.device))

    def _validate(self, directory: RunDirectory, metrics: dict[str, float]) -> None:
        agent = HardAttentionAgent(self.attention, self.val_features, self.options.device)
        rows = range(len(self.val_set))[: self.options.limit]
        width = self.options.validate_beam or 1
        way = BeamSearch(width) if width > 1 else "greedy"
        longest = self.dynamics.max_caption_length
        made = decode(
            self.captioner, self.val_features, agent, rows, way, max_caption_length=longest, device=self.options.device
        )
        self.attention.train()
        scores: Scores = score(made, [self.val_set.references(row) for row in rows])
        metrics = {
            **metrics,
            "charts/steps": self.steps,
            "charts/seconds": self.seconds,
            **{f"val/bleu{order}": value for order, value in enumerate(scores.bleu, 1)},
            "val/length_ratio": scores.length_ratio,
            "val/bad_endings": scores.bad_endings,
        }
        directory.log(self.update, metrics)
        shown = " ".join(f"{100 * value:.1f}" for value in scores.bleu)
        reward = metrics.get("charts/reward")
        tqdm.write(
            f"update {self.update}, {self.steps:,} steps, {self.seconds:.0f} s: val BLEU-1..4 {shown}, "
            f"length {scores.length_ratio:.2f}" + ("" if reward is None else f", reward {reward:.3f}")
        )
        if scores.bleu[3] > self.best:
            self.best, self.best_update = scores.bleu[3], self.update
            notes = {
                "trained_with": {"command": "train.reinforce", "seed": self.options.seed, "update": self.update},
                "env": self.options.env,
                "captioner": self.speaker,
                "val": {name: round(value, 4) for name, value in metrics.items() if name.startswith("val/")},
            }
            save_attention(self.attention, directory.path / "attention.safetensors", notes)
            if self.options.train_decoder:
                save_captioner(self.captioner, directory.path / "captioner.safetensors", notes)


def main(options: Options) -> None:
    """Train, from the start or from where a run stopped."""
    options = settle(options)
    with processes(options) as (together, own):
        prepare(own)
        trainer = Trainer(own, together)  # what does not fit is refused before anything is written
        directory = together.directory(options.run_dir or Path("runs"), options, options.resume)
        if options.resume:
            trainer.load(directory.restore())
        trainer.run(directory)
        directory.close()
    if together.first:
        print(f"best val BLEU-4 {trainer.best:.4f} after update {trainer.best_update}; weights in {directory.path}")
