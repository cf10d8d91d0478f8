"""`load_client.py HOST PORT PATH IMAGE CLIENTS`: sends requests until its standard input ends.

It continues until there are enough outcomes, so that the number does not depend on the machine.

Prints one JSON object: the count of each status and exception, the versions that answered in the
order of their first answers, the number of repeated requests, and the longest duration. A request
that fails is repeated once after a short pause, as clients of a pool of servers do.
"""

import http.client
import json
import sys
import threading
import time
from collections import Counter
from pathlib import Path

RETRY_SECONDS = 0.2
PAUSE_SECONDS = 0.01  # leaves time for the servers that start at the same time
ENOUGH = 120


class Load:
    def __init__(self, host, port, path, image, clients):
        self.place, self.path, self.body = (host, int(port)), path, Path(image).read_bytes()
        self.outcomes, self.versions, self.slowest = Counter(), {}, 0.0
        self.lock, self.over = threading.Lock(), threading.Event()
        self.threads = [threading.Thread(target=self.client) for _ in range(int(clients))]

    def send(self):
        """Return the status or the exception, and the version that answered."""
        connection = http.client.HTTPConnection(*self.place, timeout=30)
        try:
            connection.request("POST", self.path, self.body)
            response = connection.getresponse()
            answer = json.loads(response.read())
            version = answer["model"]["version"] if response.status == 200 else None
            return str(response.status), version
        except (OSError, http.client.HTTPException, ValueError) as cause:
            return type(cause).__name__, None
        finally:
            connection.close()

    def client(self):
        while not self.over.is_set() or self.outcomes.total() < ENOUGH:
            start = time.monotonic()
            outcome, version = self.send()
            found = [outcome]
            if version is None:
                time.sleep(RETRY_SECONDS)
                again, version = self.send()
                found = [again, f"again after {outcome}"]
            with self.lock:
                self.outcomes.update(found)
                self.slowest = max(self.slowest, time.monotonic() - start)
                if version:
                    self.versions.setdefault(version)
            time.sleep(PAUSE_SECONDS)

    def run(self):
        for thread in self.threads:
            thread.start()
        sys.stdin.read()
        self.over.set()
        for thread in self.threads:
            thread.join()
        return {"outcomes": self.outcomes, "versions": [*self.versions], "slowest": self.slowest}


if __name__ == "__main__":
    print(json.dumps(Load(*sys.argv[1:]).run()))
