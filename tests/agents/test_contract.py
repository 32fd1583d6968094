"""The agents' contract: SB3's interface, exact checkpoints, acting on both levels."""

from __future__ import annotations

import dataclasses
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor

import flowmdp
from flowmdp.agents import ALGORITHMS, IFQL, IQL, DFDir, DFDiv, FlowBC, load_agent
from flowmdp.agents.core import checkpoint
from flowmdp.agents.core.algorithm import FlowAlgorithm
from flowmdp.agents.core.config import AgentConfig, CriticConfig, ImplicitConfig, SmoothedConfig
from flowmdp.agents.evaluation import evaluate
from flowmdp.env import FlowMDPEnv
from flowmdp.errors import CheckpointError, ConfigurationError, DatasetError
from flowmdp.runs.config import get_algorithm
from tests.mdp.toys import PointRobot, toy_dataset

TINY: dict[str, Any] = {
    "policy_kwargs": {"net_arch": [16, 16]},
    "batch_size": 16,
    "seed": 1,
    "device": "cpu",
}
PRETRAINED = ("behavior_steps", "critic_steps")
"""Hyper-parameters that count the updates of parts."""


def flow_env(name: str = "flow-bc", **settings: Any) -> FlowMDPEnv:
    """A flow environment that suits the algorithm."""
    flow_steps = get_algorithm(name).only_flow_steps or 3
    return FlowMDPEnv(PointRobot(), dataset=toy_dataset(), flow_steps=flow_steps, **settings)


def make(name: str, env: FlowMDPEnv | None = None, **kwargs: Any) -> Any:
    cls = ALGORITHMS[name]
    return cls("MlpPolicy", env or flow_env(name), **{**TINY, **few(name), **kwargs})


def few(name: str, **steps: int) -> dict[str, int]:
    """Little of everything that the algorithm counts in steps, or as much as is said."""
    steps = dict.fromkeys(PRETRAINED, 4) | steps
    return {field: steps.get(field, 2) for field in fields(name) if field.endswith("_steps")}


def fields(name: str) -> list[str]:
    """Names of the algorithm's hyper-parameters."""
    names: list[str] = ALGORITHMS[name].config_class.names()
    return names


def weights(agent: Any) -> list[torch.Tensor]:
    """Of all networks that something reads."""
    read = checkpoint.without(agent.saved.weights(), agent.unread())
    return [tensor.clone() for tensor in read.values()]


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


each_algorithm = pytest.mark.parametrize("name", ALGORITHMS)


@each_algorithm
def test_it_is_an_sb3_algorithm(name: str, tmp_path: Path) -> None:
    agent = make(name)
    assert isinstance(agent, BaseAlgorithm)
    agent.set_logger(configure(str(tmp_path), ["csv"]))
    callbacks = [
        CheckpointCallback(5, str(tmp_path / "checkpoints")),
        EvalCallback(Monitor(flow_env(name)), eval_freq=5, n_eval_episodes=1, verbose=0),
    ]
    assert agent.learn(10, callback=callbacks, log_interval=5) is agent
    agent.logger.close()
    assert agent.num_timesteps == 10
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    header = (tmp_path / "progress.csv").read_text().splitlines()[0]
    assert "time/updates_per_second" in header and "grad_norm" in header


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="torch sees no GPU"):
        make("flow-bc", device="cuda")


@each_algorithm
def test_an_id_is_made_as_the_algorithm_needs_it(name: str, hopper_data: Path) -> None:
    agent = ALGORITHMS[name]("MlpPolicy", "FlowMDP-hopper-medium-v0", net_arch=(8,), device="cpu")
    assert agent.spec.flow_steps == (agent.only_flow_steps or 10)
    assert agent.spec.noise_scale == agent.environment.get("noise_scale", 1.0)


@pytest.mark.parametrize("played", ["Hopper-v5", "FlowMDP-hopper-medium-v0"])
def test_sb3_callbacks_on_a_task(played: str, hopper_data: Path, tmp_path: Path) -> None:
    """On the bare robot and on the flow environment, the best agent is saved and loads again."""
    agent = FlowBC("MlpPolicy", gym.make("FlowMDP-hopper-medium-v0"), **TINY)
    evaluation = EvalCallback(
        Monitor(gym.make(played)),
        eval_freq=4,
        n_eval_episodes=1,
        best_model_save_path=str(tmp_path),
        verbose=0,
    )
    agent.learn(8, callback=[CheckpointCallback(4, str(tmp_path)), evaluation])
    best = load_agent(tmp_path / "best_model.zip", device="cpu")
    same = load_agent(tmp_path / f"rl_model_{best.num_timesteps}_steps.zip", device="cpu")
    assert best.num_timesteps in (4, 8) and equal(weights(best), weights(same))
    mean, _ = evaluate_policy(best, Monitor(gym.make(played)), n_eval_episodes=1)
    assert evaluation.best_mean_reward > 0 and np.isfinite(mean)


