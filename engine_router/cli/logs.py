"""`engine-router logs`."""

from __future__ import annotations

import argparse
import codecs
import http.client
import sys
from urllib.parse import urlencode

from engine_router.cli.address import locate
from engine_router.cli.client import ANSWER_TIMEOUT_S, Call, get_status
from engine_router.cli.exit_codes import INTERRUPTED, CommandFailed
from engine_router.cli.terminal import say

PIECE_BYTES = 65536


def run(options: argparse.Namespace) -> int:
    """Show what an engine, a model or the router itself wrote; raises as `Call.answer`. Ctrl-C and the router's own end are ordinary ends."""
    address = locate(options)
    query = {"lines": options.lines, **({"follow": 1} if options.follow else {})}
    if options.name is None:
        query["router"] = 1
    else:
        query["engine" if options.name in get_status(address)["engines"] else "model"] = options.name
    timeout_s = None if options.follow else ANSWER_TIMEOUT_S
    text = codecs.getincrementaldecoder("utf-8")("replace")  # a piece may end within a character
    call = Call(address, "GET", f"/admin/logs?{urlencode(query)}", None, timeout_s)
    try:
        with call.answer() as answer:
            while piece := answer.read1(PIECE_BYTES):
                say(text.decode(piece), to=sys.stdout, end="")
    except BrokenPipeError:  # whoever read our output has gone
        raise
    except (http.client.HTTPException, ConnectionError, TimeoutError):
        if not options.follow:
            raise CommandFailed(f"the connection to {address.url} broke off") from None
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        call.close()
    return 0
