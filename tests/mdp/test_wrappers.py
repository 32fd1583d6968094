"""Gymnasium's own wrappers on flow environments, and a script in CleanRL's style on an id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from imageio_ffmpeg import count_frames_and_secs

from flowmdp.env import FlowMDPEnv
from tests.mdp import cleanrl_ppo, cleanrl_sac
from tests.mdp.toys import GoalRobot, PointRobot, aim, make_toy, toy_dataset

ZERO = np.zeros(2, np.float32)


def play(env: gym.Env[Any, Any], steps: int) -> list[Any]:
    """Results of `steps` steps of action 0 after a reset; resets where an episode ends."""
    env.reset(seed=0)
    results = []
    for _ in range(steps):
        results.append(env.step(ZERO))
        if results[-1][2] or results[-1][3]:
            env.reset()
    return results


def test_record_episode_statistics() -> None:
    """The episode's return is the robot's, its length counts flow steps."""
    env = gym.wrappers.RecordEpisodeStatistics(make_toy(flow_steps=4))
    results = play(env, 80)
    episode = next(info["episode"] for *_, info in results if "episode" in info)
    length = int(episode["l"])
    outer = [info["outer_reward"] for *_, info in results[:length] if "outer_reward" in info]
    assert episode["r"] == pytest.approx(sum(outer)) and length == 4 * len(outer)


def test_time_limit() -> None:
    *others, last = play(gym.wrappers.TimeLimit(make_toy(), 7), 7)
    assert last[3] and not last[2] and not any(result[3] for result in others)


def test_normalize_observation() -> None:
    env = gym.wrappers.NormalizeObservation(make_toy())
    observations = np.stack([observation for observation, *_ in play(env, 2_000)])
    assert observations.mean(0) == pytest.approx(np.zeros(5), abs=0.3)
    assert observations.std(0) == pytest.approx(np.ones(5), abs=0.3)


def test_flatten_observation() -> None:
    """Flow observations are flat already, whatever the robot observes."""
    env = FlowMDPEnv(GoalRobot())
    flat = gym.wrappers.FlattenObservation(env)
    assert flat.observation_space == env.observation_space
    assert np.array_equal(flat.reset(seed=3)[0], env.reset(seed=3)[0])


def test_transform_reward() -> None:
    env = gym.wrappers.TransformReward(make_toy(), lambda reward: 2 * float(reward))
    *others, (_, reward, _, _, info) = play(env, 10)
    assert reward == 2 * info["outer_reward"] != 0 and not any(other[1] for other in others)


@pytest.mark.parametrize("mode", ["rgb_array", "rgb_array_list"])
def test_record_video(mode: str, tmp_path: Path) -> None:
    """Three actions of four flow steps are four pictures, the first before any action.

    "rgb_array": the recorder asks at every step and holds those four arrays, no copies of them.
    "rgb_array_list": it is given every picture once, so the film too has four, in real time.
    """
    robot: gym.Env[Any, Any] = PointRobot(render_mode="rgb_array")
    if mode == "rgb_array_list":  # what gymnasium.make does for this mode
        robot = gym.wrappers.RenderCollection(robot)
    flow = FlowMDPEnv(robot, flow_steps=4)
    env = gym.wrappers.RecordVideo(flow, str(tmp_path / "film"), disable_logger=True)
    env.reset(seed=0)
    if mode == "rgb_array_list":
        with pytest.warns(UserWarning, match="has just been called"):  # nothing new to record
            steps = [env.step(ZERO) for _ in range(12)]
    else:
        steps = [env.step(ZERO) for _ in range(12)]
    pictures = {id(frame): frame for frame in env.recorded_frames}
    assert [int(frame[0, 0, 0]) for frame in pictures.values()] == [0, 1, 2, 3]  # type: ignore[index,call-overload]
    assert len(steps) == 12 and env.frames_per_sec == 20
    env.close()
    frames, seconds = count_frames_and_secs(tmp_path / "film" / "rl-video-episode-0.mp4")
    assert frames == (4 if mode == "rgb_array_list" else 13)
    assert seconds == pytest.approx(frames / 20, abs=0.01)


def test_record_video_around_the_robot(tmp_path: Path) -> None:
    """There a step is an action: one frame each, and nothing to warn of."""
    robot = gym.wrappers.RecordVideo(
        PointRobot(render_mode="rgb_array"), str(tmp_path / "film"), disable_logger=True
    )
    env = FlowMDPEnv(robot, flow_steps=4)
    play(env, 12)
    env.close()
    frames, _ = count_frames_and_secs(tmp_path / "film" / "rl-video-episode-0.mp4")
    assert frames == 4


def test_record_video_of_hopper(gl: str, tmp_path: Path) -> None:
    """By id: ten flow steps are one more frame of the film, at the robot's own frame rate."""
    env = gym.make("FlowMDP-hopper-medium-v0", render_mode="rgb_array_list")
    film = gym.wrappers.RecordVideo(env, str(tmp_path / "film"), disable_logger=True)
    film.reset(seed=0)
    with pytest.warns(UserWarning, match="has just been called"):
        for _ in range(30):
            film.step(np.zeros(3, np.float32))
    film.close()
    frames, seconds = count_frames_and_secs(tmp_path / "film" / "rl-video-episode-0.mp4")
    assert frames == 4 and seconds == pytest.approx(4 / env.metadata["render_fps"], abs=0.01)


# -- a script in CleanRL's style ----------------------------------------------------------------


def test_cleanrl_script_needs_no_more_than_the_id() -> None:
    """Not even the import: the id names the module that registers it."""
    args = cleanrl_ppo.Args("flowmdp:FlowMDP-hopper-medium-v0", total_timesteps=1_024)
    returns = cleanrl_ppo.main(args)
    assert len(returns) > 2 and np.isfinite(returns).all()


def make_aim() -> FlowMDPEnv:
    """Chains of 2 flow steps from dataset states whose best action is (0.5, -0.5)."""
    return FlowMDPEnv(
        states="dataset",
        dataset=toy_dataset(),
        reward="direction",
        critic=aim,
        flow_steps=2,
        velocity_scale=3.0,
    )


SAC_ON_A_TOY = {
    **{"total_timesteps": 2_000, "learning_starts": 400, "learning_rate": 3e-3},
    **{"width": 64, "batch_size": 64, "target_entropy": -4.0},
}


@pytest.mark.parametrize(
    ("script", "settings"),
    [
        (cleanrl_ppo, {"total_timesteps": 20_000}),
        (cleanrl_sac, SAC_ON_A_TOY),
    ],
    ids=["ppo", "sac"],
)
def test_cleanrl_scripts_learn_a_toy(script: Any, settings: dict[str, Any]) -> None:
    """Value of the executed action: 0 is best; random flow actions earn less than -1.5."""
    toy = "FlowMDPToy-v0"
    gym.register(toy, "tests.mdp.test_wrappers:make_aim")
    try:
        returns = script.main(script.Args(toy, **settings))
    finally:
        del gym.registry[toy]
    assert np.mean(returns[:200]) < -1.0
    assert np.mean(returns[-200:]) > -0.4
