"""A small blocking client of the state-provider protocol (docs/state-provider.md), without dependencies.

How a program that runs under Sluice says which step it finished, hands over its state and gets it back after a move::

    import sluice_checkpoint as sluice

    session = sluice.Session.connect_from_env()
    first, weights = 1, new_weights()
    if session.resume is not None:
        weights = session.resume.require("w").read()
        first = session.resume.step + 1
    for step in range(first, 1001):
        loss = train(weights, step)
        action = session.step(step, {"loss": loss})
        if action is not sluice.Action.CONTINUE:
            entries = [sluice.Tensor("w", "f32", (64, 64), weights)]
            session.checkpoint(step, cursor={"next": step + 1}, code="example 1", tensors=entries)
        if action is sluice.Action.CHECKPOINT_AND_EXIT:
            break

Outside Sluice (no ``SLUICE_SOCKET``) a session is detached: every step answers ``CONTINUE`` and nothing is written.
Not safe to share between threads: one request and one reply travel at a time. Needs Python 3.9 or newer.
"""

from __future__ import annotations

import enum
import json
import math
import os
import shutil
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn, Optional, Union

__all__ = [
    "Action",
    "CheckpointError",
    "Entry",
    "InvalidState",
    "Lost",
    "Refused",
    "Resume",
    "Session",
    "Tensor",
]

PROTOCOL = 1
#: Longest line in bytes, with its newline.
MAX_LINE = 1 << 20
#: Most entries of one checkpoint. The line bound usually binds earlier: it holds about 9,000 entries.
MAX_ENTRIES = 65_536
#: Longest cursor in bytes of JSON.
MAX_CURSOR = 64 << 10
#: Longest ``code`` in bytes.
MAX_CODE = 256
#: Most metrics of one step.
MAX_METRICS = 16
#: Seconds the supervisor may keep a task waiting; staging a large checkpoint is the long case.
REPLY_DEADLINE = 600.0

_STATE_FILE = "state.bin"
# How many names are tried for a fresh folder; left-overs of killed tries are the only reason to need a second.
_MAX_NAMES = 10_000
#: Size in bytes of one element of each type.
DTYPES: Mapping[str, int] = {
    "f64": 8,
    "f32": 4,
    "f16": 2,
    "bf16": 2,
    "i64": 8,
    "i32": 4,
    "i16": 2,
    "i8": 1,
    "u64": 8,
    "u32": 4,
    "u16": 2,
    "u8": 1,
    "bool": 1,
}

Buffer = Union[bytes, bytearray, memoryview]


class CheckpointError(Exception):
    """Anything that went wrong between the task and its supervisor."""


class Lost(CheckpointError):
    """The supervisor cannot be reached, went away or made no sense; the session is over."""


class Refused(CheckpointError):
    """The supervisor said no; the task may go on."""

    def __init__(self, doing: str, reason: str, message: str) -> None:
        super().__init__(f"the supervisor refused {doing} ({reason}): {message}")
        self.reason = reason
        self.message = message


class InvalidState(CheckpointError):
    """A bound is exceeded, or an entry is inconsistent with itself; nothing was sent and the task may go on."""


class Action(enum.Enum):
    """What the supervisor wants after a step."""

    CONTINUE = "continue"
    CHECKPOINT = "checkpoint"
    CHECKPOINT_AND_EXIT = "checkpoint_and_exit"


@dataclass(frozen=True)
class Tensor:
    """One entry to be written: its bytes little endian, row-major, without gaps. Plain bytes are of type ``u8``."""

    name: str
    dtype: str
    shape: Sequence[int]
    data: Buffer


