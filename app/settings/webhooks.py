"""Webhooks."""

from pydantic import BaseModel, Field


class Webhooks(BaseModel):
    """Webhooks."""

    webhooks_allow_private: bool = Field(
        False,
        description="Whether webhooks may go to private addresses, this machine's among them, and over plain http.",
    )
