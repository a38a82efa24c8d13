"""Draws the way of an event to its subscribers: who writes what, where a delivery waits, and what is recorded."""

from __future__ import annotations

from draw import AMBER, GREEN, WHITE, Drawing


def delivery_flow() -> str:
    """Draw dispatcher, deliverer and recorder, the topics between them, and the tables in Postgres."""
    page = Drawing(980, 470, "An event's way to a subscriber: dispatcher, deliverer, retry topics, records of attempts")
    page.box(16, 20, 190, 76, "genesis.events", "every event, in order", "of its entity", fill=AMBER)
    page.box(270, 20, 190, 76, "plant dispatcher", "what the log applied;", "matched to endpoints")
    page.box(524, 20, 190, 76, "genesis.deliveries", "one record an event and", "endpoint; key: endpoint", fill=AMBER)
    page.box(774, 20, 190, 76, "plant deliverer", "one signed request;", "its outcome decides")
    for x in (206, 460, 714):
        page.arrow((x, 58), (x + (62 if x < 700 else 58), 58))
    page.box(814, 150, 150, 60, "subscriber", "answers within 15 s", fill=WHITE)
    page.arrow((889, 96), (889, 148))
    page.text(899, 126, "HTTPS", soft=True)
    page.box(524, 130, 190, 76, "retry topics", "1, 2, 4, 8 and 16 s;", "the head is due first", fill=AMBER)
    page.arrow((690, 128), (690, 112), (756, 112), (756, 84), (772, 84), dashed=True)
    page.box(524, 226, 190, 60, "genesis.deliveries.dead", "after the sixth failure", fill=AMBER)
    page.box(524, 306, 190, 60, ".attempts", "what came of each", fill=AMBER)
    page.arrow((800, 96), (800, 124), (744, 124), (744, 336), (716, 336))
    page.arrow((744, 168), (716, 168))
    page.arrow((744, 256), (716, 256))
    page.box(16, 150, 444, 216, "Postgres", fill=GREEN)
    page.box(30, 184, 200, 70, "the log", "what is applied, parked,", "repaired, poison", fill=WHITE)
    page.box(246, 184, 200, 70, "endpoints", "URL, filter, state;", "secrets, encrypted", fill=WHITE)
    page.box(30, 270, 200, 80, "delivery_waits", "longer waits, and what is", "behind an earlier event", fill=WHITE)
    page.box(246, 270, 200, 80, "what was recorded", "webhook_deliveries,", "webhook_attempts", fill=WHITE)
    page.arrow((340, 148), (340, 98))
    page.text(350, 126, "asks", soft=True)
    page.box(524, 390, 190, 60, "recorder", "in plant deliverer, in batches")
    page.arrow((619, 366), (619, 388))
    page.arrow((522, 420), (346, 420), (346, 352))
    page.box(16, 390, 300, 60, "operators", "plant deliveries retry, recover, replay-missing")
    page.arrow((130, 388), (130, 368), dashed=True)
    page.text(774, 300, "A kill at any point:", bold=True)
    for number, line in enumerate(
        ("what Kafka has no record of", "is attempted again, with the", "same webhook-id: none is lost")
    ):
        page.text(774, 322 + 18 * number, line, soft=True)
    return page.svg()


def drawings() -> dict[str, str]:
    """Return the picture by its file name."""
    return {"deliveries.svg": delivery_flow()}
