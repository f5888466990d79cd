"""The client against a supervisor that follows a script: `python3 -m unittest` in this folder."""

from __future__ import annotations

import json
import os
import socket
import struct
import tempfile
import threading
import unittest
from typing import Any, Optional

import sluice_checkpoint as sluice

HELLO = {"ok": True, "resume": None}


class Supervisor:
    """Answers each request with the next line of its script; an accepted checkpoint is first renamed away."""

    def __init__(self, *script: Any) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.stage = os.path.join(self.folder.name, "stage")
        self.taken = os.path.join(self.folder.name, "taken")
        self.requests: list[dict[str, Any]] = []
        os.mkdir(self.stage)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(os.path.join(self.folder.name, "socket"))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, args=(script,))
        self._thread.start()

    def _serve(self, script: tuple[Any, ...]) -> None:
        connection, _ = self._listener.accept()
        with connection, connection.makefile("rb") as lines:
            for reply in script:
                line = lines.readline()
                if not line:
                    return
                request = json.loads(line)
                self.requests.append(request)
                if request["op"] == "checkpoint" and isinstance(reply, dict) and reply["ok"]:
                    os.rename(os.path.join(self.stage, request["dir"]), self.taken)
                raw = reply if isinstance(reply, bytes) else json.dumps(reply).encode() + b"\n"
                try:
                    connection.sendall(raw)
                except OSError:
                    return

    def environment(self) -> dict[str, str]:
        return {"SLUICE_SOCKET": os.path.join(self.folder.name, "socket"), "SLUICE_STAGE": self.stage}

    def connect(self) -> sluice.Session:
        return sluice.Session.connect_from_env(self.environment())

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(10)
        self._listener.close()
        self.folder.cleanup()


def tensor(name: str = "w", values: Optional[list[float]] = None) -> sluice.Tensor:
    values = [1.5, -0.0] if values is None else values
    return sluice.Tensor(name, "f32", (len(values),), struct.pack(f"<{len(values)}f", *values))


