"""HTTP servers on loopback, and the paths of the KFP API."""

import contextlib
import email
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

ROUTES = [
    ("GET", r"pipelines/([^/]+)/versions", "get_versions"),
    ("GET", r"pipelines/([^/]+)/versions/([^/]+)", "get_version"),
    ("DELETE", r"recurringruns/([^/]+)", "delete_recurringrun"),
    ("GET", r"runs/([^/]+)", "get_run"),
    ("POST", r"runs/([^/]+):terminate", "terminate"),
    ("GET", r"apis/v1beta1/runs/([^/]+)", "get_run_v1"),
    ("GET", r"apis/v1alpha1/runs/[^/]+/nodes/([^/]+)/log", "get_log"),
    ("GET", r"k8s/pod/logs", "get_log_of_ui"),
]


def uploaded_file(headers, content):
    """The one file of a multipart body."""
    head = f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode()
    (part,) = email.message_from_bytes(head + content).get_payload()
    return part.get_payload(decode=True)


class ApiHandler(BaseHTTPRequestHandler):
    """Answers the requests of one `Recorder`."""

    recorder = None

    def log_message(self, *args):
        pass

    def answer(self):
        recorder, url = self.recorder, urlsplit(self.path)
        path = url.path.removeprefix("/apis/v2beta1/")
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        recorder.calls.append((self.command, path))
        recorder.headers.append(dict(self.headers))
        time.sleep(recorder.delay_s)
        status, body = self.outcome(path, url.query, content)
        if status is None:
            self.close_connection = True
            return
        is_text = isinstance(body, str)
        answer = (body if is_text else json.dumps(body)).encode()
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/dex/auth")
        kind = "text/html" if body == recorder.page else "text/plain"
        self.send_header("Content-Type", kind if is_text else "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def outcome(self, path, query, content):
        """Return the status and the body of the answer."""
        recorder = self.recorder
        if recorder.outages:
            return recorder.outages.pop(0), {"message": "no healthy upstream"}
        if (self.command, path) in recorder.refusals:
            return recorder.refusals[self.command, path]
        query = {key: values[-1] for key, values in parse_qs(query).items()}
        try:
            return 200, recorder.page or self.dispatch(path, query, content)
        except LookupError as missing:
            return 404, {"message": str(missing)}
        except Exception as refused:  # noqa: BLE001 - strictness is the server's refusal
            return 400, {"message": repr(refused)}

    def dispatch(self, path, query, content):
        for method, pattern, name in ROUTES:
            if method == self.command and (found := re.fullmatch(pattern, path.strip("/"))):
                return getattr(self.recorder, name)(query, *found.groups())
        body = None
        if "upload" in path:
            body = uploaded_file(self.headers, content)
        elif content:
            body = json.loads(content)
        name = f"{self.command}_{path.replace('/', '_')}".lower()
        return getattr(self.recorder, name)(query, body)

    do_GET = do_POST = do_DELETE = answer


@contextlib.contextmanager
def serving(handler):
    """Serve on loopback during the block; yields the URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    # `shutdown` waits for the end of an interval, which is half a second by default.
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
