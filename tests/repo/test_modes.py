"""The bandit with several modes is what `benchmarks.mode_problem` says it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest

from benchmarks import modes
from benchmarks.mode_problem import (
    PROBLEMS,
    RARE,
    REACH,
    SHIFT,
    STD,
    STRAY,
    TURNS,
    ModeProblem,
    make_dataset,
    observe,
)
from flowmdp.runs.config import get_algorithm


def contexts_of(n: int) -> Any:
    return np.arange(n) % TURNS


def at_the_optimum(problem: ModeProblem, mode: int, n: int = 200) -> Any:
    """Samples of a policy that always plays one mode's optimum."""
    return problem.optima[contexts_of(n), np.full(n, mode)]


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_data_has_the_modes_and_rewards_it_should(problem: ModeProblem) -> None:
    contexts = contexts_of(40_000)
    actions = problem.sample(contexts, np.random.default_rng(0))
    assert np.abs(actions).max() <= 1
    shares = np.bincount(problem.modes_of(contexts, actions) + 1, minlength=problem.modes + 1)
    within = 1 - np.exp(-0.5 * (REACH / STD) ** 2)  # Rayleigh
    expected = (1 - STRAY) * within * problem.probabilities + STRAY * np.pi * REACH**2 / 4
    np.testing.assert_allclose(shares[1:] / len(actions), expected, atol=0.01)
    assert problem.probabilities.sum() == pytest.approx(1)
    reward = problem.rewards(contexts, actions).mean()
    assert reward == pytest.approx(problem.behavior_reward, abs=0.02)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_the_optimum_is_known_and_in_the_data(problem: ModeProblem) -> None:
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 201)] * 2), -1).reshape(-1, 2)
    for context in range(TURNS):
        rewards = problem.rewards(np.full(len(grid), context), grid)
        best = grid[rewards.argmax()]
        nearest = np.linalg.norm(problem.optima[context, problem.is_best] - best, axis=-1).min()
        assert rewards.max() <= 1 and nearest < 0.01
    measured = problem.measure(contexts_of(200), at_the_optimum(problem, mode=0))
    assert measured["reward"] == measured["inside"] == pytest.approx(1)
    assert measured["best"] == 1 and measured["off"] == 0 and measured["kept"] == 1
    distance = np.linalg.norm(problem.optima - problem.centers, axis=-1)
    np.testing.assert_allclose(distance, SHIFT)
    assert SHIFT < 1.5 * STD  # well inside the data


@pytest.mark.parametrize("problem", PROBLEMS[1:], ids=lambda problem: problem.name)
def test_averages_of_modes_lose(problem: ModeProblem) -> None:
    """The trap: centre of the circle, and middle of two neighbours."""
    contexts = contexts_of(200)
    middle = problem.centers[:, :2].mean(1)[contexts]
    for actions in (np.zeros((200, 2)), middle):
        measured = problem.measure(contexts, actions)
        assert measured["reward"] < -0.5 < problem.behavior_reward
        assert measured["off"] == 1 and measured["kept"] == measured["best"] == 0


def test_shares_of_two_best_modes() -> None:
    problem = ModeProblem(4, best=2)
    assert problem.is_best.tolist() == [True, False, True, False]
    assert problem.heights.tolist() == [1, 0, 1, 0.5]
    np.testing.assert_allclose(problem.probabilities, [RARE, 0.45, RARE, 0.45])
    np.testing.assert_allclose(problem.centers[:, 0], -problem.centers[:, 2], atol=1e-12)
    contexts, first, second = contexts_of(200), *(at_the_optimum(problem, m) for m in (0, 2))
    both = np.where(np.arange(200)[:, None] < 50, first, second)
    assert problem.measure(contexts, both)["smaller"] == pytest.approx(0.25)
    assert problem.measure(contexts, both)["kept"] == 2
    assert problem.measure(contexts, first)["smaller"] == 0  # collapsed


def test_the_dataset_is_all_problems_at_once() -> None:
    data = make_dataset(100, seed=1)
    assert data.observations.shape == (500, len(PROBLEMS) * TURNS)
    assert (data.observations.sum(0) == 500 / data.observations.shape[1]).all()
    number = PROBLEMS.index(ModeProblem(8))
    rows = slice(100 * number, 100 * number + 100)
    contexts = contexts_of(100)
    assert np.array_equal(data.observations[rows], observe(ModeProblem(8), contexts))
    expected = ModeProblem(8).rewards(contexts, data.actions[rows])
    np.testing.assert_allclose(data.rewards[rows], expected, atol=1e-5)
    assert not np.array_equal(make_dataset(100, seed=2).actions, data.actions)


def test_every_method_is_searched_over_as_many_settings_and_arguments_exist() -> None:
    assert {len(method.search) for method in modes.METHODS.values()} == {0, 5}
    for method in modes.METHODS.values():
        known = set(get_algorithm(method.algorithm).config_class.names())
        for setting in ({}, *method.search):
            assert set(method.fixed | setting) <= known


def test_runs_are_stored_chosen_and_drawn(tmp_path: Path) -> None:
    """Rows as a run makes them, of policies that are known: the data, and the best mode alone."""

    class Known:
        def __init__(self, best: bool) -> None:
            self.best, self.problem = best, iter(PROBLEMS)

        def predict(self, observations: Any, deterministic: bool = False) -> Any:
            problem, contexts = next(self.problem), contexts_of(len(observations))
            if self.best:
                return at_the_optimum(problem, 0, len(contexts)), None
            return problem.sample(contexts, np.random.default_rng(0)), None

    def row(method: str, best: bool, **setting: float) -> dict[str, Any]:
        found = modes.look(Known(best), mean=False, points=True)  # type: ignore[arg-type]
        return {"method": method, "seed": 1, "setting": setting, **found}

    worse, better = row("DF-div", False, rho=1.0), row("DF-div", True, rho=0.1)
    stored = {"search": [worse, better], "runs": [row("FlowBC", False), better]}
    assert modes.chosen(stored["search"], "DF-div") == {"rho": 0.1}
    text = modes.tables(stored)
    assert ", rho 0.1: 1.00 | rho 0.1 |" in text
    assert "| DF-div | 1.00 (1.00) | 100% | 1.00 | 0% | 1.0 |\n" in text
    assert "| DF-div | 1.00 (1.00) | 100% | 1.00 | 0% | 1.0 | 0% |" in text  # two are best there
    assert modes.to_show(stored) == stored["runs"]
    assert modes.to_show(stored | {"runs": []}) == [better]
    assert modes.ordered({"DF-div", "IQL", "FlowBC"}) == ["FlowBC", "IQL", "DF-div"]
    modes.draw(stored, tmp_path / "modes.png")
    assert imageio.imread(tmp_path / "modes.png").std() > 5  # a white page has 0
