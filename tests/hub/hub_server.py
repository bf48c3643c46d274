"""A stand-in for the Hub's HTTP API: repositories in memory, as far as huggingface_hub pushes and fetches files."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Handler(BaseHTTPRequestHandler):
    """Answers for `server.files`: {repository: {path: bytes}}."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_POST(self):
        body = self._body()
        parts = self._parts()
        if parts[:3] == ["api", "repos", "create"]:
            wanted = json.loads(body)
            name = f"{wanted.get('organization') or 'owner'}/{wanted['name']}"
            self.server.files.setdefault(name, {})
            self._json({"url": f"{self.server.address}/{name}", "id": name, "name": name})
        elif parts[:2] == ["api", "validate-yaml"]:
            self.server.cards.append(json.loads(body)["content"])
            self._json({"errors": [], "warnings": []})
        elif parts[4:5] == ["preupload"]:
            files = [file["path"] for file in json.loads(body)["files"]]
            answer = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in files]
            self._json({"files": answer})
        elif parts[4:5] == ["commit"]:
            name = "/".join(parts[2:4])
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    self.server.files[name][entry["value"]["path"]] = content
            self.server.commits += 1
            sha = self._sha(name)
            self._json(
                {
                    "success": True,
                    "commitUrl": f"{self.server.address}/{name}/commit/{sha}",
                    "commitOid": sha,
                }
            )
        else:
            self._missing()

    def do_HEAD(self):
        self._get(with_body=False)

    def do_GET(self):
        self._get(with_body=True)

    def _get(self, with_body):
        parts = self._parts()
        is_api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if is_api else parts[:2])
        files = self.server.files.get(name)
        if files is None:
            self._missing("RepoNotFound")
        elif is_api and parts[4:5] == ["tree"]:
            self._json(
                [
                    {"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                    for p, c in files.items()
                ]
            )
        elif is_api:
            siblings = [{"rfilename": path} for path in files]
            self._json(
                {"id": name, "modelId": name, "sha": self._sha(name), "siblings": siblings, "tags": []}
            )
        elif parts[2:3] == ["resolve"] and "/".join(parts[4:]) in files:
            content = files["/".join(parts[4:])]
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", self._sha(name))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if with_body:
                self.wfile.write(content)
        else:
            self._missing("EntryNotFound")

    def _parts(self):
        return [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]

    def _sha(self, name):
        return hashlib.sha1(repr(sorted(self.server.files[name].items())).encode()).hexdigest()

    def _body(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _json(self, content):
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _missing(self, code=""):
        self.send_response(404)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def hub_server():
    """Serve an empty Hub on a free port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.cards, server.commits = {}, [], 0
    server.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
