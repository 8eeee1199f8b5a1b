"""What every config section is made of: a frozen model without unknown keys, and the kinds of its values."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
# At most eleven days: in milliseconds it still is a number that gRPC takes.
Seconds = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class Section(BaseModel):
    """A part of a config: immutable, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
