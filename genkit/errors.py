"""Everything that goes wrong in a way a person can mend.

    GenkitError                 1   anything below; the command line prints its one line and exits with `exit_status`
    ├── InputError              2   a parameter or an argument is wrong
    │   ├── RecipeError         2   a recipe is wrong; knows file, line and column
    │   ├── PlanChanged         2   an output folder was made by another plan; knows what differs
    │   ├── MediaError          2   a picture, sound or MIDI file cannot be read or is out of bounds
    │   └── ModelError          2   a model is missing, malformed, or of another architecture
    ├── DeviceError             1   the device asked for is not there, or cannot do what was asked
    │   └── OutOfMemory         1   not even a single item fits; whoever raised it has given up all it could for it
    ├── SomeJobsFailed          3   a batch ended with failed jobs
    ├── Damaged                 3   files of a batch are missing, or are not what was written
    ├── DiskError               1   a disk, or a folder on the network, fails; trying again may help
    ├── DiskFull                4   no space left for an output
    ├── Locked                 75   another runner works in the same folder
    └── Cancelled             130   stopped on request, nothing half-written

A message is one line that names the thing, says what is wrong with it, and what would be right.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "Cancelled",
    "Damaged",
    "DeviceError",
    "DiskError",
    "DiskFull",
    "GenkitError",
    "InputError",
    "Locked",
    "MediaError",
    "ModelError",
    "OutOfMemory",
    "PlanChanged",
    "RecipeError",
    "SomeJobsFailed",
]


class GenkitError(Exception):
    """The root. `exit_status` is what the command line exits with."""

    exit_status = 1

    def __init__(self, message: str) -> None:
        # A file name or a recipe may hold line breaks and control signs; an error is still one printable line.
        line = "".join(c if c.isprintable() else " " for c in message)
        # What it names may be of any length; the cut is where a long name is, the remedy at the end stays.
        super().__init__(line if len(line) <= 1500 else f"{line[:1000]} ... {line[-400:]}")


class InputError(GenkitError):
    exit_status = 2


class RecipeError(InputError):
    """`where` is "file:line:column" as far as known; it opens the message."""

    def __init__(self, message: str, *, where: str = "") -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.where = where


class PlanChanged(InputError):
    """`lines`: the first differences, a line for each."""

    def __init__(self, message: str, lines: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.lines = list(lines)


class MediaError(InputError):
    pass


class ModelError(InputError):
    pass


class DeviceError(GenkitError):
    pass


class OutOfMemory(DeviceError):
    """A pipeline that raised it is slower than before for nothing: load it anew."""


class SomeJobsFailed(GenkitError):
    exit_status = 3


class Damaged(GenkitError):
    exit_status = 3


class DiskError(GenkitError):
    pass


class DiskFull(GenkitError):
    exit_status = 4


class Locked(GenkitError):
    exit_status = 75


class Cancelled(GenkitError):
    """`keep`: what is done so far is wanted all the same. Pipelines that write as they go (bars of music) stop and hand
    it over; the others have nothing to keep, and stop."""

    exit_status = 130

    def __init__(self, message: str = "stopped", *, keep: bool = False) -> None:
        super().__init__(message)
        self.keep = keep