class SessionTest(unittest.TestCase):
    def test_outside_sluice_every_step_continues_and_nothing_is_written(self) -> None:
        session = sluice.Session.connect_from_env({})
        self.assertTrue(session.detached)
        self.assertIsNone(session.resume)
        self.assertIs(session.step(1, {"loss": 1.0}), sluice.Action.CONTINUE)
        self.assertIsNone(session.checkpoint(1, None, "v", [tensor()]))

    def test_steps_and_checkpoints_follow_the_protocol(self) -> None:
        script = (
            HELLO,
            {"ok": True, "action": "continue"},
            {"ok": True, "action": "checkpoint_and_exit"},
            {"ok": True, "sequence": 4},
        )
        with Supervisor(*script) as supervisor, supervisor.connect() as session:
            self.assertIs(session.step(1, {"loss": 2.5, "bad": float("nan")}), sluice.Action.CONTINUE)
            self.assertIs(session.step(2), sluice.Action.CHECKPOINT_AND_EXIT)
            blob = sluice.Tensor("blob", "u8", (2,), b"ab")
            self.assertEqual(session.checkpoint(2, {"next": 3}, "v1", iter([tensor(), blob])), 4)
            self.assertEqual(os.listdir(supervisor.stage), [])
            with open(os.path.join(supervisor.taken, "state.bin"), "rb") as state:
                self.assertEqual(state.read(), struct.pack("<2f", 1.5, -0.0) + b"ab")
            hello, first, _, announced = supervisor.requests
            self.assertEqual(hello, {"op": "hello", "protocol": 1})
            self.assertEqual(first, {"op": "step", "step": 1, "metrics": {"loss": 2.5}})
            place = {"file": "state.bin", "offset": 0, "length": 8}
            after = {"file": "state.bin", "offset": 8, "length": 2}
            entries = [
                {"name": "w", "dtype": "f32", "shape": [2], **place},
                {"name": "blob", "dtype": "u8", "shape": [2], **after},
            ]
            expected = {"op": "checkpoint", "step": 2, "dir": "step-2-0", "cursor": {"next": 3}, "code": "v1"}
            self.assertEqual(announced, {**expected, "entries": entries})

    def test_a_resume_gives_back_the_same_bytes(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "blob")
            with open(path, "wb") as file:
                file.write(b"\0" + bytes(range(8)))
            entry = {"name": "w", "dtype": "f32", "shape": [2], "file": path, "offset": 1, "length": 8}
            absurd = {**entry, "name": "absurd", "length": 1 << 60}
            resume = {"step": 7, "cursor": [1], "entries": [entry, absurd]}
            with Supervisor({"ok": True, "resume": resume}) as supervisor, supervisor.connect() as session:
                assert session.resume is not None
                self.assertEqual((session.resume.step, session.resume.cursor), (7, [1]))
                self.assertEqual(session.resume.require("w").read(), bytes(range(8)))
                with self.assertRaises(sluice.InvalidState):
                    session.resume.require("absurd").read()
                with self.assertRaises(sluice.InvalidState):
                    session.resume.require("none")

    def test_a_refusal_leaves_the_session_usable_and_the_stage_clean(self) -> None:
        refusal = {"ok": False, "reason": "INVALID_FIELD", "message": "no"}
        script = (HELLO, refusal, {"ok": True, "action": "checkpoint"})
        with Supervisor(*script) as supervisor, supervisor.connect() as session:
            with self.assertRaises(sluice.Refused) as refused:
                session.checkpoint(1, None, "v", [tensor()])
            self.assertEqual(refused.exception.reason, "INVALID_FIELD")
            self.assertEqual(os.listdir(supervisor.stage), [])
            self.assertIs(session.step(2), sluice.Action.CHECKPOINT)

    def test_bounds_and_wrong_tensors_are_refused_before_anything_is_sent(self) -> None:
        many = (sluice.Tensor(f"tensor.{n}", "f32", (0,), b"") for n in range(20_000))
        with Supervisor(HELLO) as supervisor, supervisor.connect() as session:
            with self.assertRaises(sluice.InvalidState):
                session.step(1, {f"m{n}": 0.0 for n in range(sluice.MAX_METRICS + 1)})
            cases: list[tuple[Any, str, Any]] = [
                ("x" * sluice.MAX_CURSOR, "v", []),
                (float("nan"), "v", []),
                (object(), "v", []),
                (None, "v" * 257, []),
                (None, "v", many),
                (None, "v", [tensor(), tensor()]),
                (None, "v", [sluice.Tensor("w", "f32", (3,), b"1234")]),
                (None, "v", [sluice.Tensor("w", "f32", (-1, -1), b"1234")]),
                (None, "v", [sluice.Tensor("w", "f31", (1,), b"1234")]),
            ]
            for cursor, code, tensors in cases:
                with self.assertRaises(sluice.InvalidState):
                    session.checkpoint(1, cursor, code, tensors)
            self.assertEqual(os.listdir(supervisor.stage), [])
            self.assertEqual(len(supervisor.requests), 1)

    def test_after_a_senseless_or_missing_answer_the_session_is_over(self) -> None:
        endless = b"x" * (sluice.MAX_LINE + 1)
        senseless = [b"nonsense\n", b"\xff\n", b"[]\n", b"{}\n", b'{"ok":true,"action":"dance"}\n', endless]
        for script in [(HELLO, answer) for answer in senseless] + [(HELLO,)]:
            with Supervisor(*script) as supervisor, supervisor.connect() as session:
                with self.assertRaises(sluice.Lost):
                    session.step(1)
                with self.assertRaises(sluice.Lost):
                    session.step(2)
                with self.assertRaises(sluice.Lost):
                    session.checkpoint(2, None, "v", [tensor()])
                self.assertEqual(os.listdir(supervisor.stage), [])

    def test_senseless_resumes_are_refused(self) -> None:
        entry = {"name": "w", "dtype": "f32", "shape": [1], "file": "/x", "offset": 0, "length": 4}
        whole = {"step": 1, "cursor": None}
        resumes: list[Any] = [
            [],
            {},
            {**whole, "entries": [{}]},
            {**whole, "entries": [{**entry, "file": "../x"}]},
            {**whole, "entries": [{**entry, "offset": -1}]},
            {**whole, "entries": [{**entry, "shape": None}]},
            {"step": True, "cursor": None, "entries": []},
        ]
        for resume in resumes:
            with Supervisor({"ok": True, "resume": resume}) as supervisor, self.assertRaises(sluice.Lost):
                supervisor.connect()

    def test_a_socket_nobody_serves_and_a_missing_stage_are_named(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "socket")
            with self.assertRaisesRegex(sluice.InvalidState, "SLUICE_STAGE"):
                sluice.Session.connect_from_env({"SLUICE_SOCKET": path})
            with self.assertRaises(sluice.Lost):
                sluice.Session.connect_from_env({"SLUICE_SOCKET": path, "SLUICE_STAGE": folder})


if __name__ == "__main__":
    unittest.main()
