"""PPO in one file, after CleanRL's ppo.py: it learns where to look from the caption's BLEU.

It uses Gymnasium's vector API, and of this repository only the id of an environment.

    python docs/examples/cleanrl_ppo.py --total-timesteps 300000
    tensorboard --logdir runs
"""

import random
import time
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.utils.tensorboard import SummaryWriter


@dataclass
class Args:
    """Train hard attention by PPO."""

    exp_name: str = "cleanrl_ppo"
    """the name of this experiment"""
    seed: int = 1
    """seed of the experiment"""
    cuda: bool = False
    """if toggled, the agent and the decoder are on the GPU"""
    threads: int = 1
    """CPU threads of torch"""
    env_id: str = "Glimpse/Shapes-v0"
    """the id of the environment"""
    shaped: bool = True
    """whether every word is paid what it adds to the caption's BLEU; if not, the last one is paid all"""
    total_timesteps: int = 1_000_000
    """total timesteps of the experiment, one a word"""
    learning_rate: float = 3e-3
    """the learning rate of the optimizer"""
    num_envs: int = 64
    """the number of parallel environments"""
    num_steps: int = 32
    """the number of steps to run in each environment per policy rollout"""
    anneal_lr: bool = True
    """whether the learning rate falls to zero along a line"""
    gamma: float = 1.0
    """the discount factor gamma; what counts is the whole caption"""
    gae_lambda: float = 0.8
    """the lambda of the generalised advantage estimation"""
    num_minibatches: int = 8
    """the number of mini-batches"""
    update_epochs: int = 4
    """the K epochs to update the policy"""
    norm_adv: bool = True
    """whether advantages are normalised"""
    clip_coef: float = 0.2
    """the surrogate clipping coefficient"""
    ent_coef: float = 0.002
    """coefficient of the entropy"""
    vf_coef: float = 0.5
    """coefficient of the value function"""
    max_grad_norm: float = 0.5
    """the maximum norm for the gradient clipping"""
    eval_scenes: int = 1000
    """images of the test split that are described greedily at the end"""


