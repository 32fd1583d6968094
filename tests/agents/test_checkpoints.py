"""Checkpoints that are damaged or hostile end in one line with a cure, whatever is wrong."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as save_tensors

from flowmdp.agents import ALGORITHMS, FlowBC, load_agent, pretrained_path
from flowmdp.agents.core import checkpoint
from flowmdp.errors import CheckpointError, ConfigurationError
from flowmdp.robot import RobotInterface
from tests.agents.test_contract import make, rewrite

Entries = dict[str, bytes]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A trained DF-div agent's checkpoint."""
    path = tmp_path_factory.mktemp("whole") / "agent.zip"
    make("df-div").learn(1).save(path)
    return path.read_bytes()


@pytest.fixture
def path(whole: bytes, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    (tmp_path / "agent.zip").write_bytes(whole)
    return tmp_path / "agent.zip"


def refused(path: Path, match: str, **kwargs: Any) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        load_agent(path, device="cpu", **kwargs)
    assert "\n" not in str(caught.value)
    assert "train again" in str(caught.value) and path.name in str(caught.value)


def patch_headers(path: Path, field: int, value: int) -> None:
    """Set flags (field 0) or compression method (field 1) of every entry, in both its headers."""
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = content.find(signature)
        while at >= 0:
            struct.pack_into("<H", content, at + offset + 2 * field, value)
            at = content.find(signature, at + 1)
    path.write_bytes(content)


def test_deeply_nested_manifest(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("agent.json", "[" * (1 << 20))
        archive.writestr("tensors.safetensors", b"")
    refused(path, "RecursionError")


def test_encrypted_entries(path: Path) -> None:
    patch_headers(path, 0, 1)
    refused(path, "encrypted")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, 99])
def test_compressed_entries(path: Path, method: int) -> None:
    patch_headers(path, 1, method)
    refused(path, "agent.json is compressed")


def test_no_wrong_byte_of_the_zips_directory_escapes(path: Path, whole: bytes) -> None:
    refusals = 0
    for place in range(len(whole) - 200, len(whole)):
        content = bytearray(whole)
        content[place] ^= 0xFF
        path.write_bytes(content)
        try:
            checkpoint.read(path)
        except CheckpointError as error:
            assert path.name in str(error)
            refusals += 1
    assert refusals > 100


@pytest.mark.parametrize(
    "spec",
    [
        {"flow_steps": 0},
        {"flow_steps": "ten"},
        {"flow_steps": True},
        {"flow_steps": 10**12},
        {"action_dim": 10**12},
        {"velocity_scale": float("nan")},
        {"noise_scale": -1.0},
        {"include_time": 1},
        {"observation_dim": 3},
        {"task": ["hopper-medium"]},
        {"colour": "red"},
    ],
)
def test_specification_out_of_range(path: Path, spec: dict[str, Any]) -> None:
    manifest = checkpoint.read(path).manifest
    rewrite(path, spec=manifest["spec"] | spec)
    refused(path, "spec" if "observation_dim" in spec else next(iter(spec)))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"net_arch": [65_536] * 3}, "networks need 8,59[0-9],.* weights, which are not there"),
        ({"net_arch": [1] * 1000}, "at most 100"),
        ({"net_arch": [10**9]}, "at most 65,536"),
        ({"batch_size": 10**12}, "at most 1,000,000"),
        ({"critic_members": 10**9}, "at most 1,000"),
    ],
)
def test_sizes_that_no_memory_holds(path: Path, change: dict[str, Any], match: str) -> None:
    rewrite(path, config=checkpoint.read(path).manifest["config"] | change)
    refused(path, match)


def test_an_observation_that_no_memory_holds(path: Path) -> None:
    manifest = checkpoint.read(path).manifest
    config = manifest["config"] | {"net_arch": [65_536]}
    rewrite(path, config=config, spec=manifest["spec"] | {"observation_dim": 10**6})
    refused(path, "networks need 65,5.* weights, which are not there")


def test_a_robot_of_other_widths_is_refused(path: Path) -> None:
    for space in ({"type": "Discrete", "n": 10**12, "start": 0}, {"type": "MultiBinary", "n": 7}):
        rewrite(path, robot=RobotInterface.plain(2, 2).to_json() | {"observation_space": space})
        refused(path, "its robot has observations")


def test_one_step_agents_keep_their_one_step(path: Path) -> None:
    make("iql").learn(1).save(path)
    rewrite(path, spec=checkpoint.read(path).manifest["spec"] | {"flow_steps": 3})
    refused(path, "flow_steps=1")


