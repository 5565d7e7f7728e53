"""Adapters of many languages in one forward pass: each token is computed with its own row's adapter, or with none.

The low-rank matrices of the adapters in use are stacked, and a step multiplies with all of them at once where it has
few tokens (what belongs to another adapter is masked out between A and B, at the rank's width), or adapter by adapter
where it has many. S-LoRA (Sheng et al. 2023, arXiv 2311.03285) and Punica (Chen et al. 2023, arXiv 2310.18547) do the
same with GPU kernels. The result is PEFT's, for each adapter alone.

Shape letters: T tokens of the pass, P places of the stack, R the largest rank, G layers that read the same input.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from kauli.models.adapters.delta import LinearDelta
from kauli.models.adapters.linear import read_deltas

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of one parent that read the same input: their A are multiplied at once."""
VECTORS = ("scale", "input_scale", "bias")
"""The parts of a delta that are no matrices."""
_SKINNY = range(3, 57)  # tokens; measured on MKL, where a product with so few is 1.2 to 2.7 times as fast transposed
_DENSE_TOKENS = 64  # tokens x adapters whose masked product costs as much as one more pair of calls (measured)


@dataclass(frozen=True)
class AdapterRun:
    """Tokens `start` to `end` belong to the adapter in `place`."""

    start: int
    end: int
    place: int


@dataclass
class Selection:
    """Which adapter each token of the next pass has; shared by all layers that compute the same tokens."""

    runs: tuple[AdapterRun, ...] = ()
    """Tokens with an adapter; empty: all are the base's."""
    together: int = 0
    """The number of first tokens that are computed with all their adapters at once; later runs follow one by one."""
    low: int = 0
    high: int = 0
    """The places of those adapters: from `low` to below `high`."""
    even: bool = False
    """Whether each of those places has the same number of these tokens, in the order of the places."""
    mask: Tensor | None = None
    """Where they are uneven, (together, high - low, 1): 1 where a token belongs to the place."""
    rows: Tensor | None = None
    """(T,): each token's place, P for the base's; for the scales and biases."""
    places: frozenset[int] = frozenset()


