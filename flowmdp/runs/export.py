"""`flowmdp export`: an agent as one file of ONNX or torch.export, which needs nothing of flowmdp.

The file holds the whole way from the robot's observation to its action: the normaliser, the flow
steps one after another, the clipping, and the robot's units. A batch of any size goes in:

    observations  (n, observation_dim), float32, flat in the order of Gymnasium's flatten_space
    noise         (n, action_dim), float32, drawn from N(0, 1): the file multiplies it by the
                  agent's noise_scale; zeros give the noiseless action
    previous      (n, the robot's width + 1), only where the flow state holds the previous action:
                  what the robot did last, and a 1 behind it; zeros at an episode's first action

and `actions`, (n, *the shape of the robot's box), come out, in the robot's own units; of an agent
that plans chunks of h actions (n, h, *that shape), to be executed one after another. The file tells
its own task, widths, chunk, noise_scale, flow_steps and bounds: ONNX as `metadata_props`,
torch.export as the extra file "flowmdp.json".
"""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import math
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flowmdp.agents.core.algorithm import FlowAlgorithm
from flowmdp.errors import ConfigurationError
from flowmdp.files import replace_file
from flowmdp.mdp.solver import integrate
from flowmdp.runs.config import versions
from flowmdp.runs.play import load_checkpoint

Format = Literal["onnx", "torch"]
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
METADATA = "flowmdp.json"
TOLD = (
    *("task", "source", "observation_dim", "action_dim", "chunk", "flow_steps", "noise_scale"),
    "include_previous_action",
)
"""What a file says of the `FlowSpec`."""


def export_run(
    run_folder: Path,
    *,
    format: Format = "onnx",
    out: Path | None = None,
    behavior: bool = False,
    trust: bool = False,
) -> None:
    """Write the policy of a run as one file that needs nothing of flowmdp.

    For example:
      flowmdp export runs/hopper-medium/df-div-seed0
      flowmdp export runs/my-run --format torch --out policy.pt2

    Args:
        run_folder: Run folder, or a checkpoint file.
        format: onnx, for onnxruntime and the like, or torch, for torch.export.load.
        out: File to write; policy.onnx or policy.pt2 beside the checkpoint when not given.
        behavior: Export the behaviour flow instead of the trained policy.
        trust: Import, and so run, the code of others that the run names.

    Raises:
        ConfigurationError: Without the packages, or for a name of another format.
        CheckpointError: When the checkpoint cannot be used.
    """
    beside = run_folder if run_folder.is_dir() else run_folder.parent
    path = beside / f"policy{SUFFIXES[format]}" if out is None else out
    agent = load_checkpoint(run_folder, "cpu", trust)
    export(agent, path, format, behavior=behavior)
    noise = "zeros, as its paper plays it" if agent.acts_at_mean else "drawn from N(0, 1)"
    seen, acts = agent.spec.observation_dim, agent.spec.action_dim
    print(f"{path}: takes observations (n, {seen}) and noise (n, {acts}), {noise}; gives actions")


def export(
    agent: FlowAlgorithm, path: Path | str, format: Format = "onnx", *, behavior: bool = False
) -> None:
    """Write an agent's policy as one file; the module's text says what goes in and comes out.

    The answers are those of `agent.act(observations, noise=noise_scale * noise)`, in the robot's
    units, up to rounding, about 1e-6. IFQL wraps its noises around in float32, which makes rounding
    larger in the Gaussian's tails: in ONNX one action in some thousands differs by more than 1e-5.

    Args:
        agent: The agent.
        path: File to write, ".onnx" or ".pt2".
        format: "onnx" or "torch".
        behavior: The cloned behaviour instead of the policy.

    Raises:
        ConfigurationError: Without the packages, for a name of another format, for the behaviour
            of an algorithm that clones none, or around one of your own that torch cannot follow.
        OSError: If the file cannot be written; one that was there before stays.
    """
    path = Path(path)
    if format not in SUFFIXES:
        raise ConfigurationError(f"format is {format!r}: choose one of {', '.join(SUFFIXES)}")
    if path.suffix != SUFFIXES[format]:
        raise ConfigurationError(
            f"{path} must end in {SUFFIXES[format]} for format {format}: rename it, or choose "
            "the other format"
        )
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if format == "onnx" and missing:
        raise ConfigurationError(
            f'format onnx needs {" and ".join(missing)}: pip install "flowmdp[export]", or choose '
            "format torch"
        )
    module = ExportedPolicy(agent, agent.behavior_field() if behavior else agent.policy.ema)
    spec, box = agent.spec, agent.robot.action_space
    told = {
        "algorithm": agent.name,
        "policy": "behavior" if behavior else "policy",
        **{name: getattr(spec, name) for name in TOLD},
        **{"action_low": box.low.tolist(), "action_high": box.high.tolist()},
        "acts_at_mean": agent.acts_at_mean,
        "versions": {name: versions()[name] for name in ("flowmdp", "torch")},
    }
    widths = [spec.observation_dim, spec.action_dim]
    widths += [spec.robot_action_dim + 1] * spec.include_previous_action
    given = tuple(torch.zeros(2, width) for width in widths)
    rows = {0: torch.export.Dim("n")}
    shapes: Any = (rows, rows, (rows,) * len(given[2:]))[: len(given)]
    with warnings.catch_warnings():  # torch's about its own parts
        warnings.simplefilter("ignore")
        try:
            with torch.no_grad():  # a change of it inside would be recorded, and not load again
                program = torch.export.export(module, given, dynamic_shapes=shapes)
        except Exception as error:  # whatever torch makes of a user's model
            if agent.own_behavior is None:
                raise
            raise ConfigurationError(
                f"torch.export cannot follow {agent.own_behavior.name}: give a behavior that "
                f"computes with torch alone, for any batch ({str(error).splitlines()[0]})"
            ) from error
        for node in program.graph.nodes:  # places on this machine
            node.meta.pop("stack_trace", None)
        described = {name: json.dumps(value) for name, value in told.items()}
        if format == "onnx":
            model = _onnx(program, ["observations", "noise", "previous"][: len(given)])
            model.model.metadata_props.update(described)
            replace_file(path, lambda temporary: model.save(temporary))
        else:
            extra = {METADATA: json.dumps(described)}
            replace_file(path, lambda file: torch.export.save(program, file, extra_files=extra))


