"""FlowPPO: likelihoods, ratios and discounts by hand; two modes; checkpoints; bad input."""

from __future__ import annotations

import math
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from flowmdp.agents import FQL, IQL, DFDir, FlowBC, FlowPPO, load_agent
from flowmdp.agents.core.chain_buffer import ChainBuffer, ChainSamples, RewardScale
from flowmdp.agents.evaluation import evaluate
from flowmdp.agents.flow_ppo import FlowPPOConfig, policy_loss
from flowmdp.env import FlowMDPEnv
from flowmdp.errors import (
    CheckpointError,
    ConfigurationError,
    FlowMDPError,
    RobotError,
    TrainingDivergedError,
)
from flowmdp.whole_chain import ActionEnv
from tests.agents.toys import flow_env, two_modes
from tests.mdp.toys import PointRobot, make_toy, toy_dataset

SMALL: dict[str, Any] = {"net_arch": (16,), "critic_arch": (16,), "seed": 3, "device": "cpu"}
FAST: dict[str, Any] = {
    **{"n_steps": 16, "learning_rate": 4e-3, "critic_warmup": 1, "clip_range": 0.2},
    **{"critic_arch": (16,), "target_kl": None, "device": "cpu"},
}


def paid(actions: NDArray[Any]) -> NDArray[Any]:
    """Of `two_modes`: 1 at the rare mode, 0.5, and nothing at the other, -0.5."""
    rewards: NDArray[Any] = np.exp(-10 * (actions[..., 0] - 0.5) ** 2)
    return rewards


class Bandit(gym.Env[Any, Any]):
    """The robot that `two_modes` was recorded on."""

    def __init__(self) -> None:
        self.observation_space = Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.np_random.standard_normal(1, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(1, np.float32), float(paid(action)), True, False, {}


def robots(n: int = 16, make: Any = Bandit, **settings: Any) -> VecEnv:
    return make_vec_env(lambda: ActionEnv(FlowMDPEnv(make(), **settings)), n)


def points(n: int = 2, chunk: int = 1) -> VecEnv:
    return robots(n, PointRobot, flow_steps=3, chunk=chunk)


def untrained(chunk: int = 1, **arguments: Any) -> FlowPPO:
    settings: dict[str, Any] = {"n_steps": 8, "batch_size": 8, "n_epochs": 1, "critic_warmup": 0}
    return FlowPPO("MlpPolicy", points(chunk=chunk), **{**SMALL, **settings, **arguments})


@pytest.fixture(scope="module")
def clone() -> FlowBC:
    """Of both modes."""
    agent = FlowBC("MlpPolicy", flow_env(two_modes()), net_arch=(32, 32), seed=0, device="cpu")
    return agent.learn(800)


def reward_of(policy: Any, deterministic: bool = False) -> float:
    """Mean over states of what the policy's action earns on the bandit."""
    states = np.random.default_rng(1).standard_normal((500, 1)).astype(np.float32)
    actions, _ = policy.predict(states, deterministic=deterministic)
    return float(paid(actions).mean())


def weights(agent: FlowPPO) -> torch.Tensor:
    found = {name: one for name, one in agent.saved.weights().items() if "level" not in name}
    return torch.cat([one.double().flatten() for one in found.values()])


# -- mathematics -----------------------------------------------------------------------------------


def test_likelihood_of_a_chain_is_a_sum_of_gaussians() -> None:
    agent = untrained(noise_bounds=(0.1, 0.4))
    policy = agent.policy
    with torch.no_grad():
        for parameter in policy.noise.parameters():  # else sigma is the same everywhere
            parameter.add_(0.3 * torch.randn_like(parameter))
    observations = torch.randn(5, 2)
    contexts = policy.context(observations)
    noise = policy.draw(5)
    chains = policy.chains(contexts, noise)
    log_prob, entropy = policy.log_prob(contexts, chains)
    sigma = policy.noise(contexts).exp()
    assert chains.shape == (5, 4, 2) and log_prob.shape == entropy.shape == (5, 3)
    assert sigma.std() > 1e-3 and 0.1 <= sigma.min() and sigma.max() <= 0.4
    assert torch.equal(chains[:, 0], noise[:, 0])
    for k in range(3):
        velocity = policy.field(contexts, chains[:, k], k / 3)
        mean = chains[:, k] + velocity / 3
        torch.testing.assert_close(chains[:, k + 1], mean + sigma[:, k] * noise[:, k + 1])
        by_hand = torch.zeros(5)
        for i in range(2):
            z = noise[:, k + 1, i]
            by_hand += -0.5 * z**2 - sigma[:, k, i].log() - 0.5 * math.log(2 * math.pi)
        torch.testing.assert_close(log_prob[:, k], by_hand, rtol=1e-4, atol=1e-4)
        own = torch.distributions.Normal(mean, sigma[:, k]).entropy().sum(-1)
        torch.testing.assert_close(entropy[:, k], own)


def test_gradient_of_the_log_likelihood_is_that_of_finite_differences() -> None:
    policy, generator = untrained().policy, torch.Generator().manual_seed(0)
    contexts = torch.randn(3, 2, generator=generator)
    chains = policy.chains(contexts, policy.draw(3))
    assert policy.noise.mlp is not None
    for parameter in [*policy.field.parameters(), policy.noise.mlp.biases[-1]]:
        direction = torch.randn(parameter.shape, generator=generator)
        total = policy.log_prob(contexts, chains)[0].sum()
        (gradient,) = torch.autograd.grad(total, parameter)
        ends, step = [], 1e-3 if parameter.ndim == 3 else 1e-2
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * step * direction)
                ends.append(float(policy.log_prob(contexts, chains)[0].double().sum()))
                parameter.sub_(sign * step * direction)
        slope = float((gradient * direction).sum())
        assert abs(slope) > 0.1 and slope == pytest.approx((ends[0] - ends[1]) / 2 / step, rel=0.02)


