"""Hyper-parameters that several algorithms share; an algorithm's own stand in its file.

A config is a frozen dataclass. Each field says its type, range and default once; the line below it
says what it means and where the default comes from. Constructors, the command's options,
checkpoints and results all take it from here.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import inspect
import itertools
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, get_type_hints

from flowmdp.arguments import AtLeast, Range, check_fields
from flowmdp.errors import ConfigurationError

MOST_LAYERS = 100


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """What everything has that learns networks, offline or not."""

    batch_size: Annotated[int, AtLeast(1, 1_000_000)] = 256
    """Transitions per gradient step."""
    net_arch: tuple[Annotated[int, AtLeast(1, 65_536)], ...] = (256, 256, 256)
    """Hidden widths of every network."""

    def __post_init__(self) -> None:
        """Raise ConfigurationError for a value of another type or out of range."""
        check_fields(self)
        if len(self.net_arch) > MOST_LAYERS:
            raise ConfigurationError(
                f"net_arch has {len(self.net_arch)} layers: at most {MOST_LAYERS} are possible"
            )

    @classmethod
    def names(cls) -> list[str]:
        """Names of the hyper-parameters."""
        return [field.name for field in dataclasses.fields(cls)]

    @classmethod
    def of(cls, values: Mapping[str, Any], base: Self | None = None) -> Self:
        """A config from named values; the others are those of `base`, or the defaults.

        Raises:
            ConfigurationError: For an unknown name, or a value out of range.
        """
        known = cls.names()
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"choose among {', '.join(known)}"
                raise ConfigurationError(f"{name!r} is no hyper-parameter: {hint}")
        return dataclasses.replace(cls() if base is None else base, **values)


@dataclass(frozen=True, kw_only=True)
class AgentConfig(NetworkConfig):
    """What every algorithm has that learns from a dataset."""

    precision: Literal["auto", "float32", "bfloat16", "tfloat32"] = "auto"
    """float32; bfloat16: hidden layers multiply in bfloat16, weights and output layers stay in
    float32; tfloat32: a GPU's TensorFloat-32; auto: the fastest on the hardware."""
    cuda_graphs: bool = True
    """Whether a GPU records updates as CUDA graphs and replays them: several times as fast."""


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(AgentConfig):
    """Of a policy that is trained by gradient steps."""

    learning_rate: Annotated[float, Range("[0, inf)")] = 3e-4
    """Adam's, of the policy."""
    ema_rate: Annotated[float, Range("[0, 1]")] = 0.005
    """Weight of the new parameters in the moving average that acts."""


@dataclass(frozen=True, kw_only=True)
class CloneConfig(AgentConfig):
    """Of a behaviour flow that is cloned from the data first."""

    path: Literal["linear", "trigonometric"] = "linear"
    """Path from noise to action on which flows are matched to the data."""
    behavior_learning_rate: Annotated[float, Range("[0, inf)")] = 1e-3
    """Adam's, of the behaviour flow [ours: lab book, thirteenth round]."""
    behavior_steps: Annotated[int, AtLeast(0)] = 30_000
    """Gradient steps of the behaviour flow."""


@dataclass(frozen=True, kw_only=True)
class CriticConfig(AgentConfig):
    """Of a critic that is fitted to the data's returns first.

    The defaults of this class, `SmoothedConfig` and `BestOfConfig` are the recipe that all methods
    share that learn Q by temporal differences [ours]: two of them then differ by how they improve a
    policy. An algorithm's `paper` has its own.
    """

    gamma: Annotated[float, Range("[0, 1)")] = 0.99
    """Discount per step of the robot."""
    critic_members: Annotated[int, AtLeast(1, 1_000)] = 5
    """Q networks in the ensemble [ours: two let every policy run into what the critic has not
    seen]."""
    pessimism: Annotated[float, Range("(-inf, inf)")] | None = 2.0
    """Q = mean - pessimism * std of the members; None takes their minimum [ours]."""
    tau: Annotated[float, Range("(0, 1]")] = 0.005
    """Polyak rate of the target networks."""
    critic_learning_rate: Annotated[float, Range("[0, inf)")] = 3e-4
    """Adam's, of the critic."""
    critic_steps: Annotated[int, AtLeast(0)] = 5_000
    """Gradient steps of the critic before the policy moves."""

    def __post_init__(self) -> None:
        """Check the ensemble too."""
        super().__post_init__()
        if self.pessimism and self.critic_members < 2:
            raise ConfigurationError("pessimism needs critic_members of at least 2")


