"""Stable-Baselines3 on flow environments: the adapter, the discounts, and what they are worth."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from sb3_contrib import TQC
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from flowmdp.env import FlowMDPEnv
from flowmdp.errors import ActionError, ConfigurationError, ResetNeededError
from flowmdp.latent_noise import LatentNoiseEnv
from flowmdp.sb3 import FlowReplayBuffer, FlowVecEnv
from flowmdp.vector import FlowMDPVectorEnv
from flowmdp.whole_chain import ActionEnv
from tests.mdp.toys import PointRobot, aim, behavior, critic, toy_dataset

SLOW_TQC = pytest.param(TQC, marks=pytest.mark.slow)


def chains(num_envs: int = 4, **arguments: Any) -> FlowVecEnv:
    settings = {"autoreset_mode": "SameStep", "flow_steps": 3, "reward": "direction", **arguments}
    return FlowVecEnv(FlowMDPVectorEnv(num_envs, toy_dataset(), critic=critic, **settings))


# -- adapter ----------------------------------------------------------------------------------


def test_adapter_equals_dummy_vec_env() -> None:
    """Step by step, infos included, SB3's own vectorisation of the single environment."""
    ours = chains()
    theirs = DummyVecEnv(
        [
            lambda: FlowMDPEnv(
                dataset=toy_dataset(),
                states="dataset",
                flow_steps=3,
                reward="direction",
                critic=critic,
            )
        ]
        * 4
    )
    for env in (ours, theirs):
        env.seed(5)
    assert np.array_equal(np.asarray(ours.reset()), np.asarray(theirs.reset()))
    rng = np.random.default_rng(0)
    for _ in range(7):
        actions = rng.uniform(-0.5, 0.5, (4, 2)).astype(np.float32)
        one, other = ours.step(actions), theirs.step(actions)
        for mine, yours in zip(one[:3], other[:3], strict=True):
            assert np.asarray(mine).dtype == np.asarray(yours).dtype
            np.testing.assert_allclose(np.asarray(mine), np.asarray(yours), rtol=1e-6)
        for mine, yours in zip(one[3], other[3], strict=True):
            assert mine.keys() == yours.keys() - (
                set() if "terminal_observation" in yours else {"TimeLimit.truncated"}
            )
            for name in mine:
                np.testing.assert_allclose(mine[name], yours[name], rtol=1e-6)


def test_adapter_attributes_and_options() -> None:
    env = chains()
    assert env.get_attr("flow_steps") == [3, 3, 3, 3] and env.env_is_wrapped(gym.Wrapper, 0) == [
        False
    ]
    assert env.has_attr("dataset") and not env.has_attr("gripper")
    env.set_options({"noise": np.ones(2)})
    assert (env.reset()[:, 2:4] == 1).all()
    assert not (env.reset()[:, 2:4] == 1).any()
    with pytest.raises(ConfigurationError, match="chains share flow_steps"):
        env.set_attr("flow_steps", 2)
    with pytest.raises(ConfigurationError, match="autoreset_mode='SameStep'"):
        chains(autoreset_mode="NextStep")
    env.close()


# -- discounts --------------------------------------------------------------------------------


class Steady(gym.Env[Any, Any]):
    """A robot that earns 1 per step for ever: its value is 1 / (1 - gamma), whatever it does."""

    observation_space = Box(-1.0, 1.0, (1,), np.float32)
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(1, np.float32), 1.0, False, False, {}


def learned_value(algorithm: Any, replay_buffer_class: Any, **kwargs: Any) -> float:
    """What an algorithm believes at the start of a chain of 3 flow steps, with gamma = 0.5."""
    torch.set_num_threads(1)
    settings: dict[str, Any] = {"policy_kwargs": {"net_arch": [32, 32]}}
    if algorithm is TQC:  # values without entropies
        settings = {"policy_kwargs": {"net_arch": [32, 32], "n_quantiles": 5}, "ent_coef": 0.0}
    agent = algorithm(
        "MlpPolicy",
        FlowMDPEnv(Steady(), flow_steps=3),
        gamma=0.5,
        learning_rate=3e-3,
        tau=0.1,
        replay_buffer_class=replay_buffer_class,
        replay_buffer_kwargs=kwargs,
        learning_starts=300,
        seed=0,
        device="cpu",
        **settings,
    )
    agent.learn(300)
    agent.train(gradient_steps=700, batch_size=128)
    starts = torch.tensor([[0.0, x, 0.0] for x in (-1.0, 0.0, 1.0)])
    with torch.no_grad():  # two critics, or two sets of quantiles: their mean is the value
        answer = agent.critic(starts, agent.actor(starts))
    return float(np.mean([values.numpy() for values in answer]))


