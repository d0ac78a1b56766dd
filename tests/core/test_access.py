"""Recognising bearers, and asking whether they may."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gateway.core import access
from gateway.core.access import (
    ID_LENGTH,
    MAX_REMEMBERED,
    SECRET_LENGTH,
    Principal,
    Token,
    Tokens,
    built_in,
    digest_of,
    fresh_token,
    id_of,
    named_by_issuer,
    require,
    standing,
    tokens_in,
)
from gateway.core.errors import Forbidden, InvalidRequest, Unauthenticated
from gateway.core.principals import (
    ALLOWED,
    Action,
    Grant,
    PrincipalDocument,
    Right,
    Role,
    TokenRecord,
    has_right,
)
from gateway.core.snapshot import EMPTY, Snapshot, decode, encode
from tests.fakes import CountingEntropy

SECRET = "tilt_abc_secret"
RECORD = TokenRecord(
    principal="ci", sha256=digest_of(SECRET.encode()), created_at=1.0, created_by="admin"
)
DOCUMENT = PrincipalDocument(schema=1, grants=(Grant(Role.DEPLOYER, ("fl*",)),))


def snapshot_with(
    document: PrincipalDocument | None = DOCUMENT, record: TokenRecord = RECORD
) -> Snapshot:
    """A Snapshot with one principal, or none, and one token."""
    principals = {} if document is None else {"ci": document}
    return replace(EMPTY, principals=principals, tokens={"abc": record})


def bearer(token: str) -> bytes:
    """The header that shows a token."""
    return b"Bearer " + token.encode()


def test_a_fresh_token_has_its_form() -> None:
    """A token shows its id and what it is, and holds forty random letters and digits."""
    made = {fresh_token(os.urandom) for _ in range(100)}
    assert len({id_of(token.encode()) for token in made}) == 100
    for token in made:
        product, name, secret = token.split("_")
        assert (product, len(name), len(secret)) == ("tilt", ID_LENGTH, SECRET_LENGTH)
        assert token.isascii()
    counting = CountingEntropy()
    assert fresh_token(counting) != fresh_token(counting)


@given(st.binary(max_size=600))
def test_no_bytes_are_an_error_of_ours(presented: bytes) -> None:
    """Whatever comes is refused as a token that is not known, ASCII or not (A1, A2)."""
    tokens = Tokens((built_in("given"), *tokens_in(snapshot_with())))
    for shown in (presented, b"Bearer " + presented, b"Bearer tilt_abc_" + presented):
        with pytest.raises(Unauthenticated):
            tokens.principal(shown, 0.0)


def test_a_token_is_good_until_its_time() -> None:
    """Its bearer is let in before, and told why not from then on, remembered or not."""
    record = replace(RECORD, expires_at=10.0)
    tokens = Tokens(tokens_in(snapshot_with(record=record)))
    for _ in range(2):
        assert tokens.principal(bearer(SECRET), 9.9).name == "ci"
        with pytest.raises(Unauthenticated, match="expired"):
            tokens.principal(bearer(SECRET), 10.0)


def test_headers_are_remembered_within_bounds() -> None:
    """Only what was good is remembered, and no more than a bound."""
    made = [f"tilt_{number}_x" for number in range(MAX_REMEMBERED + 1)]
    tokens = Tokens(
        Token(id_of(one.encode()), digest_of(one.encode()), Principal(one)) for one in made
    )
    for one in made:
        assert tokens.principal(bearer(one), 0.0).name == one
        with pytest.raises(Unauthenticated):
            tokens.principal(bearer(f"{one}x"), 0.0)
    assert len(tokens._remembered) == 1


def test_the_built_in_admin_may_everything_but_pass_gates() -> None:
    """Whatever its token looks like; it neither approves as an approver nor overrides."""
    for given_token in ("given", "tilt_abc_d", "a_b"):
        tokens = Tokens((built_in(given_token), *tokens_in(snapshot_with())))
        admin = tokens.principal(bearer(given_token), 0.0)
        assert standing(admin, EMPTY) is admin
        for action in Action:
            if Role.ADMIN in ALLOWED[action]:
                require(admin, action, {"m"})
        with pytest.raises(Forbidden):
            require(admin, Action.OVERRIDE, {"m"})
        assert all(has_right(admin.inference, right, "m") for right in Right)


@pytest.mark.parametrize(
    "newer",
    [
        pytest.param(EMPTY, id="all-gone"),
        pytest.param(snapshot_with(None), id="principal-gone"),
        pytest.param(replace(snapshot_with(), tokens={}), id="revoked"),
        pytest.param(snapshot_with(replace(DOCUMENT, disabled=True)), id="disabled"),
        pytest.param(snapshot_with(record=replace(RECORD, principal="x")), id="another's"),
    ],
)
def test_what_was_taken_away_is_gone(newer: Snapshot) -> None:
    """Whoever was let in by an older Snapshot does not stand in a newer one without their token."""
    (token,) = tokens_in(snapshot_with())
    assert standing(token.holder, snapshot_with()) == token.holder
    with pytest.raises(Unauthenticated):
        standing(token.holder, newer)
    assert tokens_in(newer) == () or newer.tokens["abc"].principal == "x"


def test_groups_add_to_what_a_name_may() -> None:
    """Whom an issuer names has their own grants and those of their groups, disabled ones not."""
    group = PrincipalDocument(schema=1, grants=(Grant(Role.VIEWER),))
    off = PrincipalDocument(schema=1, grants=(Grant(Role.ADMIN),), disabled=True)
    snapshot = replace(EMPTY, principals={"ci": DOCUMENT, "group:a": group, "group:b": off})
    both = named_by_issuer(snapshot, "ci", ("a", "b", "c"))
    assert both.grants == (*DOCUMENT.grants, *group.grants)
    assert standing(both, snapshot) == both
    assert named_by_issuer(snapshot, "eve", ("a",)).grants == group.grants
    with pytest.raises(Forbidden):
        named_by_issuer(snapshot, "eve", ("b",))


@given(
    st.sampled_from(list(Action)),
    st.sampled_from(list(Role)),
    st.sampled_from(["*", "fl*", "flights", "other"]),
    st.sampled_from([None, frozenset(), frozenset({"flights"}), frozenset({"flights", "other"})]),
)
def test_the_table_decides(
    action: Action, role: Role, pattern: str, models: frozenset[str] | None
) -> None:
    """A role is asked for on each model; on none in particular for all, but for reading."""
    meant = {"*": {"flights", "other"}, "fl*": {"flights"}}.get(pattern, {pattern})
    holds = role in ALLOWED[action]
    if models is None:
        expected = holds and (pattern == "*" or action is Action.READ)
    else:
        expected = holds and models <= meant
    refused = access.forbidden_model(Principal("p", (Grant(role, (pattern,)),)), action, models)
    assert (refused is None) == expected


def test_a_store_cannot_make_an_admin() -> None:
    """A Snapshot that names the built-in admin, or holds a record of nothing, is refused."""
    odd = replace(EMPTY, principals={"admin": DOCUMENT})
    with pytest.raises(InvalidRequest, match="gateway's own"):
        decode(encode(odd))
    with pytest.raises(InvalidRequest, match="no record"):
        decode(encode(snapshot_with(record=replace(RECORD, sha256="x"))))
    assert decode(encode(snapshot_with())) == snapshot_with()
