"""Tree attention over a packed sequence (packing.py), as functions that transformers' models call.

    token q sees token k   iff   k <= q < subtree_stop(segment of k),
                                 and, under a sliding window of W, k is less than W positions back

On a CPU, no [T, T] mask exists, and nothing is computed for tokens that do not see each other:

    1. Each segment attends to itself, causally: a token sees the tokens before it in its segment. Short segments of
       similar length are computed in one batch.
    2. The subtree below each segment attends to that segment. Every token there sees all of it, so that no mask is
       needed, unless the window is shorter.
    3. The result of step 2 is merged into the subtree's results so far, by a split-softmax merge as in FlashAttention
       and flash-decoding. Both results come with the log-sum-exp (lse) of their scores:

           share = exp(lse_2) / (exp(lse_1) + exp(lse_2)) = sigmoid(lse_2 - lse_1)
           out   = (1 - share) out_1 + share out_2
           lse   = log(exp(lse_1) + exp(lse_2))

In the worked example of packing.py, the token at index 10 attends in three calls: first to its own segment (index 10),
then to the prompt (indices 0 and 1), and then to the shared block (indices 2 to 9). Each later result is merged.

Worked example of a merge, for one query with values of one number. The scores within its segment are log 1 and log 3,
for the values 10 and 20; the score of a token further up is log 12, for the value 30:

    out_1 = (1 * 10 + 3 * 20) / 4 = 17.5      lse_1 = log 4
    out_2 = 30                                lse_2 = log 12
    share = 12 / (4 + 12) = 0.75
    out   = 0.25 * 17.5 + 0.75 * 30 = 26.875  lse = log 16

Softmax over all three scores at once gives the same: (1 * 10 + 3 * 20 + 12 * 30) / 16 = 26.875. The function `merge`
has this example as a doctest.

On other devices, FlexAttention computes the same result with the rule above as its block mask.

Importing this module registers both functions by name. The engine gives the `Layout` of the packed sequence to the
model as a keyword argument, and the model passes it to the function. The window size W is passed through the mask
argument, because some models expose it nowhere else: a model that asks transformers for a mask gets a `Window`, which
it hands to its layers.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from reward_server.engines.packing import PackedSequence, Segment

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

TREE = "winnow_tree"
FLEX = "winnow_flex"

# Below 128 tokens, PyTorch would take its decoding kernel. With grouped-query attention, that kernel has no
# configuration for more query heads * tokens than a block of the mask holds. The general kernel takes every length.
COMPILED_FLEX_OPTIONS = {"FORCE_USE_FLEX_ATTENTION": True}

MAX_SHORT_TOKENS = 48
"""Segments of up to this many tokens are computed in batches: for them, a call costs more than the copies."""

# Far below any score, and finite: a query that sees no token here gets a weight of zero, not of NaN.
UNSEEN = -1e30


@dataclass
class Layout:
    """The segments of a packed sequence and its tokens' positions [T]; all layers of a forward pass share it."""

    segments: list[Segment]
    positions: Tensor
    short_batches: list[Tensor]
    """Token indices [segments, longest]: short segments of similar length, filled up with their first token."""
    flex_masks: "dict[tuple[int | None, torch.device], BlockMask]" = field(default_factory=dict)
    """FlexAttention's block masks by window size and device, made when a layer first needs them."""

    @classmethod
    def of(cls, sequence: PackedSequence, device: torch.device) -> "Layout":
        """Return the layout of a packed sequence."""
        short_segments = [segment for segment in sequence.segments if _length(segment) <= MAX_SHORT_TOKENS]
        batches = [_token_indices(similar).to(device) for similar in _by_similar_length(short_segments)]
        return cls(sequence.segments, torch.tensor(sequence.positions, device=device), batches)

    @property
    def long_segments(self) -> Iterable[Segment]:
        """Segments that are worth an attention call of their own."""
        return (segment for segment in self.segments if _length(segment) > MAX_SHORT_TOKENS)

    @property
    def inner_segments(self) -> Iterable[Segment]:
        """Segments that have descendants."""
        return (segment for segment in self.segments if segment.subtree_stop > segment.stop)


@dataclass(frozen=True)
class Window:
    """A placeholder for the attention mask; not a tensor, so that no model moves it to a device or reads its values."""

    size: int | None
    """Number of positions that a token sees, its own and those before it; None: all."""


def window_placeholder(*, local_size: int | None = None, use_vmap: bool = False, **arguments: Any) -> Window:
    """Return a `Window` in place of the attention mask that transformers would build.

    Raises NotImplementedError for masks to which a model adds rules of its own.
    """
    if use_vmap:
        raise NotImplementedError("attention with a mask of the model's own")
    return Window(local_size or None)


