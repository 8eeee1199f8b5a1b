"""Attention over a packed row of trees (packing.py), as a function that transformers' models call.

    token q sees token k   iff   k <= q < subtree_stop(k), and under a sliding window of W less than W positions back

cpu    each segment by itself, causal; then each segment with its subtree, all of it; merged by log-sum-exp:

           out = (1 - s) out_1 + s out_2      s = sigmoid(lse_2 - lse_1)      lse = log(exp(lse_1) + exp(lse_2))

       so that nothing is computed for tokens that do not see each other, and no [T, T] mask exists.
other  FlexAttention with the rule above as its block mask.

Importing this registers both by name; a model that was told to use one gets the row's `Layout` as a keyword argument.
W comes by the mask: all that transformers' own attention sees of a window is the mask, and some models name the window
nowhere else. So a model that asks transformers for a mask is given a `Window`, and hands it on to its layers.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from reward_server.engines.packing import PackedRow, Segment

SEGMENTS = "winnow_segments"
FLEX = "winnow_flex"

SHORT = 48
"""Tokens up to which segments are gathered into batches: there a call costs more than the copies."""

# Far below any score, and finite: a query that sees nothing here gets a weight of zero, not of NaN.
UNSEEN = -1e30


@dataclass
class Layout:
    """Where a row's segments lie, its tokens' positions [T], and what the layers share, made once for all."""

    segments: list[Segment]
    positions: Tensor
    short_segments: list[Tensor]
    """Token indices [segments, longest]: short segments of like length, filled up with their first token."""
    flex_masks: dict[tuple[int | None, torch.device], Any] = field(default_factory=dict)

    @classmethod
    def of(cls, row: PackedRow, device: torch.device) -> "Layout":
        """The layout of a row."""
        short = [one for one in row.segments if _length(one) <= SHORT]
        batches = [_batch(alike).to(device) for alike in _alike(short)]
        return cls(row.segments, torch.tensor(row.positions, device=device), batches)

    @property
    def long_segments(self) -> Iterable[Segment]:
        """Segments that are worth an attention call of their own."""
        return (one for one in self.segments if _length(one) > SHORT)

    @property
    def subtrees(self) -> Iterable[Segment]:
        """Segments that have descendants."""
        return (one for one in self.segments if one.subtree_stop > one.stop)


@dataclass(frozen=True)
class Window:
    """What stands in a mask's place; no tensor, so that nothing moves it to a device, or waits for one to read it."""

    size: int | None
    """Positions that a token sees, its own and those before it; None: all."""


def window_mask(*, local_size: int | None = None, use_vmap: bool = False, **others: Any) -> Window:
    """What a model gets that asks transformers for a mask; what the row adds to it is in its `Layout`.

    Raises NotImplementedError for masks that a model adds rules of its own to.
    """
    if use_vmap:
        raise NotImplementedError("attention with a mask of the model's own")
    return Window(local_size or None)


def implementation(device_type: str) -> str:
    """The name to give to `set_attn_implementation`."""
    return SEGMENTS if device_type == "cpu" else FLEX


