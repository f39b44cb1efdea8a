"""The bytes of files in the object store."""

from app.files.keys import FOLDER
from app.objects.folder import ObjectFolder


class FileContents(ObjectFolder):
    """Bytes by key. Keys are made by `app.files.keys.content_key`."""

    FOLDER = FOLDER
    WHAT = "file"
