"""MDS shards, local or in S3, as a source of images. Nothing is unpickled."""

from recipe.data.facts import DataError
from recipe.data.index import facts_at
from recipe.data.samples import MdsShards, ShardError
from recipe.preparation.sources.items import Item, ItemError, PreparationError, Raw, Source
from recipe.storage.places import Place

IMAGE_ENCODINGS = ("png", "jpeg", "pil", "bytes", "ndarray")
LABEL_ENCODINGS = ("int", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "str_int")


class MdsSource(Source):
    """The column of images and the column of labels, if there is one, of an MDS data set."""

    def __init__(self, place: Place):
        self.shards = MdsShards(place)
        if not len(self.shards):
            raise PreparationError(f"{place.address}: its index lists no samples; name another")
        image, label = self._column("image", IMAGE_ENCODINGS, place), self._column("label", LABEL_ENCODINGS, place)
        if image is None:
            columns = ", ".join(self.shards.shards[0]["column_names"])
            raise PreparationError(f"{place.address}: has no column of images, only {columns}; name another data set")
        self.image = image
        self.class_names = _class_names(place)
        self.items = []
        for index, (name, size) in enumerate(self.shards.names()):
            number = -1 if label is None else int(self.shards.sample(index, whole=True, only=[label])[label])
            if number < -1:
                raise PreparationError(f"{place.address}: {name} has the label {number}; ids count from 0, -1 = none")
            self.items.append(Item(name, size, number))

    def read(self, index: int) -> Raw:
        try:
            return self.shards.sample(index, whole=True, only=[self.image])[self.image]
        except ShardError as error:
            raise ItemError(str(error)) from None

    def _column(self, name: str, encodings: tuple[str, ...], place: Place) -> str | None:
        """The column of that name, or the only one of a fitting encoding."""
        shard = self.shards.shards[0]
        kinds = dict(zip(shard["column_names"], shard["column_encodings"], strict=True))
        fitting = [column for column, kind in kinds.items() if kind.split(":")[0] in encodings]
        if name in fitting:
            return name
        if name in kinds:
            raise PreparationError(
                f"{place.address}: its column {name} is of the kind {kinds[name]}, but has to be one of "
                f"{', '.join(encodings)}; write it anew"
            )
        if len(fitting) > 1:
            raise PreparationError(f"{place.address}: {', '.join(fitting)} may each be the {name}; call one {name}")
        return fitting[0] if fitting else None


def _class_names(place: Place) -> list[str] | None:
    try:
        facts = facts_at(place)
    except DataError:
        return None
    return None if facts is None or facts.class_names is None else list(facts.class_names)