def segments_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    layout: Layout,
    scaling: float,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention of a row, on a CPU: query [1, heads, T, d], key and value [1, kv heads, T, d] -> [1, T, heads, d].

    Raises NotImplementedError for what an architecture adds to plain attention.
    """
    _refuse_additions(others)
    window = _window(attention_mask)
    _, num_kv, num_tokens, size = key.shape
    # Query heads that share a key's head stand in a batch of their own, so that keys and values need no copies.
    queries = query[0].view(num_kv, -1, num_tokens, size).transpose(0, 1)
    attend = _SegmentsAttention(queries, key, value, layout.positions, scaling, window)
    for one in layout.long_segments:
        attend.within(one)
    for index in layout.short_segments:
        attend.within_short(index)
    for one in layout.subtrees:
        attend.from_subtree(one)
    return attend.out.transpose(0, 1).reshape(1, -1, num_tokens, size).transpose(1, 2), None


def flex_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    layout: Layout,
    scaling: float,
    **others: Any,
) -> tuple[Tensor, None]:
    """The same by FlexAttention: compiled on a GPU, which makes no [T, T] scores; plain elsewhere."""
    _refuse_additions(others)
    window = _window(attention_mask)
    mask_key = (window, query.device)
    if mask_key not in layout.flex_masks:
        layout.flex_masks[mask_key] = _flex_mask(layout, *mask_key)
    attend = _compiled_flex() if query.is_cuda else _flex()
    out = attend(query, key, value, block_mask=layout.flex_masks[mask_key], scale=scaling, enable_gqa=True)
    return out.transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(SEGMENTS, segments_attention)
ALL_ATTENTION_FUNCTIONS.register(FLEX, flex_attention)
for _name in (SEGMENTS, FLEX):
    ALL_MASK_ATTENTION_FUNCTIONS.register(_name, window_mask)


class _SegmentsAttention:
    """One layer's attention: query [repeats, kv heads, T, d], key and value [1, kv heads, T, d] -> `out`."""

    def __init__(
        self, query: Tensor, key: Tensor, value: Tensor, positions: Tensor, scaling: float, window: int | None
    ) -> None:
        self.states = (query, key.expand_as(query), value.expand_as(query))
        self.positions = positions
        self.scaling = scaling
        self.window = window
        self.out = query.new_empty(query.shape)
        self.lse = query.new_empty(query.shape[:3], dtype=torch.float32)

    def within(self, segment: Segment) -> None:
        """Causal attention within a segment."""
        own = slice(segment.start, segment.stop)
        self.out[:, :, own], self.lse[:, :, own] = self._causal(*(one[:, :, own] for one in self.states))

    def within_short(self, index: Tensor) -> None:
        """Causal attention within short segments, at `index` [segments, longest]."""
        num_segments = len(index)
        states = (one[:, :, index].movedim(2, 0).flatten(0, 1) for one in self.states)
        # The tokens that fill a segment up come after its own, so that causality hides them.
        out, lse = (one.view(num_segments, -1, *one.shape[1:]).movedim(0, 2) for one in self._causal(*states))
        is_own = index != index[:, :1]
        is_own[:, 0] = True
        self.out[:, :, index[is_own]] = out[:, :, is_own]
        self.lse[:, :, index[is_own]] = lse[:, :, is_own]

    def from_subtree(self, segment: Segment) -> None:
        """Attention from a segment's subtree to the segment, merged into `out`."""
        above, below = slice(segment.start, segment.stop), slice(segment.stop, segment.subtree_stop)
        query, key, value = self.states
        mask = None
        if self.window is not None and self.positions[below].max() - self.positions[segment.start] >= self.window:
            mask = self._window_mask(self.positions[below], self.positions[above], is_causal=False)
        out, lse = self._flash(query[:, :, below], key[:, :, above], value[:, :, above], is_causal=False, mask=mask)
        share = torch.sigmoid(lse - self.lse[:, :, below])
        self.out[:, :, below].lerp_(out, share[..., None].to(out.dtype))
        self.lse[:, :, below] = torch.logaddexp(self.lse[:, :, below], lse)

    def _causal(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        num_tokens = query.shape[2]
        if self.window is None or num_tokens <= self.window:
            return self._flash(query, key, value, is_causal=True, mask=None)
        steps = torch.arange(num_tokens)
        return self._flash(query, key, value, is_causal=False, mask=self._window_mask(steps, steps, is_causal=True))

    def _flash(
        self, query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What scaled_dot_product_attention calls on a CPU, with the scores' log-sum-exp [batch, heads, T] in fp32."""
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, is_causal, attn_mask=mask, scale=self.scaling
        )
        return out, lse

    def _window_mask(self, queries: Tensor, keys: Tensor, *, is_causal: bool) -> Tensor:
        """Added to scores: zero where a position sees another within the window, else UNSEEN; [queries, keys]."""
        assert self.window is not None
        distance = queries[:, None] - keys[None, :]
        is_unseen = distance >= self.window
        if is_causal:
            is_unseen |= distance < 0
        dtype = self.out.dtype
        return torch.zeros(is_unseen.shape, dtype=dtype).masked_fill_(is_unseen, max(UNSEEN, torch.finfo(dtype).min))


def _alike(segments: Iterable[Segment]) -> list[list[Segment]]:
    """Segments by length, those together that are at most twice as long as the shortest."""
    groups: list[list[Segment]] = []
    for one in sorted(segments, key=_length):
        if groups and _length(one) <= 2 * _length(groups[-1][0]):
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def _batch(segments: list[Segment]) -> Tensor:
    """Token indices of segments, [segments, longest], filled up with each one's first."""
    longest = max(map(_length, segments))
    starts = torch.tensor([[one.start] for one in segments])
    lengths = torch.tensor([[_length(one)] for one in segments])
    steps = torch.arange(longest)[None]
    return starts + torch.where(steps < lengths, steps, 0)


def _length(segment: Segment) -> int:
    return segment.stop - segment.start


def _window(attention_mask: Any) -> int | None:
    """The window of a layer. Raises NotImplementedError for a layer that did not get `window_mask`'s answer."""
    if not isinstance(attention_mask, Window):
        raise NotImplementedError("attention with a mask of the model's own")
    return attention_mask.size


def _refuse_additions(others: dict[str, Any]) -> None:
    """Raise NotImplementedError for keyword arguments that change what attention computes."""
    for name in ("softcap", "s_aux", "head_mask", "position_bias", "cache_position_bias"):
        if others.get(name) is not None:
            raise NotImplementedError(f"attention with {name}")


def _flex_mask(layout: Layout, window: int | None, device: torch.device) -> Any:
    """The block mask of a row."""
    from torch.nn.attention.flex_attention import create_block_mask

    positions = layout.positions.to(device)
    num_tokens = len(positions)
    stops = torch.zeros(num_tokens, dtype=torch.long)
    for one in layout.segments:
        stops[one.start : one.stop] = one.subtree_stop
    stops = stops.to(device)

    def is_seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (key <= query) & (query < stops[key])
        return seen if window is None else seen & (positions[query] - positions[key] < window)

    return create_block_mask(is_seen, None, None, num_tokens, num_tokens, device=str(device))


@cache
def _flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention as flex

    return flex


@cache
def _compiled_flex() -> Any:
    return torch.compile(_flex(), dynamic=True)