@dataclass(frozen=True)
class Entry:
    """One entry of the checkpoint the task starts from, still on disk."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    length: int

    def read(self) -> bytes:
        """Reads the bytes; InvalidState when the file is too short, OSError when it cannot be read."""
        with open(self.file, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            # Checked before memory is taken, so that an absurd length costs nothing.
            if self.offset + self.length > size:
                raise InvalidState(f"entry {self.name!r}: bytes {self.offset}+{self.length} of a file of {size}")
            file.seek(self.offset)
            data = file.read(self.length)
        if len(data) != self.length:
            raise InvalidState(f"entry {self.name!r}: its file became shorter")
        return data


@dataclass(frozen=True)
class Resume:
    """What to continue from: the state after ``step`` was complete."""

    step: int
    cursor: Any
    entries: tuple[Entry, ...]
    #: The program it was written by, where the supervisor tells it.
    code: Optional[str] = None

    def entry(self, name: str) -> Optional[Entry]:
        """The entry called ``name``, if there is one."""
        return next((entry for entry in self.entries if entry.name == name), None)

    def require(self, name: str) -> Entry:
        """The entry called ``name``, or InvalidState."""
        entry = self.entry(name)
        if entry is None:
            raise InvalidState(f"entry {name!r} is not in the checkpoint")
        return entry


class Session:
    """A task's line to its supervisor, or a stand-in for it outside Sluice."""

    def __init__(self, connection: Optional[socket.socket] = None, stage: Optional[str] = None) -> None:
        """Greets the supervisor over a connected stream socket; detached without one."""
        if connection is not None and stage is None:
            raise InvalidState("a session with a supervisor needs a stage folder")
        self._connection = connection
        self._stage = stage or ""
        self._received = bytearray()
        self._ended = False
        #: The checkpoint to start from; None means from the beginning.
        self.resume: Optional[Resume] = None
        if connection is not None:
            connection.settimeout(REPLY_DEADLINE)
            self.resume = self._parse_resume(self._ask("hello", {"op": "hello", "protocol": PROTOCOL}))

    @classmethod
    def connect_from_env(cls, environ: Optional[Mapping[str, str]] = None) -> Session:
        """Connects as the environment says; detached when ``SLUICE_SOCKET`` is absent."""
        variables = os.environ if environ is None else environ
        path = variables.get("SLUICE_SOCKET")
        if not path:
            return cls()
        stage = variables.get("SLUICE_STAGE")
        if not stage:
            raise InvalidState("the variable SLUICE_STAGE is missing")
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(path)
        except OSError as error:
            connection.close()
            raise Lost(f"cannot connect to the supervisor at {path}: {error}") from error
        try:
            return cls(connection, stage)
        except BaseException:
            connection.close()
            raise

    @property
    def detached(self) -> bool:
        """True when there is no supervisor, so that checkpoints go nowhere."""
        return self._connection is None

    def close(self) -> None:
        """Closes the connection; the session is over."""
        self._ended = True
        if self._connection is not None:
            self._connection.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def step(self, step: int, metrics: Optional[Mapping[str, float]] = None) -> Action:
        """Tells that ``step`` is complete and asks what to do.

        Metrics that are not finite are left out: JSON cannot carry them, and a diverging run should still be seen.
        """
        numbers = {name: float(value) for name, value in (metrics or {}).items()}
        _bound("the step", len(numbers), MAX_METRICS, "metrics")
        if self._connection is None:
            return Action.CONTINUE
        finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
        reply = self._ask("step", {"op": "step", "step": step, "metrics": finite})
        try:
            return Action(reply.get("action"))
        except ValueError:
            self._malformed("step", f"unknown action {reply.get('action')!r}")

    def checkpoint(self, step: int, cursor: Any, code: str, tensors: Iterable[Tensor]) -> Optional[int]:
        """Writes a checkpoint of ``step`` and announces it.

        Returns its sequence number once everything is staged, or None when detached (then ``tensors`` is not read).
        ``cursor`` is the data position as any JSON value, ``code`` a digest or version of the program. InvalidState,
        Refused and OSError leave the session usable; in all cases the folder is gone from the stage.
        """
        _bound("the cursor", len(_json(cursor)), MAX_CURSOR, "bytes")
        _bound("the code", len(code.encode()), MAX_CODE, "bytes")
        if self._connection is None:
            return None
        if self._ended:
            raise Lost("the session ended at an earlier error")
        name = self._fresh_folder(step)
        folder = os.path.join(self._stage, name)
        try:
            with open(os.path.join(folder, _STATE_FILE), "xb") as file:
                entries = _write(file, tensors)
            announcement = {"op": "checkpoint", "step": step, "dir": name, "cursor": cursor, "code": code}
            reply = self._ask("checkpoint", {**announcement, "entries": entries})
        finally:
            # After a good announcement the folder is gone already: the supervisor renamed it.
            shutil.rmtree(folder, ignore_errors=True)
        sequence = reply.get("sequence")
        if not _is_count(sequence):
            self._malformed("checkpoint", "no sequence")
        return sequence

    def _fresh_folder(self, step: int) -> str:
        for number in range(_MAX_NAMES):
            name = f"step-{step}-{number}"
            try:
                os.mkdir(os.path.join(self._stage, name))
            except FileExistsError:
                continue
            return name
        raise InvalidState(f"every name for a fresh folder in {self._stage} is taken")

    def _ask(self, doing: str, request: Mapping[str, Any]) -> dict[str, Any]:
        if self._ended or self._connection is None:
            raise Lost("the session ended at an earlier error")
        line = _json(request) + b"\n"
        _bound("the request", len(line), MAX_LINE, "bytes")
        try:
            self._connection.sendall(line)
            answer = self._receive_line(doing)
        except OSError as error:
            # Request and reply could no longer be matched, so nothing more is sent.
            self._ended = True
            raise Lost(f"lost the supervisor while {doing}: {error}") from error
        try:
            reply = json.loads(answer)
        except (ValueError, RecursionError) as error:
            self._malformed(doing, str(error))
        if not isinstance(reply, dict) or not isinstance(reply.get("ok"), bool):
            self._malformed(doing, "no object with ok")
        if not reply["ok"]:
            raise Refused(doing, str(reply.get("reason", "")), str(reply.get("message", "")))
        return reply

    def _receive_line(self, doing: str) -> bytes:
        assert self._connection is not None
        while True:
            end = self._received.find(b"\n")
            if end >= 0:
                line = bytes(self._received[:end])
                del self._received[: end + 1]
                return line
            if len(self._received) >= MAX_LINE:
                self._malformed(doing, f"no end of line within {MAX_LINE} bytes")
            chunk = self._connection.recv(min(65_536, MAX_LINE - len(self._received)))
            if not chunk:
                raise ConnectionError("the supervisor closed the connection")
            self._received += chunk

    def _malformed(self, doing: str, problem: str) -> NoReturn:
        self._ended = True
        raise Lost(f"the supervisor's answer to {doing} is malformed: {problem}")

    def _parse_resume(self, reply: Mapping[str, Any]) -> Optional[Resume]:
        raw = reply.get("resume")
        if raw is None:
            return None
        try:
            entries = tuple(_parse_entry(entry) for entry in raw["entries"])
            step, cursor, code = raw["step"], raw["cursor"], raw.get("code")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            self._malformed("hello", f"a resume without {error}")
        if not _is_count(step) or len(entries) > MAX_ENTRIES:
            self._malformed("hello", "a resume with an impossible step or too many entries")
        return Resume(step, cursor, entries, None if code is None else str(code))