@each_algorithm
def test_evaluate_policy_plays_both_levels(name: str) -> None:
    agent = make(name).learn(2)
    plays: list[tuple[Any, Any]] = [
        (flow_env(name), agent),
        (PointRobot(), agent),
        (PointRobot(), agent.outer_policy()),
    ]
    if ALGORITHMS[name].behavior_field is FlowAlgorithm.behavior_field:
        with pytest.raises(ConfigurationError, match="no behaviour flow"):
            agent.behavior_policy()
    else:
        plays.append((PointRobot(), agent.behavior_policy()))
    for env, policy in plays:
        returns, lengths = evaluate_policy(
            policy, Monitor(env), n_eval_episodes=2, return_episode_rewards=True
        )
        assert len(returns) == 2 and np.isfinite(returns).all() and min(lengths) > 0  # type: ignore[arg-type]


@each_algorithm
def test_training_resumes_exactly(name: str, tmp_path: Path) -> None:
    whole = make(name).learn(8, log_interval=2)
    half = make(name).learn(3, log_interval=2)
    half.save(tmp_path / "half")
    resumed = load_agent(tmp_path / "half", env=flow_env(name), device="cpu")
    resumed.learn(5, log_interval=2, reset_num_timesteps=False)
    assert resumed.num_timesteps == 8
    assert equal(weights(whole), weights(resumed))
    other_seed = make(name, seed=2).learn(8, log_interval=2)
    assert not equal(weights(whole), weights(other_seed))


@each_algorithm
def test_parameters_go_from_one_agent_to_another(name: str, tmp_path: Path) -> None:
    taught, other = make(name).learn(3), make(name, seed=2)
    other.set_parameters(taught.get_parameters())
    assert equal(weights(taught), weights(other))
    before = weights(other)
    other.learn(1)  # goes on from them: nothing is pre-trained or copied again
    moved = [
        (a.float() - b.float()).abs().max() for a, b in zip(before, weights(other), strict=True)
    ]
    assert 0 < max(moved) < 0.05
    taught.save(tmp_path / "taught.zip")
    again = make(name, seed=3)
    again.set_parameters(tmp_path / "taught.zip")
    assert equal(weights(taught), weights(again))
    with pytest.raises(ConfigurationError, match="'nonsense' are missing or not of this agent"):
        other.set_parameters({"nonsense": {}})
    with pytest.raises(ConfigurationError, match="exact_match=False"):
        other.set_parameters({})
    with pytest.raises(ConfigurationError, match="do not fit"):
        other.set_parameters(make(name, net_arch=(8,), policy_kwargs=None).get_parameters())


@pytest.mark.parametrize(
    "name", [name for name in ALGORITHMS if not {*PRETRAINED}.isdisjoint(fields(name))]
)
@pytest.mark.parametrize("early", [True, False])
def test_pretraining_resumes_exactly(name: str, early: bool, tmp_path: Path) -> None:
    whole = make(name).learn(2)
    part = make(name)
    stop_after = 2 if early else part.pretrain_steps - 1
    calls = iter(range(1, 100))
    assert not part.pretrain(callback=lambda: next(calls) < stop_after)
    assert part.pretrain_updates == stop_after
    part.save(tmp_path / "part.zip")
    resumed = load_agent(tmp_path / "part.zip", env=flow_env(name), device="cpu").learn(2)
    assert equal(weights(whole), weights(resumed))


@pytest.mark.parametrize("name", [name for name, cls in ALGORITHMS.items() if cls.paper])
def test_the_papers_setting_learns(name: str) -> None:
    paper = {**ALGORITHMS[name].paper, **few(name)}
    agent = make(name, **paper)
    agent.pretrain()
    before = weights(agent)
    agent.learn(2)
    assert not equal(before, weights(agent))
    assert paper.items() <= dataclasses.asdict(agent.config).items()
    if paper.get("rho"):
        assert agent.anchor.rho == paper["rho"]


