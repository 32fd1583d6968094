"""What Stable-Baselines3 promises of its algorithms, kept by the agents, or refused in one line."""

from __future__ import annotations

import dataclasses
import inspect
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import LogEveryNTimesteps
from stable_baselines3.common.logger import KVWriter, Logger, configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)

from flowmdp.agents import ALGORITHMS, FlowBC, load_agent
from flowmdp.agents.core.policy import FlowPolicy
from flowmdp.env import FlowMDPEnv
from flowmdp.errors import CheckpointError, ConfigurationError, FlowMDPError, TrainingDivergedError
from flowmdp.sb3 import FlowReplayBuffer, FlowVecEnv
from flowmdp.transitions import TransitionDataset
from flowmdp.vector import FlowMDPVectorEnv
from tests.agents.test_contract import TINY, each_algorithm, equal, flow_env, make, weights
from tests.mdp.toys import PointRobot, toy_dataset


def other_data() -> TransitionDataset:
    """Other rewards and wider observations than `toy_dataset`'s."""
    data = toy_dataset()
    rewards = np.linspace(-5, 5, len(data)).astype(np.float32)
    return dataclasses.replace(
        data,
        id="other",
        observations=3 * data.observations,
        next_observations=3 * data.next_observations,
        rewards=rewards,
    )


def env_of(name: str, data: TransitionDataset, **settings: Any) -> FlowMDPEnv:
    steps = ALGORITHMS[name].only_flow_steps or 3
    return FlowMDPEnv(PointRobot(), dataset=data, **{"flow_steps": steps, **settings})


def test_the_docs_name_every_promise() -> None:
    page = (Path(__file__).parents[2] / "docs" / "stable_baselines3.md").read_text()
    algorithm, policy = page.split("| `BasePolicy` | Here |")
    for text, *classes in ((algorithm, BaseAlgorithm), (policy, BasePolicy, BaseModel)):
        for cls in classes:
            for name in (name for name in vars(cls) if not name.startswith("_")):
                assert f"`{name}`" in text, name
    for name in inspect.signature(BaseAlgorithm.__init__).parameters:
        assert f"`{name}`" in algorithm or name == "self", name


# -- set_env ------------------------------------------------------------------------------------


@each_algorithm
def test_set_env_takes_the_new_data_and_keeps_what_was_fitted(name: str) -> None:
    agent = make(name).learn(2)
    mean, scale = agent.policy.normalizer.mean.clone(), agent.data.reward_scale
    agent.set_env(env_of(name, other_data()))
    assert agent.dataset.id == "other" and agent.dataset is agent.env.get_attr("dataset")[0]
    agent.learn(2, reset_num_timesteps=False)
    assert torch.equal(agent.policy.normalizer.mean, mean)
    assert agent.data.reward_scale == scale and agent.num_timesteps == 4
    expected = torch.as_tensor(agent.dataset.rewards) * scale
    torch.testing.assert_close(agent.data.rewards, expected)


def test_before_the_first_update_everything_is_fitted_to_the_new_data() -> None:
    agent, plain = make("iql"), make("iql", env_of("iql", other_data()))
    first = agent.data.reward_scale
    agent.set_env(env_of("iql", other_data()))
    assert agent.data.reward_scale == plain.data.reward_scale != first
    assert equal(weights(agent.learn(3)), weights(plain.learn(3)))


def test_a_half_fitted_critic_gets_targets_of_the_new_data() -> None:
    agent = make("iql")
    calls = iter(range(1, 100))
    agent.pretrain(callback=lambda: next(calls) < 2)
    longer = toy_dataset(60)
    agent.set_env(env_of("iql", longer))
    agent.learn(1)
    assert len(agent.data) == 60


def test_the_scale_of_rewards_is_kept_in_checkpoints(tmp_path: Path) -> None:
    agent = make("iql").learn(1)
    agent.save(tmp_path / "agent.zip")
    again = load_agent(tmp_path / "agent.zip", env=env_of("iql", other_data()), device="cpu")
    assert again.data.reward_scale == agent.data.reward_scale


