"""Roll-outs: episodes that depend on their index alone, steps cut exactly."""

from __future__ import annotations

import itertools

import numpy as np

from flowmdp.envs.data.sources.behavior import BehaviorPolicy
from flowmdp.envs.data.sources.collect import collect_steps, roll_out
from flowmdp.envs.robots.outer import make_outer
from tests.envs.built import TASK


def test_episodes_do_not_depend_on_how_many_run_at_once() -> None:
    policy = BehaviorPolicy.shipped(TASK)
    rolled = []
    for number in (1, 6):
        envs = [make_outer(TASK) for _ in range(number)]
        rolled.append(list(itertools.islice(roll_out(policy, envs, seed=3, horizon=1000), 3)))
        for env in envs:
            env.close()
    for one, six in zip(*rolled, strict=True):
        np.testing.assert_allclose(one.observations[:20], six.observations[:20], atol=1e-4)
        assert one.seed == six.seed


def test_steps_are_cut_exactly_and_the_cut_is_a_truncation() -> None:
    env = make_outer(TASK)
    policy = BehaviorPolicy.shipped(TASK)
    episodes = list(collect_steps(roll_out(policy, [env], seed=0, horizon=40), 100))
    env.close()
    assert [len(episode) for episode in episodes] == [40, 40, 20]
    for episode in episodes:
        assert episode.truncations.tolist() == [False] * (len(episode) - 1) + [True]
        assert len(episode.observations) == len(episode) + 1