class ExportedPolicy(nn.Module):
    """From observations and noise to the robot's actions, as one module on the CPU.

    Args:
        agent: Whose normaliser, flow steps, noise and robot these are; it stays as it is.
        field: The velocity field to follow.
    """

    low: Tensor
    high: Tensor
    radius: Tensor

    def __init__(self, agent: FlowAlgorithm, field: nn.Module) -> None:
        super().__init__()
        # some fields hold others in tuples, so as not to store them twice; tracing must see them
        held = [*getattr(field, "_flow", ()), *getattr(field, "_critic", ())]
        parts = copy.deepcopy(nn.ModuleList([agent.policy.normalizer, field, *held]))
        self.parts = parts.cpu().eval().requires_grad_(False)
        self.spec, box = agent.spec, agent.robot.action_space
        self.shape = (*[agent.spec.chunk][: agent.spec.chunk - 1], *box.shape)
        low, high = (torch.as_tensor(bound.ravel()).float() for bound in (box.low, box.high))
        for name, bound in {"low": low, "high": high, "radius": (high - low) / 2}.items():
            self.register_buffer(name, bound)

    def forward(self, observations: Tensor, noise: Tensor, *previous: Tensor) -> Tensor:
        """Actions in the robot's units, shape (n, *the robot's); inputs as this module says."""
        normalizer, field, *_ = self.parts
        parts, middle = [normalizer(observations)], self.low + self.radius
        for before in previous:
            acted, flag = before[:, :-1], before[:, -1:]
            parts += [flag * ((acted - middle) / self.radius), flag]
        context, x_0 = torch.cat(parts, dim=1), self.spec.noise_scale * noise
        x_1 = integrate(lambda x_t, t: field(context, x_t, t), x_0, self.spec.flow_steps)
        unit = x_1.clamp(-1, 1).reshape(-1, self.spec.chunk, len(middle))
        actions: Tensor = middle + self.radius * unit
        return actions.clamp(self.low, self.high).reshape(-1, *self.shape)


def _onnx(program: Any, inputs: list[str]) -> Any:
    """The program in ONNX, without names of files of this machine."""
    unknown = torch.ops.aten.special_ndtri.default
    if any(node.target is unknown for node in program.graph.nodes):
        program = program.run_decompositions({unknown: _ndtri})
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it misses torchvision, which nothing here uses
    try:
        model: Any = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=inputs,
            output_names=["actions"],
            dynamic_shapes={name: {0: "n"} for name in inputs},
        )
    finally:
        logger.setLevel(level)
    for node in model.model.graph:
        node.metadata_props.clear()
    return model


def _ndtri(p: Tensor) -> Tensor:
    """Gaussian quantiles, which ONNX lacks, to 1e-6 for p in [1e-6, 1 - 1e-6].

    Giles 2010, "Approximating the erfinv function", the polynomials in single precision.
    """
    q = p.double()
    w = -torch.log(4 * q * (1 - q))
    central, tail = torch.zeros_like(w), torch.zeros_like(w)
    for near, far in zip(_CENTRAL, _TAIL, strict=True):
        central, tail = central * (w - 2.5) + near, tail * (w.sqrt() - 3) + far
    return (torch.where(w < 5, central, tail) * (2 * q - 1) * math.sqrt(2)).to(p.dtype)


_CENTRAL = (
    *(2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087),
    *(-0.00125372503, -0.00417768164, 0.246640727, 1.50140941),
)
_TAIL = (
    *(-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773),
    *(-0.0076224613, 0.00943887047, 1.00167406, 2.83297682),
)