@pytest.mark.parametrize(
    ("env", "match"),
    [
        (lambda: env_of("flow-bc", toy_dataset(), velocity_scale=2.0), "velocity_scale is 6.5"),
        (lambda: env_of("flow-bc", toy_dataset(), include_time=False), "include_time is True"),
        (PointRobot, "flow environment"),
        (lambda: None, "env is None"),
        (lambda: "FlowMDP-hopper-medium-v0", "env is 'FlowMDP"),
    ],
)
def test_set_env_refuses_another_specification(env: Callable[[], Any], match: str) -> None:
    agent = make("flow-bc")
    before = agent.env
    with pytest.raises(ConfigurationError, match=match):
        agent.set_env(env())
    assert agent.env is before


def test_data_that_were_given_to_the_agent_stay() -> None:
    agent = make("flow-bc", dataset=other_data())
    agent.set_env(flow_env())
    assert agent.dataset.id == "other"


def test_an_agent_needs_data_alone_to_learn(tmp_path: Path) -> None:
    make("flow-bc").save(tmp_path / "agent.zip")
    agent = load_agent(tmp_path / "agent.zip", dataset=toy_dataset(), device="cpu")
    assert agent.learn(2).num_timesteps == 2
    agent.set_env(flow_env())
    assert agent.get_env() is not None


# -- wrappers, workers ---------------------------------------------------------------------------


def stacked(env: FlowMDPEnv) -> gym.Env[Any, Any]:
    return gym.wrappers.FrameStackObservation(env, 2)


def squeezed(env: FlowMDPEnv) -> gym.Env[Any, Any]:
    return gym.wrappers.RescaleAction(env, np.float32(-0.5), np.float32(0.5))


def halved(env: FlowMDPEnv) -> gym.Env[Any, Any]:
    return gym.wrappers.TransformAction(env, lambda action: action / 2, env.action_space)


def vectorised(wrapper: Any, **options: Any) -> Callable[[FlowMDPEnv], Any]:
    return lambda env: wrapper(DummyVecEnv([lambda: env]), **options)


CHANGED: dict[str, Callable[[FlowMDPEnv], Any]] = {
    "VecNormalize": vectorised(VecNormalize),
    "VecFrameStack": vectorised(VecFrameStack, n_stack=2),
    "NormalizeObservation": gym.wrappers.NormalizeObservation,
    "FrameStackObservation": stacked,
    "RescaleAction": squeezed,
    "TransformAction": halved,
    "ClipAction": gym.wrappers.ClipAction,
    "StickyAction": lambda env: gym.wrappers.StickyAction(env, 0.5),
    "DelayObservation": lambda env: gym.wrappers.DelayObservation(env, 1),
}
HARMLESS: dict[str, Callable[[FlowMDPEnv], Any]] = {
    "Monitor": Monitor,
    "TimeLimit": lambda env: gym.wrappers.TimeLimit(env, 100),
    "RecordEpisodeStatistics": gym.wrappers.RecordEpisodeStatistics,
    "NormalizeReward": gym.wrappers.NormalizeReward,
    "VecMonitor": vectorised(VecMonitor),
    "VecCheckNan": vectorised(VecCheckNan),
    "VecNormalize of rewards": vectorised(VecNormalize, norm_obs=False),
    "workers' own": lambda env: FlowVecEnv(
        FlowMDPVectorEnv(2, toy_dataset(), flow_steps=3, autoreset_mode="SameStep")
    ),
}


