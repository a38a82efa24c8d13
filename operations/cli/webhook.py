"""`plant webhook`: one signed webhook, to find out why signing does not work."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import click

from operations.cli.groups import CommandGroup
from operations.cli.listing import Output, output_option, show

if TYPE_CHECKING:
    from operations.signed_request import IngressAnswer, SignedRequest

BODY_MAX_BYTES = 8 * 1024 * 1024

secret_file_option = click.option(
    "--secret-file",
    metavar="FILE",
    help="Where the key is, whsec_… or whsk_…  [default: the variable PLANT_WEBHOOK_SECRET]",
)


@click.group(name="webhook", cls=CommandGroup)
def command() -> None:
    """Send one signed webhook, or verify one."""


@command.command()
@click.argument("file", required=False, type=click.Path())
@click.option("--url", default="http://127.0.0.1:8080", show_default=True, help="Address of ingress.")
@secret_file_option
@click.option("--producer", help="Name the producer, as batches must.")
@click.option("--id", "message_id", help="The webhook-id: the same one again is a repeat.  [default: a new one]")
@output_option
def send(
    file: str | None, url: str, secret_file: str | None, producer: str | None, message_id: str | None, output: Output
) -> None:
    """Send one signed webhook to a running ingress.

    FILE holds the body: a payload with its type, or a CloudEvent. Without it a new agent called "Test webhook" is
    onboarded. An event that is taken is kept, like any other.

    The exit code is 0 where the event was taken, 3 where it was refused, and 4 where there was no answer or the same
    webhook may be taken later.
    """
    from ingress.keys import check_producer_name
    from operations.signed_request import check_answer, example_body, ingress_address, sign_request
    from operations.signing_keys import load_key_text, read_signing_key
    from runtime.clock import SystemClock

    if producer is not None:
        check_producer_name(producer)
    address = ingress_address(url)
    key = read_signing_key(load_key_text(secret_file, os.environ))
    now = SystemClock().now()
    body = example_body(now) if file is None else read_body(file)
    request = sign_request(key, body, message_id=message_id, producer=producer, now=now)
    answer = asyncio.run(_send(address, request))
    row = {"status": answer.status, "message_id": request.message_id, "answer": answer.document}
    show([row], output)
    check_answer(answer, request)


async def _send(address: str, request: SignedRequest) -> IngressAnswer:
    import httpx

    from operations.signed_request import STEP_TIMEOUT_SECONDS, MessageUnusable, send_request
    from runtime.clock import SystemClock

    try:
        client = httpx.AsyncClient(timeout=STEP_TIMEOUT_SECONDS, follow_redirects=False)
    except (ValueError, httpx.InvalidURL):
        raise MessageUnusable(
            "A proxy of the environment can't be used.", why="It is in HTTP_PROXY, HTTPS_PROXY or ALL_PROXY."
        ) from None
    async with client:
        return await send_request(client, address, request, SystemClock().now())


def read_body(file: str) -> bytes:
    """Return the bytes of a file; raise MessageUnusable where there are too many. `-` is stdin."""
    from operations.signed_request import MessageUnusable
    from operations.signing_keys import PREFIXES

    if file.startswith(PREFIXES):
        raise MessageUnusable("FILE is the name of a file.", why="A key is given by --secret-file.")
    with click.open_file(file, "rb") as opened:
        body: bytes = opened.read(BODY_MAX_BYTES + 1)
    if len(body) > BODY_MAX_BYTES:
        raise MessageUnusable("The body is too large.", why="It has more than 8 MiB.")
    return body


@command.command()
@click.argument("file", type=click.Path())
@click.option("--body", "body_file", metavar="FILE", help="The body, where FILE holds the headers alone.")
@secret_file_option
@click.option("--ignore-age", is_flag=True, help="Take a webhook-timestamp of any age.")
@output_option
def verify(file: str, body_file: str | None, secret_file: str | None, ignore_age: bool, output: Output) -> None:
    """Say which part of a signed request does not match.

    FILE holds the request as it was sent: header lines, an empty line, and the body to its last byte. The key may be a
    public one, whpk_…, for signatures of ed25519.

    The exit code is 0 where ingress would accept the signature now, and 3 where it would not.
    """
    from operations.signature_diagnosis import diagnose, read_request, read_verifying_key, require_good
    from operations.signing_keys import load_key_text
    from runtime.clock import SystemClock

    key_text = load_key_text(secret_file, os.environ)
    key = read_verifying_key(key_text)
    request = read_request(read_body(file), None if body_file is None else read_body(body_file))
    results = diagnose(key, key_text, request, None if ignore_age else SystemClock().now().timestamp())
    show([{"part": each.part, "result": each.result, "reason": each.reason} for each in results], output)
    require_good(results)