@pytest.mark.parametrize("ratio", ["step", "chain"])
def test_ratio_is_one_at_the_first_minibatch_and_its_gradient_that_of_the_likelihood(
    ratio: Any,
) -> None:
    agent = untrained(ratio=ratio, learning_rate=0.0, critic_learning_rate=0.0, flow_gamma=0.5)
    agent.learn(16)
    (batch,) = agent.rollout_buffer.minibatches(16, agent.generator)
    contexts = agent.policy.context(batch.observations)
    log_prob, entropy = agent.policy.log_prob(contexts, batch.chains)
    away = (log_prob.detach() - batch.log_probs).exp() - 1
    assert float(away.abs().max()) < 1e-6
    exact = batch._replace(log_probs=log_prob.detach())
    loss, info = policy_loss(log_prob, entropy, exact, agent.config)
    assert info["approx_kl"] == 0 and info["clip_fraction"] == 0
    shares = torch.tensor([0.25, 0.5, 1.0] if ratio == "step" else [1.0, 1.0, 1.0])
    wanted = -(log_prob * shares * batch.advantages[:, None]).sum(1).mean()
    first = next(agent.policy.field.parameters())
    own, reference = (
        torch.autograd.grad(one, first, retain_graph=True)[0] for one in (loss, wanted)
    )
    assert own.abs().max() > 1e-4
    torch.testing.assert_close(own, reference)


def test_a_far_ratio_is_clipped() -> None:
    one, none = torch.ones(1), torch.zeros(1, 2)
    batch = ChainSamples(none, torch.zeros(1, 3, 1), none, advantages=one, returns=one)
    log_prob = torch.full((1, 2), 0.2, requires_grad=True)
    for ratio, gain in (("step", 2 * 1.1), ("chain", 1.1)):
        config = FlowPPOConfig(ratio=ratio, clip_range=0.1, flow_gamma=1.0)  # type: ignore[arg-type]
        loss, info = policy_loss(log_prob, torch.zeros(1, 2), batch, config)
        assert loss.item() == pytest.approx(-gain) and info["clip_fraction"] == 1
        assert info["approx_kl"] == pytest.approx(2 * (math.exp(0.2) - 1.2), rel=1e-4)
        (slope,) = torch.autograd.grad(loss, log_prob, allow_unused=True)
        assert not slope.any()


