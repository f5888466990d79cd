"""A small job that speaks the state-provider protocol by hand, right or wrong as its arguments say."""
import json
import os
import socket
import sys
import time


class Supervisor:
    def __init__(self):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(os.environ["SLUICE_SOCKET"])
        self.lines = self.socket.makefile("rwb")

    def raw(self, line):
        self.lines.write(line + b"\n")
        self.lines.flush()
        return json.loads(self.lines.readline())

    def ask(self, **request):
        return self.raw(json.dumps(request).encode())


def write(step, name="new", size=8, said=8):
    folder = os.path.join(os.environ["SLUICE_STAGE"], name)
    os.mkdir(folder)
    with open(os.path.join(folder, "state.bin"), "wb") as file:
        file.write(step.to_bytes(8, "little")[:size])
    entry = {"name": "step", "dtype": "u64", "shape": [], "file": "state.bin", "offset": 0, "length": said}
    return {"op": "checkpoint", "step": step, "dir": name, "cursor": {"at": step}, "code": "v1", "entries": [entry]}


def train(steps, waiting=0):
    """If it is `waiting`, it writes no checkpoint before there is a file `go`."""
    supervisor = Supervisor()
    hello = supervisor.ask(op="hello", protocol=1)
    first = 1
    if hello["resume"]:
        entry = hello["resume"]["entries"][0]
        with open(entry["file"], "rb") as file:
            held = int.from_bytes(file.read(8), "little")
        print("resumed at", held, hello["resume"]["cursor"]["at"], flush=True)
        first = held + 1
    for step in range(first, steps + 1):
        answer = supervisor.ask(op="step", step=step, metrics={"loss": 1 / step})
        if answer["action"] != "continue":
            while waiting and not os.path.exists("go"):
                time.sleep(0.01)
            staged = supervisor.raw(json.dumps(write(step)).encode())
            print("staged", step, staged["sequence"], flush=True)
        if answer["action"] == "checkpoint_and_exit":
            return
        time.sleep(0.01)


def deaf():
    supervisor = Supervisor()
    for step in range(1, 1000):
        supervisor.ask(op="step", step=step)
        time.sleep(0.01)


def torn():
    """Everything wrong once; each must be refused and the next thing right must still work."""
    supervisor = Supervisor()
    print(supervisor.ask(op="checkpoint", step=1, dir="none", entries=[])["reason"])
    print(supervisor.raw(json.dumps(write(1, "torn", size=5)).encode())["reason"])
    request = write(1, "away")
    request["dir"] = "../staged"
    print(supervisor.raw(json.dumps(request).encode())["reason"])
    os.symlink("/etc", os.path.join(os.environ["SLUICE_STAGE"], "link"))
    request["dir"] = "link"
    request["entries"][0]["file"] = "passwd"
    print(supervisor.raw(json.dumps(request).encode())["reason"])
    print(supervisor.raw(b"\xff\x00{")["reason"])
    print(supervisor.raw(b"[" * 500000)["reason"])
    print(supervisor.ask(op="step", step=-1)["reason"])
    print(supervisor.raw(b"x" * (1 << 20))["reason"])
    supervisor = Supervisor()
    print(supervisor.raw(json.dumps(write(2, "good")).encode())["sequence"], flush=True)
    hangers = [Supervisor() for _ in range(40)]
    print(len(hangers))


{"train": lambda: train(*map(int, sys.argv[2:])), "deaf": deaf, "torn": torn}[sys.argv[1]]()
