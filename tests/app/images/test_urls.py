"""Signed image URLs."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.ids import ImageId, TenantId, image_id, make_job_id
from app.errors import ConfigurationError, Unauthenticated
from app.images.urls import SigningKeyStore, UrlSigner

IMAGE = image_id(make_job_id(5, b"12345678"), 0)
ACME = TenantId("acme")
SIGNER = UrlSigner(b"k" * 32)


def test_a_signed_url_is_good_until_it_expires():
    """At the second of its expiry it is no longer."""
    signature = SIGNER.sign(ACME, IMAGE, 1000)
    assert len(signature) == 43
    SIGNER.verify(ACME, IMAGE, 1000, signature=signature, now_s=999.9)
    with pytest.raises(Unauthenticated):
        SIGNER.verify(ACME, IMAGE, 1000, signature=signature, now_s=1000)


@pytest.mark.parametrize(
    ("tenant", "image", "expires_at_s"),
    [("other", IMAGE, 1000), ("acme", f"{IMAGE[:-1]}1", 1000), ("acme", IMAGE, 2000)],
)
def test_a_signature_is_good_for_nothing_else(tenant, image, expires_at_s):
    """Not for another tenant, image or expiry."""
    signature = SIGNER.sign(ACME, IMAGE, 1000)
    with pytest.raises(Unauthenticated):
        SIGNER.verify(TenantId(tenant), ImageId(image), expires_at_s, signature=signature, now_s=0)


@given(st.data())
def test_no_changed_character_passes(data):
    """Whatever character is changed, to whatever, the signature is wrong."""
    signature = SIGNER.sign(ACME, IMAGE, 1000)
    place = data.draw(st.integers(0, len(signature) - 1))
    letter = data.draw(st.characters().filter(lambda found: found != signature[place]))
    changed = signature[:place] + letter + signature[place + 1 :]
    with pytest.raises(Unauthenticated):
        SIGNER.verify(ACME, IMAGE, 1000, signature=changed, now_s=0)


def test_another_key_signs_otherwise():
    """A signature is of its key."""
    assert UrlSigner(b"j" * 32).sign(ACME, IMAGE, 1000) != SIGNER.sign(ACME, IMAGE, 1000)


def test_a_short_key_is_refused():
    """Thirty-one bytes are too few."""
    with pytest.raises(ConfigurationError, match="32 bytes"):
        UrlSigner(b"k" * 31)


@pytest.mark.anyio
async def test_all_replicas_agree_on_one_key(redis):
    """Whoever asks, at once or later, gets the key that was made first."""
    keys = await asyncio.gather(*(SigningKeyStore(redis).get_or_create() for _ in range(8)))
    assert len(set(keys)) == 1
    assert len(keys[0]) == 32
    assert await SigningKeyStore(redis).get_or_create() == keys[0]
