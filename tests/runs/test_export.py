"""Exported policies: they act as the agent does, without flowmdp, and say what they are."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
import onnxruntime
import pytest
import torch
from gymnasium.spaces import Box

from flowmdp.agents import ALGORITHMS, DFDir, FlowBC
from flowmdp.agents.core.algorithm import FlowAlgorithm
from flowmdp.behavior import as_behavior
from flowmdp.cli import main
from flowmdp.env import FlowMDPEnv
from flowmdp.errors import ConfigurationError
from flowmdp.runs.export import _ndtri, export
from tests.runs.tiny_run import failure

SESSION = onnxruntime.InferenceSession


class Robot(gym.Env[Any, Any]):
    """Acts in a box that is neither symmetric nor flat, in the units of its motors."""

    observation_space = Box(-np.inf, np.inf, (3,), np.float32)
    action_space = Box(np.array([[-2.0, 0.0]]), np.array([[4.0, 0.5]]), dtype=np.float64)


def make_agent(name: str, env: Any) -> FlowAlgorithm:
    """An agent with random weights and a normaliser that does something."""
    agent: FlowAlgorithm = ALGORITHMS[name]("MlpPolicy", env, net_arch=(16, 16), seed=0)
    random = torch.randn((9, agent.spec.observation_dim), generator=torch.manual_seed(0))
    agent.policy.normalizer.fit(3 * random + 1)
    return agent


def flow_env(name: str, **settings: Any) -> Any:
    """The bare robot's flow environment with the algorithm's own settings, and few steps."""
    cls = ALGORITHMS[name]
    own = {"flow_steps": cls.only_flow_steps or 2, **cls.environment, **settings}
    return FlowMDPEnv(Robot(), **own)


def expected(agent: FlowAlgorithm, inputs: list[np.ndarray[Any, Any]], **options: Any) -> Any:
    """What the agent does, in the robot's units; previous actions are in [-1, 1] here."""
    observations, noise, *previous = inputs
    x_0 = np.float32(agent.spec.noise_scale) * noise
    before = previous[0] if previous else None
    return agent.robot.to_robot(agent.act(observations, noise=x_0, previous=before, **options))


def drawn(agent: FlowAlgorithm, n: int) -> list[np.ndarray[Any, Any]]:
    """Observations and noise for a batch."""
    rng = np.random.default_rng(n)
    widths = (agent.spec.observation_dim, agent.spec.action_dim)
    return [rng.standard_normal((n, width), np.float32) for width in widths]


