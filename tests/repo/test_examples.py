"""The examples and the README's code run, with budgets of seconds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium as gym
import pytest

from benchmarks import train_behavior
from examples import (
    custom_loop,
    draw_flow,
    finetune_flow,
    ppo_on_noise,
    record_video,
    sac_on_noise,
    sb3_style,
    steer_own_flow,
)
from flowmdp.agents import ALGORITHMS, FlowBC
from flowmdp.runs.export import export

ROOT = Path(__file__).resolve().parents[2]


def test_custom_loop() -> None:
    means = custom_loop.main(custom_loop.Config(episodes=4, batch=2))
    assert len(means) == 2 and all(mean > 0 for mean in means)


def test_sb3_style(hopper_data: Path, tmp_path: Path) -> None:
    config = sb3_style.Config(
        steps=6, behavior_steps=5, critic_steps=5, episodes=1, net_arch=[16], out=tmp_path
    )
    means = sb3_style.main(config)
    assert set(means) == {"flow environment", "bare robot"}
    names = {path.name for path in tmp_path.iterdir()}
    assert {"agent.zip", "rl_model_3_steps.zip", "rl_model_6_steps.zip"} <= names


OTHER: dict[str, Any] = {
    "flow_steps": 4,
    "velocity_scale": 5.0,
    "noise_scale": 0.5,
    "include_time": False,
    "include_previous_action": True,
}
"""Settings of a flow environment, none of which is the default."""


@pytest.mark.parametrize("name", ["flow-bc", "iql"])
def test_record_video(name: str, gl: str, tmp_path: Path) -> None:
    """Played as it was trained; IQL, which its paper evaluates at the mean, without noise."""
    settings = OTHER | ({"flow_steps": 1} if name == "iql" else {})
    algorithm: Any = ALGORITHMS[name]
    env = gym.make("FlowMDP-hopper-medium-v0", **settings)
    agent = algorithm("MlpPolicy", env, policy_kwargs={"net_arch": [16]}, seed=0)
    agent.save(tmp_path / "checkpoint.zip")
    out = tmp_path / "video.mp4"
    with mock.patch.object(gym, "make", wraps=gym.make) as make:
        record_video.main(record_video.Config(tmp_path / "checkpoint.zip", out, steps=3))
    assert out.stat().st_size > 1_000
    expected = settings | {"source": "builtin", "chunk": 1, "render_mode": "rgb_array_list"}
    expected |= {"noise_scale": 0.0} if name == "iql" else {}
    assert make.call_args_list[0].kwargs == expected


def test_train_behavior(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train_behavior.py", "--steps", "60"])
    config = train_behavior.Config(steps=60, every=30, learning_starts=50, out=tmp_path)
    train_behavior.main(config)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "step-0000030.safetensors",
        "step-0000060.safetensors",
    ]


def test_run_onnx(hopper_data: Path, tmp_path: Path) -> None:
    """Beside onnxruntime it needs neither torch nor flowmdp."""
    agent = FlowBC("MlpPolicy", gym.make("FlowMDP-hopper-medium-v0"), net_arch=(16,), seed=0)
    export(agent, tmp_path / "policy.onnx")
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from examples import run_onnx; "
        f"assert run_onnx.main({str(tmp_path / 'policy.onnx')!r}) > 0; "
        "assert not {'torch', 'flowmdp'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2_000:]
    assert run.stdout.startswith("return: ")


def test_draw_flow(tmp_path: Path) -> None:
    config = draw_flow.Config(tmp_path / "flow.png", pretraining=5, steps=5)
    assert set(draw_flow.main(config)) == {"behaviour flow", "DF-div"}
    assert (tmp_path / "flow.png").read_bytes().startswith(b"\x89PNG")


def test_steer_own_flow() -> None:
    returns = steer_own_flow.main(updates=5, steps=10, episodes=1)
    assert len(returns) == 2 and all(-2_000 < mean < 0 for mean in returns)


def test_finetune_flow(hopper_data: Path, tmp_path: Path) -> None:
    config = finetune_flow.Config(
        clone_steps=5, decisions=16, robots=2, evaluations=1, episodes=1, out=tmp_path
    )
    returns = finetune_flow.main(config)
    assert len(returns) == 2 and all(mean > 0 for mean in returns)


def test_ppo_on_noise(hopper_data: Path, tmp_path: Path) -> None:
    config = ppo_on_noise.Config(
        clone_steps=5, robots=2, decisions=256, evaluations=2, episodes=1, out=tmp_path
    )
    returns = ppo_on_noise.main(config)
    assert len(returns) == 3 and all(mean > 0 for mean in returns)


def test_sac_on_noise(hopper_data: Path, tmp_path: Path) -> None:
    config = sac_on_noise.Config(
        clone_steps=5, decisions=14, evaluations=2, episodes=1, out=tmp_path
    )
    returns = sac_on_noise.main(config)
    assert len(returns) == 3 and all(mean > 0 for mean in returns)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_examples_are_scripts(path: Path) -> None:
    source = path.read_text()
    assert 'if __name__ == "__main__":' in source
    assert f"python examples/{path.name}" in source, "the docstring shows how to run it"


def blocks(language: str) -> list[str]:
    """Fenced code blocks of the README in one language."""
    text = (ROOT / "README.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_readme_python_runs(hopper_data: Path, tmp_path: Path, gl: str) -> None:
    """All of it, in the order it is read, with the numbers of steps cut down; no MUJOCO_GL."""
    code = "\n".join(blocks("python"))
    small = re.sub(r"\b\d[\d_]*_000\b", "40", code)
    run = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-c", small],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "MUJOCO_GL"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2_000:]
    assert (tmp_path / "video.mp4").stat().st_size > 1_000


def test_readme_commands_are_understood(capsys: pytest.CaptureFixture[str]) -> None:
    """Every `flowmdp ...` line of the README names a subcommand and options that exist."""
    from flowmdp.cli import parse

    lines = [line for block in blocks("sh") for line in block.splitlines()]
    commands: list[Any] = []
    for line in lines:
        for part in line.split("#")[0].split("&&"):
            if part.strip().startswith("flowmdp ") and "--help" not in part:
                commands.append(parse(part.split()[1:]))
    assert len(commands) >= 3
