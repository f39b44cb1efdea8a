"""Stores of every kind that the service is run on."""

import pytest

from app.objects.folder import ObjectFolder


@pytest.fixture(params=["file", "s3"])
def make_folder(request, tmp_path):
    """Opens a folder of objects in a local folder, and in a bucket of its own of a real S3-compatible server."""

    def make(kind: type[ObjectFolder]) -> ObjectFolder:
        if request.param == "file":
            return kind.open(tmp_path.as_uri())
        server = request.getfixturevalue("s3_server")
        return kind(server.store(server.make_bucket()))

    return make