@pytest.mark.parametrize("name", CHANGED)
def test_what_changes_observations_or_actions_is_refused_at_every_door(
    name: str, tmp_path: Path
) -> None:
    agent = make("flow-bc")
    agent.save(tmp_path / "agent.zip")

    def env() -> Any:
        return CHANGED[name](flow_env())

    doors: list[Callable[[], Any]] = [
        lambda: FlowBC("MlpPolicy", env(), **TINY),
        lambda: agent.set_env(env()),
        lambda: FlowBC.load(tmp_path / "agent.zip", env=env()),
    ]
    for door in doors:
        with pytest.raises(ConfigurationError, match=r"wrapped.*wrap the robot") as caught:
            door()
        assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", HARMLESS)
def test_what_changes_neither_is_accepted(name: str) -> None:
    FlowBC("MlpPolicy", HARMLESS[name](flow_env()), **TINY).learn(1)


def test_wrappers_of_the_robot_are_the_users() -> None:
    robot = gym.wrappers.NormalizeObservation(PointRobot())
    FlowBC("MlpPolicy", FlowMDPEnv(robot, dataset=toy_dataset()), **TINY).learn(1)


def test_wrappers_of_the_vectorised_environment_are_seen() -> None:
    env = FlowMDPVectorEnv(2, toy_dataset(), flow_steps=3, autoreset_mode="SameStep")
    wrapped: Any = gym.wrappers.vector.TransformAction(env, lambda actions: actions / 2)
    with pytest.raises(ConfigurationError, match="wrap"):
        FlowBC("MlpPolicy", FlowVecEnv(wrapped), **TINY)


class Counting(FlowMDPEnv):
    """Says in a file how often it was asked for its data."""

    def __init__(self, log: Path) -> None:
        self.log = log
        super().__init__(PointRobot(), dataset=toy_dataset(), flow_steps=3)

    @property
    def dataset(self) -> TransitionDataset:
        with self.log.open("a") as file:
            file.write("asked\n")
        return super().dataset


def test_one_worker_is_asked_once_for_the_data(tmp_path: Path) -> None:
    log = tmp_path / "log"
    env = SubprocVecEnv([lambda: Counting(log)] * 2, start_method="fork")
    try:
        agent = FlowBC("MlpPolicy", env, **TINY).learn(2)
        agent.learn(1)
        assert log.read_text().splitlines() == ["asked"] and len(agent.dataset) == 40
    finally:
        env.close()


def test_workers_without_a_flow_environment_are_refused() -> None:
    env = SubprocVecEnv([PointRobot], start_method="fork")
    try:
        with pytest.raises(ConfigurationError, match="needs a flow environment"):
            FlowBC("MlpPolicy", env, **TINY)
    finally:
        for process in env.processes:
            process.join()


# -- policies ------------------------------------------------------------------------------------


@each_algorithm
def test_a_policy_is_saved_and_loaded_alone(name: str, tmp_path: Path) -> None:
    env = flow_env(name)
    agent = make(name, env).learn(3)
    agent.policy.save(tmp_path / "policy")
    observations = np.stack([env.reset(seed=seed)[0] for seed in range(4)])
    before, _ = agent.policy.predict(observations)
    again = type(agent.policy).load(tmp_path / "policy", device="cpu")
    np.testing.assert_array_equal(again.predict(observations)[0], before)
    assert again.spec == agent.spec and type(again) is FlowPolicy
    agent.save(tmp_path / "agent.zip")
    whole = FlowPolicy.load(tmp_path / "agent.zip")
    np.testing.assert_array_equal(whole.predict(observations)[0], before)
    with pytest.raises(CheckpointError, match="a policy alone"):
        load_agent(tmp_path / "policy.zip")
    assert (tmp_path / "policy.zip").stat().st_size < (tmp_path / "agent.zip").stat().st_size


def test_a_policy_of_a_users_class(tmp_path: Path) -> None:
    class MyPolicy(FlowPolicy):
        pass

    agent = FlowBC(MyPolicy, flow_env(), **TINY)
    agent.policy.save(tmp_path / "policy.zip")
    assert type(MyPolicy.load(tmp_path / "policy.zip")) is MyPolicy