class Group:
    """The stacked terms of sibling layers, and their common product with A."""

    def __init__(self, layers: "list[AdaptedLinear]", places: int, device: torch.device, dtype: torch.dtype) -> None:
        self.layers, self.places = layers, places
        self.selection = layers[0].selection
        self.filled: set[int] = set()
        """The places whose adapter has terms here."""
        self.active = False
        """Whether a token of the selection has such an adapter."""
        # Transposed: a product of few tokens reads it once, from end to end, in up to half the time.
        self.A = torch.zeros(places, layers[0].in_features, len(layers), 0, device=device, dtype=dtype)
        self._last_input: Tensor | None = None
        self._first: tuple[Tensor, ...] = ()
        self._later: list[tuple[Tensor, ...]] = []
        for index, layer in enumerate(layers):
            layer.group, layer.index = self, index
            layer.B = torch.zeros(places, 0, layer.out_features, device=device, dtype=dtype)
        self.prepare()

    @property
    def rank(self) -> int:
        """R: the rank that a place holds."""
        return self.A.shape[3]

    def widen(self, rank: int) -> None:
        """Make room for adapters of a higher rank; what the places hold is lost."""
        for place in list(self.filled):
            self.clear(place)
        self.A = self.A.new_zeros(*self.A.shape[:3], rank)
        for layer in self.layers:
            layer.B = layer.B.new_zeros(self.places, rank, layer.out_features)
        self.prepare()

    def prepare(self) -> None:
        """Cut out of the stacks what the selection needs: views, made once for many passes."""
        selection = self.selection
        low, high = selection.low, selection.high
        later = [run for run in selection.runs if run.start >= selection.together]
        A = self.A.flatten(2)  # (P, in, G x R)
        self._A = A[low:high]
        self._run_A = [(run.start, run.end, A[run.place]) for run in later]
        for layer in self.layers:
            B = layer.B[low:high]
            layer.first_B = B if selection.even else B.view(-1, layer.out_features)
            layer.run_B = [(run.start, run.end, layer.B[run.place]) for run in later]

    def fill(self, place: int, terms: Sequence[LinearDelta | None]) -> None:
        """Put an adapter's terms, one for each layer, into a place."""
        self.clear(place)
        for layer, term in zip(self.layers, terms, strict=True):
            if term is not None:
                self.filled.add(place)
                rank = len(term.A)
                self.A[place, :, layer.index, :rank] = term.A.t()
                layer.B[place, :rank] = term.B.t()
                for name in VECTORS:
                    layer.set_vector(name, place, getattr(term, name))

    def clear(self, place: int) -> None:
        """Empty a place."""
        if place in self.filled:
            self.filled.discard(place)
            self.A[place] = 0
            for layer in self.layers:
                layer.B[place] = 0
                for name in VECTORS:
                    layer.set_vector(name, place, None)

    def multiply(self, input: Tensor) -> None:
        """A x for all layers, unless the input is the one that a sibling has just had; they take it from `add`."""
        if self._last_input is input:
            return
        selection, R = self.selection, self.rank
        x = input.reshape(-1, self.A.shape[1])
        x = x if x.dtype is self.A.dtype else x.to(self.A.dtype)
        if selection.together:
            first, places = x[: selection.together], len(self._A)
            if selection.even:  # (places, tokens each, R)
                product = torch.bmm(first.view(places, -1, x.shape[1]), self._A)
                self._first = torch.split(product, R, dim=2)
            else:  # (together, places x R), masked
                assert selection.mask is not None
                product = torch.bmm(first.expand(places, -1, -1), self._A).view(places, len(first), -1, R)
                masked = product.new_empty(len(self.layers), len(first), places, R)
                torch.mul(product.permute(2, 1, 0, 3), selection.mask, out=masked)
                self._first = masked.flatten(2).unbind()
        self._later = [torch.split(torch.mm(x[start:end], A), R, dim=1) for start, end, A in self._run_A]
        self._last_input = input

    def add(self, layer: "AdaptedLinear", y: Tensor) -> Tensor:
        """y + B A x, (T, out); y is overwritten."""
        selection = self.selection
        if selection.even:
            y = y.contiguous()  # in columns a batched product is twice as slow
            first = y[: selection.together].view(len(layer.first_B), -1, y.shape[1])
            first.baddbmm_(self._first[layer.index], layer.first_B)
        elif selection.together:
            y[: selection.together].addmm_(self._first[layer.index], layer.first_B)
        for (start, end, B), products in zip(layer.run_B, self._later, strict=True):
            y[start:end].addmm_(products[layer.index], B)
        return y

    def rest(self) -> None:
        """Add nothing any more, and let go of the last input."""
        self.active = False
        self._last_input, self._first, self._later = None, (), []


class AdaptedLinear(nn.Linear):
    """A linear layer of the base (the same weight, not a copy) that adds each token's adapter."""

    first_B: Tensor
    run_B: list[tuple[int, int, Tensor]]

    def __init__(self, linear: nn.Linear, selection: Selection, split: bool) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.training = linear.training
        self.selection = selection
        self.split = split  # whether the output is cut into heads
        self.group: Group | None = None
        self.index = 0  # among the group's layers
        self.B = linear.weight.new_zeros(0)  # (P, R, out), transposed
        self.vectors: dict[str, Tensor] = {}  # name -> (P + 1, features), the last row changes nothing

    def set_vector(self, name: str, place: int, vector: Tensor | None) -> None:
        """Set or clear one of `VECTORS` of a place."""
        neutral = 0.0 if name == "bias" else 1.0
        if vector is not None and name not in self.vectors:
            width = self.in_features if name == "input_scale" else self.out_features
            with torch.inference_mode(False):  # else it could be changed inside a pass only
                self.vectors[name] = self.B.new_full((len(self.B) + 1, width), neutral)
        if name in self.vectors:
            self.vectors[name][place] = neutral if vector is None else vector

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        adapted = self.group is not None and self.group.active
        x = input.reshape(-1, self.in_features)
        if adapted and "input_scale" in self.vectors:
            x = (x * self.vectors["input_scale"][self.selection.rows]).to(x.dtype)
        y = _linear(x, self.weight, self.bias)
        if adapted:
            y = self._adapted(y, input)
        if adapted and "bias" in self.vectors:
            y = y + self.vectors["bias"][self.selection.rows]
        if self.split:  # elsewhere it costs more than it saves to put each token's numbers side by side
            y = y.contiguous()
        y = y if y.dtype is input.dtype else y.to(input.dtype)
        return y.view(*input.shape[:-1], self.out_features)

    def _adapted(self, y: Tensor, input: Tensor) -> Tensor:
        """s * (y + B A x), y (T, out) with the base's bias."""
        group = self.group
        assert group is not None
        y = y if y.dtype is self.B.dtype else y.to(self.B.dtype)
        if group.rank:
            group.multiply(input)
            y = group.add(self, y)
        return y * self.vectors["scale"][self.selection.rows] if "scale" in self.vectors else y


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `functional.linear` of x (T, in), but laid out column by column where T is small and that is faster."""
    if len(x) not in _SKINNY or x.device.type != "cpu" or torch.is_grad_enabled():
        return functional.linear(x, weight, bias)
    y = torch.mm(weight, x.t()).t()
    return y if bias is None else y + bias


Segment = tuple[str | None, int]
"""An adapter's key (None: the base alone) and how many tokens in a row it has."""


