"""Flow environments made by id with the models of a checkpoint."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import SAC

from examples import steer_flow
from flowmdp.agents import IQL, RQL, DFDiv, FlowBC, load_models, pretrained_path
from flowmdp.checks import check_flow_env
from flowmdp.errors import CheckpointError, ConfigurationError, FlowMDPError
from flowmdp.latent_noise import LatentNoiseEnv

HOPPER = "FlowMDP-hopper-medium-v0"
SMALL: dict[str, Any] = {"policy_kwargs": {"net_arch": [16]}, "device": "cpu", "seed": 0}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained DF-div agent of the hopper."""
    path = tmp_path_factory.mktemp("models") / "agent.zip"
    DFDiv("MlpPolicy", gym.make(HOPPER), **SMALL).save(path)
    return str(path)


def test_models_are_those_of_the_agent(checkpoint: str) -> None:
    agent = DFDiv.load(checkpoint, device="cpu")
    critic, behavior = load_models(checkpoint)
    assert critic is not None
    rng = np.random.default_rng(0)
    states, noise = (
        rng.standard_normal((4, 11), np.float32),
        rng.standard_normal((4, 3), np.float32),
    )
    chain = agent.chain(states, noise, field=agent.behavior)
    assert chain[1] == pytest.approx(
        noise + behavior(states, noise, np.zeros((4, 1), np.float32)) / 10, abs=1e-5
    )
    values = critic(states, np.clip(chain[-1], -1, 1))
    assert values.shape == (4,) and values.dtype == np.float32 and values.std() > 0


def test_models_of_tensors_and_in_bfloat16(checkpoint: str) -> None:
    """What comes back can be learned from."""
    agent = DFDiv.load(checkpoint, device="cpu")
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((300, width), np.float32) for width in (11, 3)]
    states, actions = map(torch.as_tensor, arrays)
    with torch.no_grad():
        wanted = agent.critic.advantages(agent.policy.normalizer(states), actions)
    for precision, tolerance in (("float32", 1e-5), ("bfloat16", 0.05)):
        critic, _ = load_models(checkpoint, precision=precision)
        assert critic is not None
        values = critic(states, actions)
        error = (values - wanted).abs().max() / wanted.abs().max()
        assert tolerance / 100 * (precision == "bfloat16") <= error < tolerance
        np.testing.assert_array_equal(values, critic(*arrays))
        weight = torch.ones(300, requires_grad=True)
        (weight * values).sum().backward()
    with pytest.raises(ConfigurationError, match="precision is 'half'"):
        gym.make(HOPPER, reward="direction", checkpoint=checkpoint, precision="half")


def test_models_of_rql_are_its_critic_and_its_clone(tmp_path: Path) -> None:
    rql = RQL("MlpPolicy", gym.make(HOPPER), **SMALL)
    for part, number in ((rql.behavior, 0.25), (rql.policy.ema, 0.5)):
        for tensor in part.parameters():
            tensor.data.fill_(number)
    rql.save(tmp_path / "rql.zip")
    critic, behavior = load_models(tmp_path / "rql.zip")
    states, points = np.ones((2, 11), np.float32), np.ones((2, 3), np.float32)
    clone = rql.chain(states, points, field=rql.behavior)
    assert critic is not None
    assert behavior(states, points, np.zeros((2, 1), np.float32)) == pytest.approx(
        (clone[1] - clone[0]) * 10, rel=1e-4
    )


@pytest.mark.parametrize("reward", ["direction", "divergence"])
def test_rewards_by_id(checkpoint: str, reward: str) -> None:
    check_flow_env(gym.make(HOPPER, reward=reward, checkpoint=checkpoint, flow_steps=3))


def test_vector_and_sync_agree_with_a_trained_models_file(
    checkpoint: str, hopper_data: Path
) -> None:
    settings: dict[str, Any] = {"reward": "divergence", "checkpoint": checkpoint, "flow_steps": 3}
    ours = gym.make_vec(HOPPER, num_envs=3, **settings)
    theirs = gym.make_vec(
        HOPPER, num_envs=3, vectorization_mode="sync", states="dataset", **settings
    )
    assert np.array_equal(ours.reset(seed=0)[0], theirs.reset(seed=0)[0])
    for _ in range(7):
        actions = ours.action_space.sample()
        one, other = ours.step(actions), theirs.step(actions)
        for mine, yours in zip(one[:4], other[:4], strict=True):
            np.testing.assert_allclose(mine, yours, rtol=1e-4, atol=1e-4)


def test_noise_scale_by_id(hopper_data: Path) -> None:
    """One environment or many, the noise is the same draw, scaled."""
    vector: list[dict[str, Any]] = [{}, {"vectorization_mode": "sync"}]
    makers: list[Any] = [partial(gym.make, HOPPER)]
    makers += [partial(gym.make_vec, HOPPER, num_envs=2, **more) for more in vector]
    for make in makers:
        scaled, whole = make(noise_scale=0.5).reset(seed=0)[0], make().reset(seed=0)[0]
        assert np.array_equal(scaled[..., 11:14], np.float32(0.5) * whole[..., 11:14])
        assert np.abs(scaled[..., 11:14]).min() > 0


