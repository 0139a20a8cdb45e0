"""A base model that has been found and looked at once, so that nobody after it asks again what it is."""

from dataclasses import dataclass

from selfnpo_core.models.sources import KnownModel, Source


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Of the network that a family's presets are for, and of a base of that family: numbers of hidden channels."""

    family: int
    base: int


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

    @property
    def distilled(self) -> bool:
        """Whether it is known to be made to run without guidance, so that no negative branch runs."""
        return self.known is not None and self.known.distilled

    @property
    def widths(self) -> Widths | None:
        """`None` where no configuration is known, and of the shipped model, which has presets of its own."""
        return None