@each_algorithm
def test_the_noise_scale_travels_with_the_policy(name: str, tmp_path: Path) -> None:
    agent = make(name).learn(1)
    agent.set_noise_scale(0.25)
    agent.policy.save(tmp_path / "policy.zip")
    assert FlowPolicy.load(tmp_path / "policy.zip").spec.noise_scale == 0.25


@each_algorithm
def test_a_policy_is_a_module_of_flow_observations(name: str) -> None:
    env = flow_env(name)
    policy = make(name, env).learn(1).policy
    observation, _ = env.reset(seed=0)
    batch = torch.as_tensor(np.stack([observation] * 3))
    with torch.no_grad():
        actions = policy(batch)
        assert actions.shape == (3, 2) and bool((actions.abs() <= 1).all())
        np.testing.assert_allclose(actions[0], policy.predict(observation)[0], atol=1e-6)


def test_torch_exports_a_policy() -> None:
    env = flow_env()
    policy = make("flow-bc", env).policy
    batch = torch.as_tensor(np.stack([env.reset(seed=seed)[0] for seed in range(3)]))
    sizes = {"observation": {0: torch.export.Dim("batch")}, "deterministic": None}
    program = torch.export.export(policy, (batch, False), dynamic_shapes=sizes)
    more = batch.repeat(2, 1)
    torch.testing.assert_close(program.module()(more, False), policy(more))


@pytest.mark.parametrize(
    ("observation", "match"),
    [
        (np.zeros(9), r"shape \(9,\).*\(5,\) or \(n, 5\).*\(2,\) or \(n, 2\)"),
        (np.zeros((2, 2, 5)), "shape"),
        (np.full(5, np.nan), "NaN"),
        ((np.zeros(5), {}), "no array of numbers"),
        ({"a": np.zeros(5)}, "no array of numbers"),
    ],
)
def test_observations_of_no_flow_environment(observation: Any, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        make("flow-bc").policy.predict(observation)


def test_observations_may_be_tensors_with_gradients() -> None:
    agent = make("flow-bc")
    observation = torch.zeros(5, requires_grad=True)
    expected, _ = agent.policy.predict(np.zeros(5))
    np.testing.assert_array_equal(agent.policy.predict(observation)[0], expected)
    np.testing.assert_array_equal(agent.predict(observation)[0], expected)
    assert agent.predict(torch.zeros(2, requires_grad=True))[0].shape == (2,)


# -- randomness ----------------------------------------------------------------------------------


def states() -> tuple[Any, ...]:
    """Of the global generators."""
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]  # noqa: NPY002


@each_algorithm
@pytest.mark.parametrize("seed", [None, 3])
def test_no_global_generator_is_touched(name: str, seed: int | None, tmp_path: Path) -> None:
    env, before = flow_env(name), states()
    agent = make(name, env, seed=seed).learn(2)
    agent.predict(np.zeros(2, np.float32))
    agent.save(tmp_path / "agent.zip")
    load_agent(tmp_path / "agent.zip", device="cpu")
    assert states() == before


@each_algorithm
def test_without_a_seed_everything_is_new(name: str, tmp_path: Path) -> None:
    first, second = make(name, seed=None), make(name, seed=None)
    assert first.seed != second.seed
    assert not equal(weights(first), weights(second))
    assert all(
        one.key() != other.key() for one, other in zip(first.parts, second.parts, strict=True)
    )
    first.learn(2).save(tmp_path / "agent.zip")
    resumed = load_agent(tmp_path / "agent.zip", env=flow_env(name), device="cpu")
    assert resumed.seed == first.seed
    first.learn(2, reset_num_timesteps=False)
    resumed.learn(2, reset_num_timesteps=False)
    assert equal(weights(first), weights(resumed))
    assert equal(weights(make(name, seed=first.seed).learn(4)), weights(first))


