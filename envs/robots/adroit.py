"""The Adroit hand as D4RL defined its tasks, on any release of gymnasium-robotics.

D4RL (Fu et al. 2020) rewards the palm for being near the object, -0.1 ||palm - object||, and ends
an episode of Pen when the pen is dropped. Gymnasium-robotics 1.2.1 to 1.4.2 turned the sign of that
term in Door, Hammer and Relocate, and its Pen goes on after a drop. The wrappers here restore both,
in the environment and in recorded transitions. They look at what an environment does and at a
dataset's own rewards, not at versions: releases of both kinds recorded under the same ids. Where
all is right they change nothing. The horizons (100 for Pen, 200 else) stand in the table of tasks.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from flowmdp.errors import UnknownTaskError
from flowmdp.transitions import WIDTHS, TransitionDataset

HAND_WEIGHT = 0.1
"""Weight of the distance from palm to object (D4RL, hand_manipulation_suite)."""

DROPPED = 0.075
"""Height in metres below which the pen counts as dropped (D4RL, pen_v0.py)."""


class _D4RLHand(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Steps the environment once to see what it does, then leaves it as if new.

    Attributes:
        deviates: Whether the environment below does otherwise than D4RL's.
    """

    TARGET: ClassVar[str] = "body Object"
    """What the hand is to reach: `site` or `body`, and its name in the model."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        bare: Any = env.unwrapped
        kind, name = self.TARGET.split()
        self._bare, self._target = bare, getattr(bare.data, kind)(name)
        bare.reset(seed=0)
        self.deviates = self._probe(np.zeros(bare.action_space.shape, np.float32))
        bare._np_random = None  # probing must not seed it

    @abstractmethod
    def _probe(self, action: NDArray[np.float32]) -> bool:
        """Whether the environment, just reset, answers that action otherwise than D4RL's."""


class _HandReward(_D4RLHand):
    """Gives the hand-to-object term D4RL's sign.

    Raises:
        UnknownTaskError: When the environment's reward has the term with neither sign.
    """

    def _probe(self, action: NDArray[np.float32]) -> bool:
        _, reward, *_ = self._bare.step(action)
        hand = float(reward) - self.other_terms(self._bare.data)
        expected = -HAND_WEIGHT * self.distance()
        if abs(abs(hand) + expected) > 1e-6:
            raise UnknownTaskError(
                f"{self.env} rewards the hand by {hand:.4g} where D4RL's definition says "
                f"{expected:.4g}: install a release of gymnasium-robotics that flowmdp knows (1.4)"
            )
        return hand > 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The environment's step, with D4RL's reward."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        turned = 2 * HAND_WEIGHT * self.distance() if self.deviates else 0.0
        return observation, float(reward) - turned, terminated, truncated, info

    def distance(self) -> float:
        """From the palm to its target, metres."""
        return float(np.linalg.norm(self._bare.data.site("S_grasp").xpos - self._target.xpos))

    @abstractmethod
    def other_terms(self, data: Any) -> float:
        """D4RL's reward without the hand-to-object term, at the first step of an episode."""

    @abstractmethod
    def recorded_terms(self, data: TransitionDataset) -> tuple[NDArray[Any], ...]:
        """Palm to object after each step, D4RL's other terms, and whether those are known."""

    def relabel(self, data: TransitionDataset) -> tuple[TransitionDataset, str]:
        """The transitions with D4RL's rewards, and a note where they were recorded otherwise."""
        distance, others, known = self.recorded_terms(data)
        weight = np.median((data.rewards - others)[known] / distance[known]) if known.any() else 0.0
        if not HAND_WEIGHT / 2 < abs(weight) < HAND_WEIGHT * 2:
            cause = "the sign of its hand-to-object reward cannot be told"
            return data, f"{cause}: rewards stay as recorded"
        if weight < 0:
            return data, ""
        rewards = (data.rewards - 2 * HAND_WEIGHT * distance).astype(np.float32)
        note = "its hand-to-object reward had the other sign: D4RL's is restored"
        return dataclasses.replace(data, rewards=rewards, check=False), note


class D4RLDoor(_HandReward):
    """Door: -0.1 ||palm - handle|| and terms for the hinge's angle and for velocities."""

    TARGET = "site S_handle"

    def other_terms(self, data: Any) -> float:
        """-0.1 (hinge - 1.57)^2 - 1e-5 ||qvel||^2; the hinge is still shut, so no bonus."""
        hinge = float(data.joint("door_hinge").qpos[0])
        return -0.1 * (hinge - 1.57) ** 2 - 1e-5 * float(np.square(data.qvel).sum())

    def recorded_terms(self, data: TransitionDataset) -> tuple[NDArray[Any], ...]:
        """Hinge angle and palm - handle are in the observation, only velocities are not."""
        hinge, hand = data.next_observations[:, 28], data.next_observations[:, 35:38]
        bonus = 2 * (hinge > 0.2) + 8 * (hinge > 1) + 10 * (hinge > 1.35)
        others = -0.1 * np.square(hinge - 1.57) + bonus
        return np.linalg.norm(hand, axis=1), others, np.ones(len(data), bool)


