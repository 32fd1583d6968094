"""The arrays that cross from a dataset to an agent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import InitVar, dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from flowmdp.errors import DatasetError
from flowmdp.robot import RobotInterface

Float = NDArray[np.float32]
Bool = NDArray[np.bool_]

ACTION_TOLERANCE = 1e-5
"""Actions may leave [-1, 1] by this much, through rounding."""


@dataclass(frozen=True)
class TransitionDataset:
    """Transitions of whole episodes, stored one after another in time order.

    Attributes:
        id: Minari id (or another name) of where the transitions come from.
        observations: s_n, shape (n, obs_dim), float32.
        actions: a_n, shape (n, action_dim), float32, in [-1, 1].
        rewards: r_n, shape (n,), float32, unscaled.
        next_observations: s_{n+1}, shape (n, obs_dim), float32; at an episode's last step the
            observation that followed it, never the next episode's first.
        terminations: shape (n,), bool; True where the task ended: nothing is to be bootstrapped.
        truncations: shape (n,), bool; True where only the time limit or the recording ended.
        previous_actions: a_{n-1} of the same episode, shape (n, action_dim), float32; zeros at
            starts.
        starts: shape (n,), bool; True at the first transition of an episode.
        robot: The spaces the transitions were recorded in, if they are known.
        recordings: shape (n,), bool; True where a recording begins, if a task was laid over it
            afterwards that terminates inside of it. None: recordings are episodes.
        check: False takes the arrays as they are, for data that is only looked at.

    Raises:
        DatasetError: If an array has another shape, holds NaN or infinite numbers, actions leave
            [-1, 1], or ends and starts of episodes disagree.
    """

    id: str
    observations: Float
    actions: Float
    rewards: Float
    next_observations: Float
    terminations: Bool
    truncations: Bool
    previous_actions: Float
    starts: Bool
    robot: RobotInterface | None = None
    recordings: Bool | None = None
    check: InitVar[bool] = True

    def __post_init__(self, check: bool) -> None:
        if check:
            _check(self)

    @classmethod
    def from_episodes(
        cls,
        episodes: Iterable[Any],
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        id: str = "custom",
    ) -> TransitionDataset:
        """Transitions of episodes that were recorded in a robot's own spaces.

        Args:
            episodes: Each a dict, or an object such as Minari's `EpisodeData`, with `observations`
                (n + 1 of them: the last one follows the last action), `actions`, `rewards` and
                `terminations` (n each; a single bool says how the episode ended). The end of
                every other episode counts as a truncation.
            observation_space: The robot's; Dict and Tuple are flattened, see `flowmdp.robot`.
            action_space: The robot's, a bounded Box; actions are scaled to [-1, 1].
            id: A name for messages.

        Raises:
            ConfigurationError: For spaces that a flow policy cannot use.
            DatasetError: For episodes that do not fit them, or as the constructor does.
        """
        robot = RobotInterface(observation_space, action_space)
        parts: dict[str, list[NDArray[Any]]] = {name: [] for name in WIDTHS}
        if isinstance(episodes, Mapping) or not isinstance(episodes, Iterable):
            raise DatasetError(f"episodes is a {type(episodes).__name__}: pass a list of episodes")
        for number, episode in enumerate(episodes):
            try:
                rows = _rows(robot, episode)
            except KeyError as error:
                raise DatasetError(f"episode {number} of {id} has no {error}: add it") from error
            except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
                raise DatasetError(f"episode {number} of {id} cannot be used: {error}") from error
            for name, array in rows.items():
                parts[name].append(array)
        if not parts["starts"]:
            raise DatasetError(f"{id} holds no episodes: record some")
        arrays: dict[str, Any] = {name: np.concatenate(part) for name, part in parts.items()}
        return cls(id=id, robot=robot, **arrays)

    def __len__(self) -> int:
        """Number of transitions."""
        return len(self.rewards)

    @property
    def masks(self) -> Float:
        """Bootstrap factors 1 - terminations, shape (n,), float32."""
        return 1.0 - self.terminations.astype(np.float32)

    @property
    def episode_starts(self) -> NDArray[np.int64]:
        """Index of every episode's first transition, shape (episodes,)."""
        return np.flatnonzero(self.starts)

    @property
    def returns(self) -> NDArray[np.float64]:
        """Undiscounted return of every episode, shape (episodes,)."""
        return np.add.reduceat(self.rewards.astype(np.float64), self.episode_starts)

    def returns_within(self, horizon: int) -> NDArray[np.float64]:
        """Undiscounted return of the first `horizon` steps (0: all) of every episode."""
        horizon = horizon or len(self)
        starts = self.episode_starts
        step = np.arange(len(self)) - np.repeat(starts, np.diff(np.append(starts, len(self))))
        return np.add.reduceat(np.where(step < horizon, self.rewards, 0.0), starts)


WIDTHS = {
    "observations": "observations",
    "actions": "actions",
    "rewards": "",
    "next_observations": "observations",
    "terminations": "",
    "truncations": "",
    "previous_actions": "actions",
    "starts": "",
}
"""Array -> the one whose width it has; those without are one number per transition."""
FLAGS = ("terminations", "truncations", "starts")
RESCALE = "scale them from the robot's box, as from_episodes does, or clip them"