def test_numpys_integers_are_seeds(tmp_path: Path) -> None:
    agent = make("flow-bc", seed=np.int64(1))
    assert equal(weights(agent), weights(make("flow-bc")))
    agent.save(tmp_path / "agent.zip")


def test_set_random_seed_seeds_batches_and_noise() -> None:
    agent, other = make("df-div"), make("df-div")
    for one in (agent, other):
        one.set_random_seed(5)
    assert equal(weights(agent.learn(2)), weights(other.learn(2)))
    assert not equal(weights(agent), weights(make("df-div").learn(2)))


# -- logs ----------------------------------------------------------------------------------------


def test_log_every_n_timesteps(tmp_path: Path) -> None:
    agent = make("df-div")
    agent.dump_logs()  # nothing yet
    agent.set_logger(configure(str(tmp_path), ["csv"]))
    agent.learn(6, callback=LogEveryNTimesteps(2), log_interval=0)
    agent.logger.close()
    header, *lines = (tmp_path / "progress.csv").read_text().splitlines()
    assert "train/policy_loss" in header and "train/q_gap" in header
    assert len(lines) == 5  # two of them of the pre-training


def test_a_part_whose_updates_differ_logs_the_mean_of_all() -> None:
    agent = make("iql")
    values: list[float] = []
    update = agent.critic_part.update

    def kept() -> Any:
        info = update()
        values.append(info["critic_q_loss"].item())
        return info

    agent.critic_part.update = kept
    lines: list[Any] = []

    class Keep(KVWriter):
        def write(self, key_values: Any, key_excluded: Any, step: int = 0) -> None:
            lines.append(key_values["pretrain/critic_q_loss"])

        def close(self) -> None:
            pass

    agent.set_logger(Logger(None, [Keep()]))
    agent.pretrain()
    assert len(values) == 4 and lines == [pytest.approx(np.mean(values))]


# -- divergence ----------------------------------------------------------------------------------


@each_algorithm
@pytest.mark.parametrize("log_interval", [0, 10])
def test_a_training_that_diverges_says_so(name: str, log_interval: int, tmp_path: Path) -> None:
    names = ALGORITHMS[name].config_class.names()
    rate = "learning_rate" if "learning_rate" in names else "critic_learning_rate"
    agent = make(name)
    agent.save(tmp_path / "agent.zip")
    before = (tmp_path / "agent.zip").read_bytes()
    agent = load_agent(tmp_path / "agent.zip", env=flow_env(name), device="cpu", **{rate: 1e30})
    with pytest.raises(TrainingDivergedError, match=r"diverged at step \d+ \((pre)?train/.*loss"):
        agent.learn(300, log_interval=log_interval)
    assert agent.num_timesteps < 50
    with pytest.raises(TrainingDivergedError, match="is not saved"):
        agent.save(tmp_path / "agent.zip")
    assert (tmp_path / "agent.zip").read_bytes() == before


def test_weights_that_are_not_finite_are_noticed_at_the_end() -> None:
    agent = make("flow-bc")

    def spoil(*_: Any) -> bool:
        with torch.no_grad():
            next(agent.policy.ema.parameters()).fill_(torch.inf)
        return True

    with pytest.raises(TrainingDivergedError, match=r"at step 1 \(policy/ema"):
        agent.learn(1, callback=spoil)


def test_a_part_that_diverges_says_so() -> None:
    agent = make("df-div", critic_learning_rate=1e30, critic_steps=50)
    with pytest.raises(TrainingDivergedError, match=r"step \d+ \(pretrain/critic_"):
        agent.pretrain()


# -- devices -------------------------------------------------------------------------------------