def test_another_version_trains_again(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make("df-dir")
    keys = {part: part.key() for part in agent.parts}
    monkeypatch.setattr(flowmdp, "__version__", "0.0.0")
    assert all(part.key() != key for part, key in keys.items())


@pytest.mark.parametrize(
    ("recipe", "names"),
    [
        (SmoothedConfig, ("rebrac", "fql", "qc", "dsrl", "df-dir", "df-div")),
        (CriticConfig, ("fql", "rql")),
        (ImplicitConfig, ("iql", "ifql")),
    ],
)
def test_a_family_has_one_critic(recipe: type[CriticConfig], names: tuple[str, ...]) -> None:
    """Its methods differ in how they improve a policy, and in nothing of the critic."""
    own = {field.name for field in dataclasses.fields(AgentConfig)}
    said = {field.name: field.default for field in dataclasses.fields(recipe)}
    said = {name: default for name, default in said.items() if name not in own}
    found = []
    for name in names:
        config = ALGORITHMS[name].config_class()
        assert {key: getattr(config, key) for key in said} == said, name
        found.append({key: v.shape for key, v in make(name).critic.state_dict().items()})
    assert all(shapes == found[0] for shapes in found)


def test_pretraining_is_shared_between_the_agents(tmp_path: Path) -> None:
    direct = make("df-div")
    direct.pretrain()
    cached, other = make("df-div"), make("df-div", critic="iql")
    same, seeded = make("df-dir"), make("df-dir", seed=2)
    for part, equal_key, other_key, taker in zip(
        direct.parts, same.parts, seeded.parts, cached.parts, strict=True
    ):
        path = tmp_path / f"{part.name}.zip"
        part.save(path)
        assert equal_key.key() == part.key() != other_key.key()
        taker.load(path)
    assert cached.pretrain_updates == cached.pretrain_steps
    assert equal(weights(direct.learn(3)), weights(cached.learn(3)))
    assert make("fql", critic_members=5).parts[0].key() == direct.parts[0].key()
    assert make("iql", expectile=0.6).parts[0].key() == make("ifql", expectile=0.6).parts[1].key()
    with pytest.raises(CheckpointError, match="other data or with other settings"):
        other.parts[1].load(tmp_path / "critic.zip")


@each_algorithm
def test_predict_tells_the_levels_apart(name: str) -> None:
    env = flow_env(name)
    agent = make(name, env).learn(1)
    observation, _ = env.reset(seed=0)
    flow_action, _ = agent.predict(observation)
    assert flow_action.shape == (2,) and np.abs(flow_action).max() <= 1
    action, _ = agent.predict(observation[:2])
    assert action.shape == (2,) and np.abs(action).max() <= 1
    batch, _ = agent.predict(np.zeros((5, 2), np.float32), deterministic=True)
    assert batch.shape == (5, 2) and np.ptp(batch, axis=0).max() < 1e-6


def test_noise_scale_is_the_environments_until_it_is_set() -> None:
    agent = make("flow-bc", flow_env(noise_scale=0.5))
    states = np.zeros((4000, 2), np.float32)
    assert agent.chain(states)[0].std() == pytest.approx(0.5, abs=0.02)
    agent.set_noise_scale(0.0)
    assert not agent.chain(states)[0].any()
    with pytest.raises(ConfigurationError, match="noise_scale"):
        agent.set_noise_scale(-1.0)


@each_algorithm
def test_playing_the_flow_env_equals_acting_at_once(name: str) -> None:
    env = flow_env(name)
    agent = make(name, env).learn(5)
    rng = np.random.default_rng(0)
    for _ in range(20):
        x_0 = rng.standard_normal(2).astype(np.float32)
        observation, _ = env.reset(seed=3, options={"noise": x_0})
        state = observation[:2].copy()
        for _ in range(env.flow_steps):
            observation, _, _, _, info = env.step(agent.predict(observation)[0])
        expected = agent.act(state[None], noise=x_0[None])[0]
        np.testing.assert_allclose(info["executed_action"], expected, atol=1e-5)


@each_algorithm
def test_the_previous_action_is_fed_everywhere(name: str) -> None:
    env = flow_env(name, include_previous_action=True)
    agent = make(name, env).learn(3)
    policy = agent.outer_policy()
    observations = np.zeros((3, 2), np.float32)
    first, state = policy.predict(observations, None, np.ones(3, bool), deterministic=True)
    assert state is not None
    np.testing.assert_array_equal(state[0], np.column_stack([first, np.ones(3)]))
    second, _ = policy.predict(observations, state, np.zeros(3, bool), deterministic=True)
    assert not np.allclose(first, second)  # it is seen
    again, _ = policy.predict(observations, state, np.ones(3, bool), deterministic=True)
    np.testing.assert_array_equal(first, again)  # and forgotten at an episode's start
    mean = np.mean(evaluate(policy, PointRobot, episodes=3).returns)
    assert np.isfinite(mean)
    if agent.only_flow_steps is not None:
        return
    other = agent.outer_policy(n_steps=2)
    assert not np.allclose(
        other.predict(observations, state, np.zeros(3, bool), deterministic=True)[0],
        other.predict(observations, state, np.ones(3, bool), deterministic=True)[0],
    )


@each_algorithm
def test_best_of_takes_what_the_critic_values(name: str) -> None:
    agent = make(name).learn(1)
    if not hasattr(agent, "critic"):
        with pytest.raises(ConfigurationError, match="has no critic"):
            agent.act(np.zeros((2, 2), np.float32), best_of=2)
        return
    observations = np.random.default_rng(0).standard_normal((6, 2)).astype(np.float32)
    noise = np.random.default_rng(1).standard_normal((24, 2)).astype(np.float32)
    best = agent.act(observations, noise=noise, best_of=4)
    candidates = agent.act(np.repeat(observations, 4, 0), noise=noise)
    values = agent.q_values(np.repeat(observations, 4, 0), candidates).reshape(6, 4)
    np.testing.assert_allclose(agent.q_values(observations, best), values.max(1), rtol=1e-5)
    played, _ = agent.outer_policy(best_of=4).predict(observations, deterministic=True)
    np.testing.assert_allclose(played, agent.act(observations, noise=np.zeros((6, 2))), atol=1e-6)


def test_an_agent_acts_by_as_many_as_its_critics_target_follows() -> None:
    agent = make("fql", best_of=3).learn(1)
    observations = np.random.default_rng(0).standard_normal((6, 2)).astype(np.float32)
    played = {}
    for name, options in {"as it is": {}, "three": {"best_of": 3}, "one": {"best_of": 1}}.items():
        agent.act_generator.manual_seed(0)
        played[name], _ = agent.outer_policy(**options).predict(observations)
    np.testing.assert_array_equal(played["as it is"], played["three"])
    assert np.abs(played["as it is"] - played["one"]).max() > 1e-3
    assert make("rql", best_of=3).acting == make("fql").acting == {}


def test_bfloat16_learns_the_same_within_its_rounding() -> None:
    errors = []
    for precision in ("float32", "bfloat16"):
        agent = make("flow-bc", precision=precision, seed=0, policy_kwargs={"net_arch": [64, 64]})
        agent.learn(100)
        states = toy_dataset().observations
        errors.append(agent.act(states, noise=np.zeros((len(states), 2), np.float32)))
    assert np.abs(errors[0] - errors[1]).mean() < 0.05
    assert np.abs(errors[0] - errors[1]).max() > 0  # it is another arithmetic


@pytest.mark.parametrize(
    ("cls", "kwargs"),
    [
        (FlowBC, {"batch_size": 0}),
        (FlowBC, {"precision": "float16"}),
        (DFDiv, {"gamma": 1.0}),
        (FlowBC, {"gamma": 0.9}),
        (IFQL, {"learning_rate": 1e-3}),
        (IQL, {"behavior_steps": 1}),
        (FlowBC, {"batch_sise": 8}),
        (FlowBC, {"path": "spiral"}),
        (DFDir, {"objective": "best"}),
        (DFDir, {"rho": -1.0}),
        (DFDiv, {"divergence": "js"}),
        (DFDiv, {"critic": "sarsa"}),
        (DFDiv, {"expectile": 1.0}),
        (DFDiv, {"behavior_steps": -1}),
        (FlowBC, {"learning_rate": -1}),
        (FlowBC, {"learning_rate": "fast"}),
        (FlowBC, {"batch_size": 1.5}),
        (FlowBC, {"ema_rate": 2}),
        (FlowBC, {"cuda_graphs": "false"}),
        (FlowBC, {"seed": -1}),
        (FlowBC, {"seed": 2**32}),
        (DFDiv, {"pessimism": "abc"}),
        (DFDiv, {"pessimism": float("nan")}),
        (DFDiv, {"critic_members": 0}),
        (DFDiv, {"critic_steps": 20.5}),
        (DFDiv, {"critic_learning_rate": -1e-4}),
        (DFDiv, {"rho": "much"}),
        (DFDiv, {"budget": True}),
        (DFDiv, {"behavior_weight": 0}),
        (DFDir, {"behavior_weight": 0.1, "budget": 0.1}),
        (DFDiv, {"behavior_weight": 0.1, "rho": 1.0}),
    ],
)
def test_arguments_out_of_range_are_refused(cls: Any, kwargs: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(kwargs)).split("_")[0]):
        cls("MlpPolicy", flow_env(cls.name), **{**TINY, **kwargs})