@pytest.mark.parametrize("algorithm", [TD3, SLOW_TQC])
def test_learned_value_is_the_outer_one(algorithm: Any) -> None:
    """1 / (1 - 0.5) = 2, seen through two undiscounted flow steps."""
    value = learned_value(algorithm, FlowReplayBuffer, gamma=0.5)
    assert value == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("algorithm", [TD3, SLOW_TQC])
def test_plain_buffer_learns_another_value(algorithm: Any) -> None:
    """Negative control: one gamma for every step is 0.5^3 outside, 0.5^2 / (1 - 0.5^3) = 0.286."""
    assert learned_value(algorithm, None) == pytest.approx(0.25 / 0.875, abs=0.1)


def test_buffer_keeps_discount_and_transition_together() -> None:
    """Rewards tell which transition a sample is: chain ends pay 1 here, flow steps 0."""
    space = Box(-1.0, 1.0, (1,), np.float32)
    buffer = FlowReplayBuffer(40, space, space, "cpu", n_envs=2, gamma=0.9)
    for step in range(30):
        ends = np.array([step % 3 == 0, step % 2 == 0])
        infos: list[dict[str, Any]] = [{"executed_action": 0} if end else {} for end in ends]
        row = np.zeros((2, 1), np.float32)
        buffer.add(row, row, row, ends.astype(np.float32), np.zeros(2), infos)
    samples = buffer.sample(200)
    assert samples.discounts is not None
    expected = torch.where(samples.rewards == 1, 0.9, 1.0)
    assert torch.equal(samples.discounts, expected) and 0 < (expected == 0.9).sum() < 200
    for bad in ({"gamma": 1.1}, {"flow_gamma": -0.1}, {"optimize_memory_usage": True}):
        with pytest.raises(ConfigurationError):
            FlowReplayBuffer(10, space, space, **bad)


# -- anybody's algorithm ----------------------------------------------------------------------


ORIGIN = np.zeros(2, np.float32)
LEVEL = -0.3
"""Mean value of the executed action on the toy that counts as learned; the optimum is 0."""


def mean_reward(agent: Any, env: Any, episodes: int = 200) -> float:
    """Mean episode reward on chains from dataset states; None acts at random."""
    observations = env.reset()
    total = np.zeros(env.num_envs)
    count = 0
    while count < episodes:
        if agent is None:
            actions = np.stack([env.action_space.sample() for _ in range(env.num_envs)])
        else:
            actions, _ = agent.predict(observations, deterministic=True)
        observations, rewards, dones, _ = env.step(actions)
        total += rewards
        count += int(dones.sum())
    return float(total.sum() / count)


def toy_chains(num_envs: int = 16) -> FlowVecEnv:
    """Chains of 2 flow steps whose best action is (0.5, -0.5), reward 0."""
    return FlowVecEnv(
        FlowMDPVectorEnv(
            num_envs,
            toy_dataset(),
            critic=aim,
            reward="direction",
            flow_steps=2,
            velocity_scale=3.0,
            autoreset_mode="SameStep",
        )
    )


def small() -> dict[str, Any]:
    """Arguments of a small agent on the CPU; new ones every time, because SB3 writes into them."""
    torch.set_num_threads(1)
    return {
        "policy": "MlpPolicy",
        "seed": 0,
        "device": "cpu",
        "policy_kwargs": {"net_arch": [32, 32]},
    }


def test_ppo_learns_a_toy() -> None:
    env = VecMonitor(toy_chains(32))
    agent = PPO(env=env, n_steps=32, batch_size=256, learning_rate=3e-3, gamma=1.0, **small())
    agent.learn(25_000)
    assert mean_reward(agent, toy_chains()) > LEVEL


def test_random_flow_actions_do_not_reach_the_level() -> None:
    """Nor does the executed action 0, the mean of the noise, whose value is -0.5."""
    assert mean_reward(None, toy_chains()) < -1.5 < float(aim(ORIGIN, ORIGIN)) < LEVEL


@pytest.mark.parametrize("algorithm", [SAC, TD3, SLOW_TQC])
def test_off_policy_learns_a_toy(algorithm: Any) -> None:
    # the default bonus for entropy, 1 at first, is larger than anything this toy pays
    bonus = {} if algorithm is TD3 else {"ent_coef": "auto_0.1"}
    agent = algorithm(
        env=toy_chains(),
        learning_rate=3e-3,
        batch_size=128,
        train_freq=1,
        gradient_steps=2,
        learning_starts=640,
        replay_buffer_class=FlowReplayBuffer,
        replay_buffer_kwargs={"gamma": 0.99},
        **bonus,
        **small(),
    )
    agent.learn(16 * 500)
    assert mean_reward(agent, toy_chains()) > LEVEL