def test_advantages_discount_chunks_and_bootstrap_where_an_episode_is_cut() -> None:
    space = Box(-1, 1, (2,), np.float32)
    buffer = ChainBuffer(3, space, space, gamma=0.5, gae_lambda=0.8, n_envs=1, flow_steps=1)
    whole = {"reward_return": 6.0, "outer_rewards": np.array([2.0, 4.0]), "executed_steps": 2}
    cut = {"reward_return": 3.0, "outer_rewards": np.array([3.0, 0.0]), "executed_steps": 1}
    last = {"TimeLimit.truncated": True, "terminal_observation": np.zeros(2)}
    chains = np.zeros((1, 2, 2))
    for reward, done, info in ((6.0, False, whole), (3.0, True, cut | last), (6.0, False, whole)):
        buffer.add_step(np.zeros((1, 2)), chains, np.array([reward]), np.array([done]), [info])
    assert buffer.rewards.ravel().tolist() == [4.0, 3.0, 4.0]  # 2 + 0.5 * 4
    assert buffer.discounts.ravel().tolist() == [0.25, 0.5, 0.25]
    buffer.values[:] = np.array([1.0, 2.0, 3.0])[:, None]
    assert [place[:2] for place in buffer.finals] == [(1, 0)]
    buffer.set_final_values(np.array([10.0]))
    buffer.estimate(np.array([8.0]))
    third = 4 + 0.25 * 8 - 3
    second = 3 + 0.5 * 10 - 2
    first = 4 + 0.25 * 2 - 1 + 0.25 * 0.8 * second
    assert buffer.advantages.ravel().tolist() == pytest.approx([first, second, third])
    assert buffer.returns.ravel().tolist() == pytest.approx([first + 1, second + 2, third + 3])


def test_reward_scale_is_the_deviation_of_discounted_returns() -> None:
    rng, scale = np.random.default_rng(0), RewardScale()
    rewards, dones = rng.standard_normal((60, 2)), rng.random((60, 2)) < 0.1
    discounts = np.full((60, 2), 0.9)
    for rows in (slice(0, 10), slice(10, 60)):
        scale.update(rewards[rows], discounts[rows], dones[rows])
    returns, running = [], np.zeros(2)
    for paid_now, ended in zip(rewards, dones, strict=True):
        running = running + paid_now
        returns.append(running)
        running = np.where(ended, 0, 0.9 * running)
    assert scale.deviation == pytest.approx(np.std(returns))


# -- learning --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", ["step", "chain"])
def test_it_finds_the_better_of_two_modes(clone: FlowBC, ratio: Any) -> None:
    random = float(paid(np.random.default_rng(0).uniform(-1, 1, (2000, 1))).mean())
    agent = FlowPPO.from_agent(clone, robots(), seed=1, ratio=ratio, gamma=0.9, **FAST)
    before = reward_of(agent.outer_policy())
    agent.learn(30 * 256)
    assert before < 0.35 and random < 0.35
    assert reward_of(agent.outer_policy()) > 0.8
    assert min(evaluate(agent.outer_policy(), Bandit, 5, deterministic=True).returns) > 0.8


def test_groups_find_it_without_a_robot_or_a_critic(clone: FlowBC) -> None:
    env = ActionEnv(
        FlowMDPEnv(
            states="dataset",
            reward="direction",
            dataset=two_modes(),
            critic=lambda states, actions: paid(actions),
        )
    )
    agent = FlowPPO.from_agent(clone, env, seed=1, group_size=16, **FAST | {"n_steps": 256})
    untouched = agent.critic_network.state_dict()["weights.0"].clone()
    assert reward_of(agent.outer_policy()) < 0.35
    agent.learn(30 * 256)
    assert reward_of(agent.outer_policy()) > 0.8
    assert torch.equal(untouched, agent.critic_network.state_dict()["weights.0"])


