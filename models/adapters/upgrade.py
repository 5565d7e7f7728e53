"""Cards of schema 1, and the recipe keys of their time, in today's form. Cards on disk are read so, never rewritten."""

from collections.abc import Mapping
from typing import Any

NO_REPEAT = 6
"""Length of token runs that may not occur twice in an answer of an adapter that was trained before cards said it."""

RENAMED: dict[str, str] = {
    "fusion": "describe",
    "fusion.inner": "describe.hidden_dim",
    "fusion.alone": "describe.connector_warmup",
    "fusion.hearing": "describe.audio",
    "fusion.hearing.inner": "describe.audio.hidden_dim",
    "fusion.hearing.unseen": "describe.audio.drop_image_prob",
    "fusion.hearing.unheard": "describe.audio.drop_audio_prob",
    "fusion.hearing.fastest": "describe.audio.max_chars_per_second",
    "pairs": "align",
    "pairs.start": "align.init",
    "pairs.smoothing": "align.label_smoothing",
    "speech": "transcribe",
    "speech.related": "transcribe.init_from_languages",
    "speech.fastest": "transcribe.max_chars_per_second",
    "speech.joined": "transcribe.concat_prob",
    "train.repeat": "train.source_weights",
    "prompt": "describe.prompt",
}
"""Old dotted recipe key -> today's; other keys kept their names."""
_ADDED = ("fusion", "pairs", "speech", "prompt")
"""Keys that every old recipe had, as null where its task had no use for them."""


def rename_keys(recipe: Mapping[str, Any], names: Mapping[str, str] = RENAMED) -> dict[str, Any]:
    """A recipe as a dictionary with its keys renamed, sections included; with `names` inverted, the other way."""
    out: dict[str, Any] = {}

    def put(content: Mapping[str, Any], old: str, new: str) -> None:
        for key, value in content.items():
            before = f"{old}.{key}" if old else key
            after = names.get(before, f"{new}.{key}" if new else key)
            if isinstance(value, Mapping) and any(name.startswith(f"{before}.") for name in names):
                put(value, before, after)
                continue
            *sections, last = after.split(".")
            target = out
            for section in sections:
                target = target.setdefault(section, {})
            target[last] = value

    put(recipe, "", "")
    return out


def upgrade_card(card: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a card.json of any schema as one of today's schema 2; what is neither is returned as it is."""
    new = dict(card)
    if card.get("training") and "decoding" not in card:  # trained before its answers were measured
        new["decoding"] = {"no_repeat": NO_REPEAT}
    if card.get("schema") != 1:
        return new
    new["schema"] = 2
    kind = _section(card, "method").get("kind")
    if isinstance(card.get("validation"), dict):
        metric = {"projection": "one_minus_mrr", "head": "one_minus_macro_f1"}.get(str(kind), "bits_per_byte")
        new["validation"] = {**card["validation"], "metric": metric}
    recipe = card.get("recipe")
    if not isinstance(recipe, dict):
        return new
    kept = {key: value for key, value in recipe.items() if key not in _ADDED or value is not None}
    renamed = new["recipe"] = rename_keys(kept)
    describe, transcribe = _section(renamed, "describe"), _section(renamed, "transcribe")
    audio, related = _section(describe, "audio"), _section(transcribe, "init_from_languages")
    encoders = {"image": describe.get("encoder"), "audio": audio.get("encoder")}
    new["encoders"] = {media: {"base": base} for media, base in encoders.items() if base is not None}
    new["prompt"] = {"instruction": describe.get("prompt")}
    new["evaluation"] = {
        "max_chars_per_second": audio.get("max_chars_per_second", transcribe.get("max_chars_per_second")),
        "base_languages": {tag: names[0] for tag, names in related.items() if names},
    }
    return new


def _section(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A section of a card or a recipe; empty where it is missing or, in a damaged card, no section."""
    found = content.get(key)
    return found if isinstance(found, Mapping) else {}
