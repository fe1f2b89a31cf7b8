"""`/admin/doctor`: what `engine-router doctor` finds, asked of a program of its own."""

from __future__ import annotations

import json
import os
import sys
from typing import Final

import trio
from quart import Response
from quart_trio import QuartTrio

from engine_router.config import own_url
from engine_router.errors import DoctorFailed, NoSuchRoute
from engine_router.guards.commands import run_command
from engine_router.router import Router
from engine_router.web.responses import json_response

DOCTOR_TIMEOUT_S: Final = 30.0


class DoctorRoutes:
    """The route of the doctor. One looks at a time: it reads every gauge, and asks every program."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._one_at_a_time = trio.CapacityLimiter(1)

    async def doctor(self) -> Response:
        """`GET /admin/doctor`: what works on this machine and what does not. It ends when its client leaves.

        Raises:
            NoSuchRoute: the router was not started from a file.
            DoctorFailed: it found nothing within half a minute, or ended without an answer.
        """
        config_file = self._router.config_file
        if config_file is None or not self._router.can_reload:
            raise NoSuchRoute(
                "the doctor looks at a configuration file, and this router was not started from one"
            )
        options = ["--json", "--config", str(config_file), "--url", own_url(self._router.config.server)]
        argv = [sys.executable, "-m", "engine_router", "doctor", *options]
        with trio.move_on_after(DOCTOR_TIMEOUT_S) as scope:
            async with self._one_at_a_time:
                result = await run_command(
                    argv, timeout_s=DOCTOR_TIMEOUT_S, environment=os.environ, own_session=True
                )
        if scope.cancelled_caught:
            raise DoctorFailed(f"the doctor found nothing within {DOCTOR_TIMEOUT_S:g} s")
        try:
            return json_response(json.loads(result.output))
        except ValueError:
            raise DoctorFailed(f"the doctor ended without an answer: {result.complaint}") from None


def add_doctor(app: QuartTrio, router: Router) -> None:
    """Add the route."""
    app.add_url_rule("/admin/doctor", "doctor", DoctorRoutes(router).doctor, methods=["GET"])