def test_actor_rests_while_the_critic_warms_up_and_beyond_target_kl() -> None:
    agent = untrained(critic_warmup=1)
    field, critic = (
        {key: one.clone() for key, one in module.state_dict().items()}
        for module in (agent.policy, agent.critic_network)
    )
    agent.learn(16)
    assert all(torch.equal(one, field[key]) for key, one in agent.policy.state_dict().items())
    assert not torch.equal(agent.critic_network.weights[0], critic["weights.0"])
    eager = untrained(learning_rate=0.05, n_epochs=20, target_kl=0.01)
    eager.learn(16)
    assert 0 < eager.logger.name_to_value["train/actor_epochs"] + 1 < 20
    log_prob, _ = eager.policy.log_prob(torch.zeros(1, 2), torch.zeros(1, 4, 2))
    assert log_prob.isfinite().all()


def test_scheduled_noise_falls_from_the_upper_bound_to_the_lower_one() -> None:
    agent = untrained(learn_noise=False, noise_bounds=(0.1, 0.4))
    levels = []

    class Look(BaseCallback):
        def _on_rollout_end(self) -> None:
            levels.append(float(agent.policy.noise(torch.zeros(1, 2)).exp()[0, 0, 0]))

        def _on_step(self) -> bool:
            return True

    agent.learn(64, callback=Look())
    expected = [0.1 * 4 ** (1 - done / 4) for done in range(4)]
    assert levels == pytest.approx(expected)


# -- acting, saving --------------------------------------------------------------------------------


def test_noiseless_acting_is_deterministic_and_the_clones(clone: FlowBC) -> None:
    agent = FlowPPO.from_agent(clone, robots(1), seed=1)
    states = np.linspace(-1, 1, 7, dtype=np.float32)[:, None]
    at_mean, _ = agent.predict(states, deterministic=True)
    again, _ = agent.predict(states, deterministic=True)
    noisy, _ = agent.predict(states)
    other, _ = agent.predict(states)
    assert np.array_equal(at_mean, again) and not np.array_equal(noisy, other)
    theirs, _ = clone.outer_policy().predict(states, deterministic=True)
    ours, _ = agent.outer_policy().predict(states, deterministic=True)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    np.testing.assert_allclose(at_mean, theirs, atol=1e-6)
    mean, _ = evaluate_policy(agent, robots(1), 3, warn=False)
    assert 0 <= mean <= 1  # type: ignore[operator]


def test_training_goes_on_exactly_from_a_file_without_pickle(tmp_path: Path) -> None:
    agent = untrained()
    agent.learn(32)
    agent.save(tmp_path / "agent")
    with zipfile.ZipFile(tmp_path / "agent.zip") as archive:
        assert sorted(archive.namelist()) == ["agent.json", "tensors.safetensors"]
        for name in archive.namelist():
            with pytest.raises((ValueError, UnicodeDecodeError)):
                list(pickletools.genops(archive.read(name)))
    other = load_agent(tmp_path / "agent.zip", env=points(), device="cpu")
    assert isinstance(other, FlowPPO) and torch.equal(weights(agent), weights(other))
    assert other.num_timesteps == 32 and other.robot_steps == agent.robot_steps > 0
    before = weights(agent)
    for one in (agent, other):
        env = points()
        env.seed(5)
        one.set_env(env)
        one.reward_scale.running = None
        one.learn(32, reset_num_timesteps=False)
    assert torch.equal(weights(agent), weights(other)) and not torch.equal(weights(agent), before)


def test_it_acts_from_a_file_without_a_robot(tmp_path: Path) -> None:
    agent = untrained(chunk=2, policy_kwargs={"ent_coef": 0.01})
    agent.learn(32)
    agent.save(tmp_path / "agent")
    other = FlowPPO.load(tmp_path / "agent", device="cpu")
    state = np.array([0.1, -0.2], np.float32)
    action, _ = agent.predict(state, deterministic=True)
    assert action.shape == (4,) and other.config.ent_coef == 0.01
    assert np.array_equal(other.predict(state, deterministic=True)[0], action)
    first, _ = other.outer_policy().predict(state, deterministic=True)
    np.testing.assert_allclose(first, action[:2], atol=1e-6)
    with pytest.raises(ConfigurationError, match="load the agent with env="):
        other.learn(8)


