"""The Adroit hand as D4RL defined its tasks, on any release of gymnasium-robotics.

D4RL (Fu et al. 2020) rewards the palm for being near the object, -0.1 ||palm - object||, and ends
an episode of Pen when the pen is dropped. Gymnasium-robotics 1.2.1 to 1.4.2 turned the sign of that
term in Door, Hammer and Relocate, and its Pen goes on after a drop. The wrappers here restore both.
They look at what the environment does, not at its version, and change nothing where it is right.
The horizons (100 for Pen, 200 for the others) stand in the table of tasks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from flowmdp.errors import UnknownTaskError

HAND_WEIGHT = 0.1
"""Weight of the distance from palm to object (D4RL, hand_manipulation_suite)."""

DROPPED = 0.075
"""Height in metres below which the pen counts as dropped (D4RL, pen_v0.py)."""

TOLERANCE = 1e-6


class _HandReward(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Gives the hand-to-object term D4RL's sign.

    Attributes:
        flipped: Whether the environment below has the other sign, as its first step showed.

    Raises:
        UnknownTaskError: When the environment's reward has the term with neither sign.
    """

    TARGET: ClassVar[str]
    """What the palm is to reach: `site` or `body`, and its name in the model."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        bare: Any = env.unwrapped
        self._palm = bare.data.site("S_grasp")
        kind, name = self.TARGET.split()
        self._target = getattr(bare.data, kind)(name)
        with _own_randomness(bare):
            bare.reset(seed=0)
            _, reward, *_ = bare.step(np.zeros(bare.action_space.shape, np.float32))
        hand = float(reward) - self.other_terms(bare.data)
        expected = HAND_WEIGHT * self.distance()
        if min(abs(hand - expected), abs(hand + expected)) > TOLERANCE:
            raise UnknownTaskError(
                f"{env.spec.id if env.spec else env} rewards the hand by {hand:.4g} where D4RL's "
                f"definition says {-expected:.4g}: install a release of gymnasium-robotics that "
                "flowmdp knows (1.4)"
            )
        self.flipped = abs(hand - expected) < abs(hand + expected)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The environment's step, with D4RL's reward."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        reward = float(reward)
        if self.flipped:
            reward -= 2 * HAND_WEIGHT * self.distance()
        return observation, reward, terminated, truncated, info

    def distance(self) -> float:
        """From the palm to its target, metres."""
        return float(np.linalg.norm(self._palm.xpos - self._target.xpos))

    def other_terms(self, data: Any) -> float:
        """D4RL's reward without the hand-to-object term, at the first step of an episode."""
        raise TypeError("use D4RLDoor, D4RLHammer or D4RLRelocate")


class D4RLDoor(_HandReward):
    """Door: -0.1 ||palm - handle|| and terms for the hinge's angle and for velocities."""

    TARGET = "site S_handle"

    def other_terms(self, data: Any) -> float:
        """-0.1 (hinge - 1.57)^2 - 1e-5 ||qvel||^2; the hinge is still shut, so no bonus."""
        hinge = float(data.joint("door_hinge").qpos[0])
        return -0.1 * (hinge - 1.57) ** 2 - 1e-5 * float(np.square(data.qvel).sum())


class D4RLHammer(_HandReward):
    """Hammer: -0.1 ||palm - hammer|| and terms for tool, nail and velocities."""

    TARGET = "body Object"

    def other_terms(self, data: Any) -> float:
        """-||tool - nail|| - 10 ||nail - goal|| - 0.01 ||qvel||; the hammer lies: no bonus."""
        nail = data.site("S_target").xpos
        tool = float(np.linalg.norm(data.site("tool").xpos - nail))
        depth = float(np.linalg.norm(nail - data.site("nail_goal").xpos))
        return -tool - 10 * depth - 1e-2 * float(np.linalg.norm(data.qvel))


class D4RLRelocate(_HandReward):
    """Relocate: -0.1 ||palm - ball|| and terms that begin when the ball is lifted."""

    TARGET = "body Object"

    def other_terms(self, data: Any) -> float:
        """Nothing while the ball lies on the table."""
        return 0.0


class D4RLPen(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Pen: the episode terminates when the pen is dropped.

    Attributes:
        goes_on: Whether the environment below goes on after a drop, as a dropped pen showed.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        bare: Any = env.unwrapped
        self._pen = bare.data.body("Object")
        with _own_randomness(bare):
            bare.reset(seed=0)
            state = bare.get_env_state()
            for name in ("OBJTx", "OBJTy", "OBJTz"):  # a metre down, along slides that stand askew
                joint = bare.data.joint(name)
                state["qpos"][bare.model.joint(name).qposadr[0]] -= joint.xaxis[2]
            bare.set_env_state(state)
            _, _, terminated, *_ = bare.step(np.zeros(bare.action_space.shape, np.float32))
        assert self._pen.xpos[2] < DROPPED, "the probe did not bring the pen down"
        self.goes_on = not terminated

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The environment's step, with D4RL's end."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        terminated = bool(terminated) or (self.goes_on and bool(self._pen.xpos[2] < DROPPED))
        return observation, float(reward), terminated, truncated, info


@contextmanager
def _own_randomness(bare: Any) -> Iterator[None]:
    """Leave the environment's own generator as it was: probing must not seed it."""
    before = bare._np_random, bare._np_random_seed
    try:
        yield
    finally:
        bare._np_random, bare._np_random_seed = before
