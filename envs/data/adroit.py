"""Recorded Adroit transitions under D4RL's definitions, whichever release recorded them.

The counterpart of `envs.adroit` for data: the turned hand-to-object term is a function of the
observation after a step, so it can be put right exactly; steps after a dropped pen are what D4RL's
environment would never have reached. Whether a dataset needs it is read from its own rewards, since
releases of both kinds recorded under the same environment id.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from flowmdp.envs.robots.adroit import DROPPED, HAND_WEIGHT
from flowmdp.transitions import TransitionDataset

Array = NDArray[Any]

AT_REST = 0.01
"""Metres within which the hammer lies where episodes begin."""

SLOW = 5.0
"""Norm of the hand's joint velocities, rad/s, below which an error of a tenth does no harm."""

TURNED = "its hand-to-object reward had the other sign: D4RL's is restored"
UNKNOWN = "the sign of its hand-to-object reward cannot be told: rewards stay as recorded"


def relabel_door(
    data: TransitionDataset, outer: gym.Env[Any, Any]
) -> tuple[TransitionDataset, str]:
    """Door: hinge angle and palm - handle are in the observation, only velocities are not."""
    after = data.next_observations
    hinge, distance = after[:, 28], np.linalg.norm(after[:, 35:38], axis=1)
    others = (
        -0.1 * np.square(hinge - 1.57) + 2 * (hinge > 0.2) + 8 * (hinge > 1) + 10 * (hinge > 1.35)
    )
    return _turn_back(data, distance, others, np.ones(len(data), bool))


def relabel_hammer(
    data: TransitionDataset, outer: gym.Env[Any, Any]
) -> tuple[TransitionDataset, str]:
    """Hammer: the other terms are known while the hammer lies where every episode begins.

    Velocities are those of the hand's joints, from the observations before and after; where the
    hand is fast their cost drowns the term that is looked for.
    """
    outer.reset(seed=0)
    model: Any = outer.unwrapped
    tool, lying = model.data.site("tool").xpos, model.data.body("Object").xpos
    depth = np.linalg.norm(model.data.site("S_target").xpos - model.data.site("nail_goal").xpos)
    after = data.next_observations
    palm, hammer, nail = after[:, 33:36], after[:, 36:39], after[:, 42:45]
    moved = np.zeros_like(after[:, :27])
    moved[:-1] = after[1:, :27] - data.observations[:-1, :27]
    speed = np.linalg.norm(moved, axis=1) / (2 * model.dt)
    others = -np.linalg.norm(tool - nail, axis=1) - 10 * depth - 0.01 * speed
    known = ~np.append(data.starts[1:], True)
    known &= (speed < SLOW) & (np.linalg.norm(hammer - lying, axis=1) < AT_REST)
    return _turn_back(data, np.linalg.norm(palm - hammer, axis=1), others, known)


def relabel_relocate(
    data: TransitionDataset, outer: gym.Env[Any, Any]
) -> tuple[TransitionDataset, str]:
    """Relocate: while the ball lies on the table the reward is the hand-to-object term alone."""
    distance = np.linalg.norm(data.next_observations[:, 30:33], axis=1)
    known = np.isclose(np.abs(data.rewards), HAND_WEIGHT * distance, rtol=0, atol=1e-4)
    return _turn_back(data, distance, np.zeros(len(data)), known)


def relabel_pen(data: TransitionDataset, outer: gym.Env[Any, Any]) -> tuple[TransitionDataset, str]:
    """Pen: an episode terminates where the pen is dropped; what was recorded after is left out."""
    dropped = data.next_observations[:, 26] < DROPPED
    episode, count = np.cumsum(data.starts) - 1, np.arange(len(data))
    first = np.full(len(data.episode_starts), len(data))
    np.minimum.at(first, episode[dropped], count[dropped])
    kept = count <= first[episode]
    ends = dropped & kept & ~data.terminations
    if not ends.any():
        return data, ""
    arrays = {f.name: getattr(data, f.name)[kept] for f in dataclasses.fields(data)[1:]}
    arrays["terminations"] = arrays["terminations"] | dropped[kept]
    arrays["truncations"] = arrays["truncations"] & ~arrays["terminations"]
    note = (
        f"it goes on after dropping the pen in {ends.sum():,} of {len(first):,} episodes: they end "
        f"there as D4RL's do, {(~kept).sum():,} later steps are left out"
    )
    return TransitionDataset(id=data.id, **arrays), note


def _turn_back(
    data: TransitionDataset, distance: Array, others: Array, known: Array
) -> tuple[TransitionDataset, str]:
    """Turn the sign of the hand-to-object term where the recorded one is not D4RL's.

    Args:
        data: The transitions.
        distance: From palm to object after each step, shape (n,), metres.
        others: D4RL's other terms, shape (n,).
        known: Where `others` is right or nearly so, shape (n,).
    """
    weight = np.median((data.rewards - others)[known] / distance[known]) if known.any() else 0.0
    if not HAND_WEIGHT / 2 < abs(weight) < HAND_WEIGHT * 2:
        return data, UNKNOWN
    if weight < 0:
        return data, ""
    rewards = (data.rewards - 2 * HAND_WEIGHT * distance).astype(np.float32)
    return dataclasses.replace(data, rewards=rewards), TURNED