def test_a_gpus_generators_seed_those_of_a_cpu(tmp_path: Path) -> None:
    from flowmdp.agents.core import checkpoint

    make("df-div").learn(1).save(tmp_path / "agent.zip")
    _, manifest, tensors = checkpoint.read(tmp_path / "agent.zip")
    for number, name in enumerate(n for n in tensors if n.startswith("generator/")):
        tensors[name] = torch.arange(number, number + 16, dtype=torch.uint8)
    checkpoint.write(tmp_path / "gpu.zip", manifest, tensors)
    first, second = (
        load_agent(tmp_path / "gpu.zip", env=flow_env("df-div"), device="cpu") for _ in range(2)
    )
    assert first.generator.initial_seed() != first.act_generator.initial_seed()
    assert equal(weights(first.learn(2)), weights(second.learn(2)))


# -- wrong types ---------------------------------------------------------------------------------


def buffer(*args: Any, **kwargs: Any) -> Any:
    env = flow_env()
    return FlowReplayBuffer(
        *(args or (10,)), *(env.observation_space, env.action_space), device="cpu", **kwargs
    )


def chains() -> FlowVecEnv:
    return FlowVecEnv(FlowMDPVectorEnv(2, toy_dataset(), flow_steps=3, autoreset_mode="SameStep"))