def test_a_flow_that_sees_the_last_action_learns_and_acts() -> None:
    env = robots(2, PointRobot, flow_steps=3, chunk=2, include_previous_action=True)
    agent = FlowPPO("MlpPolicy", env, **SMALL, n_steps=8, batch_size=8, critic_warmup=0)
    agent.learn(16)
    seen = agent.rollout_buffer.observations
    assert seen.shape == (8, 2, 5) and seen[0, :, 4].tolist() == [0, 0] and seen[1, 0, 4] == 1
    last = agent.rollout_buffer.chains[0, 0, -1, 2:].clip(-1, 1)
    np.testing.assert_allclose(seen[1, 0, 2:4], last, atol=1e-6)
    assert agent.predict(seen[1])[0].shape == (2, 4)


def test_robots_are_made_from_ids_and_their_number_may_change(clone: FlowBC) -> None:
    agent = FlowPPO("MlpPolicy", "Pendulum-v1", **SMALL, n_steps=8, batch_size=8, flow_steps=2)
    assert agent.spec.flow_steps == 2 and agent.spec.observation_dim == 3
    agent.learn(8)
    agent.set_env(make_vec_env(lambda: ActionEnv(FlowMDPEnv(gym.make("Pendulum-v1"))), 2))
    agent.learn(16)
    assert agent.num_timesteps == 16 and agent.rollout_buffer.n_envs == 2
    env = gym.make("FlowMDP-v0", env_id="Pendulum-v1", decision="action", chunk=3)
    assert FlowPPO("MlpPolicy", env, **SMALL).spec.action_dim == 3