def test_an_agents_settings_make_its_environment_again(tmp_path: Path) -> None:
    """Loading refuses an environment that differs in any of them."""
    env = gym.make(HOPPER, noise_scale=0.3, velocity_scale=5.0, include_previous_action=True)
    agent = FlowBC("MlpPolicy", env, **SMALL)
    agent.save(tmp_path / "agent.zip")
    env = gym.make(HOPPER, **agent.spec.settings)
    assert FlowBC.load(tmp_path / "agent.zip", env=env, device="cpu").spec == agent.spec
    env = gym.make(HOPPER, **{**agent.spec.settings, "noise_scale": 1.0})
    with pytest.raises(CheckpointError, match=r"noise_scale is 0\.3 there and 1\.0 here"):
        FlowBC.load(tmp_path / "agent.zip", env=env, device="cpu")


def test_an_agent_makes_its_environment_from_an_id() -> None:
    """With the settings that go with its defaults; one that is given stays as it is."""
    assert DFDiv("MlpPolicy", HOPPER, **SMALL).spec.noise_scale == 0.3
    assert DFDiv("MlpPolicy", gym.make(HOPPER), **SMALL).spec.noise_scale == 1.0
    assert FlowBC("MlpPolicy", HOPPER, **SMALL).spec.noise_scale == 1.0
    with pytest.raises(ConfigurationError, match="flow environment"):
        DFDiv("MlpPolicy", "Pendulum-v1", **SMALL)


def test_latent_noise_by_id(checkpoint: str) -> None:
    env = gym.make(HOPPER, decision="noise", noise_bound=2.0, checkpoint=checkpoint)
    assert isinstance(env.unwrapped, LatentNoiseEnv) and env.unwrapped.noise_bound == 2.0
    observation, _ = env.reset(seed=0)
    assert observation.shape == (11,)
    *_, info = env.step(env.action_space.sample())
    assert "executed_action" in info and "outer_reward" in info


def test_errors(checkpoint: str, tmp_path: Path) -> None:
    env = gym.make(HOPPER)
    FlowBC("MlpPolicy", env, **SMALL).save(tmp_path / "clone.zip")
    with pytest.raises(ConfigurationError, match="needs a critic"):
        gym.make(HOPPER, reward="direction", checkpoint=str(tmp_path / "clone.zip"))
    gym.make(HOPPER, action_mode="residual", checkpoint=str(tmp_path / "clone.zip"))
    with pytest.raises(CheckpointError):
        gym.make(HOPPER, reward="direction", checkpoint=str(tmp_path / "none.zip"))
    cheetah = str(tmp_path / "cheetah.zip")  # has the sizes of the walker
    DFDiv("MlpPolicy", gym.make("FlowMDP-halfcheetah-medium-v0"), **SMALL).save(cheetah)
    for path, trained_on in ((checkpoint, "hopper-medium"), (cheetah, "halfcheetah-medium")):
        with pytest.raises(CheckpointError, match=f"{path} was trained on {trained_on}") as caught:
            gym.make("FlowMDP-walker2d-medium-v0", reward="divergence", checkpoint=path)
        assert "flowmdp train df-div walker2d-medium" in str(caught.value)
    gym.make("FlowMDP-hopper-expert-v0", reward="divergence", checkpoint=checkpoint)
    with pytest.raises(ConfigurationError, match="action_mode='residual'"):
        gym.make(HOPPER, decision="noise", action_mode="velocity", checkpoint=checkpoint)
    previous = gym.make(HOPPER, include_previous_action=True)
    DFDiv("MlpPolicy", previous, **SMALL).save(tmp_path / "previous.zip")
    with pytest.raises(CheckpointError, match="previous action"):
        load_models(tmp_path / "previous.zip")
    IQL("MlpPolicy", gym.make(HOPPER, flow_steps=1), **SMALL).save(tmp_path / "iql.zip")
    with pytest.raises(CheckpointError, match="no flow of many steps"):
        load_models(tmp_path / "iql.zip")


def test_a_task_without_shipped_models_says_what_to_run() -> None:
    assert pretrained_path("walker2d-medium") is None
    with pytest.raises(FlowMDPError, match="flowmdp train df-div walker2d-medium"):
        gym.make("FlowMDP-walker2d-medium-v0", reward="divergence")


def test_steering_example(checkpoint: str, hopper_data: Path) -> None:
    config = steer_flow.Config(Path(checkpoint), steps=70, chains=2, rollout=32, episodes=1)
    assert len(steer_flow.main(config)) == 3


def test_sac_on_the_noise_of_a_live_robot(checkpoint: str) -> None:
    """Unchanged, by id; that it learns is shown on a toy."""
    env = gym.make(HOPPER, decision="noise", checkpoint=checkpoint)
    SAC("MlpPolicy", env, learning_starts=20, **SMALL).learn(30)


def test_models_of_another_chunk_are_refused(checkpoint: str) -> None:
    with pytest.raises(CheckpointError, match="plans 1 actions at once, this environment 4"):
        gym.make(HOPPER, reward="direction", checkpoint=checkpoint, chunk=4)
