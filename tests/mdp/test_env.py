"""The flow environment: its contract, its equality with the mathematics, its refusals."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray
from stable_baselines3.common.env_checker import check_env as check_sb3_env

import flowmdp
from flowmdp.checks import check_flow_env
from flowmdp.env import FlowMDPEnv
from flowmdp.envs.tasks import TASKS
from flowmdp.errors import UnknownTaskError
from flowmdp.mdp.solver import integrate
from flowmdp.mdp.spec import VELOCITY_SCALE
from flowmdp.mdp.transition import flow_step
from tests.mdp.toys import GoalRobot, PointRobot, behavior, critic, make_toy, toy_dataset

IDS = sorted(name for name in gym.registry if name.startswith("FlowMDP-"))
QUICK = ("cube-single-play-sparse-task1", "pointmaze-medium-navigate")
SLOW = {f"FlowMDP-{row.name}-v0" for row in TASKS.values() if row.ogbench and row.name not in QUICK}


def play_chain(
    env: gym.Env[Any, Any], action: NDArray[np.float32]
) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
    """The same action at every step of one chain; the last step's result, rewards summed."""
    total = 0.0
    for _ in range(env.get_wrapper_attr("flow_steps")):
        observation, reward, terminated, truncated, info = env.step(action)
        total += float(reward)
    return observation, total, terminated, truncated, info


# -- contract ---------------------------------------------------------------------------------


def test_every_task_is_registered() -> None:
    assert {"FlowMDP-v0", *(f"FlowMDP-{name}-v0" for name in TASKS)} == set(IDS)
    flowmdp.register_envs()  # a second time changes nothing


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in IDS]
)
def test_contract_of_every_id(name: str) -> None:
    robot: dict[str, Any] = {"env_id": "Pendulum-v1"} if name == "FlowMDP-v0" else {}
    try:
        env = gym.make(name, **robot)
    except UnknownTaskError as error:  # its robot comes with an extra
        pytest.skip(str(error))
    check_flow_env(env)
    env.close()


def test_check_env_warns_of_nothing_else() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_sb3_env(gym.make("FlowMDP-hopper-medium-v0").unwrapped)


@pytest.mark.parametrize("reward", ["return", "direction", "divergence"])
@pytest.mark.parametrize("include_previous_action", [False, True])
def test_contract_of_rewards_and_layouts(reward: str, include_previous_action: bool) -> None:
    env = make_toy(
        reward=reward, include_time=False, include_previous_action=include_previous_action
    )
    check_flow_env(env)


@pytest.mark.parametrize("reward", ["direction", "divergence", "data"])
def test_contract_on_dataset_states(reward: str) -> None:
    check_flow_env(make_toy(reward=reward, states="dataset", include_previous_action=True))


@pytest.mark.parametrize(
    "arguments", [{"action_mode": "residual"}, {"noise_std": 0.3}, {"flow_steps": 1}]
)
def test_contract_of_action_modes_and_noise(arguments: dict[str, Any]) -> None:
    check_flow_env(make_toy(**arguments))


def test_checker_finds_a_wrong_step() -> None:
    """Negative control: an environment that moves by twice the velocity does not pass."""

    class TwiceAsFast(FlowMDPEnv):
        def step(self, action: Any) -> Any:
            return super().step(2 * action)

    with pytest.raises(AssertionError, match="did not move by velocity"):
        check_flow_env(TwiceAsFast(PointRobot()))


def test_unversioned_id_and_module_prefix() -> None:
    with pytest.warns(UserWarning, match="latest versioned"):
        assert gym.make("FlowMDP-hopper-medium").spec is not None
    env = gym.make("flowmdp:FlowMDP-hopper-medium-v0", flow_steps=3)
    assert env.get_wrapper_attr("flow_steps") == 3
    assert env.spec is not None and '"flow_steps": 3' in env.spec.to_json()
    assert not hasattr(env.unwrapped, "compute_reward") and "torch" not in env.metadata


def test_dict_observations_are_strung_together() -> None:
    """As of PointMaze: the parts in the order of the Dict, which sorts its keys."""
    outer = GoalRobot()
    env = FlowMDPEnv(outer, flow_steps=2)
    check_flow_env(env)
    observation, _ = env.reset(seed=0)
    assert env.outer_observation_space.shape == (6,)
    position = outer.get_wrapper_attr("position")
    parts = [position, outer.goal, position]  # achieved, desired, observation
    assert np.array_equal(observation[:6], np.concatenate(parts).astype(np.float32))
    observation, *_ = play_chain(env, np.array([0.1, 0.2], np.float32))
    position = outer.get_wrapper_attr("position")
    assert np.array_equal(observation[4:6], position.astype(np.float32))


# -- equality with the mathematics ------------------------------------------------------------


