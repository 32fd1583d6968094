"""OGBench's tasks: seeds, spaces, rewards as OGBench has them, one dataset for every goal."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray

from flowmdp.checks import check_flow_env
from flowmdp.envs.data import load_dataset, reached_goal
from flowmdp.envs.robots.outer import make_outer, make_robot
from flowmdp.envs.tasks import GOALS, SCENES, TASKS, families, get_task
from flowmdp.errors import DatasetError, RenderingError, UnknownTaskError
from flowmdp.transitions import WIDTHS, TransitionDataset
from tests.envs.ogbench_by_hand import roll_out, write_ogbench

pytest.importorskip("ogbench")
slow = pytest.mark.slow
plain = pytest.mark.filterwarnings("ignore:.*precision lowered")  # OGBench without our wrapper
ROBOTS = ["scene-play-sparse-task1", "pointmaze-teleport-navigate-task3"]
MANY = [f"{scene}-play" for scene in SCENES] + [name for name in families() if "navigate" in name]
ROLLED: dict[str, list[dict[str, Any]]] = {}


def some(quick: list[str], names: list[str]) -> list[Any]:
    """All names, those that are not quick in the slow tests only."""
    return [*quick, *(pytest.param(name, marks=slow) for name in names if name not in quick)]


def rolled(task: str) -> list[dict[str, Any]]:
    """What `roll_out` gives for the task, once."""
    if task not in ROLLED:
        ROLLED[task] = roll_out(task)
    return ROLLED[task]


def play(env: gym.Env[Any, Any], seed: int | None, actions: Any) -> NDArray[np.float32]:
    """All observations of one episode's beginning."""
    observations: list[Any] = [env.reset(seed=seed)[0]]
    observations += [env.step(action)[0] for action in actions]
    return np.stack(observations)


@pytest.mark.parametrize("task", some(ROBOTS, MANY))
def test_a_seed_decides_everything_and_numpys_own_generator_nothing(task: str) -> None:
    env = make_outer(task)
    actions = [env.action_space.sample() for _ in range(20)]
    np.random.seed(1)  # noqa: NPY002
    first = play(env, 5, actions)
    others = play(env, None, actions), play(env, None, actions)
    np.random.seed(2)  # noqa: NPY002
    before: Any = np.random.get_state()  # noqa: NPY002
    np.testing.assert_array_equal(play(env, 5, actions), first)
    after: Any = np.random.get_state()  # noqa: NPY002
    np.testing.assert_array_equal(after[1], before[1])
    assert after[2:] == before[2:]
    twin = make_outer(task)
    np.testing.assert_array_equal(play(twin, 5, actions), first)
    np.testing.assert_array_equal(play(twin, None, actions), others[0])
    assert (others[0][0] != others[1][0]).any() and (others[0][0] != first[0]).any()
    assert first.dtype == np.float32 and env.observation_space.contains(first[0])
    assert env.observation_space is env.observation_space  # no new one at every look
    env.close()
    twin.close()


@plain
@pytest.mark.parametrize("task", some(["puzzle-3x3-play-task2"], MANY))
def test_the_episode_is_ogbenchs_own(task: str) -> None:
    row = get_task(task)
    ours, theirs = make_outer(task), gym.make(row.outer_env[row.source()], disable_env_checker=True)
    assert ours.spec and theirs.spec and ours.spec.id == theirs.spec.id
    assert ours.spec.max_episode_steps == theirs.spec.max_episode_steps == row.horizon
    ours.reset(seed=3)
    theirs.reset(seed=3)
    mine: Any = ours.unwrapped
    bare: Any = theirs.unwrapped
    assert mine._reward_task_id == bare._reward_task_id > 0
    if "maze" in task:  # OGBench draws the start from NumPy's global generator
        mine.set_xy(bare.get_xy())
    else:
        np.testing.assert_allclose(mine.data.qpos, bare.data.qpos, atol=1e-9)
    for _ in range(5):
        action = ours.action_space.sample()
        (_, *found, info), (_, *expected, original) = ours.step(action), theirs.step(action)
        assert found == expected and info["success"] == original["success"]
        assert set(info) == set(original)
    ours.close()
    theirs.close()


TASKS_OF_SCENES = [
    f"{scene}-play{reward}-task{goal}"
    for scene in SCENES
    for reward in ("", "-sparse")
    for goal in GOALS
]


@plain
@pytest.mark.parametrize(
    "task",
    some(["scene-play-task4", "puzzle-3x3-play-sparse-task5"], TASKS_OF_SCENES),
)
def test_rewards_are_those_of_the_environment_and_of_ogbenchs_function(task: str) -> None:
    from ogbench.relabel_utils import relabel_dataset

    episodes = rolled(task)
    write_ogbench("hand/ogbench-v0", task, episodes)
    data = load_dataset(task, dataset_id="hand/ogbench-v0")
    cut = {name: [episode[name][:-1] for episode in episodes] for name in episodes[0]}
    flat = {name: np.concatenate(parts) for name, parts in cut.items()}
    np.testing.assert_array_equal(data.rewards, flat["rewards"])
    np.testing.assert_array_equal(data.terminations, flat["terminations"])
    assert 0 < data.terminations.sum() < len(data)
    env = gym.make(get_task(task).outer_env["builtin"], disable_env_checker=True)
    relabel_dataset(get_task(task).outer_env["builtin"], env, flat)
    np.testing.assert_array_equal(data.masks, flat["masks"])
    if "sparse" in task:
        np.testing.assert_array_equal(data.rewards, -flat["masks"])
        assert set(data.rewards) == {-1, 0}
    else:
        np.testing.assert_array_equal(data.rewards, flat["rewards"])