def test_normalising_wrapper_of_sb3() -> None:
    env = VecNormalize(chains())
    env.reset()
    observations, *_ = env.step(np.zeros((4, 2), np.float32))
    assert np.isfinite(np.asarray(observations)).all()


# -- latent noise -----------------------------------------------------------------------------


def steered(**arguments: Any) -> LatentNoiseEnv:
    flow = FlowMDPEnv(PointRobot(), behavior=follow, action_mode="residual", flow_steps=2)
    return LatentNoiseEnv(flow, **arguments)


def follow(observations: Any, x_t: Any, t: Any) -> Any:
    """A frozen flow that halves the noise: x_1 = x_0 / 4 after two steps."""
    return -x_t


def test_noise_decides_the_executed_action() -> None:
    env = steered(noise_bound=2.0)
    observation, _ = env.reset(seed=0)
    assert observation.shape == (2,) and env.observation_space.contains(observation)
    _, reward, _, _, info = env.step(np.array([1.0, -5.0], np.float32))
    assert info["executed_action"] == pytest.approx([0.5, -0.5])
    assert reward == info["outer_reward"] == 0.0
    first, _ = env.reset(seed=3)
    assert np.array_equal(first, env.reset(seed=3)[0])


def quarter() -> LatentNoiseEnv:
    """Paid for the executed action, a quarter of the noise: (2, -2) is best, which earns 0."""
    flow = FlowMDPEnv(
        states="dataset",
        dataset=toy_dataset(),
        reward="direction",
        critic=aim,
        behavior=follow,
        action_mode="residual",
        flow_steps=2,
    )
    return LatentNoiseEnv(flow)


def test_sac_learns_which_noise_to_start_from() -> None:
    """Gaussian noise, the frozen flow as it is, earns -0.6 in the mean; noise 0 earns -0.5."""
    env = quarter()
    rng = np.random.default_rng(0)
    plain = aim(ORIGIN, rng.standard_normal((1_000, 2), np.float32) / np.float32(4))
    assert plain.mean() < -0.5
    agent = SAC(env=env, learning_rate=3e-3, batch_size=64, learning_starts=100, **small())
    agent.learn(500)
    observation, _ = env.reset(seed=0)
    rewards = []
    for _ in range(20):
        _, reward, *_ = env.step(agent.predict(observation, deterministic=True)[0])
        rewards.append(reward)
        observation, _ = env.reset()
    assert np.mean(rewards) > -0.1


def test_latent_noise_contract_and_sac() -> None:
    from gymnasium.utils.env_checker import check_env
    from stable_baselines3.common.env_checker import check_env as check_sb3_env

    for make in (steered, lambda: ActionEnv(FlowMDPEnv(PointRobot(), chunk=2))):
        with pytest.warns(UserWarning, match=r"infinity|alternative render"):
            check_env(make(), skip_render_check=True)
        check_sb3_env(make(), skip_render_check=True)
    SAC(env=steered(), learning_starts=20, **small()).learn(40)


def test_latent_noise_bad_input() -> None:
    with pytest.raises(ConfigurationError, match="action_mode='residual'"):
        LatentNoiseEnv(FlowMDPEnv(PointRobot()))
    with pytest.raises(ConfigurationError, match="noise_bound is 0"):
        steered(noise_bound=0.0)
    env = steered()
    env.reset(seed=0)
    for bad in (np.zeros(3, np.float32), np.full(2, np.nan, np.float32)):
        with pytest.raises(ActionError):
            env.step(bad)
    with pytest.raises(ResetNeededError, match=r"call reset\(\)"):
        steered().step(np.zeros(2, np.float32))
    with pytest.raises(ConfigurationError, match="decision is"):
        gym.make("FlowMDP-hopper-medium-v0", decision="all")
    with pytest.raises(ConfigurationError, match="decision='noise'"):
        gym.make("FlowMDP-hopper-medium-v0", noise_bound=1.0)
    with pytest.raises(ConfigurationError, match="use noise_bound"):
        gym.make("FlowMDP-hopper-medium-v0", decision="noise", noise_scale=1.0)


def test_behavior_of_the_toys_reaches_its_action() -> None:
    """The toys' own behaviour flow, frozen, ends near s / 2 from any noise."""
    flow = FlowMDPEnv(PointRobot(), behavior=behavior, action_mode="residual")
    env = LatentNoiseEnv(flow)
    observation, _ = env.reset(seed=0)
    *_, info = env.step(np.array([0.3, 0.1], np.float32))
    assert info["executed_action"] == pytest.approx(observation / 2, abs=1e-4)
    env.close()