@pytest.mark.parametrize("flow_steps", [1, 5, 10])
def test_chains_equal_integrate_and_hopper(flow_steps: int) -> None:
    """Bit for bit: chains of random velocities against the solver and the bare robot."""
    bare = gym.make("Hopper-v5")
    env = FlowMDPEnv(gym.make("Hopper-v5"), flow_steps=flow_steps)
    rng = np.random.default_rng(flow_steps)
    for episode in range(3):
        observation, _ = env.reset(seed=episode)
        outer_seed = int(np.random.default_rng(episode).integers(2**31))
        state, _ = bare.reset(seed=outer_seed)
        ended = False
        while not ended:
            assert np.array_equal(observation[:11], state.astype(np.float32))
            x_0 = observation[11:14]
            actions = rng.uniform(-0.3, 0.3, (flow_steps, 3)).astype(np.float32)
            steps = iter(actions)
            x_1 = integrate(lambda x, t: VELOCITY_SCALE * next(steps), x_0, flow_steps)  # noqa: B023
            state, outer_reward, terminated, truncated, _ = bare.step(np.clip(x_1, -1, 1))
            rewards = []
            for action in actions:
                observation, reward, *ends, info = env.step(action)
                rewards.append(reward)
            assert np.array_equal(info["executed_action"], np.clip(x_1, -1, 1))
            assert rewards == [0.0] * (flow_steps - 1) + [outer_reward]
            assert ends == [terminated, truncated]
            ended = terminated or truncated
        assert np.array_equal(observation[:11], state.astype(np.float32))


@pytest.mark.parametrize("noise_scale", [0.0, 0.3])
def test_noise_scale_scales_what_chains_start_from(noise_scale: float) -> None:
    env, whole = make_toy(noise_scale=noise_scale), make_toy()
    for chain in range(3):
        observation, full = (
            (one.reset(seed=1)[0] if chain == 0 else play_chain(one, np.zeros(2, np.float32))[0])
            for one in (env, whole)
        )
        assert np.array_equal(observation[2:4], np.float32(noise_scale) * full[2:4])
    given = np.array([0.5, -0.5], np.float32)
    observation, _ = env.reset(options={"noise": given})
    assert np.array_equal(observation[2:4], given)


def test_rewards_sum_to_the_outer_return() -> None:
    env = make_toy()
    env.reset(seed=0)
    total, outer_return, ended = 0.0, 0.0, False
    while not ended:
        _, reward, terminated, truncated, info = env.step(env.action_space.sample())
        ended = terminated or truncated
        total += reward
        outer_return += info.get("outer_reward", 0.0)
    assert total == pytest.approx(outer_return) and outer_return != 0


def test_divergence_reward_is_what_the_formula_says() -> None:
    env = make_toy(reward="divergence", rho=0.5, flow_steps=4)
    observation, _ = env.reset(seed=3)
    state, x_t, action = observation[:2], observation[2:4], np.array([0.1, -0.1], np.float32)
    expected, velocity = 0.0, np.float32(VELOCITY_SCALE) * action
    for k in range(4):
        reference = behavior(state, x_t, np.full(1, k / 4, np.float32))
        expected -= 0.5 / 4 * float(np.square(velocity - reference).sum())
        x_t = flow_step(x_t, velocity, 4)
    expected += float(critic(state, np.clip(x_t, -1, 1)))
    _, total, _, _, info = play_chain(env, action)
    assert total == pytest.approx(expected, rel=1e-5)
    assert {"reward_divergence", "reward_value"} <= info.keys()


def test_data_reward_is_zero_on_the_way_to_the_dataset_action() -> None:
    data = toy_dataset()
    env = make_toy(reward="data", states="dataset", dataset=data)
    observation, _ = env.reset(seed=0)
    index = int(np.flatnonzero((data.observations == observation[:2]).all(1))[0])
    action = (data.actions[index] - observation[2:4]) / np.float32(VELOCITY_SCALE)
    last, total, terminated, _, info = play_chain(env, action)
    assert total == pytest.approx(0, abs=1e-8) and terminated
    assert info["executed_action"] == pytest.approx(data.actions[index], abs=1e-5)
    assert last[-1] == 1.0


def test_residual_of_zero_is_the_behaviour() -> None:
    env = make_toy(action_mode="residual", flow_steps=5)
    assert env.flow_spec.velocity_scale == 1
    observation, _ = env.reset(seed=0)
    state, x_0 = observation[None, :2], observation[None, 2:4]
    x_1 = integrate(lambda x, t: behavior(state, x, np.full((1, 1), t, np.float32)), x_0, 5)
    *_, info = play_chain(env, np.zeros(2, np.float32))
    assert np.array_equal(info["executed_action"], np.clip(x_1[0], -1, 1))
    env.reset(seed=0)
    *_, shifted = play_chain(env, np.full(2, 0.01, np.float32))
    assert not np.array_equal(shifted["executed_action"], info["executed_action"])