@pytest.mark.parametrize("net_arch", [[-5], [0], [16.0], 64, "wide", {"pi": [16]}])
def test_widths_that_are_none_are_refused(net_arch: Any) -> None:
    with pytest.raises(ConfigurationError, match="net_arch is"):
        make("flow-bc", policy_kwargs={"net_arch": net_arch})


@each_algorithm
def test_every_number_is_checked(name: str) -> None:
    agent = make(name)
    for argument, value in dataclasses.asdict(agent.config).items():
        if isinstance(value, bool | int | float):
            with pytest.raises(ConfigurationError, match=f"{argument} is 'x'"):
                make(name, None, **{argument: "x"})


def test_other_bad_input_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="flow environment"):
        FlowBC("MlpPolicy", gym.make("Pendulum-v1"), **TINY)
    for steps in (-1, 1.5, "5"):
        with pytest.raises(ConfigurationError, match="total_timesteps is"):
            make("flow-bc").learn(steps)
    with pytest.raises(ConfigurationError, match="option is 'nsteps': choose one of n_steps"):
        make("flow-bc").outer_policy(nsteps=3)
    with pytest.raises(DatasetError, match="width"):
        make("flow-bc", dataset=toy_dataset(obs_dim=3)).learn(1)
    with pytest.raises(ConfigurationError, match="episodes"):
        evaluate(make("flow-bc").outer_policy(), PointRobot, 0)