# -- other agents' flows ---------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [DFDir, FQL])
def test_it_starts_from_the_flow_in_any_agent(algorithm: Any, tmp_path: Path) -> None:
    steps = algorithm.only_flow_steps or 5
    other = algorithm("MlpPolicy", flow_env(two_modes(50), flow_steps=steps), net_arch=(8, 8))
    other.save(tmp_path / "other")
    agent = FlowPPO.from_agent(tmp_path / "other.zip", robots(1), device="cpu")
    field = other.policy.ema if algorithm is DFDir else other.teacher._flow[0]
    for ours, theirs in zip(agent.policy.field.parameters(), field.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert agent.config.net_arch == (8, 8)
    assert agent.spec.flow_steps == (5 if algorithm is DFDir else 10)


# -- bad input -------------------------------------------------------------------------------------


def breaking(message: str, nan: bool = False) -> Any:
    class Breaking(PointRobot):
        def step(self, action: Any) -> Any:
            observation, *rest = super().step(action)
            if self.steps == 3 and message:
                raise RuntimeError(message)
            return observation * (np.nan if nan and self.steps == 3 else 1), *rest

    return Breaking()


@pytest.mark.parametrize(("message", "nan"), [("motor on fire", False), ("", True)])
def test_a_robot_that_fails_is_named_and_nothing_is_lost(
    message: str, nan: bool, tmp_path: Path
) -> None:
    makers: list[Any] = [PointRobot, lambda: breaking(message, nan)]
    agent = untrained()
    agent.learn(16)
    learned = weights(agent)
    queue = iter(makers)
    agent.set_env(make_vec_env(lambda: ActionEnv(FlowMDPEnv(next(queue)())), 2))
    found = r"robot 1 of 2 failed after \d+ steps of all robots .*(motor on fire|not finite).*save"
    with pytest.raises(RobotError, match=found) as error:
        agent.learn(16, reset_num_timesteps=False)
    assert "\n" not in str(error.value)
    agent.save(tmp_path / "agent")
    assert torch.equal(weights(FlowPPO.load(tmp_path / "agent", device="cpu")), learned)
    agent.set_env(points())
    agent.learn(16, reset_num_timesteps=False)
    assert not torch.equal(weights(agent), learned)


def dying() -> ActionEnv:
    class Dying(PointRobot):
        def step(self, action: Any) -> Any:
            import os

            os._exit(1)

    return ActionEnv(FlowMDPEnv(Dying(), flow_steps=3))


def test_a_robot_whose_process_ends_is_named() -> None:
    agent = untrained()
    env = SubprocVecEnv([dying], "fork")  # which other children would keep from closing
    agent.set_env(env)
    with pytest.raises(RobotError, match=r"robot 0 of 1 failed after 0 steps .*its process ended"):
        agent.learn(16)
    for remote in env.remotes:
        remote.close()


def test_a_diverging_training_ends() -> None:
    agent = untrained(learning_rate=1e30, target_kl=None, max_grad_norm=1e30)
    with pytest.raises(TrainingDivergedError, match="smaller learning rate"):
        agent.learn(64)


def recorded(**settings: Any) -> ActionEnv:
    return ActionEnv(make_toy(states="dataset", reward="direction", **settings))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: untrained(noise_bounds=(0.3, 0.1)), "the smaller one first"),
        (lambda: untrained(noise_bounds=(0.3,)), "give two numbers"),
        (lambda: untrained(ratio="flow"), "choose one of step, chain"),
        (lambda: untrained(clip_rang=0.1), "did you mean clip_range"),
        (lambda: untrained(n_steps=0), "n_steps is 0"),
        (lambda: FlowPPO("CnnPolicy", points()), "take MlpPolicy"),
        (lambda: FlowPPO("MlpPolicy", None), "pass a flow environment"),
        (lambda: FlowPPO("MlpPolicy", PointRobot()), "needs a flow environment"),
        (lambda: FlowPPO("MlpPolicy", make_toy()), "decision='action'"),
        (lambda: FlowPPO("MlpPolicy", recorded()), "states='dataset' has no robot"),
        (lambda: untrained(group_size=2), "to which no robot returns"),
        (lambda: FlowPPO("MlpPolicy", recorded(), group_size=3, n_steps=4), "multiple of group"),
        (lambda: untrained().learn(-1), "total_timesteps is -1"),
        (lambda: untrained().predict(np.zeros(5)), "shape"),
        (lambda: untrained().set_env(points(chunk=2)), "plans 1 actions at once"),
        (lambda: FlowPPO.from_agent("nowhere.zip", points()), "no checkpoint"),
    ],
)
def test_bad_input_gets_one_line(make: Any, message: str) -> None:
    with pytest.raises(FlowMDPError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chunk": 2}, "plans 1 actions at once, this environment 2"),
        ({"include_previous_action": True}, "include_previous_action is False there"),
    ],
)
def test_a_flow_of_another_environment_is_refused(settings: Any, message: str) -> None:
    clone = FlowBC("MlpPolicy", make_toy(), net_arch=(8,), device="cpu")
    with pytest.raises(CheckpointError, match=message):
        FlowPPO.from_agent(clone, robots(1, PointRobot, **settings))


def test_a_flow_of_another_robot_is_refused(clone: FlowBC) -> None:
    with pytest.raises(CheckpointError, match="observation_dim is 1 there and 2 here"):
        FlowPPO.from_agent(clone, points())
    walker = FlowPPO("MlpPolicy", "FlowMDP-walker2d-medium-v0", **SMALL)
    with pytest.raises(CheckpointError, match="trained on walker2d-medium, whose robot is not"):
        FlowPPO.from_agent(walker, "FlowMDP-halfcheetah-medium-v0")


def test_agents_without_a_flow_are_refused() -> None:
    data = toy_dataset()
    iql = IQL("MlpPolicy", flow_env(data, flow_steps=1), net_arch=(8,), device="cpu")
    with pytest.raises(CheckpointError, match="IQL holds no flow of many steps"):
        FlowPPO.from_agent(iql, points())

    def own(states: Any, x_t: Any, t: Any) -> Any:
        return -x_t

    around = DFDir("MlpPolicy", flow_env(data), net_arch=(8,), behavior=own, device="cpu")
    with pytest.raises(CheckpointError, match="weights could be learned"):
        FlowPPO.from_agent(around, points())
