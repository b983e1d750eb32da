"""A small hub on this machine, for `test_hub.py`: data sets over the HTTP interface of the real one.

Not for: models, uploads, or anything that `datasets` does not ask for when it loads a data set.
"""

from __future__ import annotations

import hashlib
import io
import json
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq

COMMIT = "a" * 40


def parquet(rows: int, answer: str) -> bytes:
    table = pa.table(
        {
            "prompt": [f"question {i}" for i in range(rows)],
            "chosen": [[{"role": "assistant", "content": f"{answer} {i}"}] for i in range(rows)],
            "rejected": [[{"role": "assistant", "content": "no"}] for _ in range(rows)],
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def card(configs: Mapping[str, list[str]]) -> bytes:
    lines = ["---", "license: mit", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split in splits:
            lines += [f"  - split: {split}", f"    path: {config}/{split}-*"]
    return "\n".join([*lines, "---", ""]).encode()


REPOSITORIES: dict[str, dict[str, bytes]] = {
    "org/pairs": {
        "README.md": card({"default": ["train_prefs", "test_prefs"]}),
        "default/train_prefs-00000-of-00001.parquet": parquet(5, "train"),
        "default/test_prefs-00000-of-00001.parquet": parquet(2, "test"),
    },
    "org/two-configs": {
        "README.md": card({"helpful": ["train"], "harmless": ["train"]}),
        "helpful/train-00000-of-00001.parquet": parquet(3, "helpful"),
        "harmless/train-00000-of-00001.parquet": parquet(4, "harmless"),
    },
    "org/no-pairs": {"train.jsonl": b'{"text": "only text"}\n'},
}


class HubHandler(BaseHTTPRequestHandler):
    """As much of the hub's HTTP interface as `datasets` asks for."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path).strip("/")
        is_api, path = path.startswith("api/"), path.removeprefix("api/")
        _, owner, name, *rest = [*path.split("/"), "", "", ""]
        repository = f"{owner}/{name}"
        rest = [part for part in rest if part]
        if repository == "org/busy":
            self.reply(503)
        elif repository == "org/gated" and not is_api:
            self.reply(403, headers={"X-Error-Code": "GatedRepo"})
        elif repository == "org/gated":
            self.reply_json({"id": repository, "sha": COMMIT})
        elif repository not in REPOSITORIES:
            self.reply(401, headers={"X-Error-Code": "RepoNotFound"})
        elif len(rest) > 1 and rest[1] not in ("main", COMMIT):
            self.reply(404, headers={"X-Error-Code": "RevisionNotFound"})
        elif is_api:
            self.api(repository, rest, body)
        else:
            self.file(REPOSITORIES[repository].get("/".join(rest[2:])))

    def api(self, repository: str, rest: list[str], body: bytes) -> None:
        files = REPOSITORIES[repository]
        verb, folder = (rest[0] if rest else "info"), "/".join(rest[2:])
        if verb == "tree":
            entries = {}
            for path in files:
                if not folder or path.startswith(folder + "/"):
                    inside = path.removeprefix(folder).lstrip("/")
                    child = "/".join(filter(None, (folder, inside.split("/")[0])))
                    entries[child] = self.entry(child, files)
            self.reply_json(list(entries.values()))
        elif verb == "paths-info":
            self.reply_json([self.entry(path, files) for path in json.loads(body)["paths"]])
        else:
            self.reply_json({"id": repository, "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]})

    @staticmethod
    def entry(path: str, files: Mapping[str, bytes]) -> dict[str, object]:
        if path not in files:
            return {"type": "directory", "oid": "0" * 40, "size": 0, "path": path}
        return {"type": "file", "oid": hashlib.sha1(files[path]).hexdigest(), "size": len(files[path]), "path": path}

    def file(self, content: bytes | None) -> None:
        if content is None:
            self.reply(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        else:
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            self.reply(200, content, {"ETag": etag, "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"})

    def reply_json(self, content: object) -> None:
        self.reply(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def reply(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def serve() -> Iterator[str]:
    """Run the hub; gives its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
