"""The exceptions flowmdp raises for input it cannot use; a message is one line, cause and cure."""

from gymnasium.error import ResetNeeded


class FlowMDPError(ValueError):
    """Base of every error a user can cause and mend; the command line exits with code 2 on it."""


class UnknownTaskError(FlowMDPError):
    """No task, dataset source or environment of that name."""


class DatasetError(FlowMDPError):
    """A dataset is missing, half-written, or does not fit the task's environment."""


class CheckpointError(FlowMDPError):
    """A checkpoint is missing, damaged, hostile, or belongs to another task."""


class TrainingDivergedError(FlowMDPError):
    """A loss, a gradient or a weight is NaN or infinite; what was saved before stays."""


class ConfigurationError(FlowMDPError):
    """An argument is out of its range, or two arguments exclude each other."""


class UnknownArgumentError(ConfigurationError, TypeError):
    """No argument has that name; a TypeError too, which is what other libraries expect."""


class ActionError(FlowMDPError):
    """A flow action has the wrong shape or dtype, or is not finite."""


class ResetNeededError(FlowMDPError, ResetNeeded):
    """A flow environment was stepped before its first reset or after its episode's end."""


class RobotError(FlowMDPError):
    """A robot raised an error, gave numbers that are not finite, or cannot be made."""

    robot: int | None = None
    """Which, where there are several."""


class RenderingError(FlowMDPError):
    """No working OpenGL backend was found."""