def test_noise_has_the_stated_variance_and_density() -> None:
    """Standard deviation noise_std over a chain; log_density of a step from its own formula."""
    env = make_toy(noise_std=0.3, flow_steps=4, states="dataset", reward="direction")
    zero, ends = np.zeros(2, np.float32), []
    for seed in range(400):
        before, _ = env.reset(seed=seed, options={"noise": zero})
        for _ in range(4):
            after, *_, info = env.step(zero)
            error = (after[2:4] - before[2:4]) / (0.3 / 2)
            expected = -0.5 * np.square(error).sum() - 2 * np.log(0.3 / 2) - np.log(2 * np.pi)
            assert info["log_density"] == pytest.approx(expected, rel=1e-4)
            before = after
        ends.append(after[2:4])
    assert np.std(ends) == pytest.approx(0.3, rel=0.1)


def test_previous_action_is_the_executed_one() -> None:
    env = make_toy(include_previous_action=True)
    observation, _ = env.reset(seed=0)
    assert np.array_equal(observation[-3:], [0, 0, 0])
    observation, *_, info = play_chain(env, np.array([0.05, 0.3], np.float32))
    assert np.array_equal(observation[-3:-1], info["executed_action"]) and observation[-1] == 1


def test_clipped_fraction_counts_components_at_the_bounds() -> None:
    env = make_toy(flow_steps=2)
    env.reset(seed=0)
    env.step(np.array([3.0, 0.5], np.float32))
    *_, info = env.step(np.array([1.0, -1.0], np.float32))
    assert info["clipped_fraction"] == 0.75


def test_velocity_scale_clips_less_than_one_step_in_a_million() -> None:
    """The tail of the Gaussian for the worst data: actions on the bounds, 50 dimensions."""
    from math import erfc, sqrt

    def tail(scale: float) -> float:
        return 50 * erfc((scale - 1) / sqrt(2)) / 2

    assert tail(VELOCITY_SCALE) < 1e-6 < tail(VELOCITY_SCALE - 0.5)


# -- seeds, options, rendering ----------------------------------------------------------------


@pytest.mark.parametrize("states", ["env", "dataset"])
def test_seeding(states: str) -> None:
    reward = "return" if states == "env" else "direction"
    one, two = (make_toy(states=states, reward=reward) for _ in range(2))
    first, _ = one.reset(seed=5)
    assert np.array_equal(first, two.reset(seed=5)[0])
    assert not np.array_equal(first, two.reset(seed=6)[0])
    two.reset(seed=5)
    assert np.array_equal(one.reset()[0], two.reset()[0])  # the generators go on together


def test_outer_is_seeded_once_without_a_seed() -> None:
    env = make_toy()
    _, info = env.reset()
    assert isinstance(info["outer_info"]["seed"], int)
    _, info = env.reset()
    assert info["outer_info"]["seed"] is None


def test_reset_options() -> None:
    noise, state = np.array([1.5, -2.0]), np.array([0.3, 0.4])
    env = make_toy(states="dataset", reward="direction")
    observation, _ = env.reset(options={"state": state, "noise": noise})
    assert observation == pytest.approx([0.3, 0.4, 1.5, -2.0, 0.0])
    _, info = make_toy().reset(options={"noise": noise, "goal": 1})
    assert info["outer_info"]["options"] == {"goal": 1}


def test_dataset_is_loaded_late_and_once() -> None:
    loads = []

    def load() -> Any:
        loads.append(1)
        return toy_dataset()

    env = make_toy(dataset=load)
    env.reset(seed=0)
    assert loads == []
    assert env.dataset is env.dataset and loads == [1]


def test_render_draws_one_picture_per_outer_step() -> None:
    robot = PointRobot(render_mode="rgb_array")
    env = FlowMDPEnv(robot, flow_steps=4)
    assert env.render_mode == "rgb_array" and env.metadata["render_fps"] == 20
    env.reset(seed=0)
    frames = [env.render()]
    for _ in range(12):
        env.step(np.zeros(2, np.float32))
        frames.append(env.render())
    assert len({id(frame) for frame in frames}) == robot.frames == 4
    assert [int(frame[0, 0, 0]) for frame in frames] == [0] * 4 + [1] * 4 + [2] * 4 + [3]
    with pytest.raises(ValueError, match="read-only"):
        frames[0][0] = 1
    env.close()


def test_frame_list_has_one_frame_per_outer_step() -> None:
    robot = PointRobot(render_mode="rgb_array")
    env = FlowMDPEnv(gym.wrappers.RenderCollection(robot), flow_steps=4)
    assert env.render_mode == "rgb_array_list"
    env.reset(seed=0)
    for _ in range(12):
        env.step(np.zeros(2, np.float32))
    assert [int(frame[0, 0, 0]) for frame in env.render()] == [0, 1, 2, 3]
