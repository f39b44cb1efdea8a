"""Webhooks."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import BaseModel, Field


class Webhooks(BaseModel):
    """Webhooks."""

    READ_BY: ClassVar[Mapping[str, str]] = {"": "API, commands"}

    webhooks_allow_private: bool = Field(
        False,
        description="Whether webhooks may go to private addresses, this machine's among them, and over plain http.",
    )
