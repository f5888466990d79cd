"""Tries the attacks named in its arguments and prints for each whether it succeeded."""
import subprocess
import sys

PRELUDE = """
import ctypes, os, socket, struct, sys
L = ctypes.CDLL(None, use_errno=True)
S = L.syscall
def breach(): os._exit(42)
"""


def attempt(language, code):
    if language == "py":
        return ["/usr/bin/python3", "-c", PRELUDE + code.replace("\\n", "\n")]
    return ["/bin/sh", "-c", code]


def main():
    wanted = sys.argv[1:]
    for line in open("attacks.txt"):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, language, code = (part.strip() for part in line.split("|", 3))
        if name not in wanted:
            continue
        try:
            done = subprocess.run(attempt(language, code), timeout=60, stdin=subprocess.DEVNULL, capture_output=True)
            status, said = done.returncode, (done.stdout + done.stderr).decode(errors="replace").strip()
        except subprocess.TimeoutExpired:
            status, said = "timeout", ""
        print(name, "BREACH" if status == 42 else "held", status, said.splitlines()[-1][:120] if said else "", flush=True)


main()
