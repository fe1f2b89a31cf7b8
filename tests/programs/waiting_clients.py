"""Clients that wait for a model, and say how that ended.

Usage: waiting_clients.py HOST:PORT KEY MODEL COUNT

Half of them ask for a stream. A line for each on stdout: `answered STATUS`, or `broken off` where the connection ended
before the answer had. Without an end of any kind they wait for ever.
"""

import http.client
import json
import sys
import threading

ADDRESS, KEY, MODEL, COUNT = sys.argv[1:]
LOCK = threading.Lock()


def ask(is_stream: bool) -> None:
    connection = http.client.HTTPConnection(ADDRESS, timeout=None)
    body = json.dumps({"model": MODEL, "stream": is_stream, "messages": [{"role": "user", "content": "Hi"}]})
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    try:
        connection.request("POST", "/v1/chat/completions", body, headers)
        answer = connection.getresponse()
        answer.read()
        ended = f"answered {answer.status}"
    except (OSError, http.client.HTTPException):
        ended = "broken off"
    with LOCK:
        sys.stdout.write(f"{ended}\n")


threads = [threading.Thread(target=ask, args=(number % 2 == 0,)) for number in range(int(COUNT))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