def _rows(robot: RobotInterface, episode: Any) -> dict[str, NDArray[Any]]:
    """The transitions of one episode; whatever is wrong with it raises an error of some kind."""
    get = episode.__getitem__ if isinstance(episode, Mapping) else episode.__getattribute__
    observations, actions = robot.flatten(get("observations")), robot.to_unit(get("actions"))
    rewards, ended = np.asarray(get("rewards")), np.atleast_1d(get("terminations"))
    if ended.dtype.kind not in "biuf" or not np.isin(ended, (0, 1)).all():
        raise ValueError("its terminations are no booleans")
    n, ended = len(rewards), ended.astype(bool)
    if n == 0 or observations.shape[:1] != (n + 1,) or actions.shape[:1] != (n,):
        raise ValueError(
            f"it has observations {observations.shape}, actions {actions.shape} and {n} rewards; "
            "n steps need n + 1 observations"
        )
    if ended.shape not in ((1,), (n,)) or ended[:-1].any():
        raise ValueError("it goes on after it terminated, or its terminations are not one per step")
    first, last = np.arange(n) == 0, np.arange(n) == n - 1
    return {
        "observations": observations[:-1],
        "actions": actions,
        "rewards": rewards.astype(np.float32),
        "next_observations": observations[1:],
        "terminations": last & ended[-1],
        "truncations": last & ~ended[-1],
        "previous_actions": np.roll(actions, 1, 0) * ~first[:, None],
        "starts": first,
    }


def _make_arrays(data: TransitionDataset, what: str) -> None:
    """Lists and tensors become arrays; raise DatasetError for what cannot."""
    for name in WIDTHS:
        try:
            array = np.asanyarray(getattr(data, name))
            if np.ma.is_masked(array):
                raise ValueError("some of it is masked")
        except (RuntimeError, TypeError, ValueError) as error:
            raise DatasetError(f"{what} has {name} that are no array: {error}") from error
        object.__setattr__(data, name, np.asarray(array))


def _check(data: TransitionDataset) -> None:
    """Raise DatasetError unless the arrays are transitions; make numbers float32."""
    what = f"dataset {data.id}"
    _make_arrays(data, what)
    n = data.rewards.shape[:1]
    for name, like in WIDTHS.items():
        array = getattr(data, name)
        shape = (*n, *np.shape(getattr(data, like))[1:2]) if like else n
        if array.shape != shape or len(shape) != 1 + bool(like):
            raise DatasetError(
                f"{what} has {name} of shape {array.shape}, not {shape or '(n,)'}: give every "
                "transition one row of the same width"
            )
        if array.dtype.kind not in ("b" if name in FLAGS else "fiub"):
            kind = "booleans" if name in FLAGS else "numbers"
            raise DatasetError(f"{what} has {name} of dtype {array.dtype}: they must be {kind}")
        if name not in FLAGS:
            object.__setattr__(data, name, array.astype(np.float32, copy=False))
    if not len(data):
        raise DatasetError(f"{what} holds no transitions: record or build it again")
    widths, robot = (data.observations.shape[1], data.actions.shape[1]), data.robot
    known = isinstance(robot, RobotInterface) and (robot.observation_dim, robot.action_dim)
    if robot is not None and known != widths:
        raise DatasetError(
            f"{what} has observations and actions of width {widths}, which are not its robot's: "
            "pass the RobotInterface it was recorded with, or None"
        )
    numbers = {name: getattr(data, name) for name in WIDTHS if name not in FLAGS}
    check_values(what, numbers, "leave those episodes out", RESCALE)
    if data.recordings is not None and (
        np.shape(data.recordings) != n or (data.recordings & ~data.starts).any()
    ):
        raise DatasetError(
            f"{what} has recordings that begin inside an episode, or not one flag per transition: "
            "each must begin at a start"
        )
    ended = np.append(True, (data.terminations | data.truncations)[:-1])
    wrong = np.flatnonzero(ended != data.starts)
    if len(wrong):
        first = wrong[0]
        cause = "no start" if ended[first] else "a start, but no episode ends before it,"
        raise DatasetError(
            f"{what} has {cause} at transition {first} ({len(wrong)} such places): starts must "
            "follow terminations and truncations, and nothing else"
        )


def check_values(
    what: str, arrays: Mapping[str, NDArray[Any]], cure: str, clip: str | None
) -> None:
    """Raise DatasetError for NaN, infinite numbers, and actions outside [-1, 1].

    Numbers that float32 cannot hold count as infinite. `what` begins the message; `cure` mends NaN,
    `clip` such actions; None lets them through.
    """
    largest = np.float64(np.finfo(np.float32).max)
    for name, array in arrays.items():
        if -largest <= array.min() <= array.max() <= largest:  # false for NaN; makes no temporary
            continue
        bad = np.flatnonzero(~(np.abs(array.reshape(len(array), -1)) <= largest).all(axis=1))
        kind = "for float32 too large" if np.isfinite(array[bad]).all() else "NaN or infinite"
        raise DatasetError(
            f"{what} has {kind} {name} in {len(bad)} transitions, first in transition {bad[0]}: "
            f"{cure}"
        )
    actions, limit = arrays["actions"], 1 + ACTION_TOLERANCE
    low, high = float(actions.min()), float(actions.max())
    if clip and (low < -limit or high > limit):
        outside = int((np.abs(actions) > limit).any(axis=1).sum())
        raise DatasetError(
            f"{what} has actions outside [-1, 1] in {outside} of {len(actions)} transitions "
            f"(range {low:.4g} to {high:.4g}): {clip}"
        )
