"""What files from outside must hold, checked where they are read; more fields than these may be."""

from __future__ import annotations

import reprlib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Count = Annotated[int, Field(ge=0, lt=2**53)]
Number = Annotated[float, Field(ge=-1e100, le=1e100)]
Positive = Annotated[int, Field(ge=1, lt=2**53)]
Share = Annotated[float, Field(ge=0, le=1)]


class Record(BaseModel):
    """A JSON object: no text for a number, no NaN, and whatever else it holds stays."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class RunConfig(Record):
    """config.json of a run."""

    algorithm: str
    task: str
    source: str
    dataset_id: str | None
    seed: Count
    steps: Count
    flow: dict[str, Any]
    config: dict[str, Any]


class WholeConfig(RunConfig):
    """The config.json of a run that is continued."""

    episodes: Positive
    eval_every: Positive | None
    eval_episodes: Positive
    save_every: Positive | None
    quick: bool
    device: Literal["auto", "cpu", "cuda"]
    command: str


class OnlineRun(Record):
    """What a run that learns on robots has beside."""

    by: str
    robot_steps: Positive
    before: dict[str, Any]
    data: dict[str, Any]
    settings: dict[str, Any]


class FinetuneConfig(WholeConfig):
    """The config.json of a run that learns on robots."""

    online: OnlineRun


class Evaluation(Record):
    """One of history.json's evaluations."""

    step: Count
    returns: Annotated[list[Number], Field(min_length=1)]
    successes: Annotated[list[bool], Field(min_length=1)] | None = None


class Sums(Record):
    """Running sums of what goes into the next line of the log."""

    count: Count = 0
    sums: dict[str, float] = {}


class History(Record):
    """history.json of a run: evaluations, clocks, and what goes into the next line of the log."""

    evaluations: list[Evaluation]
    updates: Count
    update_seconds: float
    seconds: float
    log: Sums = Sums()


class Score(Record):
    """What flows and data are measured by; success only where the task reports it."""

    normalized_score: Number | None = None
    success_rate: Share | None = None
    success_interval_95: Annotated[list[Share], Field(min_length=2, max_length=2)] | None = None
    successes: list[bool] = []


class Outcome(Score):
    """Returns of a flow."""

    mean_return: Number
    returns: list[Number] = []
    interval_95: Annotated[list[Number], Field(min_length=2, max_length=2)] = [0.0, 0.0]


class Recorded(Score):
    """Returns of the data; none where success is what counts."""

    mean_return: Number | None = None


class Played(Outcome):
    """A flow that was played both ways; older results lack them."""

    sampled: Outcome | None = None
    noiseless: Outcome | None = None


class Curve(Record):
    """Means of a run's evaluations, in their order."""

    steps: Annotated[list[Count], Field(min_length=1)]
    mean_return: list[Number]
    success_rate: list[Share] | None = None


class Result(Played):
    """result.json of a run."""

    task: str
    source: str
    dataset_id: str
    algorithm: str
    seed: Count
    data: Recorded
    behavior: Played | None = None
    best_evaluation: Outcome | None = None
    last_evaluations: Outcome | None = None
    curve: Curve | None = None
    online: dict[str, Any] | None = None
    flow: dict[str, Any] = {}
    config: dict[str, Any] = {}
    label: str = ""
    command: str = "# not recorded"
    episodes: int = 1


class Row(Result):
    """A row of a table's results."""

    label: str


class Metadata(Record):
    """metadata.json of a Minari dataset."""

    dataset_id: str
    total_episodes: Count
    total_steps: Count
    data_format: str
    minari_version: str
    algorithm_name: str = "unknown"
    observation_space: str | None = None
    action_space: str | None = None
    env_spec: str | None = None
    flowmdp_build: dict[str, Any] = {}


class RecordedWrapper(Record):
    """Gymnasium's `WrapperSpec`."""

    name: str
    entry_point: str = ""


class RecordedSpec(Record):
    """Gymnasium's `EnvSpec`: the environment that a dataset was recorded on."""

    id: str | None = None
    kwargs: dict[str, Any] = {}
    additional_wrappers: list[RecordedWrapper] = []


def fault(schema: type[BaseModel], value: Any) -> str | None:
    """What keeps a value from being of a schema, in a few words; None when nothing does."""
    try:
        schema.model_validate(value)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False)
        missing = [_place(one["loc"]) for one in errors if one["type"] == "missing"]
        if missing:
            return f"it lacks {', '.join(sorted(missing))}"
        first = errors[0]
        reason = first["msg"].partition(": ")[0].replace("Input should be", "which should be")
        return f"{_place(first['loc'])} is {reprlib.repr(first['input'])}, {reason}"
    return None


def _place(location: tuple[int | str, ...]) -> str:
    return ".".join(map(str, location)) or "it"