class Agent(nn.Module):
    """Points at a location (SAT eq. 4), and guesses what the caption will earn."""

    def __init__(self, space: gym.spaces.Dict, width: int = 64) -> None:
        super().__init__()
        (locations, features), (hidden,) = space["features"].shape, space["hidden"].shape
        self.key = nn.Linear(features, width)
        self.query = nn.Linear(hidden, width)
        self.score = nn.Linear(width, 1, bias=False)
        self.critic = nn.Sequential(
            nn.Linear(features + hidden + locations + 1, width),
            nn.Tanh(),
            nn.Linear(width, width),
            nn.Tanh(),
            nn.Linear(width, 1),
        )

    def logits(self, obs: dict[str, Tensor]) -> Tensor:
        """Of every location, (B, L)."""
        keys, query = self.key(obs["features"]), self.query(obs["hidden"])  # (B, L, A), (B, A)
        return self.score(torch.tanh(keys + query[:, None])).squeeze(-1)

    def get_value(self, obs: dict[str, Tensor]) -> Tensor:
        """Of the state, (B,)."""
        state = [obs["features"].mean(1), obs["hidden"], obs["glimpses"], obs["time"]]
        return self.critic(torch.cat(state, 1)).squeeze(-1)

    def get_action_and_value(
        self, obs: dict[str, Tensor], action: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Action, its log-probability, the policy's entropy, and the value, each (B,)."""
        probs = Categorical(logits=self.logits(obs))
        if action is None:
            action = probs.sample()
        return action, probs.log_prob(action), probs.entropy(), self.get_value(obs)


def evaluate(agent: Agent, args: Args, device: torch.device) -> float:
    """Mean return of greedy glimpses on the first images of the test split."""
    envs = gym.make_vec(f"glimpse_env:{args.env_id}", num_envs=args.eval_scenes, split="test", device=str(device))
    obs, _ = envs.reset(options={"image": np.arange(args.eval_scenes)})
    returns, playing = np.zeros(args.eval_scenes), np.ones(args.eval_scenes, bool)
    while playing.any():
        with torch.no_grad():
            actions = agent.logits(to_torch(obs, device)).argmax(-1)
        obs, rewards, terminations, truncations, _ = envs.step(actions.cpu().numpy())
        returns += rewards * playing
        playing &= ~(terminations | truncations)
    envs.close()
    return float(returns.mean())


def to_torch(obs: dict[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """A batch of observations as tensors."""
    return {name: torch.as_tensor(part, device=device) for name, part in obs.items()}


if __name__ == "__main__":
    args = tyro.cli(Args)
    batch_size = args.num_envs * args.num_steps
    minibatch_size = batch_size // args.num_minibatches
    num_iterations = args.total_timesteps // batch_size
    run_name = f"{args.env_id.replace('/', '-')}__{args.exp_name}__{args.seed}__{int(time.time())}"
    writer = SummaryWriter(f"runs/{run_name}")
    table = "\n".join(f"|{name}|{value}|" for name, value in vars(args).items())
    writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{table}")

    random.seed(args.seed)
    rng = np.random.default_rng(args.seed)
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if args.cuda else "cpu")

    envs = gym.make_vec(
        f"glimpse_env:{args.env_id}",
        num_envs=args.num_envs,
        shaped=args.shaped,
        autoreset_mode="SameStep",
        device=str(device),
    )
    envs = gym.wrappers.vector.RecordEpisodeStatistics(envs, buffer_length=1000)
    agent = Agent(envs.single_observation_space).to(device)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)

    # ALGO Logic: Storage setup
    next_obs, _ = envs.reset(seed=args.seed)
    next_obs = to_torch(next_obs, device)
    shape = (args.num_steps, args.num_envs)
    obs = {
        name: torch.zeros(shape + part.shape[1:], dtype=part.dtype, device=device) for name, part in next_obs.items()
    }
    actions = torch.zeros(shape, dtype=torch.int64, device=device)
    logprobs, rewards, dones, values = (torch.zeros(shape, device=device) for _ in range(4))
    next_done = torch.zeros(args.num_envs, device=device)

    global_step = 0
    start_time = time.time()
    for iteration in range(1, num_iterations + 1):
        if args.anneal_lr:
            optimizer.param_groups[0]["lr"] = (1.0 - (iteration - 1.0) / num_iterations) * args.learning_rate

        for step in range(args.num_steps):
            global_step += args.num_envs
            for name, part in next_obs.items():
                obs[name][step] = part
            dones[step] = next_done

            # ALGO LOGIC: action logic
            with torch.no_grad():
                action, logprob, _, value = agent.get_action_and_value(next_obs)
            actions[step], logprobs[step], values[step] = action, logprob, value

            # TRY NOT TO MODIFY: execute the game; an episode that ends is reset at once and never truncated
            next_obs, reward, terminations, truncations, infos = envs.step(action.cpu().numpy())
            next_obs = to_torch(next_obs, device)
            rewards[step] = torch.as_tensor(reward, device=device)
            next_done = torch.as_tensor(terminations | truncations, dtype=torch.float32, device=device)

        # bootstrap value
        with torch.no_grad():
            next_value = agent.get_value(next_obs)
            advantages = torch.zeros_like(rewards)
            lastgaelam = 0
            for t in reversed(range(args.num_steps)):
                nextnonterminal = 1.0 - (next_done if t == args.num_steps - 1 else dones[t + 1])
                nextvalues = next_value if t == args.num_steps - 1 else values[t + 1]
                delta = rewards[t] + args.gamma * nextvalues * nextnonterminal - values[t]
                advantages[t] = lastgaelam = delta + args.gamma * args.gae_lambda * nextnonterminal * lastgaelam
            returns = advantages + values

        # flatten the batch
        b_obs = {name: part.flatten(0, 1) for name, part in obs.items()}
        b_actions, b_logprobs = actions.flatten(), logprobs.flatten()
        b_advantages, b_returns, b_values = advantages.flatten(), returns.flatten(), values.flatten()

        # Optimizing the policy and value network
        clipfracs = []
        for _ in range(args.update_epochs):
            b_inds = rng.permutation(batch_size)
            for start in range(0, batch_size, minibatch_size):
                mb_inds = torch.as_tensor(b_inds[start : start + minibatch_size], device=device)
                mb_obs = {name: part[mb_inds] for name, part in b_obs.items()}
                _, newlogprob, entropy, newvalue = agent.get_action_and_value(mb_obs, b_actions[mb_inds])
                logratio = newlogprob - b_logprobs[mb_inds]
                ratio = logratio.exp()
                with torch.no_grad():  # calculate approx_kl http://joschu.net/blog/kl-approx.html
                    old_approx_kl = (-logratio).mean()
                    approx_kl = ((ratio - 1) - logratio).mean()
                    clipfracs += [((ratio - 1.0).abs() > args.clip_coef).float().mean().item()]

                mb_advantages = b_advantages[mb_inds]
                if args.norm_adv:
                    mb_advantages = (mb_advantages - mb_advantages.mean()) / (mb_advantages.std() + 1e-8)

                # Policy loss
                pg_loss1 = -mb_advantages * ratio
                pg_loss2 = -mb_advantages * torch.clamp(ratio, 1 - args.clip_coef, 1 + args.clip_coef)
                pg_loss = torch.max(pg_loss1, pg_loss2).mean()

                # Value loss
                v_loss = 0.5 * ((newvalue - b_returns[mb_inds]) ** 2).mean()

                entropy_loss = entropy.mean()
                loss = pg_loss - args.ent_coef * entropy_loss + v_loss * args.vf_coef
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()

        explained_var = 1 - (b_returns - b_values).var() / b_returns.var()
        writer.add_scalar("charts/learning_rate", optimizer.param_groups[0]["lr"], global_step)
        writer.add_scalar("charts/SPS", int(global_step / (time.time() - start_time)), global_step)
        writer.add_scalar("losses/value_loss", v_loss.item(), global_step)
        writer.add_scalar("losses/policy_loss", pg_loss.item(), global_step)
        writer.add_scalar("losses/entropy", entropy_loss.item(), global_step)
        writer.add_scalar("losses/old_approx_kl", old_approx_kl.item(), global_step)
        writer.add_scalar("losses/approx_kl", approx_kl.item(), global_step)
        writer.add_scalar("losses/clipfrac", np.mean(clipfracs), global_step)
        writer.add_scalar("losses/explained_variance", explained_var.item(), global_step)
        if envs.return_queue:
            writer.add_scalar("charts/episodic_return", np.mean(envs.return_queue), global_step)
            writer.add_scalar("charts/episodic_length", np.mean(envs.length_queue), global_step)
            print(f"global_step={global_step}, episodic_return={np.mean(envs.return_queue):.3f}", flush=True)

    print(f"{time.time() - start_time:.0f} s")
    eval_return = evaluate(agent, args, device)
    writer.add_scalar("eval/episodic_return", eval_return, global_step)
    print(f"greedy on {args.eval_scenes} test scenes: mean return {eval_return:.3f}")
    envs.close()
    writer.close()
