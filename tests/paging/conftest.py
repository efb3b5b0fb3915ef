"""What the tests of paging share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import boto3
import pytest

from userfault import paging


@pytest.fixture(scope="session")
def can_page(cannot_run: Callable[[str, str], NoReturn]) -> None:
    """Skips where memory can't be paged at all, and says what to do."""
    try:
        paging.open(None, size_bytes=4096, unit="4 KiB").close()
    except (OSError, paging.PagingError) as error:
        cannot_run("memory can't be paged here", str(error))


# A process of its own, because tests of regions fork this one. It ends with its standard input.
_S3_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print("http://%s:%s" % server.get_host_and_port(), flush=True)
sys.stdin.read()
"""


class S3:
    """A real S3 endpoint on the loopback interface, with one bucket."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )
        self.client.create_bucket(Bucket="bucket")
        # The names are s3fs's.
        self.options: dict[str, Any] = {"key": "test", "secret": "test", "endpoint_url": endpoint}
        self.environment = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def put(self, key: str, data: bytes, **options: str) -> str:
        """The object's URL; ACL="public-read" makes it readable for everybody, over HTTP."""
        self.client.put_object(Bucket="bucket", Key=key, Body=data, **options)
        return f"s3://bucket/{key}"


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    command = [sys.executable, "-c", _S3_SERVER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdin and server.stdout
        store = S3(server.stdout.readline().strip())
        yield store
        store.client.close()
        server.stdin.close()
        server.kill()