# -- checkpoints that are damaged or hostile ----------------------------------------------------


class Bomb:
    """Sets a flag when it is unpickled."""

    exploded = False

    def __reduce__(self) -> Any:
        return (setattr, (Bomb, "exploded", True))


def test_a_checkpoint_holds_no_code(tmp_path: Path) -> None:
    agent = make("flow-bc").learn(1)
    agent.save(tmp_path / "agent.zip")
    with zipfile.ZipFile(tmp_path / "agent.zip") as archive:
        assert sorted(archive.namelist()) == ["agent.json", "tensors.safetensors"]
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w") as archive:
        archive.writestr("agent.json", pickle.dumps(Bomb()))
        archive.writestr("tensors.safetensors", pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="damaged"):
        load_agent(tmp_path / "bomb.zip")
    assert not Bomb.exploded


def rewrite(path: Path, **changes: Any) -> None:
    """Change entries of the manifest."""
    with zipfile.ZipFile(path) as archive:
        manifest = json.loads(archive.read("agent.json"))
        tensors = archive.read("tensors.safetensors")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("agent.json", json.dumps(manifest | changes))
        archive.writestr("tensors.safetensors", tensors)


def test_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "agent.zip"
    agent = make("df-div").learn(1)
    narrow = dataclasses.asdict(agent.config) | {"net_arch": [8]}

    def fails(match: str, **kwargs: Any) -> None:
        with pytest.raises(CheckpointError, match=match):
            load_agent(path, **kwargs)

    fails("no checkpoint at")
    agent.save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    fails("damaged")
    for changes, match in (
        ({"format": 99}, "format"),
        ({"algorithm": "Unknown"}, "unknown class"),
        ({"config": {"learning_rate": "x", "verbose": {}, "what": 1}}, "damaged"),
        (
            {"config": narrow},
            "fit",
        ),
        ({"counters": {"__class__": 1}}, "counter"),
        ({"spec": {}}, "damaged"),
    ):
        path.write_bytes(content)
        rewrite(path, **changes)
        fails(match)
    path.write_bytes(content)
    fails("another environment: flow_steps", env=FlowMDPEnv(PointRobot(), flow_steps=7))
    with pytest.raises(CheckpointError, match="df-div"):
        DFDir.load(path)


def test_a_failed_save_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make("flow-bc").learn(1)
    agent.save(tmp_path / "agent.zip")
    before = (tmp_path / "agent.zip").read_bytes()
    agent.learn(1)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        agent.save(tmp_path / "agent.zip")
    assert (tmp_path / "agent.zip").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["agent.zip"]
