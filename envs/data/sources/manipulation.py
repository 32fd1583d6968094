"""OGBench's scripted experts: the behaviour behind the builtin data of its manipulation tasks.

The recipe is that of OGBench's own generator (Park et al. 2025, arXiv:2410.20092; the experts and
the scenes are the installed package's). `play`: an expert follows a noisy plan to one random target
after the other. `noisy`: an expert without memory acts, with Gaussian noise on top, and with some
probability the action is uniform.

Episode i depends on the seed and on i alone. The simulation is the package's own, step for step;
only what nobody looks at is left out: colours, and observing one state three times.
"""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from flowmdp.envs.data.sources.collect import Episode

TRANSITIONS = 1000
"""Of an episode: OGBench's have 1,001 rows, of which the last leads nowhere."""

P_STACK = {"cube-single": [0.0, 0.0], "cube-double": [0.0, 0.25], "cube-triple": [0.05, 0.35]}
"""Scene -> range of the chance, drawn per episode, that a cube goes onto another."""

NUMBERS: dict[str, dict[str, Any]] = {
    "play": {"noise": 0.1, "noise_smoothing": 0.5},
    "noisy": {"min_norm": 0.4, "action_noise": 0.1, "scales": [1, 1, 1, 3, 10]},
}
"""Kind -> what its experts, or their noise, are made with."""


def published_episodes(name: str) -> int:
    """Episodes of OGBench's own dataset `scene-play`."""
    return 3000 if name.startswith("cube-triple") else 1000


def expert_recipe(name: str) -> dict[str, Any]:
    """All numbers that decide what the experts of `scene-play` do, for a dataset's metadata."""
    scene, _, kind = name.rpartition("-")
    random_actions = 0.0 if kind == "play" else 0.2 if scene.startswith("puzzle") else 0.1
    recipe = {"scene": scene, "kind": kind, "transitions": TRANSITIONS, **NUMBERS[kind]}
    return recipe | {"random_actions": random_actions, "p_stack": P_STACK.get(scene, [0.5, 0.5])}