class LoraBatch:
    """The adapters of one model. Its linear layers are exchanged for `AdaptedLinear`, which share their weights.

    `places` is how many adapters one pass can mix. Not for several threads at once.
    """

    def __init__(self, model: nn.Module, places: int, wanted: Callable[[str], bool] = lambda name: True) -> None:
        """`wanted` tells by a layer's name whether it computes the tokens of the passes: a model whose parts compute
        different tokens, as an encoder and its decoder do, has a `LoraBatch` for each.
        """
        self.places = places
        self._body, self._head = Selection(), Selection()
        head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None  # type: ignore[no-untyped-call]
        self._layers: dict[str, AdaptedLinear] = {}
        for name, module in list(model.named_modules()):
            if type(module) is nn.Linear and wanted(name):
                split = name.rpartition(".")[2] in SIBLINGS[0]
                layer = AdaptedLinear(module, self._head if module is head else self._body, split)
                model.set_submodule(name, layer)
                self._layers[name] = layer
        weight = next(model.parameters())
        self._device, half = weight.device, weight.dtype in (torch.float16, torch.bfloat16)
        self._dtype = torch.float32 if half else weight.dtype
        self._terms: dict[str, dict[str, LinearDelta]] = {}
        self._groups: dict[tuple[str, ...], Group] = {}
        self._place: dict[str, int] = {}  # of the keys that are in the stack
        self._state: tuple[object, ...] = ()
        self._active: list[Group] = []

    def __contains__(self, key: str) -> bool:
        return key in self._terms

    def keys(self) -> list[str]:
        """The keys of the adapters that are loaded."""
        return list(self._terms)

    def read(self, folder: Path) -> dict[str, LinearDelta]:
        """An adapter folder's terms; may run beside a pass, in another thread. Raises KauliError: see `read_deltas`."""
        return read_deltas(folder, self.layers, self._dtype)

    @property
    def layers(self) -> dict[str, nn.Linear]:
        """The layers that adapters may change, by name."""
        return dict(self._layers)

    def add(self, key: str, terms: dict[str, LinearDelta]) -> None:
        """Take what `read` gave under a key."""
        if key in self._terms:
            raise ValueError(f"adapter {key!r} is loaded already")
        self._terms[key] = terms
        self._state = ()
        for names in {self._siblings(name) for name in terms}:
            if names not in self._groups:
                layers = [self._layers[name] for name in names]
                self._groups[names] = Group(layers, self.places, self._device, self._dtype)
            rank = max(len(terms[name].A) for name in names if name in terms)
            if rank > self._groups[names].rank:
                self._groups[names].widen(rank)
                for placed in self._place:
                    self._fill(names, placed)

    def remove(self, key: str) -> None:
        """Forget an adapter; no pass with it may still be running."""
        del self._terms[key]
        self._state = ()
        place = self._place.pop(key, None)
        if place is not None:
            for group in self._groups.values():
                group.clear(place)

    def arrange(self, keys: Sequence[str]) -> dict[str, int]:
        """Give every key a place, close together; returns all places that are taken.

        A pass is fastest if its first tokens are in the order of these places. An adapter keeps its place until the
        place is needed.
        """
        if len(keys) > self.places:
            raise ValueError(f"{len(keys)} adapters in one pass, and {self.places} places")
        span = [self._place[key] for key in keys if key in self._place]
        spread = bool(span) and max(span) - min(span) >= 2 * len(keys)  # an empty place between costs as much as a used
        wanted = [key for key in keys if spread or key not in self._place]
        taken = {self._place[key] for key in keys if key in self._place and key not in wanted}
        for key, place in zip(wanted, (place for place in range(self.places) if place not in taken), strict=False):
            self._place = {other: at for other, at in self._place.items() if at != place and other != key}
            self._place[key] = place
            self._state = ()
        for names in self._groups:
            for key in wanted:
                self._fill(names, key)
        return self._place

    @contextmanager
    def apply(
        self, segments: Sequence[Segment], together: int = 0, kept: Sequence[Segment] | None = None
    ) -> Iterator[None]:
        """Passes in this context compute their tokens, in order, with the adapters of `segments`.

        The first `together` tokens, a few of each adapter, may be computed with all their adapters at once. `kept` are
        the tokens that reach the output layer, by default all.
        """
        state = (*segments, together, *(kept or ()))
        if state != self._state:
            self.arrange(list(dict.fromkeys(key for key, _ in segments if key is not None)))
            self._select(self._body, segments, together)
            self._select(self._head, segments if kept is None else kept, together)
            self._active = [g for g in self._groups.values() if not g.filled.isdisjoint(g.selection.places)]
            for group in self._active:
                group.prepare()
            self._state = state
        for group in self._active:
            group.active = True
        try:
            yield
        finally:
            for group in self._active:
                group.rest()

    def _fill(self, names: tuple[str, ...], key: str) -> None:
        terms = self._terms[key]
        self._groups[names].fill(self._place[key], [terms.get(name) for name in names])

    def _select(self, selection: Selection, segments: Sequence[Segment], together: int) -> None:
        runs: list[AdapterRun] = []
        start = 0
        for key, count in segments:
            place = self._place[key] if key is not None else None
            straddles = bool(runs) and runs[-1].end == together
            if place is not None and runs and runs[-1].place == place and runs[-1].end == start and not straddles:
                runs[-1] = AdapterRun(runs[-1].start, start + count, place)
            elif place is not None:
                runs.append(AdapterRun(start, start + count, place))
            start += count
        first = [run for run in runs if run.end <= together]
        # The tokens of no adapter behind the last are left out.
        together = max((run.end for run in first), default=0)
        places = sorted({run.place for run in first})
        selection.runs, selection.places = tuple(runs), frozenset(run.place for run in runs)
        selection.together, selection.even, selection.mask, selection.rows = 0, False, None, None
        if len(places) > 1:
            low, high = places[0], places[-1] + 1
            even = places == [run.place for run in first] == list(range(low, high)) and (
                {(run.end - run.start) * len(places) for run in first} == {together}
            )
            if even or together * (len(places) - 1) <= _DENSE_TOKENS * len(first):
                selection.low, selection.high, selection.together, selection.even = low, high, together, even
            if selection.together and not selection.even:
                mask = torch.zeros(together, high - low, 1, dtype=self._dtype)
                for run in first:
                    mask[run.start : run.end, run.place - low] = 1
                selection.mask = mask.to(self._device)
        if any(layer.vectors for layer in self._layers.values()):
            rows = torch.full((start,), self.places)
            for run in runs:
                rows[run.start : run.end] = run.place
            selection.rows = rows.to(self._device)

    def _siblings(self, name: str) -> tuple[str, ...]:
        """The names of the layers that read the same input as this one, itself among them."""
        parent, _, last = name.rpartition(".")
        for family in SIBLINGS:
            if last in family:
                names = tuple(f"{parent}.{sibling}" for sibling in family)
                return tuple(sibling for sibling in names if sibling in self._layers)
        return (name,)