def attention_name(device_type: str) -> str:
    """Return the name of the tree attention for a type of device, as `set_attn_implementation` takes it."""
    if device_type == "cpu":
        return TREE
    return FLEX


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    layout: Layout,
    scaling: float,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """Attend on a CPU: query [1, heads, T, d], key and value [1, kv heads, T, d] -> [1, T, heads, d].

    Raises NotImplementedError for an architecture that adds terms to plain attention.
    """
    _refuse_additions(arguments)
    window = _window_size(attention_mask)
    _, num_kv_heads, num_tokens, head_size = key.shape
    # Grouped-query attention: query heads that share a key head become a batch, so that keys and values need no copies.
    queries = query[0].view(num_kv_heads, -1, num_tokens, head_size).transpose(0, 1)
    attention = _TreeAttention(queries, key, value, layout.positions, scaling, window)
    for segment in layout.long_segments:
        attention.within(segment)
    for token_indices in layout.short_batches:
        attention.within_short(token_indices)
    for segment in layout.inner_segments:
        attention.from_subtree(segment)
    return attention.out.transpose(0, 1).reshape(1, -1, num_tokens, head_size).transpose(1, 2), None


def flex_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    layout: Layout,
    scaling: float,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """Attend by FlexAttention, shapes as in `tree_attention`: compiled on a GPU, without [T, T] scores."""
    _refuse_additions(arguments)
    window = _window_size(attention_mask)
    mask_key = (window, query.device)
    if mask_key not in layout.flex_masks:
        layout.flex_masks[mask_key] = _flex_mask(layout, window, query.device)
    attend = _flex()
    kernel_options = None
    if query.is_cuda:
        attend = _compiled_flex()
        kernel_options = COMPILED_FLEX_OPTIONS
    out = attend(
        query,
        key,
        value,
        block_mask=layout.flex_masks[mask_key],
        scale=scaling,
        enable_gqa=True,
        kernel_options=kernel_options,
    )
    return out.transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(TREE, tree_attention)
ALL_ATTENTION_FUNCTIONS.register(FLEX, flex_attention)
for _name in (TREE, FLEX):
    ALL_MASK_ATTENTION_FUNCTIONS.register(_name, window_placeholder)


def merge(out: Tensor, lse: Tensor, out_2: Tensor, lse_2: Tensor) -> None:
    """Merge a partial attention result into another, in place: out [..., d], log-sum-exp of the scores [...].

    >>> out, lse = torch.tensor([[17.5]]), torch.tensor([4.0]).log()
    >>> merge(out, lse, torch.tensor([[30.0]]), torch.tensor([12.0]).log())
    >>> out, lse.exp()
    (tensor([[26.8750]]), tensor([16.]))
    """
    share = torch.sigmoid(lse_2 - lse)
    out.lerp_(out_2, share[..., None].to(out_2.dtype))
    lse.copy_(torch.logaddexp(lse, lse_2))


