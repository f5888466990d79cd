"""Asks through the official client and writes down what it received, one JSON object a line.

Says "ready", and then reads from its standard input: {"base_url", "keys": {name: secret}, "workers", "requests": [{"number", "key", "model",
"prompt", "max_tokens", "mode": "whole" | "stream" | "cancel", "cancel_after"}]}. The clients' own retries are as they
come, unless "retries" says otherwise.
"""

import json
import queue
import socket
import sys
import threading
import time

import openai

print(json.dumps("ready"), flush=True)
plan = json.load(sys.stdin)
todo = queue.Queue()
for request in plan["requests"]:
    todo.put(request)
clients = {
    name: openai.OpenAI(
        api_key=key, base_url=plan["base_url"], timeout=plan.get("timeout", 120), max_retries=plan.get("retries", 2)
    )
    for name, key in plan["keys"].items()
}
lock = threading.Lock()


def say(line):
    with lock:
        print(json.dumps(line), flush=True)


def arguments(request):
    return {
        "model": request["model"],
        "messages": [{"role": "user", "content": request["prompt"]}],
        "max_tokens": request["max_tokens"],
        "temperature": 0,
        "seed": 1,
        "logprobs": True,
        "top_logprobs": 2,
        "extra_body": {"ignore_eos": True} if request["ignore_end"] else None,
    }


def tokens_of(entries):
    """Each token's bytes and how far the best two are apart."""
    found = []
    for entry in entries or []:
        best = sorted((other.logprob for other in entry.top_logprobs), reverse=True)
        margin = best[0] - best[1] if len(best) > 1 else None
        found.append([bytes(entry.bytes or []).hex(), margin])
    return found


def whole(client, request):
    answer = client.chat.completions.create(**arguments(request))
    choice = answer.choices[0]
    return {
        "id": answer.id,
        "text": choice.message.content,
        "tokens": tokens_of(choice.logprobs and choice.logprobs.content),
        "usage": [answer.usage.prompt_tokens, answer.usage.completion_tokens],
        "finish": choice.finish_reason,
    }


def stream(client, request, begun, cancel_after=None):
    events = client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **arguments(request))
    got = {"id": None, "text": "", "tokens": [], "usage": None, "finish": None, "gap": 0.0}
    last = None
    cancelled = False
    try:
        for event in events:
            now = time.monotonic()
            got["id"] = got["id"] or event.id
            if event.usage:
                got["usage"] = [event.usage.prompt_tokens, event.usage.completion_tokens]
            for choice in event.choices:
                got["text"] += choice.delta.content or ""
                if choice.finish_reason:
                    got["finish"] = choice.finish_reason
                    continue
                got["tokens"] += tokens_of(choice.logprobs and choice.logprobs.content)
                if last is None:
                    got["first"] = now - begun
                elif now - last > got["gap"]:
                    got.update(gap=now - last, gap_at=len(got["tokens"]))
                last = now
            if cancel_after is not None and len(got["tokens"]) >= cancel_after and not cancelled:
                # It wants no more, and counts what is on its way already.
                cancelled = True
                connection = events.response.extensions["network_stream"].get_extra_info("socket")
                connection.shutdown(socket.SHUT_WR)
    except Exception:
        if not cancelled:
            raise
    got["cancelled"] = cancelled and got["usage"] is None
    return got


def work():
    while True:
        try:
            request = todo.get_nowait()
        except queue.Empty:
            return
        begun, at = time.monotonic(), time.time()
        line = {"number": request["number"], "at": at}
        try:
            client = clients[request["key"]]
            if request["mode"] == "whole":
                line.update(whole(client, request))
            else:
                after = request["cancel_after"] if request["mode"] == "cancel" else None
                line.update(stream(client, request, begun, after))
        except openai.APIStatusError as error:
            line.update(error=type(error).__name__, status=error.status_code, message=str(error)[:300])
        except Exception as error:  # whatever a client may see
            line.update(error=type(error).__name__, message=str(error)[:300])
        line["took"] = time.monotonic() - begun
        say(line)


threads = [threading.Thread(target=work, daemon=True) for _ in range(plan["workers"])]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