def _parse_entry(raw: Mapping[str, Any]) -> Entry:
    shape = tuple(raw["shape"])
    numbers = (*shape, raw["offset"], raw["length"])
    if not all(_is_count(number) for number in numbers):
        raise ValueError("whole numbers in shape, offset and length")
    if not isinstance(raw["file"], str) or not os.path.isabs(raw["file"]):
        raise ValueError("an absolute path")
    return Entry(str(raw["name"]), str(raw["dtype"]), shape, raw["file"], raw["offset"], raw["length"])


def _write(file: BinaryIO, tensors: Iterable[Tensor]) -> list[dict[str, Any]]:
    """Writes all tensors one after another and returns their entries."""
    entries: list[dict[str, Any]] = []
    names: set[str] = set()
    offset = 0
    for tensor in tensors:
        _bound("the checkpoint", len(entries) + 1, MAX_ENTRIES, "entries")
        data = memoryview(tensor.data).cast("B")
        shape = [int(dimension) for dimension in tensor.shape]
        size = DTYPES.get(tensor.dtype)
        if size is None:
            raise InvalidState(f"entry {tensor.name!r}: unknown type {tensor.dtype!r}")
        if any(dimension < 0 for dimension in shape) or math.prod(shape) * size != len(data):
            raise InvalidState(f"entry {tensor.name!r}: {len(data)} bytes given for {shape} of {tensor.dtype}")
        if tensor.name in names:
            raise InvalidState(f"entry {tensor.name!r}: the name was used before")
        names.add(tensor.name)
        file.write(data)
        place = {"file": _STATE_FILE, "offset": offset, "length": len(data)}
        entries.append({"name": tensor.name, "dtype": tensor.dtype, "shape": shape, **place})
        offset += len(data)
    return entries


def _json(value: Any) -> bytes:
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise InvalidState(f"not a JSON value: {error}") from error


def _is_count(value: Any) -> bool:
    # bool is a kind of int in Python, but true is no step.
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _bound(what: str, size: int, most: int, unit: str) -> None:
    if size > most:
        raise InvalidState(f"{what} has {size} {unit}, the protocol allows {most}")