class _TreeAttention:
    """One layer's attention: query [repeats, kv heads, T, d], key and value [1, kv heads, T, d] -> `out`."""

    def __init__(
        self, query: Tensor, key: Tensor, value: Tensor, positions: Tensor, scaling: float, window: int | None
    ) -> None:
        self.query = query
        self.key = key.expand_as(query)
        self.value = value.expand_as(query)
        self.positions = positions
        self.scaling = scaling
        self.window = window
        self.out = query.new_empty(query.shape)
        self.lse = query.new_empty(query.shape[:3], dtype=torch.float32)

    def within(self, segment: Segment) -> None:
        """Compute step 1 for a segment: causal attention within it."""
        tokens = slice(segment.start, segment.stop)
        out, lse = self._causal(self.query[:, :, tokens], self.key[:, :, tokens], self.value[:, :, tokens])
        self.out[:, :, tokens] = out
        self.lse[:, :, tokens] = lse

    def within_short(self, token_indices: Tensor) -> None:
        """Compute step 1 for short segments in one batch: their tokens lie at `token_indices` [segments, longest]."""
        num_segments = len(token_indices)

        # [repeats, kv heads, segments, longest, d] -> [segments * repeats, kv heads, longest, d]
        def batch(states: Tensor) -> Tensor:
            return states[:, :, token_indices].movedim(2, 0).flatten(0, 1)

        # The tokens that fill a segment up come after its real tokens, so that causality hides them.
        batched_out, batched_lse = self._causal(batch(self.query), batch(self.key), batch(self.value))
        out = batched_out.view(num_segments, -1, *batched_out.shape[1:]).movedim(0, 2)
        lse = batched_lse.view(num_segments, -1, *batched_lse.shape[1:]).movedim(0, 2)
        # A filled-up place repeats the segment's first token.
        is_real = token_indices != token_indices[:, :1]
        is_real[:, 0] = True
        self.out[:, :, token_indices[is_real]] = out[:, :, is_real]
        self.lse[:, :, token_indices[is_real]] = lse[:, :, is_real]

    def from_subtree(self, segment: Segment) -> None:
        """Compute steps 2 and 3: attention from the subtree below a segment to the segment, merged into `out`."""
        above = slice(segment.start, segment.stop)
        below = slice(segment.stop, segment.subtree_stop)
        mask = None
        if self.window is not None and self.positions[below].max() - self.positions[segment.start] >= self.window:
            mask = self._window_mask(self.positions[below], self.positions[above], is_causal=False)
        out, lse = self._flash(
            self.query[:, :, below], self.key[:, :, above], self.value[:, :, above], is_causal=False, mask=mask
        )
        merge(self.out[:, :, below], self.lse[:, :, below], out, lse)

    def _causal(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        num_tokens = query.shape[2]
        if self.window is None or num_tokens <= self.window:
            return self._flash(query, key, value, is_causal=True, mask=None)
        steps = torch.arange(num_tokens)
        return self._flash(query, key, value, is_causal=False, mask=self._window_mask(steps, steps, is_causal=True))

    def _flash(
        self, query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Call the CPU kernel of scaled_dot_product_attention, which also returns the lse [batch, heads, T] in fp32."""
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, is_causal, attn_mask=mask, scale=self.scaling
        )
        return out, lse

    def _window_mask(self, queries: Tensor, keys: Tensor, *, is_causal: bool) -> Tensor:
        """Return the mask that is added to scores, [queries, keys]: zero where a query sees a key, else UNSEEN."""
        assert self.window is not None
        distance = queries[:, None] - keys[None, :]
        is_unseen = distance >= self.window
        if is_causal:
            is_unseen |= distance < 0
        dtype = self.out.dtype
        return torch.zeros(is_unseen.shape, dtype=dtype).masked_fill_(is_unseen, max(UNSEEN, torch.finfo(dtype).min))


def _by_similar_length(segments: Iterable[Segment]) -> list[list[Segment]]:
    """Collect segments into lists whose longest segment is at most twice as long as the shortest."""
    batches: list[list[Segment]] = []
    for segment in sorted(segments, key=_length):
        if batches and _length(segment) <= 2 * _length(batches[-1][0]):
            batches[-1].append(segment)
        else:
            batches.append([segment])
    return batches


def _token_indices(segments: list[Segment]) -> Tensor:
    """Return the token indices of segments, [segments, longest], each filled up with its first index.

    >>> _token_indices([Segment(2, 4, 4), Segment(7, 10, 10)])
    tensor([[2, 3, 2],
            [7, 8, 9]])
    """
    longest = max(map(_length, segments))
    starts = torch.tensor([[segment.start] for segment in segments])
    lengths = torch.tensor([[_length(segment)] for segment in segments])
    steps = torch.arange(longest)[None]
    return starts + torch.where(steps < lengths, steps, 0)


def _length(segment: Segment) -> int:
    return segment.stop - segment.start


def _window_size(attention_mask: Any) -> int | None:
    """Return the window size of a layer. Raises NotImplementedError for a layer whose mask is not a `Window`."""
    if not isinstance(attention_mask, Window):
        raise NotImplementedError("attention with a mask of the model's own")
    return attention_mask.size


def _refuse_additions(arguments: dict[str, Any]) -> None:
    """Raise NotImplementedError for keyword arguments that change what attention computes."""
    for name in ("softcap", "s_aux", "head_mask", "position_bias", "cache_position_bias"):
        if arguments.get(name) is not None:
            raise NotImplementedError(f"attention with {name}")


def _flex_mask(layout: Layout, window: int | None, device: torch.device) -> "BlockMask":
    """Return the block mask of a packed sequence."""
    from torch.nn.attention.flex_attention import create_block_mask

    positions = layout.positions.to(device)
    num_tokens = len(positions)
    subtree_stops = torch.zeros(num_tokens, dtype=torch.long)
    for segment in layout.segments:
        subtree_stops[segment.start : segment.stop] = segment.subtree_stop
    subtree_stops = subtree_stops.to(device)

    def is_seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        is_in_subtree = (key <= query) & (query < subtree_stops[key])
        if window is None:
            return is_in_subtree
        return is_in_subtree & (positions[query] - positions[key] < window)

    return create_block_mask(is_seen, None, None, num_tokens, num_tokens, device=str(device))


@cache
def _flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention as flex

    return flex


@cache
def _compiled_flex() -> Any:
    return torch.compile(_flex(), dynamic=True)