class D4RLHammer(_HandReward):
    """Hammer: -0.1 ||palm - hammer|| and terms for tool, nail and velocities."""

    def other_terms(self, data: Any) -> float:
        """-||tool - nail|| - 10 ||nail - goal|| - 0.01 ||qvel||; the hammer lies: no bonus."""
        nail = data.site("S_target").xpos
        tool = float(np.linalg.norm(data.site("tool").xpos - nail))
        depth = float(np.linalg.norm(nail - data.site("nail_goal").xpos))
        return -tool - 10 * depth - 1e-2 * float(np.linalg.norm(data.qvel))

    def recorded_terms(self, data: TransitionDataset) -> tuple[NDArray[Any], ...]:
        """Known while the hammer lies where it began and the hand is slow.

        Velocities come from the joints before and after; a fast hand's cost drowns the term.
        """
        self.reset(seed=0)
        site, lying = self._bare.data.site, self._target.xpos
        tool = site("tool").xpos
        depth = np.linalg.norm(site("S_target").xpos - site("nail_goal").xpos)
        after = data.next_observations
        palm, hammer, nail = after[:, 33:36], after[:, 36:39], after[:, 42:45]
        moved = np.zeros_like(after[:, :27])
        moved[:-1] = after[1:, :27] - data.observations[:-1, :27]
        speed = np.linalg.norm(moved, axis=1) / (2 * self._bare.dt)
        others = -np.linalg.norm(tool - nail, axis=1) - 10 * depth - 0.01 * speed
        known = ~np.append(data.starts[1:], True)
        known &= speed < 5.0  # rad/s: an error of a tenth does no harm
        known &= np.linalg.norm(hammer - lying, axis=1) < 0.01  # m: where episodes begin
        return np.linalg.norm(palm - hammer, axis=1), others, known


class D4RLRelocate(_HandReward):
    """Relocate: -0.1 ||palm - ball|| and terms that begin when the ball is lifted."""

    def other_terms(self, data: Any) -> float:
        """Nothing while the ball lies on the table."""
        return 0.0

    def recorded_terms(self, data: TransitionDataset) -> tuple[NDArray[Any], ...]:
        """While the ball lies on the table the reward is the hand-to-object term alone."""
        distance = np.linalg.norm(data.next_observations[:, 30:33], axis=1)
        known = np.isclose(np.abs(data.rewards), HAND_WEIGHT * distance, rtol=0, atol=1e-4)
        return distance, np.zeros(len(data)), known


class D4RLPen(_D4RLHand):
    """Pen: the episode terminates when the pen is dropped."""

    def _probe(self, action: NDArray[np.float32]) -> bool:
        state = self._bare.get_env_state()
        for name in ("OBJTx", "OBJTy", "OBJTz"):  # a metre down, along slides that stand askew
            joint = self._bare.data.joint(name)
            state["qpos"][self._bare.model.joint(name).qposadr[0]] -= joint.xaxis[2]
        self._bare.set_env_state(state)
        _, _, terminated, *_ = self._bare.step(action)
        assert self._target.xpos[2] < DROPPED, "the probe did not bring the pen down"
        return not terminated

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The environment's step, with D4RL's end."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        dropped = self.deviates and bool(self._target.xpos[2] < DROPPED)
        return observation, float(reward), bool(terminated) or dropped, truncated, info

    def relabel(self, data: TransitionDataset) -> tuple[TransitionDataset, str]:
        """The transitions without those after a drop, and a note where there were any."""
        dropped = data.next_observations[:, 26] < DROPPED
        earlier: NDArray[np.int64] = np.cumsum(dropped) - dropped
        kept: NDArray[np.bool_] = (
            earlier == earlier[data.episode_starts][np.cumsum(data.starts) - 1]
        )
        ends = dropped & kept & ~data.terminations
        if not ends.any():
            return data, ""
        arrays = {name: getattr(data, name)[kept] for name in WIDTHS}
        arrays["terminations"] |= dropped[kept]
        arrays["truncations"] &= ~arrays["terminations"]
        note = (
            f"it goes on after dropping the pen in {ends.sum():,} of {data.starts.sum():,} "
            f"episodes: they end there as D4RL's do, {(~kept).sum():,} later steps are left out"
        )
        return dataclasses.replace(data, **arrays, check=False), note