SAME = ("df-dir", "df-div", "rql", "toy-bc", "qc", "iql", "dsrl")
"""Algorithms whose policy is a velocity field, as flow-bc's is, or a choice, as ifql's is."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=[pytest.mark.slow] * (one in SAME)) for one in ALGORITHMS],
)
def test_both_formats_act_as_the_agent_does(name: str, tmp_path: Path) -> None:
    agent = make_agent(name, flow_env(name))
    if name in ("ifql", "qc"):
        agent.policy.ema.flow_steps = 2  # type: ignore[assignment]
    export(agent, tmp_path / "policy.pt2", "torch")
    export(agent, tmp_path / "policy.onnx")
    program: Any = torch.export.load(tmp_path / "policy.pt2").module()
    session = SESSION(tmp_path / "policy.onnx")
    assert [one.name for one in session.get_inputs()] == ["observations", "noise"]
    for n in (1, 64):
        inputs = drawn(agent, n)
        wanted = expected(agent, inputs)
        assert wanted.shape == (n, 1, 2)
        ours = program(*map(torch.as_tensor, inputs)).numpy()
        (theirs,) = session.run(None, dict(zip(("observations", "noise"), inputs, strict=True)))
        for actions in (ours, theirs):
            np.testing.assert_allclose(actions, wanted, rtol=0, atol=1e-5)
        assert n == 1 or np.ptp(wanted, axis=0).min() > 1e-3, "actions that tell nothing apart"


def test_previous_actions_are_what_the_file_answered(tmp_path: Path) -> None:
    agent = make_agent("flow-bc", flow_env("flow-bc", include_previous_action=True))
    export(agent, tmp_path / "policy.onnx")
    session = SESSION(tmp_path / "policy.onnx")
    state, previous = None, np.zeros((4, 3), np.float32)
    for n in range(2):
        observations, noise = drawn(agent, 4)
        with mock.patch.object(torch, "randn", lambda *a, noise=noise, **k: torch.tensor(noise)):
            wanted, state = agent.outer_policy().predict(observations + n, state)
        inputs = {"observations": observations + n, "noise": noise, "previous": previous}
        (actions,) = session.run(None, inputs)
        np.testing.assert_allclose(actions, wanted, rtol=0, atol=1e-5)
        previous = np.concatenate([actions.reshape(4, 2), np.ones((4, 1), np.float32)], axis=1)


def test_the_behaviour_flow_too(tmp_path: Path) -> None:
    agent = make_agent("fql", flow_env("fql"))
    export(agent, tmp_path / "clone.pt2", "torch", behavior=True)
    inputs = drawn(agent, 5)
    program: Any = torch.export.load(tmp_path / "clone.pt2").module()
    actions = program(*map(torch.as_tensor, inputs)).numpy()
    wanted = expected(agent, inputs, field=agent.behavior_field())
    np.testing.assert_allclose(actions, wanted, rtol=0, atol=1e-5)
    with pytest.raises(ConfigurationError, match="no behaviour flow"):
        export(make_agent("iql", flow_env("iql")), tmp_path / "a.pt2", "torch", behavior=True)


def test_own_behaviour_too_where_it_is_in_torch(tmp_path: Path) -> None:
    net = torch.nn.Linear(3, 2)
    own = as_behavior(lambda s, x, t: net(s) + t.cos() * x, flow_steps=2, times=[1, 0.4, 0])
    agent = DFDir("MlpPolicy", flow_env("df-dir"), net_arch=(16,), behavior=own, seed=0)
    export(agent, tmp_path / "policy.pt2", "torch")
    inputs = drawn(agent, 5)
    program: Any = torch.export.load(tmp_path / "policy.pt2").module()
    actions = program(*map(torch.as_tensor, inputs)).numpy()
    np.testing.assert_allclose(actions, expected(agent, inputs), rtol=0, atol=1e-5)
    assert np.ptp(actions, axis=0).min() > 1e-3

    numpy = as_behavior(lambda s, x, t: np.sin(x), flow_steps=2, name="mine")
    agent = DFDir("MlpPolicy", flow_env("df-dir"), net_arch=(16,), behavior=numpy, seed=0)
    with pytest.raises(ConfigurationError, match=r"torch\.export cannot follow mine"):
        export(agent, tmp_path / "numpy.pt2", "torch")
    assert not (tmp_path / "numpy.pt2").exists()


def test_quantiles_are_torchs() -> None:
    p = torch.cat([torch.linspace(1e-6, 1 - 1e-6, 10_001), torch.logspace(-6, -1, 1_001)])
    torch.testing.assert_close(_ndtri(p), torch.special.ndtri(p), rtol=0, atol=1.2e-6)


def test_the_command_and_what_a_file_says(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(runs["iql"])
    for out in ("policy.onnx", "policy.pt2"):
        format = "torch" if out.endswith("pt2") else "onnx"
        assert main(["export", run, "--format", format, "--out", str(tmp_path / out)]) == 0
    assert "zeros" in capsys.readouterr().out
    said = SESSION(tmp_path / "policy.onnx").get_modelmeta().custom_metadata_map
    extra = {"flowmdp.json": ""}
    torch.export.load(tmp_path / "policy.pt2", extra_files=extra)
    assert json.loads(extra["flowmdp.json"]) == said
    values = {name: json.loads(value) for name, value in said.items()}
    assert values["task"] == "hopper-medium" and values["algorithm"] == "iql"
    assert (values["observation_dim"], values["action_dim"], values["flow_steps"]) == (11, 3, 1)
    assert values["action_low"] == [-1.0] * 3 and values["noise_scale"] == 1.0
    with zipfile.ZipFile(tmp_path / "policy.pt2") as archive:
        content = b"".join(map(archive.read, archive.namelist()))
    for data in (content, (tmp_path / "policy.onnx").read_bytes()):
        assert str(Path(torch.__file__).parent).encode() not in data, "a place on this machine"


def test_what_cannot_be_exported_is_one_line(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(runs["iql"])
    assert "no-run does not exist" in failure(capsys, "export", str(tmp_path / "no-run"))
    assert "must end in .onnx" in failure(capsys, "export", run, "--out", "a.pt2")
    with mock.patch("importlib.util.find_spec", return_value=None):
        line = failure(capsys, "export", run, "--out", str(tmp_path / "a.onnx"))
    assert 'needs onnx and onnxscript: pip install "flowmdp[export]"' in line
    assert list(tmp_path.iterdir()) == []
    agent: Any = object.__new__(FlowBC)
    with pytest.raises(ConfigurationError, match="choose one of onnx, torch"):
        export(agent, tmp_path / "a.onnx", "tflite")  # type: ignore[arg-type]


def test_around_a_behaviour_of_ones_own(tmp_path: Path) -> None:
    class Own(torch.nn.Module):
        def forward(self, s: Any, x: Any, t: Any) -> Any:
            return s[:, :2] - x + t

    path = tmp_path / "own.pt2"
    for own in (Own(), lambda s, x, t: s[:, :2] - np.asarray(x) + t):
        env = FlowMDPEnv(Robot(), flow_steps=3)
        agent = ALGORITHMS["df-div"]("MlpPolicy", env, net_arch=(16,), seed=0, behavior=own)
        agent.policy.normalizer.fit(torch.randn((9, 3), generator=torch.manual_seed(0)))
        if not isinstance(own, torch.nn.Module):
            with pytest.raises(ConfigurationError, match=r"torch\.export cannot follow function"):
                export(agent, path, "torch")
            continue
        export(agent, path, "torch")
        seen = np.random.default_rng(0).standard_normal((2, 5, 3), np.float32)
        answer = torch.export.load(path).module()(*map(torch.as_tensor, (seen[0], seen[1, :, :2])))
        expected = agent.act(seen[0], noise=seen[1, :, :2])
        robots = agent.robot.to_robot(expected).reshape(5, 2)
        np.testing.assert_allclose(answer.detach().numpy().reshape(5, 2), robots, atol=1e-5)
