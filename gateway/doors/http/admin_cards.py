"""Operations on model cards: as a document, as Markdown and as a page."""

from typing import Final

from gateway.core.cards import Card
from gateway.core.models import parse_version
from gateway.core.principals import Action
from gateway.doors.http.admin_calls import Call, Operation, answer
from gateway.doors.http.messages import Response
from gateway.doors.model_card import card_markdown, card_page

VERSION: Final = "/admin/v1/models/{model}/versions/{version}"
HTML: Final = b"text/html; charset=utf-8"
MARKDOWN: Final = b"text/markdown; charset=utf-8"
POLICY: Final = (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'")


async def show_card(call: Call) -> Response:
    """The card as a document."""
    card = await _card(call)
    return answer(card, revision=card.revision)


async def show_markdown(call: Call) -> Response:
    """The card in Markdown."""
    text = card_markdown(await _card(call))
    return Response(200, text.encode(), [(b"content-type", MARKDOWN)])


async def show_page(call: Call) -> Response:
    """The card as a page."""
    text = card_page(await _card(call))
    return Response(200, text.encode(), [(b"content-type", HTML), POLICY])


async def _card(call: Call) -> Card:
    number = parse_version(call.path["version"])
    return await call.parts.cards.card(call.path["model"], number)


CARD_OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation(
        method="GET",
        path=f"{VERSION}/card",
        action=Action.READ,
        name="getCard",
        summary="All that is known of a version: lineage, checks, experiments, decisions.",
        handle=show_card,
        answer=Card,
    ),
    Operation(
        method="GET",
        path=f"{VERSION}/card.md",
        action=Action.READ,
        name="getCardMarkdown",
        summary="The model card in Markdown.",
        handle=show_markdown,
    ),
    Operation(
        method="GET",
        path=f"{VERSION}/card.html",
        action=Action.READ,
        name="getCardPage",
        summary="The model card as one page with its charts.",
        handle=show_page,
    ),
)
