"""A gang whose tasks exchange a number in every step, as data-parallel training does: nobody finishes a step alone.

The numbers of rank 0 are printed, so that a run can be compared with what it must be; every rank keeps a step log as the
trainer does, for the judge of bills.
"""

import json
import os
import socket
import struct
import sys
import time

sys.path.insert(0, os.getcwd())
import sluice_checkpoint as sluice

STEPS = int(sys.argv[1])
RANK, WORLD = int(os.environ["SLUICE_RANK"]), int(os.environ["SLUICE_WORLD_SIZE"])
HOST, PORT = os.environ["SLUICE_RENDEZVOUS"].rsplit(":", 1)


def meet():
    """Connections to the others: rank 0 has one to each, they have one to it."""
    if RANK == 0:
        listener = socket.create_server((HOST, int(PORT)))
        return [listener.accept()[0] for _ in range(WORLD - 1)]
    for _ in range(600):
        try:
            return [socket.create_connection((HOST, int(PORT)))]
        except OSError:
            time.sleep(0.05)
    sys.exit("rank 0 is not there")


def take(peer):
    data = b""
    while len(data) < 8:
        more = peer.recv(8 - len(data))
        if not more:
            sys.exit("a peer is gone")
        data += more
    return struct.unpack("<Q", data)[0]


def exchange(peers, value):
    """The sum of everybody's value: collected by rank 0, which tells it to all."""
    if RANK == 0:
        total = value + sum(take(peer) for peer in peers)
    else:
        peers[0].sendall(struct.pack("<Q", value))
        return take(peers[0])
    for peer in peers:
        peer.sendall(struct.pack("<Q", total))
    return total


session = sluice.Session.connect_from_env()
first, state = 1, 0
if session.resume is not None:
    first = session.resume.step + 1
    state = int.from_bytes(session.resume.require("state").read(), "little")
peers = meet()
log = open(os.path.join(os.environ["SLUICE_OUTPUTS"], "steps.jsonl"), "w")
for step in range(first, STEPS + 1):
    # Ranks take different times, so that some are ahead.
    time.sleep(0.02 + 0.01 * RANK)
    state = (state * 31 + exchange(peers, (RANK + 1) * step)) % (1 << 31)
    done = {"step": step, "loss_bits": f"{state:x}", "samples": [WORLD * step + RANK], "epoch": 0, "rank": RANK}
    print(json.dumps({**done, "generation": os.environ["SLUICE_GENERATION"]}), file=log, flush=True)
    if RANK == 0:
        print(f"step {step} state {state}", flush=True)
    action = session.step(step, {})
    if action is not sluice.Action.CONTINUE:
        tensors = [sluice.Tensor("state", "u8", (8,), state.to_bytes(8, "little"))]
        session.checkpoint(step, cursor=None, code="gang 1", tensors=tensors)
    if action is sluice.Action.CHECKPOINT_AND_EXIT:
        sys.exit(0)
