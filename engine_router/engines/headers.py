"""The headers of one engine as the configuration in force has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from attrs import define

from engine_router.config.values import HeaderValue


@define(eq=False)
class HeadersInForce(Mapping[str, HeaderValue]):
    """Headers that a reload may exchange under an engine that goes on.

    Keys are renewed while models stay loaded: whatever is asked of the engine from then on has the new one.

    Attributes:
        headers: what is sent now; may be replaced.
    """

    headers: Mapping[str, HeaderValue]

    def __getitem__(self, name: str) -> HeaderValue:
        return self.headers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.headers)

    def __len__(self) -> int:
        return len(self.headers)

    def __repr__(self) -> str:
        return f"<{len(self.headers)} headers>"  # they are secret