WRONG: dict[str, Callable[[], Any]] = {
    "env None": lambda: FlowBC("MlpPolicy", None, **TINY),
    "env 5": lambda: FlowBC("MlpPolicy", 5, **TINY),
    "env vectorised": lambda: FlowBC(
        "MlpPolicy", FlowMDPVectorEnv(2, toy_dataset(), flow_steps=3), **TINY
    ),
    "policy None": lambda: FlowBC(None, flow_env(), **TINY),  # type: ignore[arg-type]
    "policy Cnn": lambda: FlowBC("CnnPolicy", flow_env(), **TINY),
    "policy class": lambda: FlowBC(torch.nn.Module, flow_env(), **TINY),  # type: ignore[arg-type]
    "policy object": lambda: FlowBC(make("flow-bc").policy, flow_env(), **TINY),
    "device tpu": lambda: make("flow-bc", device="tpu"),
    "device None": lambda: make("flow-bc", device=None),
    "device meta": lambda: make("flow-bc", device="meta"),
    "tensorboard_log": lambda: make("flow-bc", tensorboard_log=5),
    "verbose": lambda: make("flow-bc", verbose=None),
    "dataset": lambda: make("flow-bc", dataset="toy"),
    "config": lambda: FlowBC("MlpPolicy", flow_env(), make("df-div").config),
    "activation_fn": lambda: make("flow-bc", policy_kwargs={"activation_fn": torch.nn.ReLU}),
    "policy_kwargs": lambda: make("flow-bc", policy_kwargs=3),
    "policy_kwargs' key": lambda: make("flow-bc", policy_kwargs={3: 3}),
    "use_sde": lambda: make("flow-bc", use_sde=True),
    "learning rate schedule": lambda: make("flow-bc", learning_rate=lambda _: 1e-3),
    "widths": lambda: make("flow-bc", policy_kwargs={"net_arch": [10**9]}),
    "layers": lambda: make("flow-bc", policy_kwargs={"net_arch": [1] * 1000}),
    "batch": lambda: make("flow-bc", batch_size=10**12),
    "members": lambda: make("iql", critic_members=10**9),
    "samples": lambda: make("ifql", samples=10**9),
    "callback": lambda: make("flow-bc").learn(1, callback=5),
    "callbacks": lambda: make("flow-bc").learn(1, callback=[5]),
    "functions": lambda: make("flow-bc").learn(1, callback=[lambda *_: True]),
    "log_interval": lambda: make("flow-bc").learn(1, log_interval="x"),
    "tb_log_name": lambda: make("flow-bc").learn(1, tb_log_name=5),
    "pretrain": lambda: make("df-div").pretrain(callback=5),
    "act None": lambda: make("flow-bc").act(None),
    "act one": lambda: make("flow-bc").act(np.zeros(2)),
    "act width": lambda: make("flow-bc").act(np.zeros((3, 9))),
    "act NaN": lambda: make("flow-bc").act(np.full((3, 2), np.nan)),
    "act noise": lambda: make("flow-bc").act(np.zeros((3, 2)), noise=np.zeros((2, 2))),
    "chain": lambda: make("flow-bc").chain("x"),
    "q_values": lambda: make("iql").q_values(np.zeros((3, 2)), np.zeros((2, 2))),
    "save": lambda: make("flow-bc").save(None),
    "load": lambda: FlowBC.load(None),  # type: ignore[arg-type]
    "load_agent": lambda: load_agent(5),  # type: ignore[arg-type]
    "policy.save": lambda: make("flow-bc").policy.save(None),
    "policy.load": lambda: FlowPolicy.load(None),  # type: ignore[arg-type]
    "parameters None": lambda: make("flow-bc").set_parameters(None),
    "parameters 3": lambda: make("flow-bc").set_parameters({"policy": 3}, exact_match=False),
    "seed": lambda: make("flow-bc").set_random_seed("x"),
    "buffer size": lambda: buffer("x"),
    "buffer gamma": lambda: buffer(gamma="x"),
    "chains of None": lambda: FlowVecEnv(None),  # type: ignore[arg-type]
    "chains of one": lambda: FlowVecEnv(flow_env()),  # type: ignore[arg-type]
    "num_envs": lambda: FlowMDPVectorEnv("3", toy_dataset()),  # type: ignore[arg-type]
    "num_envs huge": lambda: FlowMDPVectorEnv(10**12, toy_dataset()),
    "vector seed": lambda: chains().env.reset(seed=1.5),  # type: ignore[arg-type]
    "vector data": lambda: FlowMDPVectorEnv(2, "x"),  # type: ignore[arg-type]
    "noise": lambda: flow_env().reset(options={"noise": "x"}),
    "outer": lambda: FlowMDPEnv(3),  # type: ignore[arg-type]
    "scale": lambda: flow_env(velocity_scale=1e39),
    "flow_steps": lambda: FlowMDPEnv(PointRobot(), flow_steps=10**12),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_types_end_in_one_line(name: str) -> None:
    with pytest.raises(FlowMDPError) as caught:
        WRONG[name]()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_parameters_that_are_not_finite_are_not_taken() -> None:
    agent = make("flow-bc")
    before = weights(agent)
    given = agent.get_parameters()
    given["policy"] = {name: value * torch.nan for name, value in given["policy"].items()}
    with pytest.raises(ConfigurationError, match="NaN"):
        agent.set_parameters(given)
    assert equal(before, weights(agent))


def test_parts_that_are_not_given_are_still_fitted() -> None:
    agent, taught = make("df-div"), make("df-div", seed=2).learn(1)
    given = {"behavior": taught.get_parameters()["behavior"]}
    agent.set_parameters(given, exact_match=False)
    clone, critic = agent.parts
    assert (clone.updates, critic.updates) == (clone.steps, 0)
    agent.learn(1)
    assert critic.updates == critic.steps


def test_actions_with_gradients_are_refused() -> None:
    env, many = flow_env(), chains()
    env.reset()
    many.reset()
    doors: list[tuple[Any, Any]] = [(env.step, torch.zeros(2)), (many.step, torch.zeros(2, 2))]
    for step, action in doors:
        step(action)
        with pytest.raises(FlowMDPError, match="grad"):
            step(action.requires_grad_())


def test_networks_too_large_for_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make("flow-bc")

    def full() -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr(agent, "update", full)
    with pytest.raises(ConfigurationError, match="smaller net_arch or batch_size"):
        agent.learn(1)


def test_spaces_alone_do_not_make_a_flow_environment() -> None:
    class Pretender(gym.Env[Any, Any]):
        flow_spec = flow_env().flow_spec
        observation_space = Box(-1.0, 1.0, (5,), np.float32)
        action_space = Box(-1.0, 1.0, (2,), np.float32)

    with pytest.raises(ConfigurationError, match="observation space is"):
        FlowBC("MlpPolicy", Pretender(), **TINY)
