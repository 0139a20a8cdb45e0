"""A base model that has been found and looked at once, so that nobody after it asks again what it is."""

from dataclasses import dataclass

from selfnpo_core.models.sources import KnownModel, Source


@dataclass(frozen=True, kw_only=True)
class Base:
    """Where a base model comes from and what it turned out to be. A family's own kind of base says more.

    family: "sd15", … known: its line in the table of known models, `None` for any other model.
    """

    source: Source
    family: str
    known: KnownModel | None = None

    @property
    def name(self) -> str:
        """As its user called it."""
        return self.source.name

    @property
    def shipped(self) -> bool:
        """Whether it is the demo's model, of whose world everything is known."""
        return self.known is not None and self.known.hub_id is None
