"""A lease and an exchange with an engine become the answer to one request."""

from engine_router.relay.bodies import BrokenAnswer, Manner, blank_body, plain_body, waiting_body
from engine_router.relay.course import Course, Filter, Outgoing
from engine_router.relay.headers import AddedHeaders, as_json, as_streamed, request_headers, response_headers
from engine_router.relay.passage import Passage

__all__ = [
    "AddedHeaders",
    "BrokenAnswer",
    "Course",
    "Filter",
    "Manner",
    "Outgoing",
    "Passage",
    "as_json",
    "as_streamed",
    "blank_body",
    "plain_body",
    "request_headers",
    "response_headers",
    "waiting_body",
]