@pytest.mark.parametrize(
    "name", ["dataset", "device", "tensorboard_log", "verbose", "env", "seed", "_init_setup_model"]
)
def test_a_file_decides_about_hyperparameters_only(path: Path, name: str, tmp_path: Path) -> None:
    manifest = checkpoint.read(path).manifest
    rewrite(path, config=manifest["config"] | {name: str(tmp_path / "evil")})
    refused(path, f"'{name}' is no hyper-parameter")


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_checkpoint_holds_every_hyperparameter(name: str, tmp_path: Path) -> None:
    agent = make(name, seed=7)
    agent.save(tmp_path / "agent.zip")
    again = load_agent(tmp_path / "agent.zip", device="cpu")
    assert again.config == agent.config and again.seed == 7


@pytest.mark.parametrize("seed", [-1, "x", 1.5, 2**40])
def test_a_seed_that_cannot_be(path: Path, seed: Any) -> None:
    rewrite(path, seed=seed)
    refused(path, "seed")


@pytest.mark.parametrize("value", [float("inf"), "3", -1, 1.5])
def test_counters_out_of_range(path: Path, value: Any) -> None:
    rewrite(path, counters={"num_timesteps": value})
    refused(path, "num_timesteps is")


@pytest.mark.parametrize(
    ("key", "change", "match"),
    [
        (
            "policy/field.mlp.weights.0",
            lambda x: x.fill_(torch.nan),
            "weights.0 holds NaN or infinity",
        ),
        ("critic/scale", lambda x: x.fill_(torch.inf), "critic/scale holds NaN or infinity"),
        ("optimizer.critic/0/exp_avg", lambda x: x[..., :1], "not of its weights' shape"),
        ("optimizer.critic/0/step", lambda x: x.repeat(2), "not of its weights' shape"),
        ("optimizer.critic/0/step", lambda x: -x, "no state of Adam"),
        ("optimizer.critic/0/exp_avg_sq", lambda x: x - 1, "no state of Adam"),
        ("optimizer.critic/0/exp_avg", lambda x: x.double(), "no state of Adam"),
        ("policy/ema.mlp.weights.0", lambda x: x.to(torch.int8), "of type torch.int8"),
        ("policy/normalizer.fitted", lambda x: x.float(), "of type torch.float32"),
        ("generator/learn", lambda x: x[:-1], "no state of a random generator"),
        ("generator/critic", lambda x: x[:16].float(), "no state of a random generator"),
    ],
)
def test_tensors_that_cannot_be(path: Path, key: str, change: Any, match: str) -> None:
    _, manifest, tensors = checkpoint.read(path)
    tensors[key] = change(tensors[key]).clone()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("agent.json", json.dumps(manifest))
        archive.writestr("tensors.safetensors", save_tensors(tensors))
    refused(path, match)


def test_the_caller_is_not_called_damage(path: Path) -> None:
    with pytest.raises(
        ConfigurationError,
        match=r"'learning_rat' is no hyper-parameter: did you mean learning_rate",
    ):
        load_agent(path, learning_rat=1)
    with pytest.raises(ConfigurationError, match="batch_size is 0"):
        load_agent(path, batch_size=0)
    with pytest.raises(ConfigurationError, match="'clip_range' is no hyper-parameter"):
        load_agent(path, custom_objects={"learning_rate": 0.0, "clip_range": 0.2})
    with pytest.raises(ConfigurationError, match="custom_objects is 3"):
        load_agent(path, custom_objects=3)
    with pytest.raises(ConfigurationError, match="'policy' is no hyper-parameter"):
        load_agent(path, policy="MlpPolicy")


def test_sb3s_keywords_of_load(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agent = load_agent(
        path,
        device="cpu",
        custom_objects={"learning_rate": 0.0, "ema_rate": 0.5},
        print_system_info=True,
        force_reset=False,
        learning_rate=1e-5,
        tensorboard_log="logs",
        verbose=0,
    )
    assert (agent.config.learning_rate, agent.config.ema_rate) == (1e-5, 0.5)
    assert agent.tensorboard_log == "logs"
    assert "Stable-Baselines3" in capsys.readouterr().out


def test_another_class_or_another_format(path: Path) -> None:
    with pytest.raises(CheckpointError, match="load_agent"):
        FlowBC.load(path)
    rewrite(path, format=99)
    refused(path, "load it with the flowmdp that wrote it")


def test_what_ships_can_be_loaded() -> None:
    shipped = pretrained_path("hopper-medium")
    assert shipped is not None
    agent = load_agent(shipped, device="cpu")
    assert agent.name == "df-div" and agent.config.net_arch == (64, 64, 64)