class _Lean:
    """Mixed into a scene: it looks at each state once, colours nothing, and forgets its targets."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        own = ("_target_", "_cur_button_states")
        kept = {name: value for name, value in vars(self).items() if name.startswith(own)}
        self._first = copy.deepcopy(kept)
        self._told: dict[str, Any] | None = None
        self._buttons: bytes | None = None

    def post_compilation(self) -> None:
        super().post_compilation()  # type: ignore[misc]
        scene: Any = self
        self._sites = scene._model.site_pos.copy()
        for name in vars(self):
            if name.endswith("_geom_ids_list"):  # what would be coloured
                setattr(self, name, [[] for _ in getattr(self, name)])

    def reset(self, **kwargs: Any) -> Any:
        """As of a scene that was just made: an episode owes nothing to the one before."""
        scene: Any = self
        vars(self).update(copy.deepcopy(self._first))
        if scene._model is not None:
            scene._model.site_pos[:] = self._sites
        self._told = self._buttons = None
        return super().reset(**kwargs)  # type: ignore[misc]

    def post_step(self) -> None:
        self._told = None
        super().post_step()  # type: ignore[misc]

    def set_new_target(self, *args: Any, **kwargs: Any) -> Any:
        self._told = None
        return super().set_new_target(*args, **kwargs)  # type: ignore[misc]

    def compute_ob_info(self) -> dict[str, Any]:
        if self._told is None:
            self._told = super().compute_ob_info()  # type: ignore[misc]
        return self._told

    def _apply_button_states(self) -> None:
        import mujoco

        scene: Any = self
        buttons = scene._cur_button_states.tobytes()
        if buttons == self._buttons:
            mujoco.mj_forward(scene._model, scene._data)
        else:
            super()._apply_button_states()  # type: ignore[misc]
            self._buttons = buttons


def make_scene(scene: str, lean: bool = True) -> Any:
    """OGBench's scene as its data was collected in; `lean` without what nobody looks at."""
    import ogbench.manipspace  # noqa: F401  (registers the scenes)
    from gymnasium.envs.registration import load_env_creator

    spec = gym.spec(f"{scene}-v0")
    assert isinstance(spec.entry_point, str)
    kind: Any = load_env_creator(spec.entry_point)
    if lean:
        kind = type("LeanScene", (_Lean, kind), {})
    with quiet():
        return kind(**spec.kwargs, terminate_at_goal=False, mode="data_collection")


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of a scene's parts, such as the lack of a display."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Experts:
    """A scene with its experts; `name` is as `scene-play`."""

    def __init__(self, name: str, lean: bool = True) -> None:
        with quiet():
            from ogbench.manipspace.oracles.markov import (
                button_markov,
                cube_markov,
                drawer_markov,
                window_markov,
            )
            from ogbench.manipspace.oracles.plan import (
                button_plan,
                cube_plan,
                drawer_plan,
                window_plan,
            )
        self.recipe = expert_recipe(name)
        self.env = make_scene(self.recipe["scene"], lean)
        puzzle = {"gripper_always_closed": True} if name.startswith("puzzle") else {}
        if self.recipe["kind"] == "play":
            given = {"env": self.env, **NUMBERS["play"]}
            self.experts = {
                "cube": cube_plan.CubePlanOracle(**given),
                "button": button_plan.ButtonPlanOracle(**given, **puzzle),
                "drawer": drawer_plan.DrawerPlanOracle(**given),
                "window": window_plan.WindowPlanOracle(**given),
            }
        else:
            given = {"env": self.env, "min_norm": NUMBERS["noisy"]["min_norm"]}
            sooner = {"max_step": 100} if name.startswith("scene") else {}
            self.experts = {
                "cube": cube_markov.CubeMarkovOracle(**given, **sooner),
                "button": button_markov.ButtonMarkovOracle(**given, **puzzle),
                "drawer": drawer_markov.DrawerMarkovOracle(**given),
                "window": window_markov.WindowMarkovOracle(**given),
            }

    def record(self, seed: int, index: int, transitions: int) -> Episode:
        """Episode `index`; again from another start while a cube got lost in it."""
        before = np.random.get_state()  # noqa: NPY002  (the experts draw from NumPy's own)
        try:
            episodes = (self._attempt(seed, index, n, transitions) for n in itertools.count())
            return next(episode for episode in episodes if self._usable(episode))
        finally:
            np.random.set_state(before)  # noqa: NPY002

    def _attempt(self, seed: int, index: int, attempt: int, transitions: int) -> Episode:
        states = np.random.SeedSequence([seed, index, attempt]).generate_state(2)
        start = int(states[0])
        rng = np.random.default_rng([seed, index, attempt, 1])
        np.random.seed(states[1])  # noqa: NPY002
        observation, info = self.env.reset(seed=start)
        p_stack = rng.uniform(*self.recipe["p_stack"])
        random_actions = self.recipe["random_actions"]
        noisy = self.recipe["kind"] == "noisy"
        if noisy:
            scales = np.array(self.recipe["scales"]) * rng.uniform(0, self.recipe["action_noise"])
        expert = self.experts[info["privileged/target_task"]]
        expert.reset(observation, info)
        observations, states_, buttons = [observation], [info["qpos"]], [info.get("button_states")]
        actions = np.empty((transitions, 5), np.float32)
        for n in range(transitions):
            if random_actions and rng.uniform() < random_actions:
                action = rng.uniform(-1, 1, 5)
            else:
                action = expert.select_action(observation, info)
                if noisy:
                    action = action + scales * rng.standard_normal(5)
            actions[n] = np.clip(action, -1, 1)
            observation, _, _, _, info = self.env.step(actions[n])
            if expert.done:
                target, told = self.env.set_new_target(p_stack=p_stack)
                expert = self.experts[told["privileged/target_task"]]
                expert.reset(target, told)
            observations.append(observation)
            states_.append(info["qpos"])
            buttons.append(info.get("button_states"))
        infos = {"qpos": np.array(states_, np.float32)}
        if buttons[0] is not None:
            infos["button_states"] = np.array(buttons, np.int64)
        return reward_free(np.array(observations, np.float32), actions, infos, start)

    def _usable(self, episode: Episode) -> bool:
        """Whether the scene's cube was always seen: neither far right nor left of the drawer."""
        if self.recipe["scene"] != "scene":
            return True
        y, z = episode.infos["qpos"][:, 15:17].T
        left = (y <= -0.3) & ((z < 0.06) | (z > 0.08))
        return not ((y >= 0.29) | left).any()


def reward_free(
    observations: NDArray[np.float32],
    actions: NDArray[np.float32],
    infos: dict[str, NDArray[Any]],
    seed: int | None = None,
) -> Episode:
    """A recording of no task: rewards are 0, and its end ends nothing."""
    n = len(actions)
    ends = np.arange(n) == n - 1
    return Episode(seed, observations, actions, np.zeros(n), np.zeros(n, np.bool_), ends, infos)


def serve() -> None:
    """The process beside: for every index on stdin an episode, pickled, on stdout."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a simulator prints
    name, seed, transitions = sys.argv[1:]
    experts = Experts(name)
    for line in sys.stdin:
        pickle.dump(experts.record(int(seed), int(line), int(transitions)), out)
        out.flush()