def test_one_dataset_serves_every_goal_and_an_episode_ends_in_success() -> None:
    episodes = rolled("scene-play-task4")
    write_ogbench("hand/ogbench-v0", "scene-play", episodes)
    other = load_dataset("scene-noisy-task2", dataset_id="hand/ogbench-v0")
    assert not other.terminations.any() and reached_goal(other).tolist() == [False, False]
    data = load_dataset("scene-play-task4", source="ogbench", dataset_id="hand/ogbench-v0")
    ends = data.terminations | data.truncations
    np.testing.assert_array_equal(data.starts, np.append(True, ends[:-1]))
    assert ends[-1] and not (data.terminations & data.truncations).any()
    assert not data.previous_actions[data.starts].any()
    inside = np.flatnonzero(~data.starts)
    np.testing.assert_array_equal(data.previous_actions[inside], data.actions[inside - 1])
    TransitionDataset(**{name: getattr(data, name) for name in WIDTHS}, id="whole")
    assert reached_goal(data).tolist() == [True, True]
    half = [episodes[0], {**episodes[1], "qpos": episodes[1]["qpos"] + 1}]
    write_ogbench("hand/half-v0", "scene-play", half)
    part = load_dataset("scene-play-task4", dataset_id="hand/half-v0")
    assert reached_goal(part).tolist() == [True, False]


def test_data_of_another_scene_or_without_states_is_refused_in_one_line() -> None:
    episodes = rolled("scene-play-task4")
    write_ogbench("hand/ogbench-v0", "scene-play", episodes)
    with pytest.raises(DatasetError, match="was recorded on scene-v0, but task cube-single-play"):
        load_dataset("cube-single-play", dataset_id="hand/ogbench-v0")
    write_ogbench("hand/bare-v0", "scene-play", episodes, leave_out=("button_states",))
    with pytest.raises(DatasetError, match=r"has no button_states in its infos, .* 2 numbers"):
        load_dataset("scene-play", dataset_id="hand/bare-v0")
    short = [{**episode, "qpos": episode["qpos"][:, :-1]} for episode in episodes]
    write_ogbench("hand/short-v0", "scene-play", short)
    with pytest.raises(DatasetError, match=r"episode 0 .* has qpos of shape \(13, 24\)"):
        load_dataset("scene-play", dataset_id="hand/short-v0")
    with pytest.raises(DatasetError, match=r"flowmdp data import scene-noisy-v0.npz --task scene-"):
        load_dataset("scene-noisy-task1", source="ogbench")


@pytest.mark.parametrize(
    "name", ["scene-play-task6", "scene-play-task0", "scene-play-task", "scene-play-task-1"]
)
def test_a_goal_that_is_not_there(name: str) -> None:
    with pytest.raises(UnknownTaskError, match="scene-play has tasks 1 to 5"):
        get_task(name)


def test_every_name_is_there() -> None:
    goals = ["", *(f"-task{goal}" for goal in GOALS)]
    wanted = {
        f"{scene}-{kind}{reward}{goal}"
        for scene in SCENES
        for kind in ("play", "noisy")
        for reward in ("", "-sparse")
        for goal in goals
    }
    mazes = {
        f"{robot}-{maze}-navigate{goal}"
        for robot in ("pointmaze", "antmaze")
        for maze in ("medium", "large", "giant", "teleport")
        for goal in goals
    }
    found = {name for name, row in TASKS.items() if row.ogbench}
    assert found == wanted | mazes and len(found) == 192
    assert all(TASKS[name].success and TASKS[name].extra == "ogbench" for name in found)
    assert all(list(TASKS[name].outer_env) == ["ogbench"] for name in mazes)
    assert all(list(TASKS[name].datasets) == ["builtin", "ogbench"] for name in wanted)
    ids = {row.outer_env[row.source()] for row in TASKS.values() if row.ogbench}
    import ogbench  # noqa: F401

    assert ids <= set(gym.registry)


def test_flow_environment() -> None:
    env = gym.make("FlowMDP-puzzle-3x3-play-sparse-task1-v0")
    check_flow_env(env)
    env.close()


def test_pictures(gl: str) -> None:
    from flowmdp.runs.record import prepare_scene

    for task in ("cube-single-play", "antmaze-medium-navigate"):
        robot = make_robot(task, render_mode="rgb_array")
        prepare_scene(robot, 64, 48)
        robot.reset(seed=0)
        picture: Any = robot.render()
        assert picture.shape == (48, 64, 3) and picture.dtype == np.uint8 and picture.std() > 5
        assert robot.metadata["render_fps"] == (20 if "cube" in task else 10)
        robot.close()
    with pytest.raises(RenderingError):
        make_robot("cube-single-play", render_mode="human")
    assert make_robot("scene-play").render() is None
