"""An S3-compatible server as a process of its own, which checks signatures, and a door before it that can be shut."""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Self

import boto3
import httpx
from obstore.store import S3Store
from patience import PATIENCE_S
from processes import free_port

_START_S = 60.0
_NUM_SETUP_CALLS = "3"  # that are taken without a signature: those which make the user below
_REGION = "eu-central-1"


class Door:
    """A port of loopback that leads to another one while it is open. Shut, it refuses and breaks what is under way."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._accept(self._listener)

    def shut(self) -> None:
        """As if the server were stopped."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in list(self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def open(self) -> None:
        """As if it were started again, with all that it had."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._accept(self._listener)

    def _accept(self, listener: socket.socket) -> None:
        def run() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    server = socket.create_connection(("127.0.0.1", self._target_port))
                    self._sockets |= {client, server}
                    for source, target in ((client, server), (server, client)):
                        threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

        threading.Thread(target=run, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            source.close()
        self._sockets.discard(source)


class S3Server:
    """A running server and its one user. A context manager that ends it."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        with (folder / "s3.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "--port", str(port)],
                env={**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": _NUM_SETUP_CALLS},
                stdout=log,
                stderr=log,
            )
        self._wait_until_up()
        self.key_id, self.secret = self._make_user()
        self.door = Door(port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.door.shut()
        self._process.kill()
        self._process.wait()

    def make_bucket(self) -> str:
        """The name of a new one."""
        name = f"bucket-{secrets.token_hex(6)}"
        configuration = {"LocationConstraint": _REGION}
        client = self._client("s3", self.key_id, self.secret)
        client.create_bucket(Bucket=name, CreateBucketConfiguration=configuration)
        return name

    def env(self) -> dict[str, str]:
        """What docs/s3.md says of a server of one's own."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.door.port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": self.key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": _REGION,
        }

    def store(self, bucket: str, *, prefix: str = "some/prefix", **changed: object) -> S3Store:
        """The same in this process, whose environment nobody touches."""
        options = {
            "endpoint": f"http://127.0.0.1:{self.door.port}",
            "access_key_id": self.key_id,
            "secret_access_key": self.secret,
            "region": _REGION,
            "client_options": {"allow_http": True},
            "retry_config": {"max_retries": 1},
        }
        return S3Store(bucket, prefix=prefix, **{**options, **changed})

    def keys(self, bucket: str) -> list[str]:
        """The keys of all objects of a bucket."""
        found = self._client("s3", self.key_id, self.secret).list_objects_v2(Bucket=bucket)
        return sorted(each["Key"] for each in found.get("Contents", []))

    def _client(self, service: str, key_id: str, secret: str):
        return boto3.client(
            service,
            endpoint_url=self._url,
            region_name=_REGION,
            aws_access_key_id=key_id,
            aws_secret_access_key=secret,
        )

    def _wait_until_up(self) -> None:
        until_s = time.monotonic() + _START_S
        while time.monotonic() < until_s:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"{self._url}/moto-api/", timeout=PATIENCE_S)
                return
            time.sleep(0.05)
        raise TimeoutError("the S3 server does not come up")

    def _make_user(self) -> tuple[str, str]:
        iam = self._client("iam", "nobody", "none")
        everything = {"Effect": "Allow", "Action": "*", "Resource": "*"}
        iam.create_user(UserName="sparke")
        iam.put_user_policy(
            UserName="sparke",
            PolicyName="all",
            PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [everything]}),
        )
        key = iam.create_access_key(UserName="sparke")["AccessKey"]
        return str(key["AccessKeyId"]), str(key["SecretAccessKey"])