@dataclass(frozen=True, kw_only=True)
class SmoothedConfig(CriticConfig):
    """Of a critic that learns on under a policy."""

    smoothing: Annotated[float, Range("[0, inf)")] = 0.2
    """Standard deviation of the noise on the policy's actions in the critic's target, TD3's target
    policy smoothing [ours for flow policies]; 0 adds none."""


@dataclass(frozen=True, kw_only=True)
class BestOfConfig(CriticConfig):
    """Of a critic that learns on under a policy that draws actions from noise."""

    best_of: Annotated[int, AtLeast(1, 10_000)] = 1
    """Actions of the policy at s', of which the critic's target takes the one that Q' values most
    (Li et al. 2025, arXiv:2507.07969: 32); an update's cost grows with them. The agent then acts by
    the best of as many."""


@dataclass(frozen=True, kw_only=True)
class ExpectileConfig(CriticConfig):
    """Of a critic whose state value regresses to an expectile."""

    expectile: Annotated[float, Range("[0.5, 1)")] = 0.7
    """Of V's regression to Q; the fit to returns before it is to the mean (papers: 0.7 on
    Gym-MuJoCo, 0.9 on AntMaze and for IFQL)."""


@dataclass(frozen=True, kw_only=True)
class ImplicitConfig(ExpectileConfig):
    """Of implicit Q-learning, whoever acts (Kostrikov et al. 2022, arXiv:2110.06169)."""

    critic_members: Annotated[int, AtLeast(1, 1_000)] = 2
    """Q networks in the ensemble (paper)."""
    pessimism: Annotated[float, Range("(-inf, inf)")] | None = None
    """Q = mean - pessimism * std of the members; None takes their minimum (paper)."""
    critic_steps: Annotated[int, AtLeast(0)] = 10_000
    """Gradient steps of the critic alone, half on returns and half by expectiles [ours]."""


MEAN_OF_TWO = {"critic_members": 2, "pessimism": 0.0, "smoothing": 0.0}
"""The critic of FQL's and QC's papers."""


def documented(cls: type[AgentConfig]) -> dict[str, str]:
    """Field -> the text below it in the source of the config or a base; the config's own first.

    `dataclasses.fields` gives no such texts, and at run time Python has dropped them.
    """
    texts: dict[str, str] = {}
    for base in (base for base in cls.__mro__ if dataclasses.is_dataclass(base)):
        with contextlib.suppress(OSError):  # typed at a prompt: there is no source
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
            for field, text in itertools.pairwise(body):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    words = str(ast.literal_eval(text.value)).split()
                    texts.setdefault(ast.unparse(field.target), " ".join(words))
    return texts | {name: "" for name in cls.names() if name not in texts}


def show_hyperparameters(cls: Any, constructor: Callable[..., Any]) -> None:
    """Give a class that takes its `config_class`'s fields by name their signature and help()."""
    own = inspect.signature(constructor).parameters.values()
    keyword, first = inspect.Parameter.KEYWORD_ONLY, ("policy", "env", "config")
    config, texts = cls.config_class, documented(cls.config_class)
    hints = get_type_hints(config)
    named = [
        inspect.Parameter(name, keyword, default=getattr(config, name), annotation=hints[name])
        for name in texts
    ]
    others = [one for one in own if one.kind is keyword and not one.name.startswith("_")]
    cls.__signature__ = inspect.Signature(
        [*(one for one in own if one.name in first), *named, *others]
    )
    lines = [
        textwrap.fill(f"{name}: {text}", 96, initial_indent=" " * 4, subsequent_indent=" " * 8)
        for name, text in texts.items()
    ]
    cls.__doc__ = "\n".join(
        [inspect.cleandoc(cls.__doc__ or ""), "", "Hyper-parameters:", *lines, ""]
    )
